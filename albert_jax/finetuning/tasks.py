"""The fine-tuning tasks.  To add a task, add an entry here and a recipe in experiments/finetune/."""

from albert_jax.finetuning.classification import Classification, ClassificationData
from albert_jax.finetuning.family import Family
from albert_jax.finetuning.files import TaskDataConfig
from albert_jax.finetuning.multi_label import MultiLabel, MultiLabelData
from albert_jax.finetuning.multiple_choice import MultipleChoice, MultipleChoiceData
from albert_jax.finetuning.question_answering import QuestionAnswering, QuestionAnsweringData
from albert_jax.finetuning.token_classification import TokenClassification, TokenClassificationData

FAMILIES: dict[str, type[TaskDataConfig]] = {
    "classification": ClassificationData,
    "multi_label": MultiLabelData,
    "question_answering": QuestionAnsweringData,
    "multiple_choice": MultipleChoiceData,
    "token_classification": TokenClassificationData,
}
"""Family -> its data settings."""

_ENTAILMENT = {"entailment": "entailment", "not_entailment": "not_entailment"}

TASKS: dict[str, Family] = {
    # GLUE: the column names of its .tsv files, then those of TFDS and Hugging Face.
    "cola": Classification(
        text=("sentence",),
        classes={"0": "unacceptable", "1": "acceptable"},
        metrics=("matthews", "accuracy"),
        select="matthews",
        header=("source", "label", "star", "sentence"),
        server={"test": "CoLA.tsv"},
    ),
    "sst2": Classification(
        text=("sentence",), classes={"0": "negative", "1": "positive"}, server={"test": "SST-2.tsv"}
    ),
    "mrpc": Classification(
        text=("#1 String", "sentence1"),
        text_pair=("#2 String", "sentence2"),
        label=("Quality", "label"),
        classes={"0": "not_equivalent", "1": "equivalent"},
        metrics=("accuracy", "f1"),
        server={"test": "MRPC.tsv"},
    ),
    "stsb": Classification(
        text=("sentence1",),
        text_pair=("sentence2",),
        label=("score", "label"),
        regression=True,
        metrics=("pearson", "spearman"),
        select="pearson",
        server={"test": "STS-B.tsv"},
    ),
    "qqp": Classification(
        text=("question1",),
        text_pair=("question2",),
        label=("is_duplicate", "label"),
        classes={"0": "not_duplicate", "1": "duplicate"},
        metrics=("accuracy", "f1"),
        server={"test": "QQP.tsv"},
    ),
    "mnli": Classification(
        text=("sentence1", "premise"),
        text_pair=("sentence2", "hypothesis"),
        label=("gold_label", "label"),
        classes={name: name for name in ("entailment", "neutral", "contradiction")},
        splits={
            "train": "train.tsv",
            "dev_matched": "dev_matched.tsv",
            "dev_mismatched": "dev_mismatched.tsv",
            "test_matched": "test_matched.tsv",
            "test_mismatched": "test_mismatched.tsv",
            "ax": "diagnostic.tsv",
        },
        server={"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv", "ax": "AX.tsv"},
    ),
    "qnli": Classification(
        text=("question",), text_pair=("sentence",), classes=_ENTAILMENT, server={"test": "QNLI.tsv"}
    ),
    "rte": Classification(
        text=("sentence1",), text_pair=("sentence2",), classes=_ENTAILMENT, server={"test": "RTE.tsv"}
    ),
    "wnli": Classification(
        text=("sentence1",),
        text_pair=("sentence2",),
        classes={"0": "not_entailment", "1": "entailment"},
        server={"test": "WNLI.tsv"},
    ),
    "squad1": QuestionAnswering(),
    "squad2": QuestionAnswering(
        unanswerable=True,
        splits={
            "train": "train-v2.0.json|train-*.parquet",
            "dev": "dev-v2.0.json|validation-*.parquet",
            "test": "test-v2.0.json",
        },
    ),
    "race": MultipleChoice(
        splits={
            "train": "train/*/*.txt|train-*.parquet",
            "dev": "dev/*/*.txt|validation-*.parquet",
            "test": "test/*/*.txt|test-*.parquet",
        }
    ),
    "mctest": MultipleChoice(splits={split: f"mc*.{split}.tsv" for split in ("train", "dev", "test")}),
    "swag": MultipleChoice(
        splits={
            "train": "train.csv|train-*.parquet",
            "dev": "val.csv|validation-*.parquet",
            "test": "test.csv|test-*.parquet",
        }
    ),
    "arc": MultipleChoice(
        splits={
            "train": "*Train.jsonl|train-*.parquet",
            "dev": "*Dev.jsonl|validation-*.parquet",
            "test": "*Test.jsonl|test-*.parquet",
        }
    ),
    "commonsense_qa": MultipleChoice(
        splits={
            "train": "train_rand_split.jsonl|train-*.parquet",
            "dev": "dev_rand_split.jsonl|validation-*.parquet",
            "test": "test_rand_split_no_answers.jsonl|test-*.parquet",
        }
    ),
    "ner": TokenClassification(),
    # The user's own .csv, .tsv, .jsonl, .json or .parquet; data.text_column and data.label_column name the columns.
    "text": Classification(metrics=("accuracy", "macro_f1"), splits={}),
    "multilabel": MultiLabel(splits={}),
    "regression": Classification(regression=True, metrics=("pearson", "spearman"), select="pearson", splits={}),
}
"""Name -> task."""

"""Reading of task files: examples, rows, windows, positions of answers, labels of words, and one-line errors."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert_jax.config import InputError
from albert_jax.data.batches import collate
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.exchange import tf1
from albert_jax.exchange.weights import slots
from albert_jax.finetuning import (
    classification,
    family,
    files,
    multiple_choice,
    question_answering,
    token_classification,
    windows,
)
from albert_jax.finetuning import prepared as tfds_prepared
from albert_jax.finetuning.family import Split, read_splits
from albert_jax.finetuning.tasks import TASKS
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import HEADS, Albert, param_shapes
from albert_jax.model.tree import leaves
from albert_jax.training.optim import decays

from .conftest import GOLDEN_TOKENIZER, ROOT, refused
from .synthetic_tasks import WRITE

TOKENIZER = Tokenizer(GOLDEN_TOKENIZER / "spiece.model")


def config(task: str = "sst2", **fields: Any) -> Any:
    """The data settings of a task, with short inputs."""
    short = {"max_seq_length": 32} | ({"max_query_length": 8} if task.startswith("squad") else {})
    return TASKS[task].data_config(task=task, **(short | fields))


def read_with(chosen: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The examples of each split, and the names of the classes."""
    task = TASKS[chosen.task]
    splits = read_splits(task, files.find(chosen, task.splits), chosen)
    return {name: split.examples for name, split in splits.items()}, splits["train"].labels


def read(task: str, folder: Path, **fields: Any) -> tuple[dict[str, Any], tuple[str, ...]]:
    return read_with(config(task, dir=str(folder), **fields))


# One text or two


@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 50))
def test_fit_takes_from_the_longer_end(first: int, second: int, room: int) -> None:
    """Like the released loop, which removes token by token."""
    a, b = first, second
    while a + b > room:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    assert classification.fit(first, second, room) == (a, b)


def test_pair_rows_equal_the_tokenizers_pairs() -> None:
    texts = [("the text", "a list of lines " * 9), ("some space", None), ("the text of lines " * 9, "text"), ("", "")]
    examples = [classification.Example("", first, second, None) for first, second in texts]
    rows = classification.pair_rows(Split("dev", examples), np.arange(4), TOKENIZER, 32)
    for number, (first, second) in enumerate(texts):
        wanted = TOKENIZER(first, second, max_length=32)
        row = rows[number]
        assert row["input_ids"].tolist() == wanted["input_ids"][0].tolist()
        assert row["token_type_ids"].tolist() == wanted["token_type_ids"][0].tolist()
        assert len(row["input_ids"]) == rows.lengths[number]
        assert row["target"] == number


def test_columns_of_all_distributions_of_a_data_set(tmp_path: Path) -> None:
    """GLUE's .tsv files, and .jsonl files with the column names and class numbers of Hugging Face, give the same examples."""
    own, other = tmp_path / "tsv", tmp_path / "jsonl"
    for folder in (own, other):
        folder.mkdir()
    WRITE["mrpc"](own)
    for split in ("train", "dev", "test"):
        _, *lines = (own / f"{split}.tsv").read_text().splitlines()
        rows = [line.split("\t") for line in lines]
        records = [
            {"sentence1": row[2], "sentence2": row[3]} | ({"label": int(row[4])} if split != "test" else {})
            for row in rows
        ]
        (other / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (theirs, labels), (mine, own_labels) = read("mrpc", own), read("mrpc", other)
    assert labels == own_labels == ("not_equivalent", "equivalent")
    for split in ("train", "dev", "test"):
        assert [row[1:] for row in theirs[split]] == [row[1:] for row in mine[split]]


def test_byte_order_mark_crlf_and_quotes(tmp_path: Path) -> None:
    text = '\ufeffsentence\tlabel\r\n"the text\t1\r\n a ""quoted"" list\t0\r\n'
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_bytes(text.encode())
    found, labels = read("sst2", tmp_path)
    assert [(row.text, row.label) for row in found["dev"]] == [
        ('"the text', "positive"),
        (' a ""quoted"" list', "negative"),
    ]
    assert labels == ("negative", "positive")


# Answers


def squad(folder: Path, context: str, answers: list[tuple[str, int]], split: str = "train", **qa: Any) -> None:
    made = {"id": "q", "question": "what is it", "answers": [{"text": t, "answer_start": s} for t, s in answers]} | qa
    table = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": [made]}]}]}
    (folder / f"{split}-v1.1.json").write_text(json.dumps(table))


CONTEXTS = st.text(alphabet="the listÉ .,-2010ﬁ\u0301“”\n", min_size=1, max_size=200)


@settings(max_examples=60, deadline=None)
@given(CONTEXTS, st.data())
def test_every_window_labels_the_answer_at_its_position(context: str, data: st.DataObject) -> None:
    """The characters of the labeled tokens contain the answer, or are contained in it.

    Fails if a window's start, or the positions of [CLS] and the question, are not counted.
    """
    begin = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(begin + 1, min(len(context), begin + 20)))
    answer = context[begin:end]
    example = question_answering.Example("q", "what is it", context, ((answer, begin),), True)
    chosen = config("squad1", max_seq_length=24, max_query_length=6, doc_stride=5)
    task = question_answering.QuestionAnswering()
    rows = task.rows(Split("train", [example]), TOKENIZER, chosen)
    if not len(rows):
        assert not answer.strip() or windows.locate(windows.tokenize(TOKENIZER, context), answer, begin) is None
        return
    seen: set[int] = set()
    owned: list[int] = []
    for number, window in enumerate(rows.items):
        row = rows[number]
        assert len(row["input_ids"]) <= 24
        first = len(window.question) + 2
        inside = row["input_ids"][first : first + window.size]
        assert np.array_equal(inside, window.context.ids[window.start : window.start + window.size])
        assert row["answer_mask"].sum() == window.size
        seen |= set(range(window.start, window.start + window.size))
        owned += (window.start + np.flatnonzero(window.best)).tolist()
        if row["start"]:
            start, stop = (int(row[name]) - first + window.start for name in ("start", "end"))
            covered = context[window.context.ranges[start, 0] : window.context.ranges[stop, 1]]
            assert answer.strip() in covered or covered in answer
    assert seen == set(range(len(rows.items[0].context.ids)))
    assert sorted(owned) == sorted(seen)  # each token belongs to one window


def test_windows_overlap_by_the_stride() -> None:
    context = windows.tokenize(TOKENIZER, "the text of lines " * 20)
    found = list(windows.windows(0, np.arange(4), context, 30, 12))
    assert [window.start for window in found[:3]] == [0, 12, 24]
    assert sum(len(context.ids) - window.start <= 30 for window in found) == 1


def test_the_best_answer_is_a_substring_of_the_context(tmp_path: Path) -> None:
    """Outputs of any window give the characters of the context, with capitals and accents."""
    context = "The Text,  of Émile 2010 and Lines " + "of more text " * 12
    example = question_answering.Example("q", "what is it", context, (("Émile 2010", 14),), True)
    chosen = config("squad1", max_seq_length=36, max_query_length=6, doc_stride=3)
    task = question_answering.QuestionAnswering()
    trained = task.rows(Split("train", [example]), TOKENIZER, chosen)
    assert sum(bool(trained[i]["start"]) for i in range(len(trained))) > 1
    for number in range(len(trained)):
        row = trained[number]
        if not row["start"]:
            continue
        found = [
            {"start": np.array([1]), "end": np.array([1]), "score": np.array([-1e30]), "null": np.array(0.0)}
            for _ in range(len(trained))
        ]
        found[number] = {name: np.array([row[name]]) for name in ("start", "end")} | {
            "score": np.array([7.0]),
            "null": np.array(3.0),
        }
        result = task.score(Split("dev", [example]), trained, found)
        assert result.predictions[0]["answer"] == "Émile 2010"
        assert result.metrics == {"exact": 100.0, "f1": 100.0}
        assert result.predictions[0]["null_odds"] == pytest.approx(0.0 - 7.0)


def test_misplaced_answers_are_counted_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    squad(tmp_path, "the text of lines", [("nowhere", 4)])
    squad(tmp_path, "the text of lines", [("text", 4)], "dev")
    found, _ = read("squad1", tmp_path, max_query_length=8)
    task = TASKS["squad1"]
    with caplog.at_level("WARNING"):
        assert len(task.rows(Split("train", found["train"]), TOKENIZER, config("squad1", max_query_length=8))) == 0
    assert (
        "train: 1 of 1 answers are not at the given position in their contexts, the first: q; left out" in caplog.text
    )
    with pytest.raises(InputError, match="are not at the given position in their contexts, the first: q; fix them"):
        task.rows(Split("train", found["train"]), TOKENIZER, config("squad1", max_query_length=8, strict=True))
    assert len(task.rows(Split("dev", found["dev"]), TOKENIZER, config("squad1", max_query_length=8))) == 1


# The answer-class head


def answer_model() -> tuple[Albert, Any, dict[str, Any]]:
    small = AlbertConfig(
        vocab_size=60,
        embedding_size=8,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model, random = Albert(small, ("answer_class",)), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32) * 0.5, param_shapes(model))
    mask = np.ones((3, 10), np.int32)
    mask[1, 7:] = 0
    allowed = mask * (np.arange(10) >= 4)
    allowed[:, 9] = 0
    batch = {"input_ids": random.integers(5, 60, (3, 10)), "attention_mask": mask, "answer_mask": allowed}
    return model, params, batch


def test_answer_class_head_is_the_released_one() -> None:
    """Equals the formulas of squad_utils.py: in training the ends for the gold start, otherwise those for the best starts."""
    model, params, batch = answer_model()
    apply: Any = model.apply
    starts = np.array([5, 0, 7])
    trained = apply({"params": params}, **batch, start_positions=starts)
    asked = apply({"params": params}, **batch)
    hidden = np.asarray(trained["last_hidden_state"], np.float64)
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["answer_class"])

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ head[name]["kernel"] + head[name].get("bias", 0)

    p_mask = 1 - batch["answer_mask"]
    p_mask[:, 0] = 0
    start_logits = np.where(p_mask == 1, -1e30, dense("start_logits", hidden)[..., 0])
    assert np.allclose(trained["start_logits"], start_logits, atol=1e-4)

    def ends(row: int, start: int) -> np.ndarray:
        both = np.concatenate([hidden[row], np.tile(hidden[row, start], (10, 1))], axis=-1)
        x = np.tanh(dense("end_dense", both))
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        x = x * head["LayerNorm"]["scale"] + head["LayerNorm"]["bias"]
        return np.where(p_mask[row] == 1, -1e30, dense("end_logits", x)[:, 0])

    def log_softmax(x: np.ndarray) -> np.ndarray:
        return x - x.max() - np.log(np.exp(x - x.max()).sum())

    for row, start in enumerate(starts):
        assert np.allclose(trained["end_logits"][row], ends(row, start), atol=1e-4)
        share = np.exp(log_softmax(start_logits[row]))
        answer = np.concatenate([share @ hidden[row], hidden[row, 0]])
        wanted = np.tanh(dense("answer_dense", answer)) @ head["answer_class"]["kernel"]
        assert np.allclose(trained["answer_class_logits"][row], wanted[0], atol=1e-4)
        assert np.allclose(asked["answer_class_logits"][row], wanted[0], atol=1e-4)
        best = np.argsort(-start_logits[row], kind="stable")[:5]
        assert asked["start_top_index"][row].tolist() == best.tolist()
        assert np.allclose(asked["start_top_log_probs"][row], log_softmax(start_logits[row])[best], atol=1e-4)
        for number, index in enumerate(best):
            own = log_softmax(ends(row, index))
            assert np.allclose(asked["end_top_log_probs"][row, number], np.sort(own)[::-1][:5], atol=1e-3)


def test_answer_class_head_under_googles_names() -> None:
    found = sorted(slot.tensor for slot in slots(answer_model()[0], tf1.NAMES) if slot.path[0] == "answer_class")
    assert found == sorted(
        [
            f"{part}/{leaf}"
            for part in ("start_logits/dense", "end_logits/dense_0", "end_logits/dense_1")
            for leaf in ("kernel", "bias")
        ]
        + ["end_logits/LayerNorm/gamma", "end_logits/LayerNorm/beta"]
        + ["answer_class/dense_0/kernel", "answer_class/dense_0/bias", "answer_class/dense_1/kernel"]
    )


@pytest.mark.parametrize("head", ["qa_outputs", "answer_class"])
def test_padding_does_not_change_answers(head: str) -> None:
    """A row has the same loss and answers alone as in a wider batch with empty rows."""
    small = answer_model()[0].config
    model, random = Albert(small, (head,)), np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32) * 0.5, param_shapes(model))
    chosen = config("squad2", n_best_size=4, qa_head="plain" if head == "qa_outputs" else head)
    row = {
        "input_ids": random.integers(5, 60, 14).astype(np.int32),
        "token_type_ids": np.zeros(14, np.int32),
        "answer_mask": (np.arange(14) > 3).astype(np.int32),
        "best": (np.arange(14) > 5).astype(np.int32),
        "start": np.int32(6),
        "end": np.int32(8),
        "weights": np.float32(1),
    }
    task = question_answering.QuestionAnswering(unanswerable=True)
    results = []
    for size, width in ((1, 14), (3, 32)):
        batch = {name: jnp.asarray(value) for name, value in collate([row], size, width).items()}
        loss, metrics = task.loss(model.apply, params, batch | {"scale": batch["weights"]}, train=False)
        found = {name: value[0] for name, value in task.outputs(model.apply, params, batch, chosen).items()}
        good = np.asarray(found["score"]) > -1e29
        order = np.argsort(-np.asarray(found["score"])[good])
        results.append([float(loss), float(metrics["tokens"][0]), float(found["null"])])
        results[-1] += [np.asarray(found[name])[good][order].tolist() for name in ("start", "end")]
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    assert results[0][1] == results[1][1] == 14
    assert results[0][2] == pytest.approx(results[1][2], abs=1e-5)
    assert results[0][3:] == results[1][3:]


# Choices


def test_option_side_keeps_its_end_and_the_passage_its_beginning() -> None:
    passage, question = "the text of lines " * 9, "from the list of some more"
    example = multiple_choice.Example("q", passage, f"{question} _ ?", ("space", "pool of states"), 1, "all")
    rows = multiple_choice.MultipleChoice().rows(Split("dev", [example]), TOKENIZER, config("race", max_qa_length=9))
    row = rows[0]
    assert row["input_ids"].shape == (2, 32)
    for number, option in enumerate(example.options):
        side = TOKENIZER.encode(f"{question} {option} ?")[-9:]
        ids = row["input_ids"][number][row["attention_mask"][number] == 1].tolist()
        assert ids[-10:] == [*side, TOKENIZER.sep_id]
        assert ids[:-10] == [TOKENIZER.cls_id, *TOKENIZER.encode(passage)[: 32 - 3 - 9], TOKENIZER.sep_id]
        types = row["token_type_ids"][number]
        assert types.tolist() == [0] * (32 - 10) + [1] * 10
    assert multiple_choice.question_with_option("_ and _", "a") == "a and a"
    assert multiple_choice.question_with_option("what is it ?", "a list") == "what is it ? a list"


def test_mctest_and_race_files(tmp_path: Path) -> None:
    WRITE["mctest"](tmp_path)
    found, _ = read("mctest", tmp_path)
    first = found["dev"][0]
    assert first.id == "mc160.dev.0.0"
    assert "\n" in first.passage
    assert not first.question.startswith("one: ")
    assert first.options[first.answer].endswith("large")
    assert all(row.answer is None for row in found["test"])
    race = tmp_path / "race"
    race.mkdir()
    WRITE["race"](race)
    both, middle = read("race", race)[0], read("race", race, level="middle")[0]
    assert {row.part for row in both["dev"]} == {"middle", "high"}
    assert [row for row in both["dev"] if row.part == "middle"] == middle["dev"]


# Entities


SENTENCES = st.lists(
    st.sampled_from(["the", "space", "Émile", "2010,", "\u200d", "x" * 40, "(", "import"]), min_size=1, max_size=60
)


@settings(max_examples=60, deadline=None)
@given(st.lists(SENTENCES, min_size=1, max_size=4))
def test_no_label_is_lost_when_a_sentence_is_split(sentences: list[list[str]]) -> None:
    """Every word has one label, on its first token, and the outputs of the parts give one tag per word.

    Fails if a word without tokens, or one longer than the window, is dropped.
    """
    labels = ("O", "B-X", "I-X")
    tags = [["B-X" if n % 3 == 0 else "I-X" if n % 3 == 1 else "O" for n in range(len(row))] for row in sentences]
    examples = [
        token_classification.Example("", tuple(row), tuple(own)) for row, own in zip(sentences, tags, strict=True)
    ]
    task = token_classification.TokenClassification()
    split = Split("dev", examples, labels)
    rows = task.rows(split, TOKENIZER, config("ner", max_seq_length=12))
    found = []
    for number in range(len(rows)):
        row = rows[number]
        assert len(row["input_ids"]) == rows.lengths[number] <= 12
        found.append({"label": row["target"], "probability": np.ones(len(row["target"]), np.float32)})
    assert sum(int(rows[number]["weights"].sum()) for number in range(len(rows))) == sum(map(len, sentences))
    result = task.score(split, rows, found)
    assert result.predictions == tags
    assert result.metrics["f1"] == 1.0


def test_three_tagging_schemes_give_the_same_tags(tmp_path: Path) -> None:
    rows = {
        "IOB1": ["a\tI-X", "b\tI-X", "c\tB-X", "d\tO", "e\tI-Y"],
        "IOB2": ["a\tB-X", "b\tI-X", "c\tB-X", "d\tO", "e\tB-Y"],
        "IOBES": ["a\tB-X", "b\tE-X", "c\tS-X", "d\tO", "e\tS-Y"],
    }
    seen = []
    for name, lines in rows.items():
        for split in ("train", "dev"):
            (tmp_path / f"{split}.{name}").write_text("\n".join(lines) + "\n")
        given_ = {f"{split}_file": str(tmp_path / f"{split}.{name}") for split in ("train", "dev")}
        chosen = config("ner", **given_)
        found, labels = read_with(chosen)
        seen.append((found["train"][0].tags, labels))
    assert seen == [(("B-X", "I-X", "B-X", "O", "B-Y"), ("O", "B-X", "I-X", "B-Y", "I-Y"))] * 3


# TFDS


def prepared(folder: Path, features: Any, splits: dict[str, list[dict[str, Any]]]) -> str:
    """Prepare a data set without TensorFlow, as array_record; return the value of --data.dir."""
    import tensorflow_datasets as tfds

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features(tfds.features)))

        def _split_generators(self, manager: Any) -> Any:
            return {name: self._generate_examples(rows) for name, rows in splits.items()}

        def _generate_examples(self, rows: Any) -> Any:
            yield from enumerate(rows)

    builder = Made(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return f"tfds:{builder.data_dir}"


def test_glue_from_tfds(tmp_path: Path) -> None:
    """The same examples as from the .tsv files; hidden labels are -1."""
    WRITE["sst2"](tmp_path)
    plain, labels = read("sst2", tmp_path)
    splits = {
        theirs: [
            {"sentence": row.text, "label": -1 if row.label is None else row.label, "idx": number}
            for number, row in enumerate(plain[own])
        ]
        for theirs, own in (("train", "train"), ("validation", "dev"), ("test", "test"))
    }
    names = ["negative", "positive"]
    folder = prepared(
        tmp_path / "tfds", lambda f: {"sentence": f.Text(), "label": f.ClassLabel(names=names), "idx": np.int32}, splits
    )
    chosen = config(dir=folder)
    found, own = read_with(chosen)
    assert own == labels
    for split in ("train", "dev", "test"):
        assert sorted((row.text, str(row.label)) for row in found[split]) == sorted(
            (row.text, str(row.label)) for row in plain[split]
        )
    with pytest.raises(InputError, match=r"data.dir tfds:nowhere/none: no such prepared data set"):
        read_with(config(dir="tfds:nowhere/none"))


def test_squad_from_tfds(tmp_path: Path) -> None:
    answers = {"text": ["text", "the text"], "answer_start": [4, 0]}
    rows = [{"id": "q", "question": "what?", "context": "the text", "answers": answers}]
    folder = prepared(
        tmp_path,
        lambda f: {
            "id": f.Text(),
            "question": f.Text(),
            "context": f.Text(),
            "answers": f.Sequence({"text": f.Text(), "answer_start": np.int32}),
        },
        {"train": rows, "validation": rows},
    )
    chosen = config("squad1", dir=folder, max_query_length=8)
    found, _ = read_with(chosen)
    assert found["dev"] == [question_answering.Example("q", "what?", "the text", (("text", 4), ("the text", 0)), True)]


def test_race_from_tfds(monkeypatch: pytest.MonkeyPatch) -> None:
    """TFDS calls its dev split dev; nested lists need TensorFlow, which an error explains."""
    record = {
        "article": "the text",
        "questions": ["what?"],
        "options": [["a", "b"]],
        "answers": ["B"],
        "example_id": "high1",
    }

    class Builder:
        """The used part of a TFDS builder."""

        info = SimpleNamespace(splits=("train", "dev"), features={})
        rows: ClassVar[Any] = [record]

        def as_data_source(self, split: str) -> Any:
            return self.rows

    class Refuses(list[Any]):
        """Fails like TFDS without TensorFlow."""

        def __getitem__(self, at: Any) -> Any:
            raise ModuleNotFoundError("No module named 'tensorflow'")

    for module in (files, tfds_prepared):
        monkeypatch.setattr(module, "builder_of", lambda name: Builder())
    chosen = config("race", dir="tfds:race/high")
    found, _ = read_with(chosen)
    assert found["dev"] == [multiple_choice.Example("high1.0", "the text", "what?", ("a", "b"), 1, "high")]
    Builder.rows = Refuses([record])
    with pytest.raises(InputError, match=r"data.dir tfds:race/high: TFDS needs TensorFlow to read its features; name"):
        read_with(chosen)


def test_conll_from_tfds(tmp_path: Path) -> None:
    rows = [{"tokens": ["the", "text", "list"], "ner": ["O", "I-X", "B-X"]}]
    folder = prepared(
        tmp_path,
        lambda f: {"tokens": f.Sequence(f.Text()), "ner": f.Sequence(f.ClassLabel(names=["O", "B-X", "I-X"]))},
        {"train": rows, "validation": rows},
    )
    chosen = config("ner", dir=folder)
    found, labels = read_with(chosen)
    assert labels == ("O", "B-X", "I-X")
    assert found["dev"][0][1:] == (("the", "text", "list"), ("O", "B-X", "B-X"))


# Errors


def changed(task: str, change: Callable[[Path], object] = lambda folder: None) -> Callable[[Path], list[str]]:
    """A function that writes the files of a task and changes one of them; returns the command-line words."""

    def write(folder: Path) -> list[str]:
        words = WRITE[task](folder)
        change(folder)
        return words

    return write


def line(file: str, number: int, text: str) -> Callable[[Path], object]:
    """Replace a line of a file; `number` counts from 1."""

    def change(folder: Path) -> None:
        lines = (folder / file).read_text().split("\n")
        lines[number - 1] = text
        (folder / file).write_text("\n".join(lines))

    return change


def content(file: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(data)


def race_file(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "dev" / "high" / "1.txt"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return edit


def without_answers(split: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / f"{split}-v1.1.json"
        table = json.loads(path.read_text())
        table["data"][0]["paragraphs"][3]["qas"][0].pop("answers")
        path.write_text(json.dumps(table))

    return change


def answer_of(**fields: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "dev-v1.1.json"
        table = json.loads(path.read_text())
        table["data"][0]["paragraphs"][3]["qas"][0]["answers"][0].update(fields)
        path.write_text(json.dumps(table))

    return change


BAD: dict[str, tuple[str, Callable[[Path], list[str]], list[str], str]] = {
    "empty": ("sst2", changed("sst2", content("train.tsv", b"")), [], "train.tsv: no examples"),
    "a header alone": ("sst2", changed("sst2", content("dev.tsv", b"sentence\tlabel\n")), [], "dev.tsv: no examples"),
    "no sentence": ("ner", changed("ner", content("eng.testa", b"\n\n")), [], "eng.testa: no examples"),
    "no question": ("squad1", changed("squad1", content("dev-v1.1.json", b'{"data": []}')), [], "dev-v1.1.json: no examples"),
    "UTF-8": (
        "sst2",
        changed("sst2", content("dev.tsv", b"sentence\tlabel\ngo\xffod\t1\n")),
        [],
        "dev.tsv:2: invalid UTF-8 at byte 17; correct the text or pass --data.encoding-errors replace",
    ),
    "encoding of JSON": ("squad1", changed("squad1", content("dev-v1.1.json", b"\xff")), [], "dev-v1.1.json: not UTF-8 at byte 0"),
    "label": ("rte", changed("rte", line("dev.tsv", 3, "1\ta\tb\tmaybe")), [], "dev.tsv:3: label 'maybe' is not one of entailment, not_entailment"),
    "number": ("sst2", changed("sst2", line("train.tsv", 5, "a text\t7")), [], "train.tsv:5: label '7' is not one of 0, 1"),
    "minus 100": ("cola", changed("cola", line("dev.tsv", 1, "x\t-100\t\ta text")), [], "dev.tsv:1: label '-100' is not one of 0, 1"),
    "new in dev": ("text", changed("text", line("dev.csv", 4, "a text,d")), [], "dev.csv:4: label 'd' is not one of a, b, c"),
    "no label": ("sst2", changed("sst2", line("dev.tsv", 2, "a text\t")), [], "dev.tsv:2: no label"),
    "one class": ("text", changed("text", content("train.csv", b"review,stars\na,x\nb,x\n")), [], "train.csv:2: all training examples have the class 'x'"),
    "columns": ("mrpc", changed("mrpc", line("train.tsv", 7, "1\t2\t3")), [], "train.tsv:7: expected 5 columns (#1 ID, #2 ID, #1 String, #2 String, Quality), found 3; fix it, or skip such lines with --data.malformed skip"),
    "a column": ("mnli", changed("mnli", line("dev_matched.tsv", 1, "index\tsentence1\tsentence2\tlabel1")), [], "dev_matched.tsv:2: no column gold_label or label; the columns are index, sentence1"),
    "quotes": ("text", changed("text", line("train.csv", 3, '"never closed,a')), [], "train.csv:4: not CSV: ',' expected after"),
    "own column": ("text", changed("text"), ["--data.text-column", "txt"], "train.csv:2: no column txt; the columns are review, stars"),
    "JSON": ("regression", changed("regression", line("dev.jsonl", 2, '{"text": ')), [], "dev.jsonl:2: not JSON"),
    "JSON list": ("regression", changed("regression", line("dev.jsonl", 2, "[1]")), [], "dev.jsonl:2: expected a JSON object"),
    "no text": ("regression", changed("regression", line("dev.jsonl", 2, '{"text": null, "label": 1}')), [], "dev.jsonl:2: text is None; expected text or a number"),
    "conll": ("ner", changed("ner", line("eng.train", 4, "the X O")), [], "eng.train:4: expected 4 columns, as in the lines before, found 3"),
    "a tag": ("ner", changed("ner", line("eng.train", 4, "the X O LOC")), [], "eng.train:4: tag 'LOC' is not O, or one of B-, I-, E-, S- followed by a type"),
    "one column": ("ner", changed("ner", content("eng.train", b"the\ntext\n")), [], "eng.train:1; all training and dev examples need one"),
    "new type": ("ner", changed("ner", line("eng.testa", 3, "the X O I-ORG")), [], "eng.testa:3: unknown entity type 'ORG'; the training file has LOC, PER"),
    "no entity": ("ner", changed("ner", content("eng.train", b"the O\n")), [], "eng.train:1: the training file has no entity; all tags are O"),
    "mctest": ("mctest", changed("mctest", line("mc160.dev.tsv", 2, "a\tb")), [], "mc160.dev.tsv:2: expected 23 columns"),
    "answers": ("mctest", changed("mctest", line("mc160.dev.ans", 2, "A\tB")), [], "mc160.dev.ans:2: expected 4 answers, found 2"),
    "too few answers": ("mctest", changed("mctest", content("mc160.dev.ans", b"A\tB\tC\tD\n")), [], "mc160.dev.ans: 1 lines, but"),
    "letter": ("race", changed("race", race_file(lambda r: r.update(answers=["E"]))), [], "answer 'E' is not one of A, B, C, D"),
    "race": ("race", changed("race", race_file(lambda r: r.pop("article"))), [], "1.txt:1: not in RACE's format (article, questions, options, answers): no 'article'"),
    "race options": ("race", changed("race", race_file(lambda r: r.update(options=[]))), [], "1.txt:1: 1 questions, 0 lists of options, 1 answers"),
    "level": ("race", changed("race"), ["--data.level", "low"], "data.level: unknown value 'low'; choose one of all, middle, high"),
    "score": ("stsb", changed("stsb", line("train.tsv", 9, "8\ta\tb\tfive")), [], "train.tsv:9: label 'five' is not a number"),
    "nan": ("stsb", changed("stsb", line("dev.tsv", 9, "8\ta\tb\tnan")), [], "dev.tsv:9: label 'nan' is not a number"),
    "form": ("squad1", changed("squad1", content("dev-v1.1.json", b'{"data": [{"paragraphs": [{"qas": [{}]}]}]}')), [], "dev-v1.1.json: its first question is not in SQuAD's format: no 'context'"),
    "unanswerable": ("squad2", changed("squad2"), ["--data.task", "squad1", "--data.train-file", "{folder}/train-v2.0.json", "--data.dev-file", "{folder}/dev-v2.0.json"], "question train0 has no answer; use --data.task squad2"),
    "question room": ("squad1", changed("squad1"), ["--data.max-query-length", "64"], "data.max_seq_length 32 has no room for a question of max_query_length 64 and a context; it must be at least 75"),
    "two letters": ("race", changed("race", race_file(lambda r: r.update(answers=["AB"]))), [], "answer 'AB' is not one of A, B, C, D"),
    "no letter": ("race", changed("race", race_file(lambda r: r.update(answers=[""]))), [], "no label for high1.txt.0; all training and dev examples need one"),
    "no answers": ("squad1", changed("squad1", without_answers("dev")), [], "dev-v1.1.json: no label for dev3; all training and dev examples need one"),
    "no answers in train": ("squad1", changed("squad1", without_answers("train")), [], "train-v1.1.json: no label for train3"),
    "a place": ("squad1", changed("squad1", answer_of(answer_start=4.7)), [], "the question after dev2 is not in SQuAD's format: a field has the wrong type"),
    "a text": ("squad1", changed("squad1", answer_of(text=None)), [], "the question after dev2 is not in SQuAD's format"),
    "a column twice": ("sst2", changed("sst2", line("dev.tsv", 1, "sentence\tsentence")), [], "dev.tsv:1: two columns are called 'sentence'"),
    "an id twice": ("race", changed("race", race_file(lambda r: r.update(id="middle0.txt"))), [], "two questions have the id 'middle0.txt.0'; make ids unique"),
    "test lines": ("qqp", changed("qqp", line("test.tsv", 3, "1")), [], "test.tsv:3: expected 3 columns (id, question1, question2), found 1"),
    "too many answers": ("mctest", changed("mctest", line("mc160.dev.ans", 1, "A\tB\tC\tD\nA\tB\tC\tD")), [], "mc160.dev.ans: 7 lines, but"),
    "no dir": ("sst2", lambda folder: [], [], "no train data; give --data.dir or --data.train-file"),
    "dir": ("sst2", lambda folder: ["--data.dir", "nowhere"], [], "data.dir nowhere: no such folder"),
    "no dev": ("sst2", changed("sst2", lambda folder: (folder / "dev.tsv").unlink()), [], "no dev.tsv in data.dir"),
    "file": ("sst2", changed("sst2"), ["--data.dev-file", "nowhere.tsv"], "data.dev_file nowhere.tsv: no such file"),
    "kind": ("sst2", changed("sst2"), ["--data.dev-file", "{folder}/../spiece.bin"], "cannot read '.bin' files; known: tsv, csv, jsonl, json, txt"),
    "task": ("sst2", changed("sst2"), ["--data.task", "sst3"], "data.task: unknown value 'sst3' for ClassificationData; choose one of cola, sst2,"),
    "batch": ("sst2", changed("sst2"), ["--train.global-batch-size", "4096"], "train.global_batch_size is 4096, but there are only 320 training examples"),
    "length": ("sst2", changed("sst2"), ["--data.max-seq-length", "600"], "data.max_seq_length 600 > model.max_position_embeddings 512; use --data.max-seq-length 512"),
    "init": ("sst2", changed("sst2"), ["--init-from", "nowhere/at/all"], "nowhere/at/all: no such file or folder"),
    "init and model": ("sst2", changed("sst2"), ["--init-from", "x", "--model.hidden-size", "64"], "--model.hidden-size cannot be combined with --init-from: the architecture comes from the checkpoint. You can set: dtype"),
    "vocabulary": ("sst2", changed("sst2"), ["--data.vocab", ""], "cannot train a vocabulary of 30000 pieces"),
    "warm-up": ("sst2", changed("sst2"), ["--train.num-train-steps", "1256"], "optim.num_warmup_steps (1256) must be < train.num_train_steps (1256)"),
    "seeds": ("sst2", changed("sst2"), ["--seeds", "0"], "--seeds must be at least 1, got 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the file and line, exit code 2, and no run folder."""
    task, write, more, message = BAD[case]
    folder, run_dir = tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    (tmp_path / "spiece.bin").write_bytes(b"x")
    words = ["--data.vocab", str(GOLDEN_TOKENIZER / "spiece.model"), "--run-dir", str(run_dir)]
    words += ["--data.max-seq-length", "32"]
    own = [word.replace("{folder}", str(folder)) for word in more]
    experiment = str(ROOT / "experiments" / "finetune" / f"{task}.py")
    assert message in refused(["finetune", experiment, *words, *write(folder), *own], capsys)
    assert not run_dir.exists()


def test_architecture_with_init_from_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused whether --init-from is on the command line or in the experiment; a column called init is no --init-from."""
    text = (ROOT / "experiments" / "finetune" / "text.py").read_text()
    path = tmp_path / "mine.py"
    path.write_text(text.replace('run_dir="runs/text",', 'run_dir="runs/text", init_from="x",'))
    more = ["--model.hidden-size", "96", "--data.text-column", "init"]
    assert "--model.hidden-size cannot be combined with --init-from" in refused(["finetune", str(path), *more], capsys)
    assert "no train data" in refused(["finetune", str(ROOT / "experiments" / "finetune" / "text.py"), *more], capsys)


def test_malformed_lines_can_be_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    WRITE["qqp"](tmp_path)
    line("train.tsv", 4, "1\t2")(tmp_path)
    line("train.tsv", 9, "8\ta\tb\t5")(tmp_path)
    with caplog.at_level("WARNING"):
        found, _ = read("qqp", tmp_path, malformed="skip")
    assert len(found["train"]) == 318
    assert "train: 2 lines skipped, the first: " in caplog.text
    assert "train.tsv:4: expected" in caplog.text


def test_forms_of_hidden_labels(tmp_path: Path) -> None:
    """In a test file: no column, an empty cell, -1.  In the user's own table -1 is a number."""
    WRITE["stsb"](tmp_path)
    for number, cells in enumerate(("-1", "-1.0", "")):
        (tmp_path / "test.tsv").write_text(f"index\tsentence1\tsentence2\tscore\n0\ta\tb\t{cells}\n")
        assert read("stsb", tmp_path)[0]["test"][0].label is None, number
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.csv").write_text("text,label\na,-1\nb,1\n")
    named = {f"{split}_file": str(tmp_path / f"{split}.csv") for split in ("train", "dev", "test")}
    chosen = config("regression", **named)
    found, _ = read_with(chosen)
    assert [row.label for row in found["test"]] == [-1.0, 1.0]


def test_class_numbers_of_hugging_face(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        rows = [{"sentence1": "a", "sentence2": "b", "label": number} for number in (0, 1)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row.label for row in read("rte", tmp_path)[0]["dev"]] == ["entailment", "not_entailment"]


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    row = '{"text": "a\\ud800b", "label": 1.5}\n'
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(row)
    named = {f"{split}_file": str(tmp_path / f"{split}.jsonl") for split in ("train", "dev")}
    chosen = config("regression", **named)
    assert read_with(chosen)[0]["dev"][0].text == "a\ufffdb"


def test_levels_come_from_ids_and_folders_only(tmp_path: Path) -> None:
    """Fails if the level is searched in the complete path."""
    folder = tmp_path / "middle-earth"
    folder.mkdir()
    WRITE["race"](folder)
    assert {row.part for row in read("race", folder)[0]["dev"]} == {"middle", "high"}


def test_rows_are_padded_to_the_same_number_of_options() -> None:
    """The batches of all processes have the same shape."""
    examples = [multiple_choice.Example(str(n), "the", "what", ("a", "b", "c")[: 2 + n], 0, "all") for n in range(2)]
    rows = multiple_choice.MultipleChoice().rows(Split("dev", examples), TOKENIZER, config("race"))
    assert [collate([rows[n]], 1, 16)["input_ids"].shape for n in range(2)] == [(1, 3, 16)] * 2


def test_every_norm_and_bias_is_outside_weight_decay() -> None:
    """In every head too (the released AdamW excludes LayerNorm and bias by name)."""
    for head in HEADS:
        small = answer_model()[0].config
        shapes = param_shapes(Albert(small, ("pooler", head) if head != "pooler" else (head,), ("a", "b")))
        for path, leaf in leaves(shapes).items():
            set_axis = path[0] == "encoder" and path[1] in ("attention", "ffn")
            assert decays(path) == (len(leaf.shape) - set_axis > 1), path


def test_invalid_utf8_can_be_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    WRITE["sst2"](tmp_path)
    (tmp_path / "dev.tsv").write_bytes(b"sentence\tlabel\ngo\xffod\t1\n")
    with caplog.at_level("WARNING"):
        found, _ = read("sst2", tmp_path, encoding_errors="replace")
    assert found["dev"][0].text == "go\ufffdod"
    assert "1 lines with invalid UTF-8 replaced" in caplog.text


def test_limits_take_the_first_examples(tmp_path: Path) -> None:
    WRITE["sst2"](tmp_path)
    found, few = read("sst2", tmp_path)[0], read("sst2", tmp_path, max_train_samples=7, max_eval_samples=3)[0]
    assert few == {"train": found["train"][:7], "dev": found["dev"][:3], "test": found["test"][:3]}


def test_scale_divides_by_the_weights_of_the_batch() -> None:
    """The scaled losses of a batch add up to its mean, without padding."""
    batch = {"input_ids": jnp.zeros((4, 3)), "weights": jnp.array([1.0, 1, 1, 0])}
    drawn = family.draw(batch, jax.random.key(0))
    assert np.allclose(drawn["scale"], [1 / 3, 1 / 3, 1 / 3, 0])
    assert drawn["dropout_keys"].shape == (4,)

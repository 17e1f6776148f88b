"""Multiple choice: a passage, a question, and options, one of which is right."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import choice
from albert_jax.data.batches import Row, collate
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.finetuning import family, files
from albert_jax.finetuning.choice_formats import LETTERS, LEVELS, Example, questions
from albert_jax.finetuning.family import LazyRows, Split
from albert_jax.finetuning.files import Source, TaskDataConfig

BLANK = "_"
"""The place of the option in a RACE question."""


@dataclass(frozen=True)
class MultipleChoiceData(TaskDataConfig):
    """Data of a multiple-choice task."""

    max_qa_length: int = 128
    """Question and option keep their last N tokens."""
    level: str = choice("all", ("all", *LEVELS))
    """RACE: the part to use."""

    def __post_init__(self) -> None:
        super().__post_init__()
        files.check_minimum(self, 1, "max_qa_length")


def question_with_option(question: str, option: str) -> str:
    """The question with the option in its blank, or after it; the option alone if there is no question."""
    if BLANK in question:
        return question.replace(BLANK, option)
    return f"{question} {option}" if question else option


@dataclass(frozen=True)
class MultipleChoice:
    """One score per option, softmax over the options."""

    select: str = "accuracy"
    splits: Mapping[str, str] = field(
        default_factory=lambda: {split: f"{split}/*/*.txt" for split in ("train", "dev", "test")}
    )
    data_config: ClassVar[type[TaskDataConfig]] = MultipleChoiceData

    def heads(self, config: TaskDataConfig) -> tuple[str, ...]:
        return "pooler", "choice_classifier"

    def labels(self, train: Sequence[Example] = ()) -> tuple[str, ...]:
        return ()

    def examples(self, source: Source, config: MultipleChoiceData, labels: tuple[str, ...]) -> Iterator[Example]:
        chosen = (row for row in questions(source, config) if config.level in ("all", row.part))
        return family.unique_ids(source, chosen)

    def texts(self, examples: Sequence[Example]) -> list[str]:
        passages = {row.passage: None for row in examples}
        return [*passages, *(row.question for row in examples), *(text for row in examples for text in row.options)]

    def rows(self, split: Split, tokenizer: Tokenizer, config: MultipleChoiceData) -> LazyRows[int]:
        """`[CLS] passage [SEP] question and option [SEP]`, one input per option.

        Question and option keep their end, the passage its beginning (google-research/albert race_utils.py).
        """
        option_limit = min(config.max_qa_length, config.max_seq_length - 3)
        texts = list({row.passage: None for row in split.examples})
        encoded = (np.array(ids, np.int32) for ids in tokenizer.encode_batch(texts))
        passages = dict(zip(texts, encoded, strict=True))
        sides = iter(
            tokenizer.encode_batch(
                [question_with_option(row.question, option) for row in split.examples for option in row.options]
            )
        )
        options = [[np.array(next(sides)[-option_limit:], np.int32) for _ in row.options] for row in split.examples]
        lengths = np.array(
            [
                len(passages[row.passage]) + max(map(len, row_options)) + 3
                for row, row_options in zip(split.examples, options, strict=True)
            ],
            np.int32,
        )
        truncated = int(np.sum(lengths > config.max_seq_length))
        family.log_long(split, truncated, "passages are truncated so that the input has", config.max_seq_length)
        lengths = np.minimum(lengths, config.max_seq_length)
        # All rows are padded to one number of options, so that all batches have one shape, in all processes.
        max_options = max(map(len, options))

        def build(number: int) -> Row:
            example, room = split.examples[number], config.max_seq_length - 3
            passage = passages[example.passage]
            inputs = [tokenizer.join(passage[: room - len(option)], option) for option in options[number]]
            labels = {"choices": np.int32(len(inputs)), "target": np.int32(example.answer or 0)}
            return collate(inputs, max_options, lengths[number]) | labels | {"weights": np.float32(1)}

        return LazyRows(range(len(options)), lengths, build)

    def logits(self, apply: Any, params: Any, batch: family.Batch, keys: Array | None) -> family.Logits:
        """`class` [B, options]."""
        rows, options, width = batch["input_ids"].shape
        names = ("input_ids", "attention_mask", "token_type_ids")
        flat = dict(batch) | {name: batch[name].reshape(rows * options, width) for name in names}
        if keys is not None:
            keys = jax.vmap(lambda key: jax.random.split(key, options))(keys).reshape(-1)
        logits = family.apply_model(apply, params, flat, keys)["logits"].reshape(rows, options)
        return {"class": jnp.where(jnp.arange(options) < batch["choices"][:, None], logits, -1e30)}

    def loss(self, logits: family.Logits, batch: family.Batch) -> tuple[Array, dict[str, Array]]:
        return family.class_loss(logits["class"], batch)

    def outputs(self, apply: Any, params: Any, batch: family.Batch, config: TaskDataConfig) -> family.Outputs:
        """`probabilities` [B, options]."""
        return {"probabilities": jax.nn.softmax(self.logits(apply, params, batch, None)["class"])}

    def score(
        self, split: Split, rows: Any, outputs: family.RowOutputs, tuned: Mapping[str, float] | None = None
    ) -> family.Score:
        chosen = [int(np.argmax(row["probabilities"])) for row in outputs]
        metrics = _accuracies(split.examples, chosen) if split.is_labeled else {}
        return family.Score(metrics, [LETTERS[number] for number in chosen], family.is_constant(chosen))

    def baseline(self, train: Split, dev: Split) -> dict[str, float]:
        """The most frequent letter among the training answers."""
        letter = Counter(row.answer for row in train.examples).most_common(1)[0][0]
        return _accuracies(dev.examples, [letter] * len(dev.examples))

    def shown(self, example: Example, prediction: Any) -> dict[str, str]:
        options = dict(zip(LETTERS, example.options, strict=False))
        texts = {"passage": example.passage, "question": example.question}
        answers = {"expected": LETTERS[example.answer or 0], "predicted": prediction}
        return texts | {name: f"{letter}: {options[letter]}" for name, letter in answers.items()}

    def write(self, folder: Path, split: Split, predictions: Sequence[Any]) -> Path:
        """A JSON file `question: letter`."""
        path = folder / f"{split.name}.json"
        table = {row.id: letter for row, letter in zip(split.examples, predictions, strict=True)}
        path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        return path


def _accuracies(examples: Sequence[Example], chosen: Sequence[int]) -> dict[str, float]:
    """Accuracy over all questions, and of each part if there are several."""
    correct = np.array([row.answer == number for row, number in zip(examples, chosen, strict=True)])
    part = np.array([row.part for row in examples])
    parts = sorted(set(part.tolist()))
    by_part = {f"accuracy_{name}": float(correct[part == name].mean()) for name in parts}
    return {"accuracy": float(correct.mean())} | (by_part if len(parts) > 1 else {})

"""A passage, a question, and options of which one is right: RACE, MCTest, and any file of RACE's form."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import InputError, require
from albert_jax.data.batches import Row
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.objectives.pretraining import cross_entropy
from albert_jax.tasks import family, files
from albert_jax.tasks.files import Record, Source, TaskDataConfig

LETTERS = "ABCDEFGHIJ"
BLANK = "_"
"""Where it stands in a question of RACE, the option belongs."""


class Example(NamedTuple):
    """One question."""

    id: str
    passage: str
    question: str
    options: tuple[str, ...]
    answer: int | None
    part: str
    """Of the data set: its accuracy is told apart."""


@dataclass(frozen=True)
class Choices:
    """`[CLS] passage [SEP] question and option [SEP]`, one input an option.

    The option's side keeps its end, the passage its beginning (google-research/albert race_utils.py).
    """

    examples: Sequence[Example]
    passages: dict[str, np.ndarray]
    options: list[list[np.ndarray]]
    max_seq_length: int
    special: tuple[int, int]
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, item: int) -> Row:
        example, sides = self.examples[item], self.options[item]
        cls_id, sep_id = self.special
        ids = np.zeros((len(sides), self.lengths[item]), np.int32)
        types = np.zeros_like(ids)
        mask = np.zeros_like(ids)
        for number, side in enumerate(sides):
            passage = self.passages[example.passage][: self.max_seq_length - 3 - len(side)]
            row = np.concatenate([[cls_id], passage, [sep_id], side, [sep_id]])
            ids[number, : len(row)] = row
            types[number, len(passage) + 2 : len(row)] = 1
            mask[number, : len(row)] = 1
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": types,
            "choices": np.int32(len(sides)),
            "target": np.int32(example.answer or 0),
            "weights": np.float32(1),
        }


def joined(question: str, option: str) -> str:
    """The question with the option in its blank, or behind it."""
    return question.replace(BLANK, option, 1) if BLANK in question else f"{question} {option}"


@dataclass(frozen=True)
class MultipleChoice:
    """A score a choice, softmax over them."""

    select: str = "accuracy"
    splits: Mapping[str, str] = field(
        default_factory=lambda: {split: f"{split}/*/*.txt" for split in ("train", "dev", "test")}
    )

    def heads(self, config: TaskDataConfig) -> tuple[str, ...]:
        return "pooler", "choice_classifier"

    def read(
        self, sources: Mapping[str, Source], config: TaskDataConfig
    ) -> tuple[dict[str, list[Any]], tuple[str, ...]]:
        found: dict[str, list[Any]] = {}
        for split, source in sources.items():
            names = ", ".join(map(str, source.paths[:3])) or source.tfds
            most = config.max_train_samples if split == "train" else config.max_eval_samples
            hidden = not split.startswith(("train", "dev"))
            questions: list[Example] = []
            for example in _examples(source, config):
                if config.level in ("all", example.part):
                    told = f"{example.id}: no answer, which training and dev examples need"
                    require(hidden or example.answer is not None, told)
                    questions.append(example)
                if most and len(questions) == most:
                    break
            require(
                bool(questions), f"{names}: no question in it" + f" of level {config.level}" * (config.level != "all")
            )
            found[split] = questions
        return found, ()

    def texts(self, examples: Sequence[Any]) -> list[str]:
        passages = {row.passage: None for row in examples}
        return [*passages, *(row.question for row in examples), *(text for row in examples for text in row.options)]

    def rows(
        self,
        examples: Sequence[Any],
        tokenizer: Tokenizer,
        config: TaskDataConfig,
        labels: tuple[str, ...],
        split: str = "",
    ) -> Choices:
        most = min(config.max_qa_length, config.max_seq_length - 3)
        texts = list({row.passage: None for row in examples})
        encoded = (np.array(ids, np.int32) for ids in tokenizer.encode_batch(texts))
        passages = dict(zip(texts, encoded, strict=True))
        sides = iter(
            tokenizer.encode_batch([joined(row.question, option) for row in examples for option in row.options])
        )
        options = [[np.array(next(sides)[-most:], np.int32) for _ in row.options] for row in examples]
        whole = [
            len(passages[row.passage]) + max(map(len, own)) + 3 for row, own in zip(examples, options, strict=True)
        ]
        family.tell_cut(
            split, sum(size > config.max_seq_length for size in whole), len(whole), "passages", config.max_seq_length
        )
        lengths = np.minimum(np.array(whole, np.int32), config.max_seq_length)
        return Choices(
            examples, passages, options, config.max_seq_length, (tokenizer.cls_id, tokenizer.sep_id), lengths
        )

    def _logits(self, apply: Any, params: Any, batch: family.Batch, keys: Array | None) -> Array:
        """[B, choices]."""
        rows, choices, width = batch["input_ids"].shape
        names = ("input_ids", "attention_mask", "token_type_ids")
        flat = {name: batch[name].reshape(rows * choices, width) for name in names}
        if keys is not None:
            keys = jax.vmap(lambda key: jax.random.split(key, choices))(keys).reshape(-1)
        logits = family.run(apply, params, flat, keys)["logits"].reshape(rows, choices)
        return jnp.where(jnp.arange(choices) < batch["choices"][:, None], logits, -1e30)

    def loss(self, apply: Any, params: Any, batch: family.Batch, train: bool) -> tuple[Array, dict[str, Array]]:
        logits = self._logits(apply, params, batch, batch["dropout_keys"] if train else None)
        losses = cross_entropy(logits, batch["target"])
        right = (jnp.argmax(logits, axis=-1) == batch["target"]).astype(jnp.float32)
        return jnp.sum(losses * batch["scale"]), family.count(batch, accuracy=right)

    def outputs(self, apply: Any, params: Any, batch: family.Batch, config: TaskDataConfig) -> family.Outputs:
        """`probabilities` [B, choices]."""
        return {"probabilities": jax.nn.softmax(self._logits(apply, params, batch, None))}

    def score(
        self,
        examples: Sequence[Any],
        rows: Any,
        found: family.Found,
        labels: tuple[str, ...],
        dev: Mapping[str, float] | None = None,
    ) -> family.Scored:
        chosen = [int(np.argmax(row["probabilities"])) for row in found]
        predictions = [LETTERS[number] for number in chosen]
        degenerate = len(examples) > 1 and len(set(chosen)) == 1
        if any(row.answer is None for row in examples):
            return family.Scored({}, predictions, degenerate)
        right = np.array([row.answer == number for row, number in zip(examples, chosen, strict=True)])
        parts = sorted({row.part for row in examples})
        metrics = {"accuracy": float(right.mean())}
        if len(parts) > 1:
            part = np.array([row.part for row in examples])
            metrics |= {f"accuracy_{name}": float(right[part == name].mean()) for name in parts}
        return family.Scored(metrics, predictions, degenerate)

    def baseline(self, train: Sequence[Any], dev: Sequence[Any], labels: tuple[str, ...]) -> dict[str, float]:
        """Always the place where the training examples' answers stand most often."""
        place = Counter(row.answer for row in train).most_common(1)[0][0]
        return {"accuracy": sum(row.answer == place for row in dev) / len(dev)}

    def write(self, folder: Path, split: str, examples: Sequence[Any], predictions: Sequence[Any]) -> Path:
        """`question: letter`."""
        path = folder / f"{split}.json"
        table = {row.id: letter for row, letter in zip(examples, predictions, strict=True)}
        path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        return path


def _examples(source: Source, config: TaskDataConfig) -> Iterator[Example]:
    for path in source.paths:
        if path.suffix == ".tsv":
            yield from _mctest(path, config)
    rest = tuple(path for path in source.paths if path.suffix != ".tsv")
    for where, record in files.records(Source(source.split, rest, source.tfds), config):
        yield from _race(where, record)


def _race(where: str, record: Record) -> Iterator[Example]:
    """A passage with its questions: a file of RACE, a line of one, or a record of TFDS."""
    try:
        name = record.get("id") or record.get("example_id") or where
        level = next((level for level in ("middle", "high") if level in str(name) or level in where), "all")
        answers = record.get("answers") or [None] * len(record["questions"])
        sizes = {len(record["questions"]), len(record["options"]), len(answers)}
        require(
            len(sizes) == 1,
            f"{where}: {len(record['questions'])} questions, {len(record['options'])} options, {len(answers)} answers",
        )
        for number, (question, options, answer) in enumerate(
            zip(record["questions"], record["options"], answers, strict=True)
        ):
            yield _checked(f"{name}.{number}", where, record["article"], question, options, answer, level)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"no '{error.args[0]}'" if isinstance(error, KeyError) else "a field of another type"
        raise InputError(f"{where}: not of RACE's form (article, questions, options, answers): {what}") from None


def _mctest(path: Path, config: TaskDataConfig) -> Iterator[Example]:
    """MCTest: a story and four questions a line, answers in a file .ans beside it, a line of four letters a story."""
    beside = path.with_suffix(".ans")
    answers = [line.split() for _, line in files.text_lines(beside, config)] if beside.is_file() else []
    part = path.name.split(".")[0]
    for number, (where, line) in enumerate(files.text_lines(path, config)):
        cells = line.split("\t")
        require(
            len(cells) == 23,
            f"{where}: {len(cells)} columns, need 23 (id, properties, story, 4 x (question, 4 options))",
        )
        require(not answers or number < len(answers), f"{beside}: {len(answers)} lines, fewer than {path}")
        letters = answers[number] if answers else [None] * 4
        require(len(letters) == 4, f"{beside}:{number + 1}: {len(letters)} answers, need 4")
        story = cells[2].replace("\\newline", "\n").replace("\\tab", "\t")
        for at in range(4):
            question, *options = cells[3 + 5 * at : 8 + 5 * at]
            kind, _, asked = question.partition(": ")
            told = asked if kind in ("one", "multiple") else question
            yield _checked(f"{cells[0]}.{at}", where, story, told, options, letters[at], part)


def _checked(name: str, where: str, passage: Any, question: Any, options: Any, answer: Any, part: str) -> Example:
    texts = [passage, question, *options]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    require(2 <= len(options) <= len(LETTERS), f"{where}: {len(options)} options; 2 to {len(LETTERS)} are read")
    right = answer is None or answer in LETTERS[: len(options)]
    require(right, f"{where}: answer {answer!r} is not one of {', '.join(LETTERS[: len(options)])}")
    return Example(name, passage, question, tuple(options), None if answer is None else LETTERS.index(answer), part)

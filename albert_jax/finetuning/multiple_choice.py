"""A passage, a question, and options of which one is right: RACE, MCTest, and any file of RACE's form."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import InputError, require
from albert_jax.data.batches import Row
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.finetuning import family, files
from albert_jax.finetuning.files import Record, Source, TaskDataConfig

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
    most: int
    """Options that every row is padded to, so that batches have one shape."""

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, item: int) -> Row:
        example, sides = self.examples[item], self.options[item]
        cls_id, sep_id = self.special
        ids = np.zeros((self.most, self.lengths[item]), np.int32)
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
    return question.replace(BLANK, option) if BLANK in question else f"{question} {option}"


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
            every = (example for example in _examples(source, config) if config.level in ("all", example.part))
            questions = list(itertools.islice(every, source.limit(config)))
            bare = next((example.id for example in questions if example.answer is None), None)
            told = f"{source.name}: {bare} has no answer, which training and dev questions need"
            require(bare is None or source.is_hidden, told)
            family.unique(source, (example.id for example in questions))
            require(
                bool(questions),
                f"{source.name}: no question in it" + f" of level {config.level}" * (config.level != "all"),
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
        family.tell_long(
            split,
            sum(size > config.max_seq_length for size in whole),
            len(whole),
            "passages lose the end that does not fit",
            config.max_seq_length,
        )
        lengths = np.minimum(np.array(whole, np.int32), config.max_seq_length)
        return Choices(
            examples,
            passages,
            options,
            config.max_seq_length,
            (tokenizer.cls_id, tokenizer.sep_id),
            lengths,
            max(len(row.options) for row in examples),
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
        return family.class_loss(logits, batch)

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
        degenerate = family.all_the_same(chosen)
        if any(row.answer is None for row in examples):
            return family.Scored({}, predictions, degenerate)
        return family.Scored(_accuracies(examples, chosen), predictions, degenerate)

    def baseline(self, train: Sequence[Any], dev: Sequence[Any], labels: tuple[str, ...]) -> dict[str, float]:
        """Always the place where the training examples' answers stand most often."""
        place = Counter(row.answer for row in train).most_common(1)[0][0]
        return _accuracies(dev, [place] * len(dev))

    def write(self, folder: Path, split: str, examples: Sequence[Any], predictions: Sequence[Any]) -> Path:
        """`question: letter`."""
        path = folder / f"{split}.json"
        table = {row.id: letter for row, letter in zip(examples, predictions, strict=True)}
        path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        return path


def _accuracies(examples: Sequence[Example], chosen: Sequence[int | None]) -> dict[str, float]:
    """Over all questions, and over each part of the data set where there are several."""
    right = np.array([row.answer == number for row, number in zip(examples, chosen, strict=True)])
    part = np.array([row.part for row in examples])
    parts = sorted(set(part.tolist()))
    own = {f"accuracy_{name}": float(right[part == name].mean()) for name in parts}
    return {"accuracy": float(right.mean())} | (own if len(parts) > 1 else {})


def _examples(source: Source, config: TaskDataConfig) -> Iterator[Example]:
    tables = [path for path in source.paths if path.name.removesuffix(".gz").endswith(".tsv")]
    for path in tables:
        yield from _mctest(path, config)
    rest = replace(source, paths=tuple(path for path in source.paths if path not in tables))
    for where, record in files.records(rest, config):
        yield from _race(where, record)


def _race(where: str, record: Record) -> Iterator[Example]:
    """A passage with its questions: a file of RACE, a line of one, or a record of TFDS."""
    try:
        name = record.get("id") or record.get("example_id") or where
        folder = Path(where).parent.name  # of a file, and of a configuration of TFDS
        level = next((level for told in (str(name), folder) for level in ("middle", "high") if level in told), "all")
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
    beside, stories = files.beside(path), list(files.text_lines(path, config))
    answers = [line.split() for _, line in files.text_lines(beside, config)] if beside.is_file() else []
    told = f"{beside}: {len(answers)} lines, {len(stories)} in {path}; they must be as many"
    require(len(answers) in (0, len(stories)), told)
    part = path.name.split(".")[0]
    for number, (where, line) in enumerate(stories):
        cells = line.split("\t")
        require(
            len(cells) == 23,
            f"{where}: {len(cells)} columns, need 23 (id, properties, story, 4 x (question, 4 options))",
        )
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
    letters = list(LETTERS[: len(options)])
    known = answer in (None, "") or answer in letters
    require(known, f"{where}: answer {answer!r} is not one of {', '.join(letters)}")
    return Example(name, passage, question, tuple(options), letters.index(answer) if answer else None, part)

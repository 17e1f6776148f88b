"""Token classification: a class per word, in CoNLL columns.

Tags with prefixes (IO, IOB1, IOB2, IOBES, BILOU, BMEWO) mark entities, which can have several words; so do prefixes without a
type (B, I, O; the type is `entity`) and suffixes (PER-B) if no other tags occur.  Other tags, such as parts of speech, stand for
single words.
"""

import functools
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import regex
from jax import Array

from albert_jax.config import InputError
from albert_jax.data.batches import Row
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.finetuning import conll, family, readers
from albert_jax.finetuning.family import LazyRows, Split
from albert_jax.finetuning.files import Source, TaskDataConfig
from albert_jax.finetuning.metrics import (
    LOWER_CASE,
    have_prefixes,
    need_prefixes,
    span_f1,
    spans,
    split_tag,
    to_iob2,
    with_prefix,
)
from albert_jax.finetuning.readers import Record

log = logging.getLogger(__name__)

_WITHOUT_SPACES = "".join(
    rf"\p{{{name}}}" for name in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
)
WORDS = regex.compile(
    rf"(?:[[\p{{L}}\p{{N}}_]--[{_WITHOUT_SPACES}]][\p{{M}}\u200C\u200D]*)+|(?!\s)\X", flags=regex.VERSION1
)
"""The words of plain text: letters and digits with their marks; each character (grapheme) of scripts that have no spaces between
words; and every other character."""
RECORDS = ("json", "jsonl", "parquet")
"""Suffixes of files with a sentence per record; all others have CoNLL columns."""
ADVICE = {
    "csv": "write a word and its tag on each line, with a tab between them, and a blank line after each sentence",
    "arrow": "save the data set with Dataset.to_parquet",
}
"""Suffix of files without CoNLL columns -> what to do."""
WORD_FIELDS = ("tokens", "words")
TAG_FIELDS = ("ner_tags", "ner", "tags", "labels")


@dataclass(frozen=True)
class TokenClassificationData(TaskDataConfig):
    """Data of a token-classification task."""

    word_column: str = ""
    """The words: number of a CoNLL column, from 1, or field of .json, .jsonl and .parquet records; empty: detect it."""
    tag_column: str = ""
    """The tags, likewise."""


class Example(NamedTuple):
    """One sentence."""

    id: str
    """`file:line` of its first word."""
    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    """As in the file, but entities in IOB2; None if hidden."""

    @property
    def is_labeled(self) -> bool:
        """Whether the tags are known."""
        return self.tags is not None


class Part(NamedTuple):
    """One input: consecutive words of a sentence, as many as fit."""

    example: int
    ids: np.ndarray
    starts: np.ndarray
    """[words]: position of each word's first token in `ids`."""
    targets: np.ndarray
    """[words]."""


def part_row(tokenizer: Tokenizer, part: Part) -> Row:
    """`[CLS] words [SEP]`, with the label of a word on its first token."""
    row = tokenizer.join(part.ids)
    targets, weights = np.zeros_like(row["input_ids"]), np.zeros(len(row["input_ids"]), np.float32)
    targets[part.starts + 1] = part.targets
    weights[part.starts + 1] = 1
    return row | {"target": targets, "weights": weights}


@dataclass(frozen=True)
class TokenClassification:
    """Tags of words, or entities of several types; tags and types are those of the training file."""

    select: str = "f1"
    splits: Mapping[str, str] = field(
        default_factory=lambda: {"train": "*train*", "dev": "*dev*|*valid*|*testa*", "test": "*testb*|*test*"}
    )
    data_config: ClassVar[type[TaskDataConfig]] = TokenClassificationData

    def heads(self, config: TaskDataConfig) -> tuple[str, ...]:
        return ("token_classifier",)

    def labels(self, train: Sequence[Example] = ()) -> tuple[str, ...]:
        tags = {tag for row in train for tag in row.tags or ()}
        if train and tags <= {"O"}:
            raise InputError(f"{train[0].id}: the training file has no entity; all tags are O")
        if not have_prefixes(tags):
            return tuple(sorted(tags, key=lambda tag: (tag != "O", tag)))
        types = sorted({split_tag(tag)[1] for tag in tags - {"O"}})
        return ("O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI")) if types else ()

    def examples(self, source: Source, config: TokenClassificationData, labels: tuple[str, ...]) -> Iterator[Example]:
        first = next((label for label in labels if label != "O"), "")
        for row in _in_iob2(_sentences(source, config), labels):
            for number, tag in enumerate(row.tags or (), 1):
                first = first or ("" if tag == "O" else tag)
                if tag != "O" and have_prefixes([tag]) != have_prefixes([first]):
                    raise InputError(
                        f"{row.id}, word {number} {row.words[number - 1]!r}: either all tags but O have a prefix such as B-, or none; "
                        f"found {first!r} and {tag!r}"
                    )
                if labels and tag not in labels:
                    known = ", ".join(dict.fromkeys(split_tag(label)[1] for label in labels if label != "O"))
                    raise InputError(
                        f"{row.id}: unknown type {split_tag(tag)[1] or tag!r}; the training file has {known}"
                    )
            yield row

    def texts(self, examples: Sequence[Example]) -> list[str]:
        return [" ".join(row.words) for row in examples]

    def rows(self, split: Split, tokenizer: Tokenizer, config: TaskDataConfig) -> LazyRows[Part]:
        """The rows of a split.  Words are tokenized one by one, so that each token belongs to one word."""
        numbers = {label: number for number, label in enumerate(split.labels)}
        room = config.max_seq_length - 2
        encoded = iter(tokenizer.encode_batch([word for row in split.examples for word in row.words]))
        parts: list[Part] = []
        divided = 0
        for number, row in enumerate(split.examples):
            # A word without tokens, such as a lone joiner, has a label too: it becomes [UNK].
            words = [(next(encoded) or [tokenizer.unk_id])[:room] for _ in row.words]
            targets = [numbers[tag] for tag in row.tags] if row.tags else [0] * len(words)
            first = 0
            while first < len(words):
                starts, size, end = [], 0, first
                while end < len(words) and size + len(words[end]) <= room:
                    starts.append(size)
                    size += len(words[end])
                    end += 1
                ids = np.array([token for word in words[first:end] for token in word], np.int32)
                parts.append(Part(number, ids, np.array(starts), np.array(targets[first:end], np.int32)))
                divided += end == len(words) and first > 0
                first = end
        family.log_long(split, divided, "sentences are read in several parts of at most", config.max_seq_length)
        lengths = np.array([len(part.ids) + 2 for part in parts], np.int32)
        return LazyRows(parts, lengths, functools.partial(part_row, tokenizer))

    def logits(self, apply: Any, params: Any, batch: family.Batch, keys: Array | None) -> family.Logits:
        """`class` [B, S, labels]."""
        return {"class": family.apply_model(apply, params, batch, keys)["logits"]}

    def loss(self, logits: family.Logits, batch: family.Batch) -> tuple[Array, dict[str, Array]]:
        return family.class_loss(logits["class"], batch)

    def outputs(self, apply: Any, params: Any, batch: family.Batch, config: TaskDataConfig) -> family.Outputs:
        """`label` [B, S] and its `probability`."""
        probabilities = jax.nn.softmax(self.logits(apply, params, batch, None)["class"])
        return {"label": jnp.argmax(probabilities, axis=-1), "probability": jnp.max(probabilities, axis=-1)}

    def score(
        self, split: Split, rows: LazyRows[Part], outputs: family.RowOutputs, tuned: Mapping[str, float] | None = None
    ) -> family.Score:
        predictions = [tags for tags, _ in self.tags(split, rows, outputs)]
        flat = [tag for tags in predictions for tag in tags]
        degenerate = all(tag == "O" for tag in flat) or family.is_constant(flat)
        metrics = span_f1(predictions, [row.tags for row in split.examples]) if split.is_labeled else {}
        return family.Score(metrics, predictions, degenerate)

    def tags(
        self, split: Split, rows: LazyRows[Part], outputs: family.RowOutputs
    ) -> list[tuple[list[str], list[float]]]:
        """For each sentence, the tag of every word, and its probability; entities are in IOB2."""
        sentences: list[tuple[list[str], list[float]]] = [([], []) for _ in split.examples]
        for part, row in zip(rows.items, outputs, strict=True):
            tags, probabilities = sentences[part.example]
            tags += [split.labels[number] for number in row["label"][part.starts + 1].tolist()]
            probabilities += row["probability"][part.starts + 1].tolist()
        return [(to_iob2(tags), probabilities) for tags, probabilities in sentences]

    def baseline(self, train: Split, dev: Split) -> dict[str, float]:
        """The most frequent tag of each word, or of all words.

        For entities, tag each phrase that was always one type of entity in training; the longest match first (CoNLL-2003's baseline).
        """
        if not have_prefixes(train.labels):
            counts: dict[str, Counter[str]] = {}
            for row in train.examples:
                for word, tag in zip(row.words, row.tags, strict=True):
                    counts.setdefault(word, Counter())[tag] += 1
            usual = sum(counts.values(), Counter()).most_common(1)[0][0]
            best = {word: counter.most_common(1)[0][0] for word, counter in counts.items()}
            guesses = [[best.get(word, usual) for word in row.words] for row in dev.examples]
            return span_f1(guesses, [row.tags for row in dev.examples])
        types: dict[tuple[str, ...], set[str]] = {}
        for row in train.examples:
            for span in spans(row.tags):
                types.setdefault(row.words[span.start : span.end], set()).add(span.type)
        known = {words: kinds.pop() for words, kinds in types.items() if len(kinds) == 1}
        longest = max(map(len, known), default=0)
        predicted = []
        for row in dev.examples:
            tags: list[str] = []
            while (at := len(tags)) < len(row.words):
                sizes = range(min(longest, len(row.words) - at), 0, -1)
                size = next((size for size in sizes if row.words[at : at + size] in known), 0)
                kind = known.get(row.words[at : at + size])
                tags += [f"B-{kind}", *[f"I-{kind}"] * (size - 1)] if size else ["O"]
            predicted.append(tags)
        return span_f1(predicted, [row.tags for row in dev.examples])

    def shown(self, example: Example, prediction: Any) -> dict[str, str]:
        tags = {"expected": example.tags or (), "predicted": prediction}
        texts = {
            name: ", ".join(f"{word} {tag}" for word, tag in zip(example.words, row, strict=True) if tag != "O")
            for name, row in tags.items()
        }
        return {"text": " ".join(example.words)} | texts

    def write(self, folder: Path, split: Split, predictions: Sequence[Any]) -> Path:
        """Columns as conlleval reads them: word, tag if known, predicted tag."""
        path = folder / f"{split.name}.conll"
        with path.open("w", encoding="utf-8") as file:
            for row, tags in zip(split.examples, predictions, strict=True):
                columns = (row.words, row.tags, tags) if row.is_labeled else (row.words, tags)
                file.write("".join("\t".join(cells) + "\n" for cells in zip(*columns, strict=True)) + "\n")
        return path


def _in_iob2(rows: Iterator[Example], labels: tuple[str, ...]) -> Iterator[Example]:
    """The sentences with entities in IOB2; the first ones tell whether tags have to be rewritten with prefixes."""
    sample = list(itertools.islice(rows, conll.SAMPLE))
    tags = {tag for row in sample for tag in row.tags or ()} - {"O"}
    if tags and all(map(LOWER_CASE.fullmatch, tags)):
        row = next(row for row in sample if tags & set(row.tags or ()))
        raise InputError(
            f"{row.id}: tags in lower case, such as {min(tags)!r}; write O and prefixes such as B- in upper case"
        )
    rewrite = need_prefixes(tags) and not tags <= set(labels)
    for row in itertools.chain(sample, rows):
        if row.tags is not None:
            row = row._replace(tags=tuple(to_iob2([with_prefix(tag) for tag in row.tags] if rewrite else row.tags)))
        yield row


def _sentences(source: Source, config: TokenClassificationData) -> Iterator[Example]:
    """The sentences of CoNLL files, or of records, of which each is a sentence; empty ones only if they are to be predicted."""
    records = tuple(path for path in source.paths if readers.file_kind(path) in RECORDS)
    empty: list[str] = []
    for path in (path for path in source.paths if path not in records):
        if (kind := readers.file_kind(path)) in ADVICE:
            raise InputError(f"{path}: sentences cannot be read from .{kind}; {ADVICE[kind]}")
        for where, words, tags in conll.sentences(
            path, config, config.word_column, config.tag_column, source.is_hidden
        ):
            yield Example(where, tuple(words), tuple(tags) if tags else None)
    for where, record in readers.records(replace(source, paths=records), config):
        row = _from_record(where, record, config, source.is_hidden)
        if row.words or source.is_hidden:
            yield row
        else:
            empty.append(where)
    if empty:
        log.warning("%s: %d empty sentences skipped, the first: %s", source.split, len(empty), empty[0])


def _from_record(where: str, record: Record, config: TokenClassificationData, hidden: bool) -> Example:
    """A sentence of a data set such as conll2003, from TFDS or the hub: words and names of tags."""
    words = _texts(where, record, "word_column", config.word_column, WORD_FIELDS) or ()
    tags = _texts(where, record, "tag_column", config.tag_column, TAG_FIELDS, optional=hidden)
    if tags is not None and len(tags) != len(words):
        raise InputError(f"{where}: {len(words)} words, but {len(tags)} tags")
    return Example(where, tuple(words), None if tags is None else tuple(tags))


def _texts(
    where: str, record: Record, option: str, name: str, usual: tuple[str, ...], optional: bool = False
) -> Sequence[str] | None:
    """The list of texts in the named field, or in the first of the usual ones; None if an optional one is missing."""
    field_name = next((field_name for field_name in ((name,) if name else usual) if field_name in record), None)
    if field_name is None:
        if optional:
            return None
        advice = f"name one of them with --data.{option.replace('_', '-')}"
        raise InputError(f"{where}: no '{name or usual[0]}'; the features are {', '.join(record)}; {advice}")
    value = record[field_name]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        problem = f"{where}: {field_name} is {value!r:.40}; expected a list of texts, also of tags, not numbers"
        advice = "; Dataset.to_parquet keeps the names of tags" if option == "tag_column" else ""
        raise InputError(problem + advice)
    return value

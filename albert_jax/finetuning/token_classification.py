"""A class a word: named entities in CoNLL columns, in IOB1, IOB2 or IOBES; entities come out as spans."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import require
from albert_jax.data.batches import Row
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.finetuning import family, files
from albert_jax.finetuning.files import Record, Source, TaskDataConfig
from albert_jax.finetuning.metrics import span_f1, spans, to_iob2
from albert_jax.finetuning.prepared import records as prepared_records

WORDS = re.compile(r"\w+|[^\w\s]")
"""What counts as a word in text that comes without columns."""
TAG = re.compile(r"O|[BIES]-.+")
DOCUMENT = "-DOCSTART-"


class Example(NamedTuple):
    """One sentence."""

    words: tuple[str, ...]
    tags: tuple[str, ...] | None
    """In IOB2; None where they are hidden."""
    where: str
    """Of its first word."""


class Piece(NamedTuple):
    """One input: some words of a sentence, as many as fit."""

    example: int
    first_word: int
    words: int
    ids: np.ndarray
    starts: np.ndarray
    """[words]: the first token of each, in `ids`."""
    targets: np.ndarray
    """[words]."""


@dataclass(frozen=True)
class Pieces:
    """`[CLS] words [SEP]`, labels on the first token of each word."""

    pieces: list[Piece]
    special: tuple[int, int]
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, item: int) -> Row:
        piece = self.pieces[item]
        cls_id, sep_id = self.special
        ids = np.concatenate([[cls_id], piece.ids, [sep_id]]).astype(np.int32)
        targets, weights = np.zeros_like(ids), np.zeros(len(ids), np.float32)
        targets[piece.starts + 1] = piece.targets
        weights[piece.starts + 1] = 1
        return {"input_ids": ids, "token_type_ids": np.zeros_like(ids), "target": targets, "weights": weights}


@dataclass(frozen=True)
class TokenClassification:
    """Entities of some types; the types are those of the training file."""

    select: str = "f1"
    splits: Mapping[str, str] = field(
        default_factory=lambda: {"train": "*train*", "dev": "*dev*|*valid*|*testa*", "test": "*testb*|*test*"}
    )

    def heads(self, config: TaskDataConfig) -> tuple[str, ...]:
        return ("token_classifier",)

    def read(
        self, sources: Mapping[str, Source], config: TaskDataConfig
    ) -> tuple[dict[str, list[Any]], tuple[str, ...]]:
        found: dict[str, list[Any]] = {}
        labels: tuple[str, ...] = ()
        for split, source in sources.items():
            sentences = (
                [_of_record(*located) for located in prepared_records(*source.prepared)] if source.prepared else []
            )
            sentences += [example for path in source.paths for example in _sentences(path, config)]
            sentences = sentences[: source.limit(config)]
            require(bool(sentences), f"{source.name}: no sentence in it")
            if not source.is_hidden:
                bare = next((row.where for row in sentences if row.tags is None), None)
                require(bare is None, f"{bare}: one column, need a word and its tag")
            kinds = sorted({span.type for row in sentences for span in spans(row.tags or ())})
            if split == "train":
                require(bool(kinds), f"{source.name}: no entity in it: all tags are O")
                labels = ("O", *(f"{prefix}-{kind}" for kind in kinds for prefix in "BI"))
            else:
                for row in sentences:
                    strange = next(
                        (span.type for span in spans(row.tags or ()) if f"B-{span.type}" not in labels), None
                    )
                    known = ", ".join(label[2:] for label in labels[1::2])
                    told = f"{row.where}: an entity of type {strange!r} in this sentence; the training file has {known}"
                    require(strange is None, told)
            found[split] = sentences
        return found, labels

    def texts(self, examples: Sequence[Any]) -> list[str]:
        return [" ".join(row.words) for row in examples]

    def rows(
        self,
        examples: Sequence[Any],
        tokenizer: Tokenizer,
        config: TaskDataConfig,
        labels: tuple[str, ...],
        split: str = "",
    ) -> Pieces:
        numbers = {label: number for number, label in enumerate(labels)}
        room = config.max_seq_length - 2
        encoded = iter(tokenizer.encode_batch([word for row in examples for word in row.words]))
        found: list[Piece] = []
        cut = 0
        for number, row in enumerate(examples):
            # A word that is no token, such as a lone joiner, still has a label: it is unknown.
            own = [(next(encoded) or [tokenizer.unk_id])[:room] for _ in row.words]
            targets = [numbers[tag] for tag in row.tags] if row.tags else [0] * len(own)
            first = 0
            while first < len(own):
                size, last = 0, first
                while last < len(own) and size + len(own[last]) <= room:
                    size += len(own[last])
                    last += 1
                starts = np.cumsum([0, *(len(ids) for ids in own[first : last - 1])])
                ids = np.array([i for word in own[first:last] for i in word], np.int32)
                found.append(Piece(number, first, last - first, ids, starts, np.array(targets[first:last], np.int32)))
                first = last
            cut += bool(found) and found[-1].example == number and found[-1].first_word > 0
        family.tell_long(split, cut, len(examples), "sentences are read in several parts of", config.max_seq_length)
        lengths = np.array([len(piece.ids) + 2 for piece in found], np.int32)
        return Pieces(found, (tokenizer.cls_id, tokenizer.sep_id), lengths)

    def loss(self, apply: Any, params: Any, batch: family.Batch, train: bool) -> tuple[Array, dict[str, Array]]:
        logits = family.run(apply, params, batch, batch["dropout_keys"] if train else None)["logits"]
        return family.class_loss(logits, batch)

    def outputs(self, apply: Any, params: Any, batch: family.Batch, config: TaskDataConfig) -> family.Outputs:
        """`label` [B, S] and its `probability`."""
        probabilities = jax.nn.softmax(family.run(apply, params, batch, None)["logits"])
        return {"label": jnp.argmax(probabilities, axis=-1), "probability": jnp.max(probabilities, axis=-1)}

    def score(
        self,
        examples: Sequence[Any],
        rows: Pieces,
        found: family.Found,
        labels: tuple[str, ...],
        dev: Mapping[str, float] | None = None,
    ) -> family.Scored:
        predictions = [tags for tags, _ in self.tags(examples, rows, found, labels)]
        degenerate = all(tag == "O" for tags in predictions for tag in tags)
        if any(row.tags is None for row in examples):
            return family.Scored({}, predictions, degenerate)
        return family.Scored(span_f1(predictions, [row.tags for row in examples]), predictions, degenerate)

    def tags(
        self, examples: Sequence[Any], rows: Pieces, found: family.Found, labels: tuple[str, ...]
    ) -> list[tuple[list[str], list[float]]]:
        """For each sentence the tag of every word, in IOB2, and its probability: the pieces joined again."""
        whole: list[tuple[list[str], list[float]]] = [([], []) for _ in examples]
        for piece, outputs in zip(rows.pieces, found, strict=True):
            tags, probabilities = whole[piece.example]
            tags += [labels[number] for number in outputs["label"][piece.starts + 1].tolist()]
            probabilities += outputs["probability"][piece.starts + 1].tolist()
        return [(to_iob2(tags), probabilities) for tags, probabilities in whole]

    def baseline(self, train: Sequence[Any], dev: Sequence[Any], labels: tuple[str, ...]) -> dict[str, float]:
        """Every word that was always one entity's in training is one again (the baseline of CoNLL-2003)."""
        seen: dict[tuple[str, ...], set[str]] = {}
        for row in train:
            for span in spans(row.tags):
                seen.setdefault(row.words[span.start : span.end], set()).add(span.type)
        known = {words: next(iter(kinds)) for words, kinds in seen.items() if len(kinds) == 1}
        longest = max(map(len, known), default=0)
        predicted = []
        for row in dev:
            tags, at = ["O"] * len(row.words), 0
            while at < len(tags):
                size = next((n for n in range(longest, 0, -1) if row.words[at : at + n] in known), 0)
                kind = known.get(row.words[at : at + size], "")
                tags[at : at + size] = [f"B-{kind}", *[f"I-{kind}"] * (size - 1)][:size]
                at += max(size, 1)
            predicted.append(tags)
        return span_f1(predicted, [row.tags for row in dev])

    def write(self, folder: Path, split: str, examples: Sequence[Any], predictions: Sequence[Any]) -> Path:
        """Word, tag where it is known, predicted tag: what conlleval reads."""
        path = folder / f"{split}.conll"
        with path.open("w", encoding="utf-8") as file:
            for row, tags in zip(examples, predictions, strict=True):
                gold = row.tags or (None,) * len(tags)
                for word, told, tag in zip(row.words, gold, tags, strict=True):
                    file.write("\t".join(cell for cell in (word, told, tag) if cell is not None) + "\n")
                file.write("\n")
        return path


def _sentences(path: Path, config: TaskDataConfig) -> list[Example]:
    """A word a line, its tag in the last column, a blank line after a sentence."""
    found: list[Example] = []
    words: list[str] = []
    tags: list[str] = []
    begun, columns = "", 0

    def end() -> None:
        if words:
            known = to_iob2(tags) if tags else None
            found.append(Example(tuple(words), None if known is None else tuple(known), begun))
        words.clear()
        tags.clear()

    for where, line in files.text_lines(path, config):
        if not line.strip():
            end()
            continue
        cells = line.split("\t") if "\t" in line else line.split()
        if cells[0] == DOCUMENT:
            continue
        columns = columns or len(cells)
        told = f"{where}: {len(cells)} columns, need {columns}, as in the lines before"
        require(len(cells) == columns, told)
        if not words:
            begun = where
        words.append(cells[0])
        if columns > 1:
            tag = cells[-1].strip()
            require(
                TAG.fullmatch(tag) is not None,
                f"{where}: tag {tag!r} is not O, or one of B-, I-, E-, S- and a type",
            )
            tags.append(tag)
    end()
    return found


def _of_record(where: str, record: Record) -> Example:
    """A sentence of TFDS, such as of conll2003: `tokens`, and tags by their names as `ner` or `tags`."""
    tags: Any = record.get("ner", record.get("tags"))
    require(
        "tokens" in record and tags is not None, f"{where}: no tokens with ner or tags; there are {', '.join(record)}"
    )
    return Example(tuple(record["tokens"]), tuple(to_iob2(tags)), where)

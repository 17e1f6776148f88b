"""Minimal pairs: does a model find the acceptable sentence of a pair more probable than the other one?

BLiMP (Warstadt et al., arXiv 1912.00582) has 67 kinds (paradigms) of 1,000 English pairs, in 12 phenomena.
"""

import glob
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from albert_jax.config import InputError, check_fields, choice
from albert_jax.data.csv_files import csv_rows, tsv_rows
from albert_jax.data.lines import is_compressed, lines
from albert_jax.pretraining.pseudo_likelihood import MASKINGS, Scorer

FIELDS = {
    "good": ("good", "sentence_good"),
    "bad": ("bad", "sentence_bad"),
    "kind": ("kind", "UID"),
    "phenomenon": ("phenomenon", "linguistics_term", "kind", "UID"),
}
"""Field of a pair -> its names in files; the second ones are BLiMP's."""


class Pair(NamedTuple):
    """Two sentences that differ in acceptability."""

    good: str
    bad: str
    kind: str
    phenomenon: str


@dataclass(frozen=True)
class PairsConfig:
    """Minimal pairs, scored by pseudo-log-likelihood."""

    source: str = ""
    """File, folder or glob with lines of JSON (good, bad and kind, or BLiMP's fields), or .csv or .tsv with such columns."""
    share: float = 1.0
    """Fraction of the pairs of each kind: 0.1 takes the 10th, the 20th, ..."""
    masking: str = choice("token", MASKINGS)
    """token: mask one token at a time; word: also mask the later tokens of the same word, because they reveal it."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.share <= 1:
            raise InputError(f"share must be in (0, 1], got {self.share}")


def read_pairs(config: PairsConfig, option: str = "pairs.source") -> list[Pair]:
    """The pairs of `config.source`, in the order of the files; errors name the `option`.

    Raises:
      InputError: no file, or a record without two sentences; names file and line.
    """
    path = Path(config.source).expanduser()
    files = sorted(path.iterdir()) if path.is_dir() else sorted(map(Path, glob.glob(str(path))))
    files = [file for file in files if _suffix(file) in READERS] if path.is_dir() else files
    if not files:
        raise InputError(f"{option} {config.source}: no file of minimal pairs ({', '.join(READERS)})")
    counts: Counter[str] = Counter()
    pairs = []
    for file in files:
        for where, record in _records(file):
            pair = _pair(where, record, file)
            if is_in_share(counts[pair.kind], config.share):
                pairs.append(pair)
            counts[pair.kind] += 1
    if not pairs:
        raise InputError(f"{option} {config.source}: no pairs (share {config.share:g} of {counts.total()})")
    return pairs


def is_in_share(number: int, share: float) -> bool:
    """Whether an item, by its number from 0, belongs to an evenly spaced share: for 0.1 the 10th, the 20th, ..."""
    before, after = (math.floor(count * share + 1e-9) for count in (number, number + 1))
    return after > before


def digest(pairs: Sequence[Pair]) -> str:
    """SHA-256 of pairs: a run that resumes must have the same."""
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def _suffix(file: Path) -> str:
    return (file.with_suffix("") if is_compressed(file) else file).suffix.lower()


def _json_records(located: Iterator[tuple[str, str]]) -> Iterator[tuple[str, Any]]:
    for where, line in located:
        if line.strip():
            try:
                yield where, json.loads(line)
            except ValueError as error:
                raise InputError(f"{where}: not JSON: {error}; put one pair on each line") from None


def _table_records(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    header: list[str] = []
    for where, cells in rows:
        if isinstance(cells, InputError):
            raise cells
        if header:
            yield where, dict(zip(header, cells, strict=False))
        else:
            header = [cell.strip() for cell in cells]


READERS = {
    ".jsonl": _json_records,
    ".json": _json_records,
    ".csv": lambda located: _table_records(csv_rows(located)),
    ".tsv": lambda located: _table_records(tsv_rows(located)),
}
"""Suffix of a file, apart from that of a compression -> its reader: (`file:line`, line) -> (`file:line`, record)."""


def _records(file: Path) -> Iterator[tuple[str, Any]]:
    if _suffix(file) not in READERS:
        raise InputError(f"{file}: cannot read this type; use one of {', '.join(READERS)}")
    return READERS[_suffix(file)]((f"{file}:{number}", line) for number, line in lines(file, "error", Counter()))


def _pair(where: str, record: Any, file: Path) -> Pair:
    if not isinstance(record, dict):
        raise InputError(f"{where}: expected a record with the fields good and bad, got {record!r:.60}")
    values = {}
    for field, names in FIELDS.items():
        value = next((record[name] for name in names if record.get(name) is not None), None)
        if value is None and field in ("good", "bad"):
            raise InputError(f"{where}: no field {' or '.join(names)}; the fields are {', '.join(record)}")
        values[field] = str(value) if value is not None else file.name.partition(".")[0]
        if not values[field].strip():
            raise InputError(f"{where}: {field} is empty")
    return Pair(**values)


def accuracies(score: Scorer, params: Any, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Score pairs: the model is right if the acceptable sentence has the higher score, and half right if both are equal.

    Equal scores are those of equal tokens: BLiMP has pairs of equal sentences, and others that differ in case.

    Returns:
      For each kind, in the order of the pairs, its `phenomenon`, `kind`, number of `pairs`, `accuracy`, and `fewer_tokens`, the
      accuracy of a rule that prefers the sentence with fewer tokens.
    """
    scores = score(params, [text for pair in pairs for text in (pair.good, pair.bad)])
    right, shorter = (
        np.where(good == bad, 0.5, good > bad).tolist()
        for good, bad in (scores.log_likelihoods.reshape(-1, 2).T, -scores.num_tokens.reshape(-1, 2).T)
    )
    table: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for pair, *values in zip(pairs, right, shorter, strict=True):
        table.setdefault((pair.phenomenon, pair.kind), []).append((values[0], values[1]))
    return [
        {"phenomenon": phenomenon, "kind": kind, "pairs": len(values)}
        | dict(zip(("accuracy", "fewer_tokens"), np.mean(values, axis=0).tolist(), strict=True))
        for (phenomenon, kind), values in table.items()
    ]


def with_pairs(evaluate: Callable[[Any], dict[str, Any]], score: Scorer, pairs: Sequence[Pair]) -> Any:
    """The evaluation of a run with the metric `pairs_accuracy`, and the accuracy of each kind as `pairs`."""

    def evaluate_with_pairs(params: Any) -> dict[str, Any]:
        evaluation = evaluate(params)
        table = accuracies(score, params, pairs)
        evaluation["eval"]["pairs_accuracy"] = mean_accuracy(table)
        evaluation["examples"]["pairs_accuracy"] = float(len(pairs))
        evaluation["baselines"]["fewer tokens"] = {"pairs_accuracy": mean_accuracy(table, "fewer_tokens")}
        return evaluation | {"pairs": table}

    return evaluate_with_pairs


def mean_accuracy(table: Sequence[Mapping[str, Any]], name: str = "accuracy") -> float:
    """The mean over kinds, as in BLiMP and in the BabyLM evaluation, of one of the accuracies in a table."""
    return float(np.mean([row[name] for row in table]))

"""Where a task's examples come from: the benchmark's files, the user's files, or a data set prepared by TFDS.

Decides which files belong to a split and how a file becomes records.  Each family interprets the records itself.
"""

import csv
import glob
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from albert_jax.config import InputError, check_fields, choice, first_line, read_json
from albert_jax.data.sources import MAX_LINE_BYTES, lines
from albert_jax.data.tfds import PREFIX, builder_of
from albert_jax.finetuning.prepared import records as prepared_records
from albert_jax.finetuning.prepared import splits_of

log = logging.getLogger(__name__)

Record = dict[str, Any]
Located = tuple[str, Record]
"""`file:line` and the record."""
MaybeRecord = tuple[str, Record | InputError]
"""`file:line`, and the record or why it cannot be read."""


@dataclass(frozen=True)
class TaskDataConfig:
    """The task, its files, and how they become tokens.  Each family adds its own settings."""

    task: str
    """The task: a name in `TASKS` (albert_jax/finetuning/tasks.py)."""
    dir: str = ""
    """Folder of the benchmark's files, or 'tfds:NAME' or 'tfds:FOLDER' of a data set prepared by TFDS."""
    train_file: str = ""
    """Training files (globs, comma-separated) to use instead of those in data.dir."""
    dev_file: str = ""
    """Dev files, likewise; metrics are computed on them, and they select the best checkpoint."""
    test_file: str = ""
    """Test files, likewise; predictions are written for them, and metrics if they have labels."""
    vocab: str = ""
    """SentencePiece model; empty: the vocabulary of --init-from, or train one of model.vocab_size pieces on the task's text."""
    lower_case: bool | None = None
    """Convert text to lower case.  None: as the model of --init-from, else true."""
    keep_accents: bool | None = None
    """Keep accents, umlauts and voicing marks.  None: as the model of --init-from, else false."""
    map_punctuation: bool | None = None
    """Replace curly quotes and dashes, which the released vocabulary lacks.  None: as the model of --init-from, else false."""
    max_seq_length: int = 512
    """S: longer inputs are truncated; question answering and token classification read them in several parts."""
    max_train_samples: int = 0
    """Use only the first N training examples; 0: all."""
    max_eval_samples: int = 0
    """Use only the first N examples of every other split; 0: all."""
    encoding_errors: str = choice("error", ("error", "replace"))
    """On invalid UTF-8: stop, or replace and count it."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_minimum(self, 0, "max_train_samples", "max_eval_samples")
        check_minimum(self, 8, "max_seq_length")


def check_minimum(config: Any, minimum: int, *fields: str) -> None:
    """Raise InputError if one of the fields is below the minimum."""
    for field in fields:
        if getattr(config, field) < minimum:
            raise InputError(f"{field} must be at least {minimum}, got {getattr(config, field)}")


@dataclass(frozen=True)
class Source:
    """The files of one split, or its name in a TFDS data set."""

    split: str
    paths: tuple[Path, ...] = ()
    prepared: tuple[str, str] | None = None
    """Name of the TFDS data set, and of the split in it."""

    @property
    def name(self) -> str:
        """The files, or data set and split, for messages."""
        return ", ".join(map(str, self.paths)) or "/".join(self.prepared or ())

    @property
    def is_hidden(self) -> bool:
        """True for a split to be predicted: its labels may be missing, but no line may, because servers count lines."""
        return not self.split.startswith(("train", "dev"))

    def limit(self, config: TaskDataConfig) -> int | None:
        """The maximum number of examples; None for all."""
        return (config.max_train_samples if self.split == "train" else config.max_eval_samples) or None


def find(config: TaskDataConfig, patterns: Mapping[str, str]) -> dict[str, Source]:
    """The splits that exist, in the order training, dev, others.

    Args:
      config: names the folder, and files that replace the task's files.
      patterns: split -> glob of the task's files in the folder, or alternatives separated by `|`.

    Raises:
      InputError: no training or no dev files, or a named file does not exist.
    """
    named = {"train": config.train_file, "dev": config.dev_file, "test": config.test_file}
    # --data.dev-file replaces dev_matched and dev_mismatched, --data.test-file every split to be predicted.
    in_dir = {split: glob for split, glob in patterns.items() if not named.get(_kind(split), named["test"])}
    sources: dict[str, Source] = {}
    if config.dir.startswith(PREFIX):
        name = config.dir.removeprefix(PREFIX)
        sources = {
            split: Source(split, (), (name, tfds_split)) for split, tfds_split in splits_of(name, in_dir).items()
        }
    elif config.dir:
        folder = Path(config.dir).expanduser()
        if not folder.is_dir():
            raise InputError(f"data.dir {config.dir}: no such folder")
        matches = {split: _matching_files(folder, pattern) for split, pattern in in_dir.items()}
        sources = {split: Source(split, paths) for split, paths in matches.items() if paths}
    for split, globs in named.items():
        if globs:
            sources[split] = Source(split, _named_files(f"data.{split}_file", globs))
    for kind in ("train", "dev"):
        if not any(_kind(split) == kind for split in sources):
            expected = ", ".join(pattern for split, pattern in patterns.items() if _kind(split) == kind)
            problem = f"no {expected} in data.dir {config.dir}" if config.dir and expected else f"no {kind} data"
            raise InputError(f"{problem}; give --data.dir or --data.{kind}-file")
    dev = sorted(split for split in sources if _kind(split) == "dev")
    return {split: sources[split] for split in ["train", *dev, *(s for s in sources if s not in ("train", *dev))]}


def _kind(split: str) -> str:
    return split.split("_")[0]


def _matching_files(folder: Path, pattern: str) -> tuple[Path, ...]:
    """The files of the first alternative that matches; a .tsv may also have been saved as .jsonl or .csv."""
    for alternative in pattern.split("|"):
        stem, _, suffix = alternative.rpartition(".")
        for name in (alternative, f"{stem}.jsonl", f"{stem}.csv") if suffix == "tsv" else (alternative,):
            if paths := tuple(path for path in sorted(folder.glob(name)) if path.is_file()):
                return paths
    return ()


def _named_files(field: str, globs: str) -> tuple[Path, ...]:
    paths: list[Path] = []
    for pattern in map(str.strip, globs.split(",")):
        matches = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))
        if not matches:
            raise InputError(f"{field} {pattern}: no such file")
        paths += map(Path, matches)
    return tuple(paths)


def fingerprint(sources: Mapping[str, Source]) -> str:
    """SHA-256 of the splits' files with their answer files, or of the TFDS data set's name and version."""
    digest = hashlib.sha256()
    for split, source in sources.items():
        digest.update(f"{split} {builder_of(source.prepared[0]).info.full_name if source.prepared else ''}".encode())
        for path in (file for data_file in source.paths for file in (data_file, answers_file(data_file))):
            if path.is_file():
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def answers_file(path: Path) -> Path:
    """The .ans file with the answers to a file of questions (MCTest)."""
    return path.with_name(path.name.removesuffix(".gz").rpartition(".")[0] + ".ans")


def records(source: Source, config: TaskDataConfig) -> Iterator[Located]:
    """The records of a split with their `file:line`; raises InputError at the first that cannot be read."""
    for where, record in maybe_records(source, config):
        if isinstance(record, InputError):
            raise record
        yield where, record


def maybe_records(source: Source, config: TaskDataConfig, header: tuple[str, ...] = ()) -> Iterator[MaybeRecord]:
    """The records of a split; instead of a line that cannot be parsed, its InputError.

    Args:
      header: the columns of .tsv files without a header line.
    """
    if source.prepared:
        yield from prepared_records(*source.prepared)
    for path in source.paths:
        kind = path.name.removesuffix(".gz").rpartition(".")[2]
        if kind not in READERS:
            raise InputError(f"{path}: cannot read '.{kind}' files; known: {', '.join(READERS)}, also with .gz")
        yield from READERS[kind](path, config, header)


def text_lines(path: Path, config: TaskDataConfig) -> Iterator[tuple[str, str]]:
    """`file:line` and text of each line; at the end, logs how many were repaired.

    Raises:
      InputError: the file cannot be read, or has invalid UTF-8 and data.encoding_errors is 'error'.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    repairs: Counter[str] = Counter()
    try:
        for number, line in lines(path, config.encoding_errors, repairs):
            yield f"{path}:{number}", line
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    repairs.pop("CRLF line ends", None)
    for repair, count in repairs.items():
        log.warning("%s: %d %s", path, count, repair)


def _tsv(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[MaybeRecord]:
    """Tab-separated, with a header line unless `header` is given.  Quotes are plain characters, as in GLUE's files."""
    names = header
    for where, line in text_lines(path, config):
        cells = line.split("\t")
        if not names or (header and cells[0] == "index"):  # CoLA: only the test file has a header line
            names = _header(where, cells)
        else:
            yield where, _row(where, cells, names)


def _csv(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[MaybeRecord]:
    """Comma-separated with a header line, quoted as in RFC 4180."""
    where = str(path)
    names: tuple[str, ...] = ()

    def texts() -> Iterator[str]:
        nonlocal where
        for where, line in text_lines(path, config):  # noqa: B007
            yield line + "\n"

    csv.field_size_limit(MAX_LINE_BYTES)
    try:
        for cells in csv.reader(texts(), strict=True):
            if not names:
                names = _header(where, cells)
            elif cells:
                yield where, _row(where, cells, names)
    except csv.Error as error:
        raise InputError(f"{where}: not CSV: {error}") from None


def _header(where: str, cells: list[str]) -> tuple[str, ...]:
    if repeated := [name for name, count in Counter(cells).items() if count > 1]:
        raise InputError(f"{where}: two columns are called {repeated[0]!r}")
    return tuple(cells)


def _row(where: str, cells: list[str], names: tuple[str, ...]) -> Record | InputError:
    if len(cells) != len(names):
        return InputError(f"{where}: expected {len(names)} columns ({', '.join(names)}), found {len(cells)}")
    return dict(zip(names, cells, strict=True))


def _jsonl(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[MaybeRecord]:
    for where, line in text_lines(path, config):
        if line.strip():
            yield where, _object(where, line)


def _object(where: str, line: str) -> Record | InputError:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return InputError(f"{where}: not JSON: {first_line(error)}")
    if not isinstance(record, dict):
        return InputError(f"{where}: expected a JSON object")
    return _without_lone_surrogates(record) if "\\ud" in line.lower() else record


def _without_lone_surrogates(record: Record) -> Record:
    """Replace halves of surrogate pairs, which JSON can contain but UTF-8 cannot encode."""
    text = json.dumps(record, ensure_ascii=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _json(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[MaybeRecord]:
    """One object: a SQuAD file, or a passage of RACE."""
    yield str(path), _without_lone_surrogates(read_json(path))


READERS: dict[str, Callable[[Path, TaskDataConfig, tuple[str, ...]], Iterator[MaybeRecord]]] = {
    "tsv": _tsv,
    "csv": _csv,
    "jsonl": _jsonl,
    "json": _json,
    "txt": _jsonl,  # RACE's files have one JSON object per line
}
"""File suffix -> reader of its records."""

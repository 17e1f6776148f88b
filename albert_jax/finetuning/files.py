"""Where a task's examples come from: the benchmark's own files, a file of the user's, a data set that TFDS has prepared.

Decides how files are read and how their mistakes are told.  What the columns mean is each family's business.
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

from albert_jax.config import InputError, check_fields, choice, read_json, require
from albert_jax.data.sources import MAX_LINE_BYTES, lines
from albert_jax.data.tfds import PREFIX, builder_of
from albert_jax.finetuning.prepared import records as prepared_records
from albert_jax.finetuning.prepared import splits_of

log = logging.getLogger(__name__)

Record = dict[str, Any]
Located = tuple[str, Record]
"""Where it stands (file:line), and the record."""


@dataclass(frozen=True)
class TaskDataConfig:
    """The task, its files, and how they become tokens."""

    task: str
    """An entry of `TASKS` (albert_jax/tasks/table.py)."""
    dir: str = ""
    """Folder of the benchmark's files, or 'tfds:NAME' (or 'tfds:FOLDER') of a data set that TFDS has prepared."""
    train_file: str = ""
    """Glob or comma-separated globs instead of the task's own file of this split, as are the next two."""
    dev_file: str = ""
    """What metrics are of, and the best checkpoint is chosen by."""
    test_file: str = ""
    """What predictions are written of; metrics too, where it has labels."""
    vocab: str = ""
    """SentencePiece model; empty: that of --init-from, or else one of model.vocab_size pieces trained on the task's text."""
    map_punctuation: bool = False
    """With a vocabulary not of --init-from: map curly quotes and dashes, which the released one lacks, to ones it has."""
    max_seq_length: int = 512
    """S: longer inputs lose the end of their longer text; answers and entities are looked for in several windows."""
    max_train_samples: int = 0
    """Take only the first so many training examples; 0: all."""
    max_eval_samples: int = 0
    """Take only the first so many of every other split; 0: all."""
    encoding_errors: str = choice("error", ("error", "replace"))
    """Stop at invalid UTF-8, or replace and count it."""
    malformed: str = choice("error", ("error", "skip"))
    """Tables of texts, training and dev: stop at a line that cannot be read, or skip and count it."""
    text_column: str = "text"
    """Tasks 'text' and 'regression': the column of a .csv, .tsv or .jsonl file that is classified."""
    text_pair_column: str = ""
    """The same: a second text, if there is one."""
    label_column: str = "label"
    """The same: the class, or the number."""
    doc_stride: int = 128
    """Answers: tokens from one window's beginning to the next one's."""
    max_query_length: int = 64
    """Answers: longer questions are cut."""
    max_answer_length: int = 30
    """Answers: tokens of the longest."""
    n_best_size: int = 20
    """Answers: how many are kept of a question."""
    qa_head: str = choice("plain", ("plain", "answer_class"))
    """Answers: start and end alone, or the released SQuAD 2.0 head, which asks whether there is an answer."""
    strict: bool = False
    """Answers: refuse a training answer that is not in its context, instead of leaving it out and counting it."""
    max_qa_length: int = 128
    """Choices: question and option keep their last so many tokens."""
    level: str = choice("all", ("all", "middle", "high"))
    """RACE: which part of it."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("doc_stride", "max_query_length", "max_answer_length", "n_best_size", "max_qa_length"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_train_samples", "max_eval_samples"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        require(self.max_seq_length >= 8, f"max_seq_length must be at least 8, got {self.max_seq_length}")


@dataclass(frozen=True)
class Source:
    """The files of one split, or its name in a data set of TFDS."""

    split: str
    paths: tuple[Path, ...] = ()
    prepared: tuple[str, str] | None = None
    """The name of a data set of TFDS, and of the split there."""

    @property
    def name(self) -> str:
        """For people."""
        return ", ".join(map(str, self.paths)) or "/".join(self.prepared or ())

    @property
    def is_hidden(self) -> bool:
        """Whether it is to be predicted: labels may be missing, and no line may be."""
        return not self.split.startswith(("train", "dev"))

    def limit(self, config: TaskDataConfig) -> int | None:
        """How many examples are taken; None for all."""
        return (config.max_train_samples if self.split == "train" else config.max_eval_samples) or None


def find(config: TaskDataConfig, own: Mapping[str, str]) -> dict[str, Source]:
    """The splits that are there.

    Args:
      config: names the folder, and files that go before the task's own.
      own: split -> glob of the task's own files in the folder, or several with | between; `train`, those that begin with
        `dev`, and others to predict.

    Raises:
      InputError: no training or no dev files, or a named file that is not there.
    """
    given = {"train": config.train_file, "dev": config.dev_file, "test": config.test_file}
    names = {
        split: pattern for split, pattern in own.items() if not given[_stem(split) if _stem(split) in given else "test"]
    }
    if config.dir.startswith(PREFIX):
        name = config.dir.removeprefix(PREFIX)
        found = {split: Source(split, (), (name, theirs)) for split, theirs in splits_of(name, names).items()}
    else:
        folder = Path(config.dir).expanduser()
        require(not config.dir or folder.is_dir(), f"data.dir {config.dir}: no such folder")
        found = {split: Source(split, _in_folder(folder, pattern)) for split, pattern in names.items() if config.dir}
        found = {split: source for split, source in found.items() if source.paths}
    for split, patterns in given.items():
        if patterns:
            found[split] = Source(split, _named(f"data.{split}_file", patterns))
    for split in ("train", "dev"):
        there = any(_stem(name) == split for name in found)
        wanted = ", ".join(pattern for name, pattern in own.items() if _stem(name) == split)
        where = f"no {wanted} in data.dir {config.dir}" if config.dir and wanted else "no data.dir"
        require(there, f"{where}; give --data.dir, or name it with --data.{split}-file")
    order = ["train", *sorted(name for name in found if _stem(name) == "dev")]
    return {name: found[name] for name in [*order, *(name for name in found if name not in order)]}


def _stem(split: str) -> str:
    return split.split("_")[0]


def _in_folder(folder: Path, pattern: str) -> tuple[Path, ...]:
    """The task's own files by the first alternative that matches, also where they were saved as .jsonl or .csv."""
    for own in pattern.split("|"):
        stem, _, suffix = own.rpartition(".")
        for name in (own, *(f"{stem}.{other}" for other in ("jsonl", "csv") if suffix == "tsv")):
            if found := tuple(path for path in sorted(folder.glob(name)) if path.is_file()):
                return found
    return ()


def _named(field: str, patterns: str) -> tuple[Path, ...]:
    paths: list[Path] = []
    for pattern in patterns.split(","):
        matched = sorted(glob.glob(str(Path(pattern.strip()).expanduser()), recursive=True))
        require(bool(matched), f"{field} {pattern.strip()}: no such file")
        paths += map(Path, matched)
    return tuple(paths)


def fingerprint(sources: Mapping[str, Source]) -> str:
    """SHA-256 over the splits' files, the answers beside them too, or over the data set's name and version."""
    digest = hashlib.sha256()
    for split, source in sources.items():
        digest.update(f"{split} {builder_of(source.prepared[0]).info.full_name if source.prepared else ''}".encode())
        for path in source.paths:
            for own in (path, beside(path)):
                if own.is_file():
                    with own.open("rb") as file:
                        digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def beside(path: Path) -> Path:
    """The file that holds the answers to another, as MCTest has them."""
    return path.with_name(path.name.removesuffix(".gz").rpartition(".")[0] + ".ans")


def read(
    source: Source, config: TaskDataConfig, example: Callable[[str, Record], Any], header: tuple[str, ...] = ()
) -> list[Any]:
    """The examples of a split: `example(where, record)` of each record, whose mistakes it tells by `InputError`.

    Args:
      header: the columns of a .tsv whose first line names none.

    Raises:
      InputError: a file or line that cannot be read, or no example.
    """
    found: list[Any] = []
    skipped: list[str] = []
    for where, record in _records(source, config, header):
        try:
            if isinstance(record, InputError):
                raise record
            made = example(where, record)
        except InputError as error:
            if source.is_hidden:  # predictions go by the lines' numbers
                raise
            if config.malformed == "error":
                raise InputError(f"{error}; mend it, or --data.malformed skip leaves such lines out") from None
            skipped.append(str(error))
            continue
        found.append(made)
        if len(found) == source.limit(config):
            break
    if skipped:
        log.warning("%s: %d lines skipped, the first: %s", source.split, len(skipped), skipped[0])
    require(bool(found), f"{source.name}: no example in it")
    return found


def records(source: Source, config: TaskDataConfig) -> Iterator[Located]:
    """The records of a split, with where each stands.  Raises as `read`."""
    for where, record in _records(source, config, ()):
        if isinstance(record, InputError):
            raise record
        yield where, record


def _records(
    source: Source, config: TaskDataConfig, header: tuple[str, ...]
) -> Iterator[tuple[str, Record | InputError]]:
    if source.prepared:
        yield from prepared_records(*source.prepared)
    for path in source.paths:
        kind = path.name.removesuffix(".gz").rpartition(".")[2]
        require(
            kind in READERS, f"{path}: cannot read '.{kind}'; known: {', '.join(READERS)}; those of lines also with .gz"
        )
        yield from READERS[kind](path, config, header)


def text_lines(path: Path, config: TaskDataConfig) -> Iterator[tuple[str, str]]:
    """`file:line` and text of each line; what was mended is said at the end.  Raises as `data.sources.lines`."""
    repairs: Counter[str] = Counter()
    require(path.is_file(), f"{path}: no such file")
    try:
        for number, line in lines(path, config.encoding_errors, repairs):
            yield f"{path}:{number}", line
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    repairs.pop("CRLF line ends", None)
    for what, count in repairs.items():
        log.warning("%s: %d %s", path, count, what)


def _tsv(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[tuple[str, Record | InputError]]:
    """Tab-separated, a header first unless `header` says it; quotes are plain characters, as GLUE's files have them."""
    names = header
    for where, line in text_lines(path, config):
        cells = line.split("\t")
        if not names or (header and cells[0] == "index"):  # CoLA's test file has a header, its others have none
            names = _header(where, cells)
            continue
        yield where, _row(where, cells, names)


def _csv(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[tuple[str, Record | InputError]]:
    """Comma-separated, quoted as RFC 4180 says, a header first."""
    first = where = str(path)
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
        raise InputError(f"{where or first}: not CSV: {error}") from None


def _header(where: str, cells: list[str]) -> tuple[str, ...]:
    twice = next((name for name in cells if cells.count(name) > 1), None)
    require(twice is None, f"{where}: two columns are called {twice!r}")
    return tuple(cells)


def _row(where: str, cells: list[str], names: tuple[str, ...]) -> Record | InputError:
    if len(cells) != len(names):
        return InputError(f"{where}: {len(cells)} columns, need {len(names)} ({', '.join(names)})")
    return dict(zip(names, cells, strict=True))


def _jsonl(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[tuple[str, Record | InputError]]:
    for where, line in text_lines(path, config):
        if line.strip():
            yield where, _object(where, line)


def _object(where: str, line: str) -> Record | InputError:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return InputError(f"{where}: not JSON: {str(error).splitlines()[0]}")
    if not isinstance(record, dict):
        return InputError(f"{where}: expected a JSON object")
    return _mended(record) if "\\ud" in line.lower() else record


def _mended(record: Record) -> Record:
    """Without halves of surrogate pairs, which JSON can spell and no encoding can write."""
    text = json.dumps(record, ensure_ascii=False)
    return json.loads(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _json(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[tuple[str, Record | InputError]]:
    """One object: SQuAD's, or a question file of RACE."""
    yield str(path), _mended(read_json(path))


READERS: dict[str, Callable[..., Iterator[tuple[str, Record | InputError]]]] = {
    "tsv": _tsv,
    "csv": _csv,
    "jsonl": _jsonl,
    "json": _json,
    "txt": _jsonl,  # RACE's files, an object a line
}
"""File suffix -> reader of that file's records."""

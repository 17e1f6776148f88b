"""How a task's files become records: one reader per file format.

A reader is a generator that keeps one record, or one batch of a .parquet file, in memory.  Only a .json file that is a
single document is read at once.  To support a new format, add an entry to `READERS`.
"""

import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from albert_jax.config import InputError, first_line, parse_json
from albert_jax.data.csv_files import Row, csv_rows, tsv_rows
from albert_jax.data.lines import (
    COMPRESSIONS,
    CORRUPTED,
    DECODER_ERRORS,
    lines,
    needs_formats,
    open_bytes,
    without_lone_surrogates,
)
from albert_jax.finetuning.files import Source, TaskDataConfig, without_compression
from albert_jax.finetuning.prepared import records as prepared_records

log = logging.getLogger(__name__)

Record = dict[str, Any]
MaybeRecord = tuple[str, Record | InputError]
"""`file:line` or `file: record N`, and the record or why it cannot be read."""

JSON_HEAD = re.compile(rb'(\xef\xbb\xbf)?\s*(\[\s*)?\{\s*"')
"""The beginning of an object or an array of objects."""
BATCH = 1000
"""Records of a .parquet file that are in memory at once."""


def records(source: Source, config: TaskDataConfig) -> Iterator[tuple[str, Record]]:
    """The records of a split with their places; raises InputError at the first that cannot be read."""
    for where, record in maybe_records(source, config):
        if isinstance(record, InputError):
            raise record
        yield where, record


def maybe_records(source: Source, config: TaskDataConfig, header: tuple[str, ...] = ()) -> Iterator[MaybeRecord]:
    """The records of a split; instead of a record that cannot be parsed, its InputError.

    Args:
      header: the columns of .tsv files without a header line.
    """
    if source.prepared:
        yield from prepared_records(*source.prepared)
    for path in source.paths:
        if (kind := file_kind(path)) not in READERS:
            known = f"{', '.join(READERS)}, also with {', '.join(COMPRESSIONS)}"
            advice = "; save the data set with Dataset.to_parquet" if kind == "arrow" else ""
            raise InputError(f"{path}: cannot read '.{kind}' files; known: {known}{advice}")
        yield from READERS[kind](path, config, header)


def file_kind(path: Path) -> str:
    """The suffix that names the format, in lower case: `csv` for `train.csv.gz`; `json` if there is none and it begins as JSON."""
    kind = without_compression(path.name).rpartition(".")[2].lower()
    if kind in READERS or not path.is_file():
        return kind
    try:
        with open_bytes(path) as file:
            return "json" if JSON_HEAD.match(file.read(1000)) else kind
    except CORRUPTED:
        return kind


def text_lines(path: Path, config: TaskDataConfig) -> Iterator[tuple[str, str]]:
    """`file:line` and text of each line; at the end, logs how many were repaired.

    Raises:
      InputError: the file cannot be read, or has invalid bytes and data.encoding_errors is 'error'.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    repairs: Counter[str] = Counter()
    try:
        for number, line in lines(path, config.encoding_errors, repairs, config.encoding):
            yield f"{path}:{number}", line
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    repairs.pop("CRLF line ends", None)
    for repair, count in repairs.items():
        level = logging.INFO if repair == "byte-order marks removed" else logging.WARNING
        log.log(level, "%s: %d %s", path, count, repair)


def _tsv(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[MaybeRecord]:
    """With a header line unless `header` is given."""
    yield from _table(path, tsv_rows(text_lines(path, config)), header)


def _csv(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[MaybeRecord]:
    """With a header line."""
    yield from _table(path, csv_rows(text_lines(path, config)), ())


def _table(path: Path, rows: Iterable[Row], header: tuple[str, ...]) -> Iterator[MaybeRecord]:
    """The records of rows of cells.  Blank rows at the end are ignored.

    Args:
      header: the columns; if empty, they are in the first row.
    """
    names, named, overflow = header, len(header), 0
    blank: list[Row] = []
    for where, cells in rows:
        if isinstance(cells, InputError):
            if not names:
                raise cells
        elif not any(map(str.strip, cells)):
            blank.append((where, cells))
            continue
        elif not names or (header and cells[0] == "index"):  # CoLA: only the test file has a header line
            names, blank = _header(where, cells), []
            named = max(number for number, cell in enumerate(cells, 1) if cell)
            continue
        for place, row in (*blank, (where, cells)):
            record = row if isinstance(row, InputError) else _record(place, row, names, named)
            overflow += isinstance(record, dict) and any(list(record.values())[named:])
            yield place, record
        blank = []
    if overflow:
        log.warning("%s: %d rows have text in columns without a name, which is not read", path, overflow)


def _header(where: str, cells: list[str]) -> tuple[str, ...]:
    """The names of the columns; a column without a name is called by its number, and equal names get numbers."""
    counts, seen = Counter(filter(None, cells)), Counter[str]()
    names = []
    for number, name in enumerate(cells, 1):
        seen[name] += 1
        names.append(f"{name} ({seen[name]})" if counts[name] > 1 else name or f"column {number}")
    for name in (name for name, count in counts.items() if count > 1):
        log.warning(
            "%s: several columns are called %r; they are read as '%s (1)', '%s (2)', ...", where, name, name, name
        )
    return tuple(names)


def _record(where: str, cells: list[str], names: tuple[str, ...], named: int) -> Record | InputError:
    """The cells by column.

    There may be more cells if they are empty, and fewer if only those of the columns after `named` are missing, which have no name.
    """
    size = len(cells)
    while size > len(names) and not cells[size - 1]:
        size -= 1
    if not named <= size <= len(names):
        return InputError(f"{where}: expected {len(names)} columns ({', '.join(names)}), found {len(cells)}")
    return dict(itertools.zip_longest(names, cells[:size], fillvalue=""))


def _jsonl(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[MaybeRecord]:
    for where, line in text_lines(path, config):
        if line.strip():
            yield where, _object(where, line)


def _txt(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[MaybeRecord]:
    """JSON lines, because a file of RACE is one JSON object."""
    for where, record in _jsonl(path, config, header):
        advice = "; .txt is read as JSON lines (RACE's format): save a table as .tsv"
        yield where, InputError(f"{record}{advice}") if isinstance(record, InputError) else record


def _object(where: str, line: str) -> Record | InputError:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return InputError(f"{where}: not JSON: {first_line(error)}")
    if not isinstance(record, dict):
        return InputError(f"{where}: expected a JSON object")
    return _repaired(record) if "\\ud" in line.lower() else record


def _repaired(record: Any) -> Any:
    """A record without lone surrogates."""
    return json.loads(without_lone_surrogates(json.dumps(record, ensure_ascii=False)))


def _json(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[MaybeRecord]:
    """One object (a SQuAD file, a passage of RACE), an array of records, or one record per line."""
    if _has_a_record_per_line(path, config):
        yield from _jsonl(path, config, header)
        return
    document = _repaired(parse_json(path, _text(path, config)))
    if isinstance(document, dict):
        yield str(path), document
    elif isinstance(document, list):
        for number, record in enumerate(document, 1):
            where = f"{path}: record {number}"
            yield where, record if isinstance(record, dict) else InputError(f"{where}: expected a JSON object")
    else:
        raise InputError(f"{path}: expected a JSON object, or an array of objects")


def _has_a_record_per_line(path: Path, config: TaskDataConfig) -> bool:
    """Whether one object ends with the first line and another begins in the next."""
    try:
        texts = (line.strip() for _, line in text_lines(path, config))
        head = list(itertools.islice(filter(None, texts), 2))
    except InputError:  # a line that is too long for JSON lines, or invalid bytes, which `_text` reports
        return False
    return len(head) == 2 and head[0].startswith("{") and head[0].endswith("}") and head[1].startswith("{")


def _text(path: Path, config: TaskDataConfig) -> str:
    """The content of a text file."""
    try:
        with open_bytes(path) as file:
            return file.read().decode(config.encoding, DECODER_ERRORS[config.encoding_errors]).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        problem = f"{path}: not {config.encoding.upper()} at byte {error.start}"
        raise InputError(f"{problem}; name its encoding with --data.encoding") from None
    except CORRUPTED as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from None


def _parquet(path: Path, config: TaskDataConfig, header: tuple[str, ...]) -> Iterator[MaybeRecord]:
    """The rows of a .parquet file; classes by name, "" for hidden ones, if the file has the features of a hub data set."""
    with needs_formats(path):
        import pyarrow
        from pyarrow import parquet
    try:
        with parquet.ParquetFile(path) as file:
            classes = _class_names(file.schema_arrow.metadata or {})
            numbers = itertools.count(1)
            for batch in file.iter_batches(BATCH):
                for record in batch.to_pylist():
                    for name, names in classes.items():
                        record[name] = _by_name(record.get(name), names)
                    yield f"{path}: record {next(numbers)}", record
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: cannot be read: {first_line(error)}") from None


def _class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Column -> the names of its classes, as the library `datasets` stores them."""
    features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    classes = {}
    for name, feature in features.items():
        inner = feature.get("feature") or feature if isinstance(feature, dict) else None
        if isinstance(inner, dict) and inner.get("_type") == "ClassLabel":  # a list is a sequence of records
            classes[name] = inner["names"]
    return classes


def _by_name(value: Any, names: list[str]) -> Any:
    if isinstance(value, list):
        return [_by_name(inner, names) for inner in value]
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else ""


READERS: dict[str, Callable[[Path, TaskDataConfig, tuple[str, ...]], Iterator[MaybeRecord]]] = {
    "tsv": _tsv,
    "csv": _csv,
    "jsonl": _jsonl,
    "json": _json,
    "txt": _txt,
    "parquet": _parquet,
}
"""File suffix -> reader of its records."""

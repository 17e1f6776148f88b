"""Text formats: how a file becomes documents.  To support a new format, add an entry to `SOURCES`."""

import codecs
import functools
import html
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from albert_jax.config import InputError, first_line
from albert_jax.data import lines as line_files
from albert_jax.data.arrow_files import arrow_texts, parquet_texts
from albert_jax.data.csv_files import Row, csv_rows, tsv_rows
from albert_jax.data.hf_datasets import streamed_records
from albert_jax.data.lines import (
    COMPRESSIONS,
    CORRUPTED,
    DECODER_ERRORS,
    is_compressed,
    open_bytes,
    other_encoding,
    replace_invalid,
    without_lone_surrogates,
)
from albert_jax.data.tfds import SUFFIX, shard_texts

if TYPE_CHECKING:
    from albert_jax.data.sources import DataConfig

Texts = Iterator[tuple[str, Any]]
"""`file:line` and text of each document: str, or UTF-8 as bytes; or an InputError if the record is malformed."""


class Format(NamedTuple):
    """An entry of `SOURCES`."""

    read: Callable[[Any, "DataConfig", Counter[str]], Texts]
    """(file, or name of a data set that is streamed; settings; counts of problems) -> texts."""
    suffixes: tuple[str, ...] = ()
    magic: bytes = b""
    """The first bytes of every such file."""
    is_text: bool = True
    """Whether its files consist of lines, so that any file can be read in this way."""


def file_documents(file: Path | str, config: "DataConfig", repairs: Counter[str]) -> Iterator[str]:
    """The documents of a file of the source.

    Args:
      file: the file, or the name of a data set that is streamed.
      config: how it is read.
      repairs: incremented for each problem that is repaired or skipped.
    """
    kind, count = file_type(file, config), 0
    if isinstance(file, Path) and config.file_type == "auto" and not type_of_name(file):
        repairs[f"files without a known suffix, read as {kind}"] += 1
    for location, text in SOURCES[kind].read(file, config, repairs):
        try:
            document = _repair_characters(_checked(text, location, config, repairs), repairs)
        except InputError as error:
            if config.malformed == "error":
                raise InputError(f"{error}; or skip such records with --data.malformed skip") from None
            repairs["malformed records skipped"] += 1
            continue
        if document:
            count += 1
            yield document
    repairs["files without a document"] += count == 0


def _checked(text: Any, location: str, config: "DataConfig", repairs: Counter[str]) -> str:
    if isinstance(text, InputError):
        raise text
    if isinstance(text, bytes):
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            return replace_invalid(error, "utf-8", location, 0, config.encoding_errors, repairs)
    if not isinstance(text, str):
        kind = "null" if text is None else f"of type {type(text).__name__}"
        raise InputError(f"{location}: '{config.text_field}' is {kind}; name the text field with --data.text-field")
    return text


def _repair_characters(text: str, repairs: Counter[str]) -> str:
    """`text` without NUL and lone surrogates, which JSON can express but UTF-8 cannot; empty if it is blank."""
    document = text if text.isascii() else without_lone_surrogates(text)
    document = document.replace("\0", "")
    repairs["documents with invalid characters repaired"] += document != text
    return document if document.strip() else ""


def file_type(file: Path | str, config: "DataConfig") -> str:
    """The key in `SOURCES`: `data.file_type`, or what the suffix or the first bytes say.

    Raises:
      InputError: the file is not text.
    """
    if isinstance(file, str):
        return "hf"
    kind = type_of_name(file)
    if config.file_type != "auto" and (not kind or SOURCES[kind].is_text):
        return config.file_type
    kind = kind or _type_of_content(file, config)
    if is_compressed(file) and not SOURCES[kind].is_text:
        raise InputError(f"data.source {file}: {kind} is not read from {file.suffix} files; decompress it")
    return kind


def type_of_name(path: Path) -> str:
    """The key in `SOURCES` that the suffix names, or ""."""
    suffix = (path.with_suffix("") if is_compressed(path) else path).suffix.lower()
    suffix = SUFFIX if suffix.startswith(f"{SUFFIX}-") else suffix  # shards end in .array_record-00000-of-00001
    return next((name for name, format in SOURCES.items() if suffix in format.suffixes), "")


def _type_of_content(path: Path, config: "DataConfig") -> str:
    try:
        with open_bytes(path) as file:
            head = file.read(4096)
    except CORRUPTED as error:
        raise InputError(f"{path}: cannot be read ({error}); replace the file") from None
    for name, format in SOURCES.items():
        if format.magic and head.startswith(format.magic):
            return name
    try:
        text = codecs.getincrementaldecoder(config.encoding)(DECODER_ERRORS[config.encoding_errors]).decode(head)
    except UnicodeError:
        text = "\0"
    start = text.lstrip("\ufeff \r\n\t")
    if "\0" in text or (start.startswith("<") and not start.startswith("<doc ")):
        content = "markup" if start.startswith("<") else f"not text in {config.encoding}"
        known = ", ".join(suffix for format in SOURCES.values() for suffix in format.suffixes)
        problem = f"unknown file type '{path.suffix}', and its content is {content}"
        raise InputError(
            f"data.source {path}: {problem}; known: {known}, text also with {', '.join(COMPRESSIONS)}; "
            "convert it, or name its type (--data.file-type) or encoding "
            f"(--data.encoding, such as {other_encoding(config.encoding, head)})"
        )
    if re.match(r"\[\s*\{", start):
        return "json"
    return "wikiextractor" if start.startswith("<doc ") else "jsonl" if start.startswith("{") else "txt"


# Readers of lines


def _lines(path: Path, config: "DataConfig", repairs: Counter[str]) -> Iterator[tuple[int, str]]:
    return line_files.lines(path, config.encoding_errors, repairs, config.encoding)


def _check_size(size: int, path: Path, number: int) -> int:
    """The size of a document, which must fit in memory."""
    if size > line_files.MAX_LINE_BYTES:
        advice = "end documents with blank lines and pass --data.txt-documents blank-line, or a number of lines"
        raise InputError(f"{path}:{number}: document longer than {line_files.MAX_LINE_BYTES} characters; {advice}")
    return size


def _read_txt(path: Path, config: "DataConfig", repairs: Counter[str]) -> Texts:
    mode = config.txt_documents
    lines_per_document = int(mode) if mode.isdecimal() else 0
    document: list[str] = []
    size = number = 0
    for number, line in _lines(path, config, repairs):
        is_blank = not line.strip()
        if mode == "file" or not is_blank:
            document.append(line)
            size = _check_size(size + len(line), path, number)
        if document and ((mode == "blank-line" and is_blank) or len(document) == lines_per_document):
            yield f"{path}:{number}", "\n".join(document)
            document, size = [], 0
    if any(line.strip() for line in document):
        yield f"{path}:{number}", "\n".join(document)


def _read_wikiextractor(path: Path, config: "DataConfig", repairs: Counter[str]) -> Texts:
    """Articles between <doc ...> and </doc>; the first line of each is its title."""
    document: list[str] | None = None
    size = 0
    for number, line in _lines(path, config, repairs):
        if document is None:
            if line.startswith("<doc "):
                document, size = [], 0
            elif line.strip():
                raise InputError(
                    f"{path}:{number}: text outside of <doc ...> and </doc>; name the type: --data.file-type"
                )
        elif line.strip() == "</doc>":
            yield f"{path}:{number}", html.unescape("\n".join(document))  # WikiExtractor escapes <, > and &
            document = None
        else:
            document.append(line)
            size = _check_size(size + len(line), path, number)
    if document is not None:
        raise InputError(f"{path}: the last document has no </doc>; the file is truncated, replace it")


def _field(record: Any, location: str, config: "DataConfig") -> Any:
    """The text of a record, or an InputError."""
    if isinstance(record, dict) and config.text_field in record:
        return record[config.text_field]
    names = f": {', '.join(record)}" if isinstance(record, dict) else ""
    return InputError(f"{location}: no text field '{config.text_field}'; name it with --data.text-field{names}")


def _json_text(line: str, location: str, config: "DataConfig") -> tuple[str, Any]:
    try:
        return location, _field(json.loads(line), location, config)
    except (ValueError, RecursionError) as error:  # a number with thousands of digits is a plain ValueError
        return location, InputError(f"{location}: not JSON: {first_line(error)}; expected one record on a line")


def _read_jsonl(path: Path, config: "DataConfig", repairs: Counter[str]) -> Texts:
    for number, line in _lines(path, config, repairs):
        if line.strip():
            yield _json_text(line, f"{path}:{number}", config)


def _read_json(path: Path, config: "DataConfig", repairs: Counter[str]) -> Texts:
    """One record per line, or an array of records, which must fit in memory."""
    lines = ((number, line) for number, line in _lines(path, config, repairs) if line.strip())
    first = list(itertools.islice(lines, 1))
    if not first or not first[0][1].lstrip().startswith("["):
        for number, line in itertools.chain(first, lines):
            yield _json_text(line, f"{path}:{number}", config)
        return
    texts, size = [], 0
    for number, line in itertools.chain(first, lines):
        size += len(line)
        if size > line_files.MAX_LINE_BYTES:
            advice = "write one record per line, for example with jq -c '.[]'"
            raise InputError(f"{path}:{number}: array longer than {line_files.MAX_LINE_BYTES} characters; {advice}")
        texts.append(line)
    try:
        records = json.loads("\n".join(texts))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON array of records: {first_line(error)}") from None
    for number, record in enumerate(records):
        yield f"{path}: record {number}", _field(record, f"{path}: record {number}", config)


def _read_table(path: Path, config: "DataConfig", repairs: Counter[str], rows: Callable[..., Iterator[Row]]) -> Texts:
    """A table; its first row that is not blank names the columns."""
    names: list[str] = []
    for location, row in rows((f"{path}:{number}", line) for number, line in _lines(path, config, repairs)):
        if isinstance(row, InputError):
            if not names:
                raise row
            yield location, row
        elif not any(map(str.strip, row)):
            continue
        elif not names:
            names = row
            if isinstance(problem := _field(dict.fromkeys(names), location, config), InputError):
                raise problem
        elif len(row) == len(names):
            yield location, row[names.index(config.text_field)]
        else:
            yield location, InputError(f"{location}: expected {len(names)} columns, found {len(row)}")


# Readers of records


def _read_parquet(path: Path, config: "DataConfig", repairs: Counter[str]) -> Texts:
    return parquet_texts(path, config.text_field)


def _read_arrow(path: Path, config: "DataConfig", repairs: Counter[str]) -> Texts:
    return arrow_texts(path, config.text_field)


def _read_array_record(path: Path, config: "DataConfig", repairs: Counter[str]) -> Texts:
    return ((f"{path}: record {number}", raw) for number, raw in shard_texts(path, config.text_field))


def _read_streamed(source: str, config: "DataConfig", repairs: Counter[str]) -> Texts:
    return ((location, _field(record, location, config)) for location, record in streamed_records(source))


SOURCES: dict[str, Format] = {
    "txt": Format(_read_txt, (".txt",)),
    "jsonl": Format(_read_jsonl, (".jsonl", ".ndjson")),
    "json": Format(_read_json, (".json",)),
    "csv": Format(functools.partial(_read_table, rows=csv_rows), (".csv",)),
    "tsv": Format(functools.partial(_read_table, rows=tsv_rows), (".tsv",)),
    "wikiextractor": Format(_read_wikiextractor),
    "parquet": Format(_read_parquet, (".parquet",), b"PAR1", is_text=False),
    "arrow": Format(_read_arrow, (".arrow", ".feather"), b"ARROW1", is_text=False),
    "array_record": Format(_read_array_record, (SUFFIX,), is_text=False),
    "hf": Format(_read_streamed, is_text=False),
}
"""Type of a file -> how it is read."""

TEXT_TYPES = tuple(name for name, format in SOURCES.items() if format.is_text)
"""Values of `data.file_type`, besides auto."""

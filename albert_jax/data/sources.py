"""Text sources: streams of documents.  A document is a string in which a newline always ends a sentence.

To support a new file format, add an entry to `SOURCES`.  `prepare.py` converts the documents to tokens.
"""

import ast
import functools
import glob
import gzip
import hashlib
import inspect
import json
import os
import sys
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import sentencex

from albert_jax.config import InputError, check_fields, choice, first_line
from albert_jax.data.tfds import PREFIX, SUFFIX, dataset_shards, shard_texts

MAX_LINE_BYTES = 64 * 2**20
"""Maximum size of a line, and of a document in .txt, because several copies of it must fit in memory."""

MIN_DOCSTRING = 150
"""Minimum number of characters of a docstring in the source 'python-docs'."""


@dataclass(frozen=True)
class DataConfig:
    """The text, and how it is read and tokenized."""

    source: str = "python-docs"
    """'python-docs' (documentation that ships with Python); or a comma-separated list of globs (.txt, .jsonl, .txt.gz, .jsonl.gz) and of data sets that TFDS has prepared as array_record ('tfds:NAME', 'tfds:FOLDER', one split: 'tfds:lm1b:train'); or a folder written by `albert-jax prepare`."""
    vocab: str = ""
    """SentencePiece model.  If empty, one with model.vocab_size pieces is trained on the source."""
    map_punctuation: bool = False
    """Replace curly quotes and dashes, which the released vocabulary lacks, with ones it has."""
    text_field: str = "text"
    """Field of a .jsonl line, or feature of a TFDS data set, that holds the document."""
    txt_documents: str = choice("file", ("file", "blank-line"))
    """What a document is in .txt.  file: the whole file; blank-line: the text between blank lines."""
    encoding_errors: str = choice("error", ("error", "replace"))
    """Invalid UTF-8: raise an error, or replace and count it."""
    language: str = "en"
    """ISO 639-1 code for the sentence splitter."""
    eval_fraction: float = 0.01
    """Fraction of the documents held out for evaluation, selected by a hash of their text."""
    cache_dir: str = "~/.cache/albert_jax"
    """Folder for prepared data and trained vocabularies."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.source:
            raise InputError("source is empty; name 'python-docs', a glob, or a prepared folder")
        if not 0 < self.eval_fraction < 1:
            raise InputError(f"eval_fraction must be in (0, 1), got {self.eval_fraction}")


def sentences(document: str, language: str) -> Iterator[str]:
    """The non-blank sentences of a document.

    We use sentencex because it supports some 300 languages and is fast (72 MB/s).
    """
    for line in document.split("\n"):
        yield from (sentence for sentence in sentencex.segment(language, line) if sentence and not sentence.isspace())


def documents(config: DataConfig, repairs: Counter[str] | None = None) -> Iterator[str]:
    """The documents of `config.source`, in a fixed order.

    Args:
      config: the source and how it is read.
      repairs: incremented for each repaired problem; description -> count.
    """
    repairs = Counter() if repairs is None else repairs
    if config.source == "python-docs":
        yield from _python_docs()
        return
    for path in files(config):
        yield from file_documents(path, config, repairs)


def file_documents(path: Path, config: DataConfig, repairs: Counter[str]) -> Iterator[str]:
    """The documents of one file of the source."""
    count = 0
    for document in SOURCES[_file_type(path)](path, config, repairs):
        count += 1
        yield document
    repairs["files without a document"] += count == 0


def fingerprint(config: DataConfig) -> str:
    """SHA-256 of the contents and types of the source's files.  It does not depend on their names."""
    if config.source == "python-docs":
        return hashlib.sha256(f"python-docs {MIN_DOCSTRING} {sys.version}".encode()).hexdigest()
    return combine_digests(map(file_digest, files(config)))


def combine_digests(digests: Iterable[bytes]) -> str:
    """`fingerprint` from the `file_digest` of each file, in order."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def file_digest(path: Path) -> bytes:
    """The type of a file and the SHA-256 of its contents."""
    with path.open("rb") as file:
        return _file_type(path).encode() + hashlib.file_digest(file, "sha256").digest()


def files(config: DataConfig) -> list[Path]:
    """The files of the source: globs and data sets in the order of `config.source`, the matches of a glob sorted."""
    paths: list[Path] = []
    for pattern in map(str.strip, config.source.split(",")):
        if pattern.startswith(PREFIX):
            paths += dataset_shards(pattern.removeprefix(PREFIX), config.text_field)
            continue
        pattern = str(Path(pattern).expanduser())
        matches = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
        if not matches:
            choices = "'python-docs', 'tfds:NAME' or a prepared folder"
            raise InputError(f"data.source '{pattern}' matches no file; name other files, {choices}")
        paths += matches
    for path in paths:
        if not os.access(path, os.R_OK):
            raise InputError(f"data.source {path}: cannot be read; check its permissions")
        if _file_type(path) not in SOURCES:
            known = ", ".join(SOURCES)
            raise InputError(
                f"data.source {path}: unknown file type '{_file_type(path)}'; known: {known}, also with .gz"
            )
    return paths


def _file_type(path: Path) -> str:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    return SUFFIX if suffix.startswith(f"{SUFFIX}-") else suffix  # shards end in .array_record-00000-of-00001


def lines(
    path: Path, encoding_errors: str, repairs: Counter[str], encoding: str = "utf-8"
) -> Iterator[tuple[int, str]]:
    """Line numbers and lines as text, without line ends, byte-order mark and NUL.  Reads one line at a time."""
    offset = 0
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as opened:
        file: IO[bytes] = opened  # type: ignore[assignment]
        for number in range(1, sys.maxsize):
            try:
                raw = file.readline(MAX_LINE_BYTES + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{path}:{number}: corrupted or truncated ({error}); replace the file") from None
            if not raw:
                return
            if len(raw) > MAX_LINE_BYTES:
                raise InputError(
                    f"{path}:{number}: line longer than {MAX_LINE_BYTES} bytes; put one document on a line"
                )
            try:
                line = raw.decode(encoding)
            except UnicodeDecodeError as error:
                line = _replace_invalid(error, f"{path}:{number}", offset, encoding_errors, repairs)
            if offset == 0 and line.startswith("\ufeff"):
                line = line[1:]
                repairs["byte-order marks removed"] += 1
            if "\0" in line:
                line = line.replace("\0", "")
                repairs["lines from which NUL was removed"] += 1
            if line.endswith("\r\n"):
                repairs["CRLF line ends"] += 1
            offset += len(raw)
            yield number, line.rstrip("\r\n")


def _replace_invalid(
    error: UnicodeDecodeError, location: str, offset: int, encoding_errors: str, repairs: Counter[str]
) -> str:
    """The text with invalid bytes replaced; an `InputError` if `encoding_errors` is "error"."""
    if encoding_errors == "error":
        byte = offset + error.start
        advice = "correct the text or pass --data.encoding-errors replace"
        raise InputError(f"{location}: invalid UTF-8 at byte {byte}; {advice}") from None
    repairs["lines with invalid UTF-8 replaced"] += 1
    return error.object.decode("utf-8", errors="replace")


def _read_txt(path: Path, config: DataConfig, repairs: Counter[str]) -> Iterator[str]:
    document: list[str] = []
    size = 0
    for number, line in lines(path, config.encoding_errors, repairs):
        if config.txt_documents == "blank-line" and not line.strip():
            if document:
                yield "\n".join(document)
            document, size = [], 0
            continue
        document.append(line)
        size += len(line)
        if size > MAX_LINE_BYTES:
            advice = "end documents with blank lines and pass --data.txt-documents blank-line"
            raise InputError(f"{path}:{number}: document longer than {MAX_LINE_BYTES} characters; {advice}")
    if any(line.strip() for line in document):
        yield "\n".join(document)


def _read_jsonl(path: Path, config: DataConfig, repairs: Counter[str]) -> Iterator[str]:
    for number, line in lines(path, config.encoding_errors, repairs):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number with thousands of digits is a plain ValueError
            raise InputError(f"{path}:{number}: not JSON: {first_line(error)}") from None
        text = record.get(config.text_field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise InputError(f"{path}:{number}: no text field '{config.text_field}'; name it with --data.text-field")
        if document := _repair_characters(text, repairs):
            yield document


def _read_array_record(path: Path, config: DataConfig, repairs: Counter[str]) -> Iterator[str]:
    for number, raw in shard_texts(path, config.text_field):
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            text = _replace_invalid(error, f"{path}: record {number}", 0, config.encoding_errors, repairs)
        if document := _repair_characters(text, repairs):
            yield document


def _repair_characters(text: str, repairs: Counter[str]) -> str:
    """`text` without NUL and lone surrogates, which JSON can express but UTF-8 cannot; empty if it is blank."""
    document = text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    document = document.replace("\0", "")
    repairs["documents with invalid characters repaired"] += document != text
    return document if document.strip() else ""


SOURCES: dict[str, Callable[[Path, DataConfig, Counter[str]], Iterator[str]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    SUFFIX: _read_array_record,
}
"""File suffix -> function that reads the documents of such a file."""


@functools.cache
def _python_docs() -> tuple[str, ...]:
    """Python's help topics and the long docstrings of its standard library: about 1.8 M characters."""
    from pydoc_data.topics import topics

    texts = [topics[name] for name in sorted(topics)]
    root = Path(sysconfig.get_paths()["stdlib"])
    excluded = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}
    for path in sorted(root.rglob("*.py")):
        if excluded.isdisjoint(path.relative_to(root).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    docstring = inspect.cleandoc(ast.get_docstring(node) or "")
                    if len(docstring) >= MIN_DOCSTRING:
                        texts.append(docstring)
    return tuple(map(_unwrap, texts))


def _unwrap(text: str) -> str:
    """Join the lines of each paragraph of a hard-wrapped text."""
    return "\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip())

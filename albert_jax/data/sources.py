"""Where text comes from: a source is a stream of documents, each a string whose newlines end sentences.

A new source is a new entry of `SOURCES`.  What becomes of the text is `prepare.py`'s business.
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

from albert_jax.config import InputError, check_fields, choice, require
from albert_jax.data import tfds as tfds_sets

MAX_LINE_BYTES = 64 * 2**20
"""A line (or, one document a file, a file) beyond this is refused: it has to fit in memory several times."""

PROSE_DOCSTRING = 150
"""Characters from which a docstring of the standard library counts as text."""


@dataclass(frozen=True)
class DataConfig:
    """The text and how it becomes tokens."""

    source: str = "python-docs"
    """'python-docs' (what ships with Python); globs of .txt, .jsonl, either with .gz, and 'tfds:NAME' or 'tfds:FOLDER' of data sets that TFDS has prepared (as array_record; of one split: 'tfds:lm1b:train'), with commas between; or a folder that `albert-jax prepare` wrote."""
    vocab: str = ""
    """SentencePiece model; empty: one of model.vocab_size pieces is trained on the source."""
    map_punctuation: bool = False
    """Map curly quotes and dashes, which the released vocabulary lacks, to ones it has."""
    text_field: str = "text"
    """The field of a .jsonl line, or the feature of a TFDS data set, that holds the document."""
    txt_documents: str = choice("file", ("file", "blank-line"))
    """In .txt, a document is a whole file, or ends at a blank line."""
    encoding_errors: str = choice("error", ("error", "replace"))
    """Stop at invalid UTF-8, or replace and count it."""
    language: str = "en"
    """ISO 639-1 code for the sentence splitter."""
    eval_fraction: float = 0.01
    """Share of documents held out for evaluation, chosen by a hash of their text."""
    cache_dir: str = "~/.cache/albert_jax"
    """Where prepared data and trained vocabularies are kept."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.source != "", "source is empty: 'python-docs', a glob, or a prepared folder")
        require(0 < self.eval_fraction < 1, f"eval_fraction must be in (0, 1), got {self.eval_fraction}")


def sentences(document: str, language: str) -> Iterator[str]:
    """The sentences of a document, blank ones left out; a newline always ends one."""
    for line in document.split("\n"):
        yield from (sentence for sentence in sentencex.segment(language, line) if not sentence.isspace() and sentence)


def documents(config: DataConfig, repairs: Counter[str] | None = None) -> Iterator[str]:
    """The documents of `config.source`, in a fixed order; what had to be mended is counted in `repairs`.

    Raises:
      InputError: no such source, or a file and line that cannot be read as text.
    """
    repairs = Counter() if repairs is None else repairs
    if config.source == "python-docs":
        yield from _python_docs()
        return
    for path in files(config):
        yield from documents_of(path, config, repairs)


def documents_of(path: Path, config: DataConfig, repairs: Counter[str]) -> Iterator[str]:
    """The documents of one file of the source; otherwise as `documents`."""
    found = 0
    for document in SOURCES[_kind(path)](path, config, repairs):
        found += 1
        yield document
    repairs["files without a document"] += found == 0


def fingerprint(config: DataConfig) -> str:
    """SHA-256 of the source's bytes and kinds of file, whatever the files are called."""
    if config.source == "python-docs":
        return hashlib.sha256(f"python-docs {PROSE_DOCSTRING} {sys.version}".encode()).hexdigest()
    return fingerprint_of(map(digest_of, files(config)))


def fingerprint_of(digests: Iterable[bytes]) -> str:
    """`fingerprint` of a source of files, from `digest_of` each in its order."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def digest_of(path: Path) -> bytes:
    """A file's share in the fingerprint: its bytes and kind."""
    with path.open("rb") as file:
        return _kind(path).encode() + hashlib.file_digest(file, "sha256").digest()


def files(config: DataConfig) -> list[Path]:
    """The files of the source: of globs and data sets in the order given, those of a glob sorted."""
    paths: list[Path] = []
    for pattern in map(str.strip, config.source.split(",")):
        if pattern.startswith(tfds_sets.PREFIX):
            paths += tfds_sets.shards(pattern.removeprefix(tfds_sets.PREFIX), config.text_field)
            continue
        pattern = str(Path(pattern).expanduser())
        matched = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
        require(
            bool(matched),
            f"data.source '{pattern}' matches no file (nor is it 'python-docs', 'tfds:NAME' or a prepared folder)",
        )
        paths += matched
    for path in paths:
        require(os.access(path, os.R_OK), f"data.source {path}: cannot be read; check its permissions")
        require(
            _kind(path) in SOURCES,
            f"data.source {path}: cannot read '{_kind(path)}'; known: {', '.join(SOURCES)}, each also with .gz",
        )
    return paths


def _kind(path: Path) -> str:
    suffix = Path(path.name.removesuffix(".gz")).suffix
    return tfds_sets.SUFFIX if suffix.startswith(f"{tfds_sets.SUFFIX}-") else suffix  # its number follows


def lines(path: Path, encoding_errors: str, repairs: Counter[str]) -> Iterator[tuple[int, str]]:
    """Numbered lines as text, without line ends, byte-order mark and NUL; one line is in memory at a time.

    Raises:
      InputError: a damaged archive, a line too long, or invalid UTF-8 where `encoding_errors` is "error".
    """
    offset = 0
    with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as opened:
        file: IO[bytes] = opened  # type: ignore[assignment]
        for number in range(1, sys.maxsize):
            try:
                raw = file.readline(MAX_LINE_BYTES + 1)
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(
                    f"{path}:{number}: cannot be read further ({error}): the file is damaged or cut off"
                ) from None
            if not raw:
                return
            require(
                len(raw) <= MAX_LINE_BYTES,
                f"{path}:{number}: line longer than {MAX_LINE_BYTES} bytes; put one document on a line",
            )
            line = _decoded(raw, f"{path}:{number}", encoding_errors, offset, repairs)
            if offset == 0 and line.startswith("\ufeff"):
                line = line[1:]
                repairs["byte-order marks dropped"] += 1
            if "\0" in line:
                line = line.replace("\0", "")
                repairs["lines with NUL dropped"] += 1
            if line.endswith("\r\n"):
                repairs["CRLF line ends"] += 1
            offset += len(raw)
            yield number, line.rstrip("\r\n")


def _decoded(raw: bytes, where: str, encoding_errors: str, offset: int, repairs: Counter[str]) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start
        require(
            encoding_errors != "error",
            f"{where}: invalid UTF-8 at byte {at}; mend it or pass --data.encoding-errors replace",
        )
        repairs["lines with invalid UTF-8 replaced"] += 1
        return raw.decode("utf-8", errors="replace")


def _text(path: Path, config: DataConfig, repairs: Counter[str]) -> Iterator[str]:
    held: list[str] = []
    size = 0
    for number, line in lines(path, config.encoding_errors, repairs):
        if config.txt_documents == "blank-line" and not line.strip():
            if held:
                yield "\n".join(held)
            held, size = [], 0
            continue
        held.append(line)
        size += len(line)
        require(
            size <= MAX_LINE_BYTES,
            f"{path}:{number}: document longer than {MAX_LINE_BYTES} characters; end documents by blank lines and pass --data.txt-documents blank-line",
        )
    if any(line.strip() for line in held):
        yield "\n".join(held)


def _jsonl(path: Path, config: DataConfig, repairs: Counter[str]) -> Iterator[str]:
    for number, line in lines(path, config.encoding_errors, repairs):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number of thousands of digits is a plain ValueError
            raise InputError(f"{path}:{number}: not JSON: {str(error).splitlines()[0]}") from None
        text = record.get(config.text_field) if isinstance(record, dict) else None
        if not isinstance(text, str):
            raise InputError(f"{path}:{number}: no text field '{config.text_field}'; name it with --data.text-field")
        # A surrogate half can be written in JSON but is no character: nothing later could encode it.
        clean = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "")
        repairs["documents with broken characters mended"] += clean != text
        if clean.strip():
            yield clean


def _shard(path: Path, config: DataConfig, repairs: Counter[str]) -> Iterator[str]:
    for number, raw in tfds_sets.texts(path, config.text_field):
        text = _decoded(raw, f"{path}: record {number}", config.encoding_errors, 0, repairs)
        clean = text.replace("\0", "")
        repairs["documents with broken characters mended"] += clean != text
        if clean.strip():
            yield clean


SOURCES: dict[str, Callable[[Path, DataConfig, Counter[str]], Iterator[str]]] = {
    ".txt": _text,
    ".jsonl": _jsonl,
    tfds_sets.SUFFIX: _shard,
}
"""File suffix -> reader of that file's documents."""


@functools.cache
def _python_docs() -> tuple[str, ...]:
    """The help topics that ship with Python and the long docstrings of its standard library: about 1.8 M characters."""
    from pydoc_data.topics import topics

    found = [_unwrapped(topics[name]) for name in sorted(topics)]
    root = Path(sysconfig.get_paths()["stdlib"])
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}
    for path in sorted(root.rglob("*.py")):
        if left_out.isdisjoint(path.relative_to(root).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                    text = inspect.cleandoc(ast.get_docstring(node) or "")
                    if len(text) >= PROSE_DOCSTRING:
                        found.append(_unwrapped(text))
    return tuple(found)


def _unwrapped(text: str) -> str:
    """Hard-wrapped text with each paragraph on one line."""
    return "\n".join(" ".join(paragraph.split()) for paragraph in text.split("\n\n") if paragraph.strip())

"""Text sources: streams of documents.  A document is a string in which a newline always ends a sentence.

`text_files.py` reads the files of a source.  `prepare.py` converts the documents to tokens.
"""

import ast
import functools
import glob
import hashlib
import inspect
import os
import re
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencex

from albert_jax.config import InputError, check_fields, choice
from albert_jax.data.hf_datasets import STREAMED, is_saved, saved_files, streamed_digest
from albert_jax.data.lines import check_encoding, is_compressed
from albert_jax.data.text_files import TEXT_TYPES, file_documents, file_type, type_of_name
from albert_jax.data.tfds import PREFIX, dataset_shards

MIN_DOCSTRING = 150
"""Minimum number of characters of a docstring in the source 'python-docs'."""

_THAI = "[\u0e01-\u0e2e\u0e30-\u0e3a\u0e40-\u0e45\u0e47-\u0e4e]"
_LAO = "[\u0e81-\u0eae\u0eb0-\u0ebd\u0ec0-\u0ec5\u0ec8-\u0ece]"

SENTENCE_GAPS = {
    # Thai and Lao have no mark that ends a sentence but a space.  A space also surrounds numbers, foreign words, repetition
    # marks and abbreviations; so a sentence ends where letters are on both sides of it.
    "th": rf"(?<={_THAI})\s+(?={_THAI})(?!{_THAI}{{1,4}}\.)|(?<=[?!])\s+",
    "lo": rf"(?<={_LAO})\s+(?={_LAO})|(?<=[?!])\s+",
    "km": r"(?<=[\u17d4\u17d5?!])\s*(?=\w)",
    "bo": r"(?<=[\u0f0d\u0f0e])\s+(?=\w)",
    "dz": r"(?<=[\u0f0d\u0f0e])\s+(?=\w)",
}
"""Language -> regular expression of what separates two sentences, for languages that sentencex does not know."""


@dataclass(frozen=True)
class DataConfig:
    """The text, and how it is read and tokenized."""

    source: str = "python-docs"
    """'python-docs' (documentation that ships with Python); or a folder written by `albert-jax prepare`; or a comma-separated list of: globs of files (.txt, .jsonl, .json, .csv, .tsv, WikiExtractor's, all also with .gz, .bz2, .xz, .zst; .parquet, .arrow); folders written by `datasets.save_to_disk`; data sets that TFDS has prepared as array_record ('tfds:NAME', 'tfds:FOLDER', one split: 'tfds:lm1b:train'); data sets of Hugging Face, streamed ('hf:NAME', 'hf:NAME:SPLIT', 'hf:NAME:CONFIG:SPLIT')."""
    vocab: str = ""
    """SentencePiece model, WordPiece vocabulary (.txt) or tokenizer.json.  If empty, a SentencePiece model with model.vocab_size pieces is trained on the source; `evaluate` uses that of the model."""
    map_punctuation: bool = False
    """Replace curly quotes and dashes, which the released vocabulary lacks, with ones it has."""
    lower_case: bool = True
    """Convert text to lower case, as in the released code.  Turn off for a cased vocabulary."""
    keep_accents: bool = False
    """Keep accents, umlauts and voicing marks.  The released code removes them; turn on for most languages other than English."""
    text_field: str = "text"
    """Field, column or feature that holds the document, in formats other than plain text."""
    file_type: str = choice("auto", ("auto", *TEXT_TYPES))
    """Type of all text files of the source.  auto: what the suffix says, or for an unknown suffix the content: JSON lines, WikiExtractor's <doc> blocks, or else plain text."""
    txt_documents: str = choice(
        "file", ("file", "blank-line"), or_else="the number of lines of a document, such as 1 or 20"
    )
    """What a document is in plain text.  file: the whole file; blank-line: the text between blank lines; N: N lines, without blank ones."""
    encoding: str = "utf-8"
    """Encoding of text files, by its name in Python, such as cp1252, gb18030, shift_jis or utf-16."""
    encoding_errors: str = choice("error", ("error", "replace"))
    """Invalid bytes: raise an error, or replace and count them."""
    malformed: str = choice("error", ("error", "skip"))
    """Records without a text (null, missing or not a string) and lines that cannot be read: raise an error, or skip and count them."""
    language: str = "en"
    """ISO 639-1 code for the sentence splitter, such as de, zh or th."""
    eval_fraction: float = 0.01
    """Fraction of the documents held out for evaluation, selected by a hash of their text."""
    cache_dir: str = "~/.cache/albert_jax"
    """Folder for prepared data and trained vocabularies."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.source:
            raise InputError("source is empty; name 'python-docs', a glob, or a prepared folder")
        documents = self.txt_documents
        if documents not in ("file", "blank-line") and not (documents.isdecimal() and int(documents) > 0):
            raise InputError(f"txt_documents: expected file, blank-line or a number of lines, got {documents!r}")
        check_encoding(self.encoding)
        if not 0 < self.eval_fraction < 1:
            raise InputError(f"eval_fraction must be in (0, 1), got {self.eval_fraction}")


def sentences(document: str, language: str) -> Iterator[str]:
    """The non-blank sentences of a document.

    We use sentencex because it supports some 300 languages and is fast (72 MB/s).
    """
    gap = SENTENCE_GAPS.get(language)
    for line in document.split("\n"):
        parts = re.split(gap, line) if gap else sentencex.segment(language, line)
        yield from (sentence for sentence in parts if sentence and not sentence.isspace())


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
    for file in files(config):
        yield from file_documents(file, config, repairs)


def fingerprint(config: DataConfig) -> str:
    """SHA-256 of the contents and types of the source's files.  It does not depend on their names."""
    if config.source == "python-docs":
        return hashlib.sha256(f"python-docs {MIN_DOCSTRING} {sys.version}".encode()).hexdigest()
    return combine_digests(file_digest(file, config) for file in files(config))


def combine_digests(digests: Iterable[bytes]) -> str:
    """`fingerprint` from the `file_digest` of each file, in order."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def file_digest(file: Path | str, config: DataConfig) -> bytes:
    """The type of a file and the SHA-256 of its contents, or of the revision of a data set that is streamed."""
    kind = f".{file_type(file, config)}".encode()
    if isinstance(file, str):
        return kind + bytes.fromhex(streamed_digest(file))
    with file.open("rb") as opened:
        return kind + hashlib.file_digest(opened, "sha256").digest()


def files(config: DataConfig) -> list[Path | str]:
    """The files of the source, and the names of data sets that are streamed, in the order of `config.source`.

    The matches of a glob are sorted.
    """
    found: list[Path | str] = []
    for pattern in map(str.strip, config.source.split(",")):
        if pattern.startswith(STREAMED):
            found.append(pattern)
        elif pattern.startswith(PREFIX):
            found += dataset_shards(pattern.removeprefix(PREFIX), config.text_field)
        elif is_saved(folder := Path(pattern).expanduser()):
            found += saved_files(folder)
        else:
            matches = sorted(Path(name) for name in glob.glob(str(folder), recursive=True) if Path(name).is_file())
            if not matches:
                problem = f"is a folder; name its files ('{_glob(folder)}')" if folder.is_dir() else "matches no file"
                choices = "name other files, 'python-docs', 'tfds:NAME', 'hf:NAME' or a prepared folder"
                raise InputError(f"data.source '{folder}' {problem}; {choices}")
            found += matches
    for file in found:
        if isinstance(file, Path) and not os.access(file, os.R_OK):
            raise InputError(f"data.source {file}: cannot be read; check that it exists, and its permissions")
        file_type(file, config)  # an unknown type is reported before anything is read
    return found


def _glob(folder: Path) -> str:
    """A glob of the files in a folder with the most frequent suffix, of those that can be read if there are any."""
    paths = [path for path in map(Path, glob.iglob(f"{folder}/**/*", recursive=True)) if path.is_file()]
    paths = list(filter(type_of_name, paths)) or paths
    suffixes = Counter("".join(path.suffixes[-2 if is_compressed(path) else -1 :]) for path in paths)
    return f"{folder}/**/*" + max(suffixes, key=suffixes.__getitem__, default="")


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

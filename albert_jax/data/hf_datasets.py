"""Data sets of Hugging Face: folders written by `datasets.save_to_disk`, and data sets streamed by the library `datasets`."""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from albert_jax.config import InputError, read_json
from albert_jax.data.lines import needs_formats

STREAMED = "hf:"
"""Prefix of the name of a data set that is streamed."""

MAX_REASON = 200
"""Number of characters quoted from errors of `datasets`."""


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder: a data set, or several as splits."""
    keys = {"state.json": b'"_data_files"', "dataset_dict.json": b'"splits"'}  # other programs write a state.json too
    return any((path := folder / name).is_file() and key in path.read_bytes() for name, key in keys.items())


def saved_files(folder: Path) -> list[Path]:
    """The arrow files of a folder written by `save_to_disk`, in order; of all its splits, or of one (`FOLDER/train`)."""
    index = folder / "dataset_dict.json"
    if index.is_file():
        return [path for split in read_json(index)["splits"] for path in saved_files(folder / split)]
    state = read_json(folder / "state.json")
    if state.get("_indices_data_files"):  # written before 2.0: the rows of another file, in another order
        raise InputError(f"data.source {folder}: it has an index of rows; save flatten_indices() of the data set")
    return [folder / file["filename"] for file in state["_data_files"]]


def streamed_digest(source: str) -> str:
    """Fingerprint of a data set: its configuration, splits and revision, because its content is too large to be read for it."""
    builder, split = _open(source)
    # The revision of a repository, or the time at which a local file was modified.
    revisions = {name: files.origin_metadata for name, files in (builder.config.data_files or {}).items()}
    return hashlib.sha256(repr((builder.hash, builder.config.name, split, revisions)).encode()).hexdigest()


def streamed_records(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Location and fields of each record of a data set: of all splits, or of those that are named."""
    builder, split = _open(source)
    location = source
    try:
        streamed = builder.as_streaming_dataset(split=split)
        for name, part in streamed.items() if split is None else [(split, streamed)]:
            for number, record in enumerate(part):
                location = f"{source}: {name}, record {number}"
                yield location, record
    except InputError:
        raise
    except Exception as error:  # of any type: of the library, the network, the format of a file
        raise InputError(f"data.source {location}: {_reason(error)}") from None


@functools.cache
def _open(source: str) -> tuple[Any, str | None]:
    """The builder of a data set, at the revision it has now, and the name of the split."""
    name, *rest = source.removeprefix(STREAMED).split(":")
    if not name or len(rest) > 2:
        raise InputError(f"data.source {source}: expected hf:NAME, hf:NAME:SPLIT or hf:NAME:CONFIG:SPLIT")
    with needs_formats(f"data.source {source}"):
        import datasets
    try:
        builder = datasets.load_dataset_builder(name, rest[0] if len(rest) == 2 else None)
    except Exception as error:  # of any type
        raise InputError(f"data.source {source}: {_reason(error)}") from None
    return builder, (rest[-1] or None) if rest else None


def _reason(error: Exception) -> str:
    return " ".join(f"{error}".split())[:MAX_REASON] or type(error).__name__

"""Data sets prepared by TFDS, read without TensorFlow: finding them, checking their shards, reading their text."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.config import InputError, first_line

PREFIX = "tfds:"
"""Prefix of the name of a TFDS data set."""

SUFFIX = ".array_record"
"""File suffix of the only shard format that can be read without TensorFlow."""

MAX_REASON = 120
"""Number of characters quoted from errors of TFDS, which contain pages of advice."""


def builder_of(name: str, field: str = "data.dir") -> Any:
    """The TFDS builder of a prepared data set.

    Args:
      name: TFDS's name, such as `wikipedia/20230601.en` or `lm1b:1.1.0`, looked up where TFDS does (`$TFDS_DATA_DIR`); or
        the folder that holds the prepared data.
      field: the configuration field that has the name, for the error message.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import file_utils

    folder = Path(name).expanduser()
    try:
        return tfds.builder_from_directory(str(folder)) if folder.is_dir() else tfds.builder(name, try_gcs=False)
    except Exception as error:  # TFDS raises exceptions of many types
        searched = folder if folder.is_dir() else ", ".join(map(str, file_utils.list_data_dirs()))
        raise InputError(
            f"{field} {PREFIX}{name}: no such prepared data set in {searched} ({first_line(error)[:MAX_REASON]}); "
            "prepare it with file_format=array_record, or name its folder"
        ) from None


def dataset_shards(name: str, text_field: str) -> list[Path]:
    """The files of a data set in order: of all splits, or of those named after a colon (`lm1b:test`, `lm1b:train+test`)."""
    import tensorflow_datasets as tfds

    source = f"data.source {PREFIX}{name}"
    head, _, tail = name.rpartition(":")
    chosen = tail.split("+") if head and tail[:1].isalpha() else []  # a tail that starts with a digit is a version
    builder = builder_of(head if chosen else name, "data.source")
    folder, splits, file_format = builder.data_dir, builder.info.splits, builder.info.file_format
    advice = "prepare it with file_format=array_record, or name the folder that holds the prepared data"
    if not splits:
        raise InputError(f"{source}: no split is prepared in {folder}; {advice}")
    if file_format != tfds.core.FileFormat.ARRAY_RECORD:
        format_name = file_format and file_format.value
        raise InputError(f"{source}: {folder} has the format {format_name}, which needs TensorFlow; {advice}")
    for split in chosen:
        if split not in splits:
            raise InputError(f"{source}: no split '{split}' in {folder}; known: {', '.join(splits)}")
    _text_feature(Path(folder), text_field)
    chosen = chosen or list(splits)
    for split in chosen:
        check_shards(splits[split], "prepare the data set again")
    return [Path(path) for split in chosen for path in splits[split].filepaths]


def check_shards(split: Any, advice: str) -> None:
    """Raise `InputError` unless each shard of a TFDS split has the number of records that were written.

    A truncated file can look like one without records.

    Args:
      split: of `builder.info.splits`.
      advice: what to do, for the error message.
    """
    from array_record.python import array_record_module

    for number, (path, expected) in enumerate(zip(split.filepaths, split.shard_lengths, strict=True), 1):
        actual: int | str = "no file"
        try:
            if Path(path).exists():
                actual = array_record_module.ArrayRecordReader(str(path)).num_records()
        except (RuntimeError, ValueError) as error:
            actual = f"no readable records ({first_line(error)})"
        if actual != expected:
            shard = f"shard {number}/{len(split.shard_lengths)}"
            raise InputError(f"{path}: {shard}: expected {expected} records, found {actual}; {advice}")


def _text_feature(folder: Path, text_field: str) -> Any:
    """The features of a data set reduced to the one that holds the text."""
    import tensorflow_datasets as tfds

    try:
        features = tfds.features.FeatureConnector.from_config(str(folder))
    except Exception as error:
        reason = first_line(error)[:MAX_REASON]
        raise InputError(
            f"data.source: {folder} was not prepared by TFDS ({reason}); name a different folder"
        ) from None
    texts = sorted(key for key, value in features.items() if value.shape == () and np.dtype(value.np_dtype).kind == "O")
    if text_field not in texts:
        problem = (
            f"is a {type(features[text_field]).__name__}, not text" if text_field in features else "does not exist"
        )
        raise InputError(
            f"data.text_field '{text_field}': this feature of {folder} {problem}; "
            f"name a text feature with --data.text-field: {', '.join(texts) or 'there is none'}"
        )
    return tfds.features.FeaturesDict({text_field: features[text_field]})


def shard_texts(path: Path, text_field: str) -> Iterator[tuple[int, bytes]]:
    """Record numbers and undecoded texts of a shard, one in memory at a time."""
    from array_record.python import array_record_module

    feature = _text_feature(path.parent, text_field)
    number = 0
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        for number in range(reader.num_records()):
            yield number, feature.deserialize_example_np(reader.read())[text_field]
    except (RuntimeError, ValueError) as error:
        reason = first_line(error)[:MAX_REASON]
        raise InputError(f"{path}: record {number}: corrupted or truncated ({reason}); replace the file") from None

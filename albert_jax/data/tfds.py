"""Data sets that TFDS has prepared, without TensorFlow: how they are named and found, and the text in their shards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.config import InputError, require

PREFIX = "tfds:"
"""What the name of such a data set begins with."""

SUFFIX = ".array_record"
"""Of a shard's name, before its number: the one format that is read without TensorFlow."""


def builder_of(name: str, field: str = "data.dir") -> Any:
    """The builder of a data set by its name, or by the folder that it was prepared in.

    Args:
      name: as TFDS has it, `wikipedia/20230601.en` or `lm1b:1.1.0`, found where TFDS looks (`$TFDS_DATA_DIR`); or a folder.
      field: where it was named, for the error.

    Raises:
      InputError: nothing of that name is prepared here.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import file_utils

    folder = Path(name).expanduser()
    try:
        return tfds.builder_from_directory(str(folder)) if folder.is_dir() else tfds.builder(name, try_gcs=False)
    except Exception as error:  # it raises many kinds, with pages of advice
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        looked = folder if folder.is_dir() else ", ".join(map(str, file_utils.list_data_dirs()))
        told = f"{field} {PREFIX}{name}: TFDS has no such data set prepared here ({reason}; looked into {looked})"
        raise InputError(f"{told}; prepare it with file_format=array_record, or name its folder") from None


def shards(name: str, text_field: str) -> list[Path]:
    """The files of a data set in their order: of all splits, or of those after a colon, as in `lm1b:test` or `lm1b:train+test`.

    Raises:
      InputError: it or such a split is not prepared here, in another format, without that text; or as `check_shards`.
    """
    import tensorflow_datasets as tfds

    told = f"data.source {PREFIX}{name}"
    head, _, last = name.rpartition(":")
    chosen = last.split("+") if head and last[:1].isalpha() else []  # what begins with a digit is TFDS's version
    builder = builder_of(head if chosen else name, "data.source")
    there = builder.info.splits
    way = "prepare it with file_format=array_record, or name the folder that it was prepared in"
    require(bool(there), f"{told}: no split is prepared in {builder.data_dir}; {way}")
    found = builder.info.file_format
    require(
        found == tfds.core.FileFormat.ARRAY_RECORD,
        f"{told}: {builder.data_dir} is {found and found.value}, which only TensorFlow reads; {way}",
    )
    for split in chosen:
        require(split in there, f"{told}: no split '{split}' in {builder.data_dir}; known: {', '.join(there)}")
    feature(Path(builder.data_dir), text_field)
    for split in chosen or there:
        check_shards(there[split], "prepare the data set again")
    return [Path(path) for split in chosen or there for path in there[split].filepaths]


def check_shards(split: Any, way: str) -> None:
    """Compares the shards of a TFDS split with what was written: a file cut off can look like one without records.

    Raises:
      InputError: a shard is missing, cut off, or holds another number of records than was written; ends with the `way` out.
    """
    from array_record.python import array_record_module

    for number, (path, expected) in enumerate(zip(split.filepaths, split.shard_lengths, strict=True), 1):
        found: int | str
        try:
            found = array_record_module.ArrayRecordReader(str(path)).num_records() if Path(path).exists() else "no file"
        except (RuntimeError, ValueError) as error:
            found = f"no readable records ({str(error).splitlines()[0]})"
        require(
            found == expected,
            f"{path}: shard {number}/{len(split.shard_lengths)}: expected {expected} records, found {found}; {way}",
        )


def feature(folder: Path, text_field: str) -> Any:
    """The feature that holds the text, alone: what is needed to read it out of records.

    Raises:
      InputError: no such feature, or one that is not one text a record.
    """
    import tensorflow_datasets as tfds

    try:
        features = tfds.features.FeatureConnector.from_config(str(folder))
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        raise InputError(f"data.source: {folder} is no folder that TFDS prepared ({reason})") from None
    texts = sorted(key for key, value in features.items() if value.shape == () and np.dtype(value.np_dtype).kind == "O")
    there = f"text in {folder}: {', '.join(texts) or 'none'}; name it with --data.text-field"
    require(text_field in features, f"data.text_field '{text_field}' is no feature; {there}")
    found = features[text_field]
    require(
        text_field in texts, f"data.text_field '{text_field}' is a feature {type(found).__name__}, no text; {there}"
    )
    return tfds.features.FeaturesDict({text_field: found})


def texts(path: Path, text_field: str) -> Iterator[tuple[int, bytes]]:
    """Numbered texts of a shard as they are stored, one in memory at a time; raises as `feature`, or where it is damaged."""
    from array_record.python import array_record_module

    wanted = feature(path.parent, text_field)
    number = 0
    try:
        reader = array_record_module.ArrayRecordReader(str(path))
        for number in range(reader.num_records()):
            yield number, wanted.deserialize_example_np(reader.read())[text_field]
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(
            f"{path}: record {number}: cannot be read ({reason}): the file is damaged or cut off"
        ) from None

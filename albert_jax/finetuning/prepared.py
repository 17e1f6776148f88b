"""Tasks' data sets that TFDS has prepared, without TensorFlow: which splits are there, and their records in plain Python."""

from collections.abc import Iterable, Iterator
from typing import Any

from albert_jax.config import InputError, require
from albert_jax.data.tfds import PREFIX, builder_of


def splits_of(name: str, wanted: Iterable[str]) -> dict[str, str]:
    """Our splits -> what they are called there: `dev` is `validation` in most data sets, and `dev` in some."""
    there = builder_of(name).info.splits
    found: dict[str, str] = {}
    for split in wanted:
        theirs = [split.replace("dev", "validation", 1), split] if split.startswith("dev") else [split]
        if known := [candidate for candidate in theirs if candidate in there]:
            found[split] = known[0]
    require(bool(found), f"data.dir {PREFIX}{name}: none of {', '.join(wanted)} is prepared there")
    return found


def records(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a prepared split, with where each stands; texts are decoded, classes have their names, hidden ones none.

    Raises:
      InputError: it was prepared in a format that only TensorFlow reads.
    """
    import tensorflow_datasets as tfds

    builder = builder_of(name)
    try:
        rows = builder.as_data_source(split=split)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
        told = f"data.dir {PREFIX}{name}: cannot be read by index ({reason})"
        raise InputError(f"{told}; prepare it with file_format=array_record") from None
    classes = {
        key: feature for key, feature in builder.info.features.items() if isinstance(feature, tfds.features.ClassLabel)
    }
    tags = {
        key: feature.feature
        for key, feature in builder.info.features.items()
        if isinstance(getattr(feature, "feature", None), tfds.features.ClassLabel)
    }

    def plain(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode()
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if hasattr(value, "tolist"):
            return plain(value.tolist())
        return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value

    for at in range(len(rows)):
        try:
            record = {key: plain(value) for key, value in rows[at].items()}
        except ImportError:  # lists of lists, as RACE's options are
            told = f"data.dir {PREFIX}{name}: TFDS needs TensorFlow to read its features"
            raise InputError(f"{told}; name the benchmark's own files instead") from None
        for key, feature in classes.items():
            record[key] = "" if record[key] < 0 else feature.int2str(record[key])  # -1: hidden, in a test split
        for key, feature in tags.items():
            record[key] = [feature.int2str(number) for number in record[key]]
        yield f"{name}/{split}[{at}]", record

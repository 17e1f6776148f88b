"""Tasks' data sets prepared by TFDS, read without TensorFlow: their splits, and their records in plain Python."""

from collections.abc import Iterable, Iterator
from typing import Any

from albert_jax.config import InputError, first_line
from albert_jax.data.tfds import PREFIX, builder_of


def splits_of(name: str, splits: Iterable[str]) -> dict[str, str]:
    """Our splits -> their names in the data set: `dev` is `validation` in most data sets, `dev` in some."""
    available = builder_of(name).info.splits
    names: dict[str, str] = {}
    for split in splits:
        candidates = [split.replace("dev", "validation", 1), split] if split.startswith("dev") else [split]
        if known := [candidate for candidate in candidates if candidate in available]:
            names[split] = known[0]
    if not names:
        raise InputError(f"data.dir {PREFIX}{name}: none of the splits {', '.join(splits)} is prepared there")
    return names


def records(name: str, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The records of a prepared split, each with its place; classes by name, "" for hidden ones.

    Raises:
      InputError: the format can be read only by TensorFlow.
    """
    import tensorflow_datasets as tfds

    builder = builder_of(name)
    try:
        rows = builder.as_data_source(split=split)
    except Exception as error:
        problem = f"data.dir {PREFIX}{name}: cannot be read by index ({first_line(error)[:160]})"
        raise InputError(f"{problem}; prepare it with file_format=array_record") from None
    features = builder.info.features

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
        except ImportError:  # nested lists, such as RACE's options
            problem = f"data.dir {PREFIX}{name}: TFDS needs TensorFlow to read its features"
            raise InputError(f"{problem}; name the benchmark's own files instead") from None
        for key, feature in features.items():
            if isinstance(feature, tfds.features.ClassLabel):
                record[key] = "" if record[key] < 0 else feature.int2str(record[key])  # -1: hidden, in a test split
            elif isinstance(inner := getattr(feature, "feature", None), tfds.features.ClassLabel):
                record[key] = [inner.int2str(number) for number in record[key]]
        yield f"{name}/{split}[{at}]", record

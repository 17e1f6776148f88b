"""Texts of columnar files (parquet, arrow), read with pyarrow, a batch of records at a time."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from albert_jax.config import InputError, first_line
from albert_jax.data.lines import needs_formats

BATCH_SIZE = 256
"""Number of records of a file that are in memory at a time."""


def parquet_texts(path: Path, column: str) -> Iterator[tuple[str, bytes | None]]:
    """Locations and texts of a parquet file, as bytes; None where the text is null."""
    with _arrow_errors(path):
        import pyarrow.parquet

        # With a buffer, pages are read one at a time, not a whole row group.
        file = pyarrow.parquet.ParquetFile(path, buffer_size=2**20)
        _check_column(path, column, file.schema_arrow)
        yield from _texts(path, column, file.iter_batches(BATCH_SIZE, columns=[column]))


def arrow_texts(path: Path, column: str) -> Iterator[tuple[str, bytes | None]]:
    """Like `parquet_texts`, for Arrow's stream format, which `datasets` writes, and for its file format."""
    with _arrow_errors(path):
        import pyarrow

        with pyarrow.memory_map(str(path)) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            file = pyarrow.ipc.open_file(source) if is_file else pyarrow.ipc.open_stream(source)
            _check_column(path, column, file.schema)
            batches = map(file.get_batch, range(file.num_record_batches)) if is_file else file
            yield from _texts(path, column, batches)


@contextlib.contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    """Turn the errors of pyarrow, and its absence, into an `InputError`."""
    with needs_formats(path):
        import pyarrow
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: corrupted or truncated ({first_line(error)}); replace the file") from None


def _check_column(path: Path, column: str, schema: Any) -> None:
    import pyarrow

    kinds = ("string", "binary", "null")
    flat = (field for field in schema if not pyarrow.types.is_nested(field.type))
    texts = [field.name for field in flat if any(kind in str(field.type) for kind in kinds)]
    if column not in texts:
        problem = "is not text" if column in schema.names else "does not exist"
        names = ", ".join(texts) or "there is none"
        raise InputError(f"{path}: column '{column}' {problem}; name a text column with --data.text-field: {names}")


def _texts(path: Path, column: str, batches: Iterable[Any]) -> Iterator[tuple[str, bytes | None]]:
    import pyarrow

    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_SIZE):  # an Arrow file may be one batch
            part = batch.column(column).slice(start, BATCH_SIZE)
            # As bytes, because pyarrow raises an error for the whole part if one text is invalid UTF-8.
            for text in part.cast(pyarrow.large_binary()).to_pylist():
                yield f"{path}: record {number}", text
                number += 1

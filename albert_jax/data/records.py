"""Random access to prepared documents in ArrayRecord files.

TFDS reads the bytes; `Records` decodes them, because TFDS's general decoder takes five times as long.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

Record = Mapping[str, np.ndarray]
"""A document: `tokens` [tokens] and `sentence_lengths` [sentences]."""

READ_SIZE = 1000
"""Number of records per read when iterating: ten times faster than one at a time; larger reads are slower again."""


@dataclass(frozen=True)
class Records:
    """The records of one split, in order."""

    stored: Any
    """TFDS data source that returns raw bytes."""
    dtypes: Mapping[str, np.dtype]
    """Feature -> dtype of the array whose bytes are stored."""

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, number: int) -> Record:
        return self._decode(self.stored[number])

    def __iter__(self) -> Iterator[Record]:
        for start in range(0, len(self), READ_SIZE):
            yield from map(self._decode, self.stored.__getitems__(range(start, min(start + READ_SIZE, len(self)))))

    def _decode(self, record: bytes) -> Record:
        features = tf_example_pb2.Example.FromString(record).features.feature
        return {name: np.frombuffer(features[name].bytes_list.value[0], dtype) for name, dtype in self.dtypes.items()}

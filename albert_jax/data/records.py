"""Prepared documents out of their ArrayRecord files, by number."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

Record = Mapping[str, np.ndarray]
"""A document: `tokens` [tokens] and `sentence_lengths` [sentences]."""

TOGETHER = 1000
"""Records read at once on a way through all."""


@dataclass(frozen=True)
class Records:
    """Random access to a split.  TFDS reads the bytes, which are decoded here: its decoding serves any feature, and takes 5
    times as long.
    """

    stored: Any
    """A data source of TFDS, of raw bytes."""
    dtypes: Mapping[str, np.dtype]
    """Of the features, which are stored as an array's bytes."""

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, number: int) -> Record:
        return self._decode(self.stored[number])

    def __iter__(self) -> Iterator[Record]:
        # Many of a file at once take a tenth of the time of one after another; of as many files, longer.
        for start in range(0, len(self), TOGETHER):
            yield from map(self._decode, self.stored.__getitems__(range(start, min(start + TOGETHER, len(self)))))

    def _decode(self, record: bytes) -> Record:
        features = tf_example_pb2.Example.FromString(record).features.feature
        return {name: np.frombuffer(features[name].bytes_list.value[0], dtype) for name, dtype in self.dtypes.items()}

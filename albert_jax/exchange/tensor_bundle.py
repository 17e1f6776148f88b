"""Read TensorFlow's checkpoint files (the "tensor bundle" of Saver V2) without TensorFlow, and verify every checksum.

`PREFIX.index` is a sorted string table: blocks of (key, value) entries with shared key prefixes, an index block of
(key, block handle) and a footer of 48 bytes (tensorflow/core/lib/io/table_format.txt).  A value is a BundleEntryProto:
dtype, shape, shard, offset, size, CRC-32C; the empty key holds a BundleHeaderProto
(tensorflow/core/protobuf/tensor_bundle.proto).  `PREFIX.data-0000i-of-0000n` are the bytes of the tensors.

The format is small, documented and frozen.  TensorFlow would be our heaviest dependency, for something done once per model.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from albert_jax.config import InputError
from albert_jax.exchange.archives import check_weights

FOOTER_BYTES = 48
MAGIC = 0xDB4775248B80FB57
TRAILER_BYTES = 5
"""After each block: one byte for its compression, and a checksum."""
MAX_INDEX_BYTES = 16 * 2**20
MAX_KEY_BYTES, MAX_ENTRIES = 1024, 100_000
"""The index of a large model has kilobytes.  Since keys share prefixes, a small file could expand to very many bytes."""
MAX_SHARDS = 100_000
# tensorflow/core/framework/types.proto
DTYPES: dict[int, Any] = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    9: np.int64,
    14: ml_dtypes.bfloat16,
    19: np.float16,
}

# The fields that we read, with their published numbers.  Shape stands for TensorShapeProto.
_PROTO = """
name: "albert_jax/tensor_bundle.proto" package: "albert_jax" syntax: "proto3"
message_type { name: "Header"
  field { name: "num_shards" number: 1 type: TYPE_INT32 label: LABEL_OPTIONAL }
  field { name: "endianness" number: 2 type: TYPE_INT32 label: LABEL_OPTIONAL } }
message_type { name: "Entry"
  field { name: "dtype" number: 1 type: TYPE_INT32 label: LABEL_OPTIONAL }
  field { name: "shape" number: 2 type: TYPE_MESSAGE type_name: ".albert_jax.Shape" label: LABEL_OPTIONAL }
  field { name: "shard_id" number: 3 type: TYPE_INT32 label: LABEL_OPTIONAL }
  field { name: "offset" number: 4 type: TYPE_INT64 label: LABEL_OPTIONAL }
  field { name: "size" number: 5 type: TYPE_INT64 label: LABEL_OPTIONAL }
  field { name: "crc32c" number: 6 type: TYPE_FIXED32 label: LABEL_OPTIONAL }
  field { name: "slices" number: 7 type: TYPE_BYTES label: LABEL_REPEATED } }
message_type { name: "Shape"
  field { name: "dim" number: 2 type: TYPE_MESSAGE type_name: ".albert_jax.Dim" label: LABEL_REPEATED } }
message_type { name: "Dim"
  field { name: "size" number: 1 type: TYPE_INT64 label: LABEL_OPTIONAL } }
"""
_pool = descriptor_pool.DescriptorPool()
_pool.Add(text_format.Parse(_PROTO, descriptor_pb2.FileDescriptorProto()))
_Header, _Entry = (
    message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"albert_jax.{name}")) for name in ("Header", "Entry")
)


class TensorBundle:
    """The tensors of `PREFIX.index`, by name.

    Args:
      prefix: path without `.index`.

    Raises:
      InputError: a file is missing, corrupted or of a kind that we do not read.
    """

    def __init__(self, prefix: Path) -> None:
        self.path = str(prefix)
        index = prefix.with_name(f"{prefix.name}.index")
        check_weights(index)
        size = index.stat().st_size
        if not FOOTER_BYTES <= size <= MAX_INDEX_BYTES:
            raise InputError(f"{index}: {size} bytes cannot be a TensorFlow checkpoint index")
        try:
            entries = dict(_table(index.read_bytes()))
            header = _Header.FromString(entries.pop(b""))
            self._entries = {key.decode(): _Entry.FromString(value) for key, value in entries.items()}
            if not 0 < header.num_shards <= MAX_SHARDS:
                raise _Corrupted(f"{header.num_shards} shards")
        except (_Corrupted, DecodeError, KeyError, UnicodeDecodeError) as error:
            raise InputError(
                f"{index}: corrupted, or no TensorFlow checkpoint index ({error}); copy it again"
            ) from None
        if header.endianness != 0:
            raise InputError(f"{index}: big-endian tensors are not supported; save it on a little-endian machine")
        self._shards = [
            prefix.with_name(f"{prefix.name}.data-{i:05}-of-{header.num_shards:05}") for i in range(header.num_shards)
        ]
        for shard in self._shards:
            if not shard.is_file():
                raise InputError(f"{shard}: no such file; a checkpoint is its .index and all of its .data files")
            check_weights(shard)
        self.shapes = {name: tuple(dim.size for dim in entry.shape.dim) for name, entry in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, with its checksum verified.

        Raises:
          InputError: it is corrupted, or stored in a way that we do not read.
        """
        entry, shape = self._entries[name], self.shapes[name]
        where = f"{self.path}: {name}"
        if entry.slices:
            raise InputError(f"{where} is partitioned; save the checkpoint without a partitioner")
        if entry.dtype not in DTYPES:
            raise InputError(f"{where} has TensorFlow's dtype number {entry.dtype}, which is not supported")
        dtype = np.dtype(DTYPES[entry.dtype])
        if not 0 <= entry.shard_id < len(self._shards):
            raise InputError(f"{where}: corrupted index: shard {entry.shard_id}")
        if min(shape, default=0) < 0 or entry.size != math.prod(shape) * dtype.itemsize:
            raise InputError(f"{where}: corrupted index: {entry.size} bytes for shape {shape}")
        shard = self._shards[entry.shard_id]
        end, length = entry.offset + entry.size, shard.stat().st_size
        if entry.offset < 0 or end > length:
            raise InputError(f"{shard} is incomplete: {name} ends at byte {end}, the file at {length}; copy it again")
        with shard.open("rb") as file:
            file.seek(entry.offset)
            raw = file.read(entry.size)
        if _masked_crc(raw) != entry.crc32c:
            raise InputError(f"{shard}: {name} is corrupted (checksum differs); copy it again")
        return np.frombuffer(raw, dtype.newbyteorder("<") if dtype.kind != "V" else dtype).reshape(shape)


class _Corrupted(Exception):
    """The index cannot be parsed."""


def _masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted as in LevelDB: plain CRCs are weak for data that holds CRCs."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All entries of a table."""
    footer = data[-FOOTER_BYTES:]
    if struct.unpack_from("<Q", footer, FOOTER_BYTES - 8)[0] != MAGIC:
        raise _Corrupted("the magic number at the end is missing")
    _, _, at = _handle(footer, 0)  # the metaindex, which is empty in tensor bundles
    offset, size, _ = _handle(footer, at)
    count = 0
    for _, handle in _block(data, offset, size):
        offset, size, _ = _handle(handle, 0)
        for entry in _block(data, offset, size):
            count += 1
            if count > MAX_ENTRIES:
                raise _Corrupted(f"more than {MAX_ENTRIES} tensors")
            yield entry


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of one block, with its checksum verified."""
    end = offset + size
    if end + TRAILER_BYTES > len(data):
        raise _Corrupted("a block ends after the end of the file")
    if _masked_crc(data[offset : end + 1]) != struct.unpack_from("<I", data, end + 1)[0]:
        raise _Corrupted("the checksum of a block differs")
    if data[end] != 0:
        raise _Corrupted("a block is compressed, which TensorFlow never does")
    block = data[offset:end]
    if size < 4 or 4 * (restarts := struct.unpack_from("<I", block, size - 4)[0]) + 4 > size:
        raise _Corrupted("a block without its list of restarts")
    at, stop, key = 0, size - 4 - 4 * restarts, b""
    while at < stop:
        shared, at = _varint(block, at)
        added, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + added + length > stop:
            raise _Corrupted("an entry ends after the end of its block")
        if shared + added > MAX_KEY_BYTES:
            raise _Corrupted(f"a name of {shared + added} bytes")
        key = key[:shared] + block[at : at + added]
        yield key, block[at + added : at + added + length]
        at += added + length


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """Offset and size of a block, and the position after them."""
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return offset, size, at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and the position after it."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise _Corrupted("a number that does not end")

"""TensorFlow's checkpoint files (the "tensor bundle", Saver V2) read as plain bytes; every checksum is verified.

`PREFIX.index` is a sorted string table: blocks of (key, value) entries with shared key prefixes, an index block of
(key, block handle) and a footer of 48 bytes (tensorflow/core/lib/io/table_format.txt).  A value is a BundleEntryProto:
dtype, shape, shard, offset, size, CRC-32C; the empty key holds a BundleHeaderProto
(tensorflow/core/protobuf/tensor_bundle.proto).  `PREFIX.data-0000i-of-0000n` are the tensors' bytes.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import ml_dtypes
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from google.protobuf.message import DecodeError

from albert_jax.config import InputError, require
from albert_jax.exchange.archives import check_weights

FOOTER_BYTES = 48
MAGIC = 0xDB4775248B80FB57
TRAILER_BYTES = 5
"""After each block: how it is compressed, and a checksum."""
MAX_INDEX_BYTES = 16 * 2**20
MAX_KEY_BYTES, MAX_ENTRIES = 1024, 100_000
"""The index of a large model has kilobytes; keys share prefixes, so that a small file could hold very much of them."""
# tensorflow/core/framework/types.proto
DTYPES: dict[int, Any] = {
    1: np.float32,
    2: np.float64,
    3: np.int32,
    9: np.int64,
    14: ml_dtypes.bfloat16,
    19: np.float16,
}

# The fields that are read, by their published numbers; TensorShapeProto's dimensions are inside.
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
      InputError: files that are missing, damaged (a checksum differs) or of a kind that is not read.
    """

    def __init__(self, prefix: Path) -> None:
        self.path = str(prefix)
        index = prefix.with_name(f"{prefix.name}.index")
        check_weights(index)
        size = index.stat().st_size
        require(FOOTER_BYTES <= size <= MAX_INDEX_BYTES, f"{index}: {size} bytes are no TensorFlow checkpoint index")
        try:
            entries = dict(_table(index.read_bytes()))
            header = _Header.FromString(entries.pop(b""))
            self._entries = {key.decode(): _Entry.FromString(value) for key, value in entries.items()}
        except (_Damaged, DecodeError, KeyError, UnicodeDecodeError) as error:
            raise InputError(f"{index}: damaged, or no TensorFlow checkpoint index ({error}); copy it again") from None
        require(0 < header.num_shards <= 100_000, f"{index}: damaged: {header.num_shards} shards")
        require(header.endianness == 0, f"{index}: big-endian tensors are not read; save it on a little-endian machine")
        self._shards = [
            prefix.with_name(f"{prefix.name}.data-{i:05}-of-{header.num_shards:05}") for i in range(header.num_shards)
        ]
        for shard in self._shards:
            require(shard.is_file(), f"{shard}: no such file; a checkpoint is its .index and all of its .data files")
            check_weights(shard)
        self.shapes = {name: tuple(dim.size for dim in entry.shape.dim) for name, entry in self._entries.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, its checksum verified.

        Raises:
          InputError: it is damaged, or stored in a way that is not read; it is named.
        """
        entry, shape = self._entries[name], self.shapes[name]
        where = f"{self.path}: {name}"
        require(not entry.slices, f"{where} is partitioned; save the checkpoint without a partitioner")
        require(entry.dtype in DTYPES, f"{where} has TensorFlow's dtype number {entry.dtype}, which is not read")
        dtype = np.dtype(DTYPES[entry.dtype])
        require(0 <= entry.shard_id < len(self._shards), f"{where}: damaged index: shard {entry.shard_id}")
        count = 1
        for size in shape:
            count *= size
        require(
            min(shape, default=0) >= 0 and entry.size == count * dtype.itemsize,
            f"{where}: damaged index: {entry.size} bytes for shape {shape}",
        )
        shard = self._shards[entry.shard_id]
        have = shard.stat().st_size
        require(
            entry.offset >= 0 and entry.offset + entry.size <= have,
            f"{shard} is cut short: {name} ends at byte {entry.offset + entry.size}, the file at {have}; copy it again",
        )
        with shard.open("rb") as file:
            file.seek(entry.offset)
            raw = file.read(entry.size)
        require(_masked_crc(raw) == entry.crc32c, f"{shard}: {name} is damaged (checksum differs); copy it again")
        return np.frombuffer(raw, dtype.newbyteorder("<") if dtype.kind != "V" else dtype).reshape(shape)


class _Damaged(Exception):
    pass


def _masked_crc(data: bytes) -> int:
    """CRC-32C, rotated and shifted, so that a checksum of data that holds checksums is not weak (LevelDB's way)."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """All entries of a table."""
    footer = data[-FOOTER_BYTES:]
    if struct.unpack_from("<Q", footer, FOOTER_BYTES - 8)[0] != MAGIC:
        raise _Damaged("the magic number at its end is missing")
    at = 0
    for _ in range(2):  # the handle of the metaindex, which tensor bundles leave empty
        _, at = _varint(footer, at)
    count = 0
    for _, handle in _block(data, *_handle(footer, at)):
        for entry in _block(data, *_handle(handle, 0)):
            count += 1
            if count > MAX_ENTRIES:
                raise _Damaged(f"more than {MAX_ENTRIES} tensors")
            yield entry


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of one block, its checksum verified."""
    end = offset + size
    if end + TRAILER_BYTES > len(data):
        raise _Damaged("a block lies behind its end")
    if _masked_crc(data[offset : end + 1]) != struct.unpack_from("<I", data, end + 1)[0]:
        raise _Damaged("the checksum of a block differs")
    if data[end] != 0:
        raise _Damaged("a compressed block; TensorFlow's own writer makes none")
    block = data[offset:end]
    if size < 4 or 4 * (restarts := struct.unpack_from("<I", block, size - 4)[0]) + 4 > size:
        raise _Damaged("a block without its list of restarts")
    at, stop, key = 0, size - 4 - 4 * restarts, b""
    while at < stop:
        shared, at = _varint(block, at)
        own, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + own + length > stop:
            raise _Damaged("an entry lies behind the end of its block")
        if shared + own > MAX_KEY_BYTES:
            raise _Damaged(f"a name of {shared + own} bytes")
        key = key[:shared] + block[at : at + own]
        yield key, block[at + own : at + own + length]
        at += own + length


def _handle(data: bytes, at: int) -> tuple[int, int]:
    """Offset and size of a block."""
    offset, at = _varint(data, at)
    size, _ = _varint(data, at)
    return offset, size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            break
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise _Damaged("a number without end")

"""Check what kind of file a downloaded file really is, and unpack tar archives safely."""

import bz2
import contextlib
import gzip
import lzma
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any, cast

from albert_jax.config import InputError, first_line

COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
"""First bytes of a compressed archive -> the function that opens it."""
MAX_HEADER_BYTES = 2**20
MAX_BYTES = 64 * 2**30
"""Limit for one unpacked archive.  The largest released ALBERT has 0.9 GB, and 10 GB if unshared."""


def check_weights(path: Path) -> None:
    """Refuse files that are often found in the place of weights.

    Raises:
      InputError: the file is missing, unreadable or empty, or it is a Git LFS pointer or a web page.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such file")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    problem = ""
    if size == 0:
        problem = ": it is empty; download it again"
    elif start.startswith(b"version https://git-lfs"):
        problem = " but a Git LFS pointer; run 'git lfs pull'"
    elif start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        problem = " but a web page; download the file itself (the 'resolve' address, not 'blob')"
    if problem:
        raise InputError(f"{path} ({size} bytes) is not weights{problem}")


def is_pickle(path: Path) -> bool:
    """Whether the first bytes are those of a pickle, or of a zip archive of pickles as torch writes it."""
    with path.open("rb") as file:
        start = file.read(8)
    # A safetensors file starts with the length of its header.  That can begin like a pickle, but is never so large.
    return start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5" and any(start[4:]))


class _LimitedReads:
    """A file that refuses reads of more than `MAX_HEADER_BYTES`: tarfile reads a name at once, however long it claims to be."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._read(size)


def unpack(archive: Path, target: Path) -> None:
    """Unpack the regular files of a tar archive into the folder `target`.

    Folders in the archive are ignored, so no path in it can lead out of `target`.

    Raises:
      InputError: the file is no tar archive, is incomplete, has two files of one name, or exceeds `MAX_BYTES`.
    """
    try:
        with contextlib.ExitStack() as stack:
            packed = stack.enter_context(archive.open("rb"))
            start = packed.read(6)
            packed.seek(0)
            opened = next((way(packed) for magic, way in COMPRESSED.items() if start.startswith(magic)), packed)
            plain = cast(IO[bytes], _LimitedReads(stack.enter_context(cast(IO[bytes], opened))))
            _unpack_members(stack.enter_context(tarfile.open(fileobj=plain, mode="r:")), archive, target)
    except InputError:
        raise
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
        raise InputError(f"{archive}: not a complete tar archive ({first_line(error)}); download it again") from None


def _unpack_members(tar: tarfile.TarFile, archive: Path, target: Path) -> None:
    total = 0
    for member in tar:
        path = target / Path(member.name).name
        if not member.isfile() or path.name.startswith("._"):  # macOS adds such files with metadata of the others
            continue
        total += member.size
        free = shutil.disk_usage(target).free
        if total > MAX_BYTES:
            raise InputError(f"{archive}: unpacks to more than {MAX_BYTES >> 30} GiB; refused")
        if member.size >= free:
            raise InputError(f"{archive}: {path.name} needs {member.size:,} bytes in {target}, {free:,} are free")
        if path.exists():
            raise InputError(f"{archive}: it holds two files named {path.name}")
        source = tar.extractfile(member)
        assert source is not None  # it is a regular file
        with source, path.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
        if path.stat().st_size != member.size:
            raise InputError(f"{archive}: {path.name} is incomplete; download it again")

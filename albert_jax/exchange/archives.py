"""Files from elsewhere: what they really are, told before anything parses them; archives unpacked without trusting them."""

import bz2
import contextlib
import gzip
import lzma
import shutil
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any, cast

from albert_jax.config import InputError, require

COMPRESSED: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
"""How a compressed archive begins, and what opens it."""
MAX_HEADER_BYTES = 2**20
MAX_BYTES = 64 * 2**30
"""Of one unpacked archive; the largest released ALBERT is 0.9 GB, its unshared twin 10."""


def check_weights(path: Path) -> None:
    """Refuses what is often found in the place of weights.

    Raises:
      InputError: no file, one that cannot be read, an empty one, a Git LFS pointer or a web page; each with the way out.
    """
    try:
        require(path.is_file(), f"{path}: no such file")
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    what = f"{path} ({size} bytes) is not weights"
    require(size > 0, f"{what}: it is empty; download it again")
    require(not start.startswith(b"version https://git-lfs"), f"{what} but a Git LFS pointer; run 'git lfs pull'")
    page = start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml"))
    require(not page, f"{what} but a web page; download the file itself (its 'resolve' address, not 'blob')")


def is_pickle(path: Path) -> bool:
    """Whether the file is a pickle, or a zip of them as torch writes; read from its first bytes alone."""
    with path.open("rb") as file:
        start = file.read(8)
    # The header length that a safetensors file begins with can look like the first two bytes, but is never so large.
    return start.startswith(b"PK\x03\x04") or (start[:1] == b"\x80" and start[1:2] in b"\2\3\4\5" and any(start[4:]))


class _Limited:
    """A file that gives no more than `MAX_HEADER_BYTES` at once: tarfile reads in one go what a header says is a name."""

    def __init__(self, file: IO[bytes]) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._read(size)


def unpack(archive: Path, target: Path) -> None:
    """Unpacks the regular files of a tar into `target`, flat: by their last names, so that no path can lead out of it.

    Raises:
      InputError: not a tar, cut short, two files of one name, or more than `MAX_BYTES`.
    """
    total = 0
    try:
        with contextlib.ExitStack() as stack:
            packed = stack.enter_context(archive.open("rb"))
            start = packed.read(6)
            packed.seek(0)
            opened = next((way(packed) for magic, way in COMPRESSED.items() if start.startswith(magic)), packed)
            plain = stack.enter_context(cast(IO[bytes], opened))
            tar = stack.enter_context(tarfile.open(fileobj=cast(IO[bytes], _Limited(plain)), mode="r:"))
            for member in tar:
                name = Path(member.name).name
                if not member.isfile() or name.startswith("._"):  # the latter are macOS's notes on the others
                    continue
                total += member.size
                require(total <= MAX_BYTES, f"{archive}: unpacks to more than {MAX_BYTES >> 30} GiB; refused")
                free = shutil.disk_usage(target).free
                require(
                    member.size < free, f"{archive}: {name} needs {member.size:,} bytes in {target}, {free:,} are free"
                )
                require(not (target / name).exists(), f"{archive}: it holds two files named {name}")
                source = tar.extractfile(member)
                assert source is not None  # it is a regular file
                with source, (target / name).open("wb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
                written = (target / name).stat().st_size
                require(written == member.size, f"{archive}: {name} is cut short; download it again")
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{archive}: not a whole tar archive ({str(error).splitlines()[0]}); download it again"
        ) from None

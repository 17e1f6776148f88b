"""Lines of text files: decompression, encodings, and repairs of characters."""

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from albert_jax.config import InputError, first_line

MAX_LINE_BYTES = 64 * 2**20
"""Maximum size of a line, and of a document in .txt, because several copies of it must fit in memory."""

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",  # begins with that of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""First bytes of a file -> its encoding."""

DECODER_ERRORS = {"error": "strict", "replace": "replace"}
"""Value of `encoding_errors` -> what Python's decoders call it."""


@contextlib.contextmanager
def needs_formats(location: object) -> Iterator[None]:
    """Turn a failed import into an `InputError` that names the extra `formats`."""
    try:
        yield
    except ImportError as error:
        raise InputError(f"{location}: pip install 'albert_jax[formats]' ({first_line(error)})") from None


class _ZstdFile(io.RawIOBase):
    """The content of a .zst file, with any number of frames.

    The file object of zstandard ends without an error where a file is truncated.
    """

    def __init__(self, path: Path) -> None:
        with needs_formats(path):
            import zstandard
        # zstd --long=31 uses a window of 2 GiB, which is above the default limit.
        self._new_frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj
        self._error = zstandard.ZstdError
        self._file = path.open("rb")
        self._frame: Any = None
        self._compressed = b""
        self._content = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            chunk = self._compressed or self._file.read(2**14)
            if not chunk:
                if self._frame is not None:
                    raise EOFError("the last frame is incomplete")
                return 0
            frame = self._frame or self._new_frame()
            try:
                self._content = memoryview(frame.decompress(chunk))
            except self._error as error:
                raise OSError(first_line(error)) from None
            self._compressed, self._frame = frame.unused_data, None if frame.eof else frame
        size = min(len(buffer), len(self._content))
        buffer[:size], self._content = self._content[:size], self._content[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


COMPRESSIONS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": lambda path: io.BufferedReader(_ZstdFile(path)),
}
"""Last suffix of a compressed file -> function that opens its content as bytes."""

CORRUPTED = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""Exceptions of reading a file that is corrupted or truncated."""


def check_encoding(encoding: str) -> None:
    """Raise `InputError` unless Python has this text encoding."""
    try:
        "\n".encode(encoding)
    except (LookupError, ValueError):
        raise InputError(
            f"encoding: unknown text encoding {encoding!r}; name one of Python's, such as cp1252"
        ) from None


def without_lone_surrogates(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can express but UTF-8 cannot."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_compressed(path: Path) -> bool:
    """Whether the name of a file says that it is compressed."""
    return path.suffix.lower() in COMPRESSIONS


def open_bytes(path: Path) -> IO[bytes]:
    """Open a file as bytes, decompressed if its name says so."""
    return COMPRESSIONS.get(path.suffix.lower(), lambda path: path.open("rb"))(path)


def lines(
    path: Path, encoding_errors: str, repairs: Counter[str], encoding: str = "utf-8"
) -> Iterator[tuple[int, str]]:
    """Line numbers and lines as text, without line ends, byte-order mark and NUL.  Reads one line at a time.

    CR alone ends a line if the file has no LF, as files of old Macs.  Such a file is read at once.
    """
    offset = 0
    cr_lines: list[bytes] = []
    with open_bytes(path) as file:
        read, line_encoding = _line_reader(file, encoding, encoding_errors)
        for number in range(1, sys.maxsize):
            try:
                raw = cr_lines.pop() if cr_lines else read(MAX_LINE_BYTES + 1)
            except CORRUPTED as error:
                raise InputError(f"{path}:{number}: corrupted or truncated ({error}); replace the file") from None
            except UnicodeDecodeError as error:
                problem = f"invalid {encoding} in this line or after it ({error.reason})"  # it reads ahead
                raise InputError(f"{path}:{number}: {problem}; {_advice('utf-8')}") from None
            except UnicodeError as error:  # no byte-order mark
                advice = f"name its byte order or encoding (--data.encoding {other_encoding(encoding)})"
                raise InputError(f"{path}:{number}: {error}; {advice}") from None
            if not raw:
                return
            if len(raw) > MAX_LINE_BYTES:
                advice = "convert line ends of CR alone to LF" if b"\r" in raw[:-2] else "put one document on a line"
                raise InputError(f"{path}:{number}: line longer than {MAX_LINE_BYTES} bytes; {advice}")
            if number == 1 and not raw.endswith(b"\n"):
                raw, *cr_lines = raw.splitlines(keepends=True)
                cr_lines.reverse()
            try:
                line = raw.decode(line_encoding)
            except UnicodeDecodeError as error:
                location = f"{path}:{number}"
                line = replace_invalid(error, line_encoding, location, offset, encoding_errors, repairs)
            if offset == 0 and line.startswith("\ufeff"):
                line = line[1:]
                repairs["byte-order marks removed"] += 1
            if "\0" in line:
                line = line.replace("\0", "")
                repairs["lines from which NUL was removed"] += 1
            if line.endswith("\r\n"):
                repairs["CRLF line ends"] += 1
            elif line.endswith("\r"):
                repairs["CR line ends"] += 1
            offset += len(raw)
            yield number, line.rstrip("\r\n")


def _line_reader(file: IO[bytes], encoding: str, encoding_errors: str) -> tuple[Callable[[int], bytes], str]:
    """A function that reads the next line of at most N bytes, and the encoding of what it returns."""
    encoding = codecs.lookup(encoding).name.replace("utf-8-sig", "utf-8")  # a byte-order mark is removed in any case
    if "\n".encode(encoding) == b"\n":
        return file.readline, encoding
    # In UTF-16 and UTF-32 the byte 10 is also a part of other characters.
    text = io.TextIOWrapper(file, encoding, DECODER_ERRORS[encoding_errors], newline="\n")
    return lambda size: text.readline(size).encode(), "utf-8"


def replace_invalid(
    error: UnicodeDecodeError, encoding: str, location: str, offset: int, encoding_errors: str, repairs: Counter[str]
) -> str:
    """The text with invalid bytes replaced; an `InputError` if `encoding_errors` is "error"."""
    name = encoding.upper()
    if encoding_errors == "error":
        advice = _advice(other_encoding(encoding, b"" if offset else error.object))
        raise InputError(f"{location}: invalid {name} at byte {offset + error.start}; {advice}") from None
    repairs[f"lines with invalid {name} replaced"] += 1
    return error.object.decode(encoding, errors="replace")


def other_encoding(encoding: str, start: bytes = b"") -> str:
    """The encoding to suggest for a file that begins with `start` and cannot be read with `encoding`."""
    name = codecs.lookup(encoding).name
    others = {"utf-8": "cp1252", "utf-16": "utf-16-le", "utf-32": "utf-32-le"}
    marked = (other for mark, other in BYTE_ORDER_MARKS.items() if start.startswith(mark) and other != name)
    return next(marked, others.get(name, "utf-8"))


def _advice(encoding: str) -> str:
    return f"name its encoding (--data.encoding {encoding}) or pass --data.encoding-errors replace"

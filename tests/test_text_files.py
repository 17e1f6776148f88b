"""Text files as people have them: formats, compressions, encodings, data sets of Hugging Face, languages.

Inputs are written by the libraries that users write them with.  Docstrings name the deliberate breaks that were tried and made
the test fail.
"""

import bz2
import functools
import gzip
import json
import lzma
import os
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
import zstandard

from albert_jax.config import InputError
from albert_jax.data import hf_datasets, lines, sources
from albert_jax.data.builder import reading_digest
from albert_jax.data.lines import COMPRESSIONS
from albert_jax.data.loader import open_split
from albert_jax.data.prepare import prepare, read_split
from albert_jax.data.sequences import sequence_ranges
from albert_jax.data.sources import DataConfig, documents, sentences

from .conftest import assert_input_error

TEXTS = ["One a. Two b.", 'Three c.\nFour, "d".', "Größe ist’s. 漢字。"]
RECORDS = [{"text": text, "id": number} for number, text in enumerate(TEXTS)]
JSON_LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
CSV_ROWS = ['"One a. Two b.",0', '"Three c.\nFour, ""d"".",1', "Größe ist’s. 漢字。,2"]
WIKI = """<doc id="1" url="https://x.org/?curid=1" title="A">
A

Rain &amp; <wind>. Two.

</doc>
<doc id="2" url="https://x.org/?curid=2" title="B">
B

It is 3 &lt; 4.
</doc>
"""
ARTICLES = ["A\n\nRain & <wind>. Two.\n", "B\n\nIt is 3 < 4."]
ONE_PER_LINE = "a\nb\nc\n\nd\ne\n"


def zstd(content: bytes) -> bytes:
    """Two frames, as parallel compressors write them; without the content's size, as streaming ones do."""
    half = len(content) // 2
    frames = (zstandard.ZstdCompressor().compressobj() for _ in range(2))
    return b"".join(
        frame.compress(part) + frame.flush()
        for frame, part in zip(frames, (content[:half], content[half:]), strict=True)
    )


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
}


def read(path: object, **settings: Any) -> tuple[list[str], dict[str, int]]:
    """The documents of a source, and the problems that were counted."""
    counts: Counter[str] = Counter()
    return list(documents(DataConfig(str(path), **settings), counts)), dict(+counts)


SNIFFED = "files without a known suffix, read as "


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    ("name", "content", "settings", "expected", "counted"),
    [
        ("c4-train.json", JSON_LINES, {}, TEXTS, {}),
        ("array.json", json.dumps(RECORDS, indent=1), {}, TEXTS, {}),
        ("empty.json", "", {}, [], {"files without a document": 1}),
        ("a.ndjson", JSON_LINES, {}, TEXTS, {}),
        ("a.csv", "\n".join(["text,id", *CSV_ROWS, ""]), {}, TEXTS, {}),
        ("a.csv", "id;text\n1;a, b\n2;c\n", {}, ["a, b", "c"], {}),
        ("a.csv", "text\na\n", {}, ["a"], {}),
        ("empty.csv", "", {}, [], {"files without a document": 1}),
        ("a.tsv", 'text\tid\n"a" b\t1\n"c\t2\n', {}, ['"a" b', '"c'], {}),
        ("wiki_00", WIKI, {}, ARTICLES, {SNIFFED + "wikiextractor": 1}),
        ("wiki.txt", WIKI, {"file_type": "wikiextractor"}, ARTICLES, {}),
        ("wiki_01", JSON_LINES, {}, TEXTS, {SNIFFED + "jsonl": 1}),
        ("array", json.dumps(RECORDS, indent=1), {}, TEXTS, {SNIFFED + "json": 1}),
        ("list", "[1] See the notes.", {}, ["[1] See the notes."], {SNIFFED + "txt": 1}),
        ("data.txt", JSON_LINES, {"file_type": "jsonl"}, TEXTS, {}),
        ("wiki.train.raw", " \n = A = \n \n b .\n", {}, [" \n = A = \n \n b ."], {SNIFFED + "txt": 1}),
        ("europarl.de", "Größe\n", {"file_type": "txt"}, ["Größe"], {}),
        ("a.txt", ONE_PER_LINE, {"txt_documents": "2"}, ["a\nb", "c\nd", "e"], {}),
        ("a.txt", ONE_PER_LINE, {"txt_documents": "1"}, ["a", "b", "c", "d", "e"], {}),
        ("a.txt", ONE_PER_LINE, {"txt_documents": "5"}, ["a\nb\nc\nd\ne"], {}),
    ],
)
def test_files_of_lines(
    tmp_path: Path, compression: str, name: str, content: str, settings: Any, expected: list[str], counted: Any
) -> None:
    """Fails if quoted cells end at a line end, if quotes in .tsv have a meaning, if a title or an entity is changed, or if blank
    lines are counted as lines of a document; or if suffixes in upper case are unknown.
    """
    (tmp_path / (name + compression)).write_bytes(COMPRESS[compression](content.encode()))
    assert read(tmp_path / "*", **settings) == (expected, counted)
    (tmp_path / (name + compression)).rename(tmp_path / (name + compression).upper())
    assert read(tmp_path / "*", **settings) == (expected, counted)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("compression", ["", ".gz"])
def test_line_ends_of_old_macs(
    tmp_path: Path, encoding: str, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CR alone ends a line if there is no LF.  Fails if CR is a line end in every file, or if line numbers are those of LF."""

    def check(name: str, content: str, expected: list[str], **settings: str) -> None:
        path = tmp_path / (name + compression)
        path.write_bytes(COMPRESS[compression](content.encode(encoding)))
        documents, counts = read(path, encoding=encoding, **settings)
        assert documents == expected
        assert counts.get("CR line ends", 0) == (0 if "\n" in content else content.count("\r"))

    check("a.txt", "One a.\rTwo b.\r\rThree\r", ["One a.\nTwo b.", "Three"], txt_documents="blank-line")
    check("a.txt", "10 %\r20 %\nThree\n", ["10 %\r20 %\nThree"])
    check("a.csv", 'text;id\r"a; b";1\rc;2\r', ["a; b", "c"])
    check("a.tsv", "text\tid\r\ra\t1\rb\t2", ["a", "b"])
    check("a.jsonl", JSON_LINES.replace("\n", "\r"), TEXTS)
    check("a.json", json.dumps(RECORDS, indent=1).replace("\n", "\r"), TEXTS)
    with pytest.raises(InputError, match=rf"a\.jsonl{compression}:3: not JSON"):
        check("a.jsonl", '{"text": "a"}\r\r{"text"\r', [])
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 100)
    with pytest.raises(InputError, match=r":1: line longer than 100 bytes; convert line ends of CR alone to LF"):
        check("a.txt", "One two three.\r" * 20, [])


def test_every_compression_is_tested() -> None:
    assert {"", *COMPRESSIONS} == COMPRESS.keys()


@pytest.mark.parametrize("compression", list(COMPRESS)[1:])
def test_truncated_compressed_files(tmp_path: Path, compression: str) -> None:
    """Fails if zstandard's file object is used: it ends without an error where the file is truncated."""
    path = tmp_path / f"a.jsonl{compression}"
    numbers = np.random.default_rng(0).integers(10**9, size=20_000)
    content = COMPRESS[compression]("".join(f'{{"text": "{number}"}}\n' for number in numbers).encode())
    path.write_bytes(content)
    assert read(path)[0] == list(map(str, numbers))
    for end in (len(content) // 3, len(content) - 4):
        path.write_bytes(content[:end])
        assert_input_error(lambda: read(path), f"{path}:", "corrupted or truncated")
    path.write_bytes(b"plain text")
    assert_input_error(lambda: read(path), f"{path}:1:", "corrupted or truncated")


def test_zstd_with_a_long_window(tmp_path: Path) -> None:
    """As `zstd --long=31` compresses.  Fails with the default limit of the window."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=30, write_content_size=False)
    frame = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "a.txt.zst").write_bytes(frame.compress(b"A b.") + frame.flush())
    assert read(tmp_path / "*.zst") == (["A b."], {})


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "dictionary"])
def test_columnar_files(tmp_path: Path, kind: str) -> None:
    """Parquet, Arrow's stream and file formats, compressed and in several row groups.

    Fails if only the first row group is read, or if the type of the column matters.
    """
    texts = [text for number in range(300) for text in (f"{number}. a.", TEXTS[2])]
    column = pa.array(texts)
    table = pa.table(
        {"id": range(600), "body": column.dictionary_encode() if kind == "dictionary" else column.cast(kind)}
    )
    pa.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=250, compression="zstd")
    pa.parquet.write_table(table, tmp_path / "part-00000")
    pa.feather.write_feather(table, tmp_path / "a.arrow", compression="lz4", chunksize=100)
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    for name in ("a.parquet", "a.arrow", "b.arrow"):
        assert read(tmp_path / name, text_field="body") == (texts, {})
    # Columnar files keep their type if text files have a different one.
    assert read(tmp_path / "part-00000", text_field="body") == (texts, {SNIFFED + "parquet": 1})
    assert read(tmp_path / "a.parquet", text_field="body", file_type="wikiextractor")[0] == texts


@pytest.mark.parametrize("kind", ["string", "dictionary"])
def test_memory_of_a_large_batch(tmp_path: Path, kind: str) -> None:
    """An Arrow file of one batch is read in parts.  Fails if the texts of a batch are converted at once."""
    column = pa.array([f"{number:01000}" for number in range(20_000)])
    table = pa.table({"text": column.dictionary_encode() if kind == "dictionary" else column})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    config = DataConfig(str(tmp_path / "a.arrow"))
    tracemalloc.start()
    before, most = pa.total_allocated_bytes(), 0
    for number, text in enumerate(documents(config)):
        assert int(text) == number
        most = max(most, pa.total_allocated_bytes() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 19_999
    assert peak + most < 4 * 10**6


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
def test_invalid_columnar_files(tmp_path: Path, name: str) -> None:
    """Fails if an exception of pyarrow is raised."""
    table = pa.table({"id": [1, 2], "body": ["a", "b"], "list": [["a"], ["b"]]})
    path = tmp_path / name
    write = pa.parquet.write_table if path.suffix == ".parquet" else pa.feather.write_feather
    write(table, path)
    assert read(path, text_field="body") == (["a", "b"], {})
    assert_input_error(lambda: read(path), f"{path}: column 'text' does not exist", "--data.text-field: body")
    for column in ("id", "list"):
        config = DataConfig(str(path), text_field=column)
        assert_input_error(functools.partial(list, documents(config)), f"column '{column}' is not text", ": body")
    content = path.read_bytes()
    for end in (len(content) // 2, len(content) - 10, 0):
        path.write_bytes(content[:end])
        assert_input_error(lambda: read(path, text_field="body"), str(path), "corrupted or truncated")


def test_nulls_and_invalid_utf8_in_columns(tmp_path: Path) -> None:
    """Fails if pyarrow decodes the texts: then one invalid text makes its whole batch unreadable."""
    pa.parquet.write_table(pa.table({"text": pa.array([b"a", None, b"b\xff"])}), tmp_path / "a.parquet")
    path = tmp_path / "a.parquet"
    assert_input_error(lambda: read(path), "a.parquet: record 1: 'text' is null", "--data.malformed skip")
    assert read(path, malformed="skip", encoding_errors="replace") == (
        ["a", "b\ufffd"],
        {"malformed records skipped": 1, "lines with invalid UTF-8 replaced": 1},
    )


@pytest.mark.parametrize(
    ("name", "content", "parts", "kept", "skipped"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": null}\n{"text": "b"}', ["a.jsonl:2: 'text' is null"], ["a", "b"], 1),
        ("a.jsonl", '{"n": 1, "body": "b"}\n{"text": "a"}', ["a.jsonl:1: no text field 'text'", ": n, body"], ["a"], 1),
        ("a.jsonl", '{"text": 42}\n{"text": NaN}\n{"text": ["a"]}', ["a.jsonl:1: 'text' is of type int"], [], 3),
        ("a.jsonl", '{"text": "a"}\n{"text": "b\n["text"]\n', ["a.jsonl:2: not JSON"], ["a"], 2),
        ("a.json", '[{"text": "a"}, {"text": null}]', ["a.json: record 1: 'text' is null"], ["a"], 1),
        ("a.csv", "text,n\na,1\nb\nc,3\n", ["a.csv:3: expected 2 columns, found 1"], ["a", "c"], 1),
        ("a.csv", 'text,n\n"a\nb",1,2\nc,3\n', ["a.csv:2: expected 2 columns, found 3"], ["c"], 1),
        ("a.csv", 'text,n\n"a" b,1\nc,2\n"d\ne",3\n', ["a.csv:2: not CSV", "correct the quotes"], ["c", "d\ne"], 1),
        ("a.csv", 'text,n\n"a,1\nb,2\nc,3\n', ["a.csv:2: not CSV"], ["b", "c"], 1),
        ("a.tsv", 'text\tn\n"a\nb"\t1\n', ["a.tsv:2: expected 2 columns, found 1"], ['b"'], 1),
    ],
)
def test_malformed_records(
    tmp_path: Path, name: str, content: str, parts: list[str], kept: list[str], skipped: int
) -> None:
    """An error by default; skipped and counted on request.  Fails if a record is skipped without being counted."""
    (tmp_path / name).write_text(content)
    assert_input_error(lambda: read(tmp_path / name), *parts, "--data.malformed skip")
    documents, counts = read(tmp_path / name, malformed="skip")
    assert documents == kept
    assert counts.pop("malformed records skipped") == skipped
    assert counts == ({} if kept else {"files without a document": 1})


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        (
            "a.zip",
            b"PK\3\4\0\0",
            ["a.zip: unknown file type '.zip', and its content is not text in utf-8", ".txt, .jsonl"],
        ),
        ("a.xml", b"<mediawiki>\n", ["a.xml: unknown file type '.xml', and its content is markup", "--data.file-type"]),
        ("a.raw", b"ab\xe4\n", ["a.raw: unknown file type", "--data.encoding"]),
        ("a.csv", b"id,body\n1,b\n", ["a.csv:1: no text field 'text'", "--data.text-field: id, body"]),
        ("a.csv", b'"text"x\n"a\nb\n', ["a.csv:1: not CSV", "correct the quotes"]),
        ("a.csv", b"text,n\na,1\rb,2\n", ["a.csv:2: not CSV", "convert line ends of CR alone to LF"]),
        ("a.parquet.gz", b"", ["a.parquet.gz: parquet is not read from .gz files; decompress it"]),
        ("a.feather.ZST", b"", ["a.feather.ZST: arrow is not read from .ZST files; decompress it"]),
        ("part.gz", gzip.compress(b"PAR1"), ["part.gz: parquet is not read from .gz files; decompress it"]),
        ("a.json", b'{\n "text": "a"\n}\n', ["a.json:1: not JSON", "one record on a line"]),
        ("a.json", b'[{"text": "a"},\n', ["a.json: not a JSON array of records"]),
        ("wiki_00", WIKI[:-8].encode(), ["wiki_00: the last document has no </doc>"]),
        ("wiki_00", WIKI.encode() + b"more\n", ["wiki_00:12: text outside of <doc"]),
    ],
)
def test_unreadable_files(tmp_path: Path, name: str, content: bytes, parts: list[str]) -> None:
    """Fails if a dump in XML is read as text, or if the end of a truncated file is left out silently."""
    (tmp_path / name).write_bytes(content)
    assert_input_error(lambda: read(tmp_path / name), *parts)


@pytest.mark.parametrize("library", ["pyarrow", "zstandard", "datasets"])
def test_missing_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    (tmp_path / "a.txt.zst").write_bytes(zstd(b"a"))
    source = {"pyarrow": "a.parquet", "zstandard": "a.txt.zst", "datasets": "hf:"}[library]
    source = source.replace("a.", f"{tmp_path}/a.").replace("hf:", f"hf:{tmp_path}")
    assert_input_error(lambda: read(source), source, "pip install 'albert_jax[formats]'", library)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Größe ist’s “so”.\nZwei.\n"),
        ("latin-1", "Größe\n"),
        ("cp1251", "Мама мыла раму.\nДа.\n"),
        ("gb18030", "今天天气很好。\n后来他住在上海。\n"),
        ("big5", "今天天氣很好。\n後來\n"),
        ("shift_jis", "ガラスのびん。\n表\n"),  # the second byte of 表 is a backslash
        ("euc-kr", "안녕하세요.\n"),
        ("utf-16", "Größe ਊ Ċ.\n漢字\n"),  # both letters have the byte 10
        ("utf-16-le", "Größe ਊ Ċ.\n漢字\n"),
        ("utf-32", "Größe\n漢字\n"),
        ("utf-8-sig", "Größe\n漢字\n"),
        ("cp037", "An EBCDIC text.\nTwo.\n"),
    ],
)
@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_encodings(tmp_path: Path, encoding: str, text: str, compression: str) -> None:
    """Fails if lines of UTF-16 are split at the byte 10, or if an encoding other than that of the field is used."""
    for name, content in {"a.txt": text, "a": text, "a.jsonl": json.dumps({"text": text}, ensure_ascii=False)}.items():
        path = tmp_path / (name + compression)
        path.write_bytes(COMPRESS[compression](content.encode(encoding)))
        assert read(path, encoding=encoding)[0] == [text if name == "a.jsonl" else text.rstrip("\n")]


def test_invalid_bytes_of_an_encoding(tmp_path: Path) -> None:
    """Fails if the message names a different line or byte, or if replaced bytes are read as Latin-1."""
    path = tmp_path / "a.txt"
    path.write_bytes("ä\n".encode("cp1252") + b"b\x81c\n")
    assert_input_error(lambda: read(path), "a.txt:1: invalid UTF-8 at byte 0", "--data.encoding cp1252", "replace")
    assert_input_error(lambda: read(path, encoding="cp1252"), "a.txt:2: invalid CP1252 at byte 3")
    replaced = read(path, encoding="cp1252", encoding_errors="replace")
    assert replaced == (["ä\nb\ufffdc"], {"lines with invalid CP1252 replaced": 1})
    for name in ("a.tsv", "b.CSV.gz", "c"):  # Excel's "Unicode text" is UTF-16
        for encoding in ("utf-16", "utf-32"):
            content = "text\tid\na\t1\n".encode(encoding)
            (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
            assert_input_error(
                functools.partial(read, tmp_path / name), f"--data.encoding{', such as' * (name == 'c')} {encoding}"
            )
    for name in ("a.tsv", "c"):  # without a byte-order mark
        for encoding in ("utf-16", "utf-32"):
            (tmp_path / name).write_bytes("text\tid\na\t1\n".encode(f"{encoding}-le"))
            assert_input_error(functools.partial(read, tmp_path / name, encoding=encoding), f" {encoding}-le")
    assert_input_error(
        lambda: read(tmp_path / "a.tsv", encoding="utf-16"),
        "a.tsv:1: UTF-16 stream does not start with BOM; name its byte order or encoding (--data.encoding utf-16-le)",
    )
    path.write_bytes("a\n".encode("utf-16") + b"\x00\xd8\n\x00")
    assert_input_error(lambda: read(path, encoding="utf-16"), "a.txt:1: invalid utf-16 in this line or after it")
    assert read(path, encoding="utf-16", encoding_errors="replace")[0] == ["a\n\ufffd"]
    for name in ("utf-99", "base64", ""):
        assert_input_error(functools.partial(DataConfig, encoding=name), f"encoding: unknown text encoding '{name}'")
    for value in ("0", "-1", "line", "1.5"):
        assert_input_error(functools.partial(DataConfig, txt_documents=value), "txt_documents", value)


def save(texts: list[str], **options: Any) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": texts, "id": list(range(len(texts)))}, **options)


def test_saved_data_sets(tmp_path: Path) -> None:
    """Folders that `save_to_disk` wrote, with one split and with several, alone and beside other files.

    Fails if shards are read in the order of a glob, or if the folder is taken for one written by `albert-jax prepare`.
    """
    texts = [f"One {number}. Two {number}." for number in range(40)]
    save(texts).save_to_disk(tmp_path / "one", num_shards=11)
    save(texts).select(range(39, 19, -1)).save_to_disk(tmp_path / "selected")
    parts = {"train": save(texts[:30]), "test": save(texts[30:])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "splits")
    (tmp_path / "a.txt").write_text("a")
    assert read(tmp_path / "one") == (texts, {})
    assert read(tmp_path / "selected") == (texts[:19:-1], {})
    assert read(tmp_path / "splits") == (texts, {})
    assert read(tmp_path / "splits" / "test")[0] == texts[30:]
    assert read(f"{tmp_path}/a.txt, {tmp_path}/one", file_type="txt")[0] == ["a", *texts]
    prepared = prepare(DataConfig(f"{tmp_path}/one", eval_fraction=0.3, cache_dir=f"{tmp_path}/cache"), 30)
    assert sum(len(read_split(prepared, split)) for split in ("train", "heldout")) == 40
    state = tmp_path / "one" / "state.json"
    state.write_text(
        json.dumps(json.loads(state.read_text()) | {"_indices_data_files": [{"filename": "indices.arrow"}]})
    )
    assert_input_error(lambda: read(tmp_path / "one"), f"{tmp_path}/one", "index of rows", "flatten_indices")
    (tmp_path / "selected" / "data-00000-of-00001.arrow").unlink()
    assert_input_error(lambda: read(tmp_path / "selected"), "data-00000-of-00001.arrow: cannot be read")
    # Files of other programs have these names too.
    for name in ("state.json", "dataset_dict.json"):
        folder = tmp_path / name.removesuffix(".json")
        folder.mkdir()
        (folder / name).write_text('{"step": 1}')
        (folder / "a.txt").write_text("a")
        assert_input_error(functools.partial(read, folder), "is a folder; name its files")
        assert read(folder / "*.txt") == (["a"], {})


def test_folders_of_the_cache(tmp_path: Path) -> None:
    """A folder in which `datasets` caches a data set has a dataset_info.json, as those of TFDS and of `prepare`."""
    table = pa.table({"text": TEXTS})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    datasets.load_dataset("parquet", data_files=str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache"))
    (info,) = (tmp_path / "cache").rglob("dataset_info.json")
    config = DataConfig(str(info.parent), cache_dir=f"{tmp_path}/prepared")
    assert_input_error(
        lambda: prepare(config, 30), f"name a data set of TFDS as tfds:{info.parent}", f"'{info.parent}/*.arrow'"
    )
    assert read(info.parent / "*.arrow") == (TEXTS, {})


@pytest.mark.parametrize(
    ("names", "glob"),
    [
        (["README.md", "LICENSE.md", "data/train.parquet"], "**/*.parquet"),
        (["x/a.json.gz", "x/b.json.gz", "c.txt"], "**/*.json.gz"),
        (["A.CSV"], "**/*.CSV"),
        (["AA/wiki_00", "AA/wiki_01"], "**/*'"),
        (["a.pdf", "b.pdf", "c.html"], "**/*.pdf"),
        ([], "**/*'"),
    ],
)
def test_a_folder_is_not_a_source(tmp_path: Path, names: list[str], glob: str) -> None:
    """The message names the files that are most likely meant.  Fails if it counts files that cannot be read."""
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a")
    assert_input_error(lambda: read(tmp_path), f"is a folder; name its files ('{tmp_path}/{glob}")


def test_streamed_data_sets(tmp_path: Path) -> None:
    """By name, split and configuration, through the library `datasets`; here of a local folder.

    Fails if a split is taken for a configuration, or if the fingerprint does not depend on the splits or the revision.
    """
    folder = tmp_path / "set"
    folder.mkdir()
    configs = [("small", "train", TEXTS[:1]), ("large", "train", TEXTS), ("large", "test", ["x"])]
    for config, split, texts in configs:
        pa.parquet.write_table(pa.table({"text": texts}), folder / f"{config}-{split}.parquet")
    (folder / "README.md").write_text("""---
configs:
- config_name: small
  data_files: [{split: train, path: small-train.parquet}]
- config_name: large
  default: true
  data_files: [{split: train, path: large-train.parquet}, {split: test, path: large-test.parquet}]
---
""")
    expected = {
        f"hf:{folder}": [*TEXTS, "x"],
        f"hf:{folder}:train": TEXTS,
        f"hf:{folder}:test+train": ["x", *TEXTS],
        f"hf:{folder}:small:train": TEXTS[:1],
        f"hf:{folder}:large:": [*TEXTS, "x"],
    }
    for source, texts in expected.items():
        assert read(source) == (texts, {})
    (tmp_path / "a.txt").write_text("a")
    assert read(f"hf:{folder}:test,{tmp_path}/a.txt") == (["x", "a"], {})
    prints = {source: sources.fingerprint(DataConfig(source)) for source in expected}
    assert len(set(prints.values())) == len(expected) - 1  # "large" is the default
    hf_datasets._open.cache_clear()
    assert all(sources.fingerprint(DataConfig(source)) == print for source, print in prints.items())
    assert_input_error(
        lambda: read(f"hf:{folder}:dev"), f"data.source hf:{folder}:dev: Bad split: dev", "'train', 'test'"
    )
    assert_input_error(lambda: read(f"hf:{folder}:tiny:train"), "'tiny' not found", "'small', 'large'")
    assert_input_error(lambda: read(f"hf:{folder}/none"), f"data.source hf:{folder}/none: Couldn't find")
    assert_input_error(lambda: read(f"hf:{folder}:a:b:c"), "hf:NAME:CONFIG:SPLIT")
    assert_input_error(
        lambda: read(f"hf:{folder}:test", text_field="body"), "test, record 0: no text field 'body'", ": text"
    )
    os.utime(folder / "large-test.parquet", (0, 0))
    hf_datasets._open.cache_clear()
    assert sources.fingerprint(DataConfig(f"hf:{folder}")) != prints[f"hf:{folder}"]


def test_beam_reads_no_streamed_data_sets() -> None:
    pytest.importorskip("apache_beam")
    config = DataConfig("hf:c4", vocab="spiece.model")
    assert_input_error(lambda: prepare(config, 40, []), "data.source 'hf:c4': --engine beam reads files only")


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        (
            "zh",
            "今天天气很好。我们去公园散步！他喜欢看书吗？是的。",
            ["今天天气很好。", "我们去公园散步！", "他喜欢看书吗？", "是的。"],
        ),
        ("zh", "他说：“你好。我是王小明。”然后他走了。", ["他说：“你好。我是王小明。”", "然后他走了。"]),
        (
            "ja",
            "今日は天気がいい。散歩に行こう！本を読む？はい。",
            ["今日は天気がいい。", "散歩に行こう！", "本を読む？", "はい。"],
        ),
        ("ja", "全角．です。半角｡です", ["全角．", "です。", "半角｡", "です"]),
        ("th", "ฉันไปโรงเรียนทุกวัน วันนี้อากาศดีมาก จริงหรือ? ใช่", ["ฉันไปโรงเรียนทุกวัน", "วันนี้อากาศดีมาก", "จริงหรือ?", "ใช่"]),
        ("th", "มีคน 25 คน ใช้ Python บ่อย ๆ เขาเกิด พ.ศ. 2563", ["มีคน 25 คน", "ใช้ Python บ่อย ๆ เขาเกิด พ.ศ. 2563"]),
        ("lo", "ຂ້ອຍໄປໂຮງຮຽນ ມື້ນີ້ອາກາດດີ ມີ 25 ຄົນ", ["ຂ້ອຍໄປໂຮງຮຽນ", "ມື້ນີ້ອາກາດດີ", "ມີ 25 ຄົນ"]),
        ("km", "គាត់ទៅ។ គាត់ដេក។តើ?", ["គាត់ទៅ។", "គាត់ដេក។", "តើ?"]),
        ("bo", "བཀྲ་ཤིས། བདེ་ལེགས།", ["བཀྲ་ཤིས།", "བདེ་ལེགས།"]),
        ("my", "သူသွားသည်။ သူအိပ်သည်။", ["သူသွားသည်။", "သူအိပ်သည်။"]),
        ("hi", "वह घर गया। वह सो गया। क्या?", ["वह घर गया।", "वह सो गया।", "क्या?"]),
        ("ur", "وہ گیا۔ وہ آیا۔", ["وہ گیا۔", "وہ آیا۔"]),
    ],
)
def test_sentences_of_languages_without_full_stops(language: str, text: str, expected: list[str]) -> None:
    """Fails if Thai is split at every space, or only where sentencex splits it."""
    assert [sentence.strip() for sentence in sentences(text, language)] == expected


def test_older_prepared_folders_are_still_found(tmp_path: Path) -> None:
    """The digests were computed before these formats and fields existed.  Fails if a field at its default is included."""
    digest = "18627366412bb14e94161154b1abd42b5f07868460ef231d5ec03e431968adfd"
    assert reading_digest("x", DataConfig()) == digest
    for change in ({"encoding": "cp1252"}, {"malformed": "skip"}, {"language": "de"}, {"txt_documents": "2"}):
        assert reading_digest("x", DataConfig(**change)) != digest
    # The sentences of Thai were different.
    config = DataConfig(txt_documents="blank-line", language="th")
    assert reading_digest("x", config) != "7d7335770b8dccc9349f5f82cef92dc9e5f70d3c347ec18badb8e1c30d8ccc9d"
    (tmp_path / "a.txt").write_text("One. Two.")
    (tmp_path / "b.jsonl").write_text('{"text": "One."}')
    fingerprint = sources.fingerprint(DataConfig(f"{tmp_path}/a.txt,{tmp_path}/b.jsonl"))
    assert fingerprint == "d0152ffaab8214609babe43005b043504d603d3b2409708f0f0c254833b42567"
    (tmp_path / "c.raw").write_text("One. Two.")
    as_text, as_json = (
        sources.fingerprint(DataConfig(f"{tmp_path}/c.raw", file_type=kind)) for kind in ("txt", "jsonl")
    )
    assert as_text == sources.fingerprint(DataConfig(f"{tmp_path}/c.raw")) != as_json


def test_single_sentences(tmp_path: Path) -> None:
    """Documents of one sentence are sequences if no sentence objective needs pairs; a sentence that remains at the end of a
    document is not.

    Fails if the index of a run with pairs is read by one without.
    """
    lengths = {"one": np.array([5]), "two": np.array([5, 6]), "rest": np.array([20, 9, 4])}
    assert [list(sequence_ranges(lengths[name], 32)) for name in lengths] == [[], [(0, 11)], [(0, 29)]]
    assert [list(sequence_ranges(lengths[name], 32, True)) for name in lengths] == [[(0, 5)], [(0, 11)], [(0, 29)]]
    path = tmp_path / "a.txt"
    path.write_text("".join(f"Remark {number} is alone\n" for number in range(60)))
    config = DataConfig(str(path), txt_documents="1", eval_fraction=0.3, cache_dir=str(tmp_path))
    assert_input_error(lambda: prepare(config, 40), "0 of 60 documents", "--objective.sentence-objective none")
    prepared = prepare(config, 40, needs_pairs=False)
    for _ in range(2):  # computes and reads the index
        sizes = [len(open_split(prepared, split, 64, single_sentences=True)) for split in ("train", "heldout")]
        assert sum(sizes) == 60
        assert_input_error(lambda: open_split(prepared, "train", 64), "0 of", "sentence_objective none")

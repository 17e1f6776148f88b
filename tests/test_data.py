"""Text sources, prepared folders, sequences and batches, and the errors of each.

Docstrings name the deliberate breaks that were tried and made the test fail.
"""

import gzip
import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds

from albert_jax.data import builder, lines, loader, sources
from albert_jax.data.batches import WIDTHS, check_enough_rows
from albert_jax.data.loader import bucketed_batches, eval_batches, open_split, train_batches
from albert_jax.data.prepare import Prepared, prepare, read_split, token_counts
from albert_jax.data.sequences import capacity, sequence_ranges, split_long_sentences
from albert_jax.data.sources import DataConfig, documents, sentences
from albert_jax.data.tokenizer import preprocess
from tests import oracle

from .conftest import assert_input_error, write_tfds_set

VOCAB = 400


@pytest.fixture(scope="module")
def config(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return DataConfig(source=str(corpus), eval_fraction=0.2, cache_dir=str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def prepared(config: DataConfig) -> Prepared:
    return prepare(config, VOCAB)


@pytest.fixture
def copy(prepared: Prepared, tmp_path: Path) -> Path:
    """A copy of the prepared folder in a different place."""
    return Path(shutil.copytree(prepared.folder, tmp_path / "copied folder"))


def test_python_docs() -> None:
    """Fails if the help topics are left out, or if short docstrings are included."""
    texts = list(documents(DataConfig()))
    assert sum(map(len, texts)) > 1_500_000
    assert min(map(len, texts)) > 100
    assert texts == list(documents(DataConfig()))
    assert sources.fingerprint(DataConfig()) == sources.fingerprint(DataConfig(text_field="x"))


LINES = "\ufeffOne a.\r\nTwo\0 b.\r\n\r\n \r\nThree c.\n\ufeffFour".encode()
ROWS = '\ufeff{"text": "One a.\\nTwo b."}\r\n\r\n{"text": " "}\n{"text": "x\\ud800\\u0000y", "n": 1}'.encode()
BLANK, BODY, REPLACE = {"txt_documents": "blank-line"}, {"text_field": "body"}, {"encoding_errors": "replace"}


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("name", "content", "settings", "expected", "expected_repairs"),
    [
        ("a.txt", LINES, {}, ["One a.\nTwo b.\n\n \nThree c.\n\ufeffFour"], {"CRLF": 4, "NUL": 1, "byte-order": 1}),
        ("a.txt", LINES, BLANK, ["One a.\nTwo b.", "Three c.\n\ufeffFour"], {"CRLF": 4, "NUL": 1, "byte-order": 1}),
        ("a.txt", b"a\xff\nb\n\xfec", REPLACE, ["a\ufffd\nb\n\ufffdc"], {"UTF-8": 2}),
        ("a.txt", b"\n \n", {}, [], {"without a document": 1}),
        ("a.jsonl", ROWS, {}, ["One a.\nTwo b.", "x\ufffdy"], {"CRLF": 2, "invalid characters": 1, "byte-order": 1}),
        ("a.jsonl", b'{"body": "b", "text": "t"}', BODY, ["b"], {}),
    ],
)
def test_documents_of_a_file(
    tmp_path: Path, compress: Any, name: str, content: bytes, settings: Any, expected: Any, expected_repairs: Any
) -> None:
    """Fails if byte-order marks are removed from every line, if NUL is kept, or if a document contains the blank lines around it."""
    suffix = ".gz" if compress is gzip.compress else ""
    (tmp_path / (name + suffix)).write_bytes(compress(content))
    repairs: Counter[str] = Counter()
    assert list(documents(DataConfig(source=str(tmp_path / "*"), **settings), repairs)) == expected
    assert {part: n for key, n in (+repairs).items() for part in expected_repairs if part in key} == expected_repairs
    assert len(+repairs) == len(expected_repairs)


def test_several_files(tmp_path: Path) -> None:
    """Matches of a glob are sorted, globs are in the given order, and the fingerprint depends on contents, not names.

    Fails if the matches are not sorted, or if the fingerprint includes the paths.
    """
    for name in "cab":
        (tmp_path / f"{name}.txt").write_text(name)
    assert list(documents(DataConfig(source=f"{tmp_path}/*.txt"))) == ["a", "b", "c"]
    assert list(documents(DataConfig(source=f"{tmp_path}/c.txt, {tmp_path}/[ab].txt"))) == ["c", "a", "b"]
    config = DataConfig(source=f"{tmp_path}/*.txt")
    before = sources.fingerprint(config)
    (tmp_path / "c.txt").rename(tmp_path / "d.txt")
    assert sources.fingerprint(config) == before
    (tmp_path / "d.txt").write_text("e")
    assert sources.fingerprint(config) != before


COMPRESSED = gzip.compress(b"".join(b'{"text": "%d"}\n' % (i * i) for i in range(3000)))
FLIPPED = bytes([*COMPRESSED[:2000], COMPRESSED[2000] ^ 255, *COMPRESSED[2001:]])


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.txt", "ä\n".encode() + b"fine \xff\n", ["a.txt:2:", "byte 8", "--data.encoding-errors replace"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe4"}\n', ["a.jsonl:2:", "byte 24"]),
        ("a.jsonl", b'\n{"text": \n', ["a.jsonl:2:", "not JSON"]),
        ("a.jsonl", b'{"text": "a", "n": ' + b"1" * 5000 + b"}", ["a.jsonl:1:"]),
        ("a.jsonl", b'{"text": ' + b"[" * 100000, ["a.jsonl:1:"]),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', ["a.jsonl:2:", "'text'", "--data.text-field"]),
        ("a.jsonl", b'["text"]\n', ["a.jsonl:1:", "'text'"]),
        ("a.jsonl.gz", COMPRESSED[:-2000], ["a.jsonl.gz:", "corrupted or truncated"]),
        ("a.jsonl.gz", FLIPPED, ["a.jsonl.gz:", "corrupted"]),
        ("a.txt.gz", b"plain", ["a.txt.gz:1:", "corrupted"]),
        ("a.bin", b"x\0", ["a.bin", "'.bin'", "not text in utf-8", ".txt, .jsonl"]),
        ("b.md", b"x", ["matches no file", "/a.*"]),
        ("a.txt", b"x" * 1001, ["a.txt:1:", "1000"]),
        ("a.txt", b"x" * 600 + b"\n" + b"x" * 600, ["a.txt:2:", "1000", "blank-line"]),
    ],
)
def test_unreadable_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, parts: list[str]
) -> None:
    """Fails if lines or bytes are counted wrongly, or if an exception of a different type is raised."""
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000 if b"x" * 600 in content else 10**6)
    (tmp_path / name).write_bytes(content)
    assert_input_error(lambda: list(documents(DataConfig(source=f"{tmp_path}/a.*"))), *parts)


def use_tfds_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make TFDS look for prepared data sets in `folder`."""
    monkeypatch.setattr("tensorflow_datasets.core.utils.file_utils.list_data_dirs", lambda **_: [folder])


def test_tfds_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name or folder, with all splits or some, and combined with globs; the fingerprint depends only on contents.

    Fails if a version is taken for a split, if shards are left out, or if NUL or invalid UTF-8 is returned.
    """
    texts: dict[str, Any] = {"train": [f"One {i}.\nTwo {i}." for i in range(9)], "test": [" ", "Nu\0l.", b"b\xffd."]}
    folder = write_tfds_set(tmp_path / "sets", texts, shards=3)
    use_tfds_folder(monkeypatch, tmp_path / "sets")
    (tmp_path / "a.txt").write_text("a")
    train, test = Counter(texts["train"]), Counter(["Nul.", "b\ufffdd."])
    for name, expected in {
        str(folder): train + test,
        "sample_texts": train + test,
        "sample_texts:1.0.0": train + test,
        "sample_texts:1.0.0:train": train,
        f"{folder}:test": test,
        "sample_texts:test+train": train + test,
        f"sample_texts:train, {tmp_path}/a.txt": train + Counter(["a"]),
    }.items():
        for field in ("text", "other"):
            repairs: Counter[str] = Counter()
            config = DataConfig(f"tfds:{name}", text_field=field, encoding_errors="replace")
            assert Counter(documents(config, repairs)) == expected
            assert repairs["lines with invalid UTF-8 replaced"] == ("b\ufffdd." in expected)
            assert repairs["documents with invalid characters repaired"] == ("Nul." in expected)
    assert_input_error(lambda: list(documents(DataConfig(f"tfds:{folder}"))), ": record 0: invalid UTF-8 at byte 1")
    names = (folder, "sample_texts", "sample_texts:train")
    fingerprints = [sources.fingerprint(DataConfig(f"tfds:{name}")) for name in names]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    other = write_tfds_set(tmp_path / "other", texts | {"train": ["x", *texts["train"][1:]]}, shards=3)
    assert sources.fingerprint(DataConfig(f"tfds:{other}")) != fingerprints[0]


def test_invalid_tfds_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a truncated shard is read as an empty one, or if an exception of TFDS is raised."""
    folder = write_tfds_set(tmp_path / "sets", {"train": [f"Text {i}." for i in range(2000)], "test": ["a"]})
    use_tfds_folder(monkeypatch, tmp_path / "sets")

    def check(name: object, *parts: str, **settings: Any) -> None:
        assert_input_error(lambda: list(documents(DataConfig(f"tfds:{name}", **settings))), *parts)

    check("no_such_set", "data.source tfds:no_such_set", "not found", f"in {tmp_path}/sets", "array_record")
    check(tmp_path, f"data set in {tmp_path} (")
    check("imdb_reviews", "no split is prepared in", "imdb_reviews/plain_text")
    check("sample_texts:dev", "no split 'dev'", "known: train, test")
    check(
        "sample_texts", "data.text_field 'body'", "does not exist", "--data.text-field: other, text", text_field="body"
    )
    check("sample_texts", "data.text_field 'number'", "is a Tensor, not text", text_field="number")
    check("sample_texts", "data.text_field 'list'", "is a Sequence, not text", text_field="list")
    shard = next(folder.glob("*train*"))
    content = shard.read_bytes()
    middle = len(content) // 2
    shard.write_bytes(bytes([*content[:middle], content[middle] ^ 255, *content[middle + 1 :]]))
    check(folder, f"{shard}: record", "corrupted")
    shard.write_bytes(content[:middle])
    check(folder, f"{shard}: shard 1/1: expected 2000 records", "prepare the data set again")
    shard.unlink()
    check(folder, "no file")
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    check(folder, "has the format tfrecord", "needs TensorFlow", "file_format=array_record")


def test_sentences() -> None:
    """Fails if a newline does not end a sentence, or if blank sentences are kept."""
    text = "Mr. Smith went to Washington. He was late!\n\n \nA heading\nIs it? Yes."
    stripped = [sentence.strip() for sentence in sentences(text, "en")]
    assert stripped == ["Mr. Smith went to Washington.", "He was late!", "A heading", "Is it?", "Yes."]


def stored(prepared: Prepared, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(record["tokens"], record["sentence_lengths"]) for record in read_split(prepared, split)]


def test_records_are_decoded_like_tfds_does(prepared: Prepared) -> None:
    """By index and by iteration.  Fails if a feature has a different dtype."""
    for split in ("train", "heldout"):
        expected = tfds.builder_from_directory(str(prepared.folder)).as_data_source(split)
        records = read_split(prepared, split)
        assert len(records) == len(expected) == len(list(records))
        for number, record in enumerate(records):
            for name, array in expected[number].items():
                for actual in (record[name], records[number][name]):
                    assert actual.dtype == array.dtype
                    np.testing.assert_array_equal(actual, array)


def test_prepared_records_hold_every_sentence_once(
    config: DataConfig, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records of both splits hold the sentences of the source, with long documents in parts and without.

    Fails if the last part is lost, if parts overlap, or if an empty sentence has a length.
    """
    tokenizer = prepared.tokenizer
    texts = [sentence for text in documents(config) for sentence in sentences(text, "en") if preprocess(sentence)]
    expected = Counter(tuple(tokenizer.encode(sentence)) for sentence in texts)
    known = [sentence for sentence in texts if tokenizer.unk_id not in tokenizer.encode(sentence)]
    assert len(known) > 0.98 * len(texts)
    assert [tokenizer.decode(tokenizer.encode(sentence)) for sentence in known] == list(map(preprocess, known))
    monkeypatch.setattr(builder, "MAX_RECORD_TOKENS", 100)
    in_parts = prepare(replace(config, vocab=str(tokenizer.path), cache_dir=str(tmp_path)), VOCAB)
    for folder, max_tokens in ((prepared, 8192), (in_parts, 100)):
        actual: Counter[tuple[int, ...]] = Counter()
        for tokens, lengths in stored(folder, "train") + stored(folder, "heldout"):
            assert lengths.sum() == len(tokens)
            assert len(tokens) <= max_tokens or len(lengths) == 1
            actual.update(tuple(part.tolist()) for part in np.split(tokens, np.cumsum(lengths)[:-1]))
        assert actual == expected
    assert len(stored(in_parts, "train")) > 5 * len(stored(prepared, "train"))
    counts = sum(np.bincount(tokens, minlength=VOCAB) for tokens, _ in stored(prepared, "train"))
    np.testing.assert_array_equal(token_counts(prepared), counts)
    np.testing.assert_array_equal(token_counts(prepared), counts)  # from the file


def test_heldout_documents_are_selected_by_content(config: DataConfig, prepared: Prepared, tmp_path: Path) -> None:
    """If a source has every document twice, in a different order, each split has its documents twice.

    Fails if the split depends on a document's number.
    """
    texts = list(documents(config))
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*reversed(texts), *texts]))
    vocab = str(prepared.tokenizer.path)
    twice = prepare(replace(config, source=str(path), vocab=vocab, cache_dir=str(tmp_path)), VOCAB)
    splits = []
    for split in ("train", "heldout"):
        once = Counter(tokens.tobytes() for tokens, _ in stored(prepared, split))
        assert Counter(tokens.tobytes() for tokens, _ in stored(twice, split)) == once + once
        splits.append(set(once))
    assert splits[0].isdisjoint(splits[1])
    assert 0.05 < len(splits[1]) / len(splits[0] | splits[1]) < 0.5


def test_prepared_data_is_reused(config: DataConfig, prepared: Prepared, copy: Path) -> None:
    """Fails if anything is written again, if a setting is not in the fingerprint, or if a copied folder needs the cache."""

    def modification_times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path(config.cache_dir).rglob("*")}

    before = modification_times()
    assert prepare(config, VOCAB).folder == prepared.folder
    assert modification_times() == before
    other = prepare(replace(config, eval_fraction=0.3), VOCAB)
    assert other.folder != prepared.folder
    assert other.fingerprint != prepared.fingerprint
    opened = prepare(DataConfig(source=str(copy), cache_dir=str(copy / "none")), VOCAB)
    assert opened.fingerprint == prepared.fingerprint
    assert opened.tokenizer.sha256 == prepared.tokenizer.sha256
    assert opened.folder == copy
    assert len(open_split(opened, "train", 32)) == len(open_split(prepared, "train", 32))


def test_wrong_settings_for_a_prepared_folder(
    config: DataConfig, prepared: Prepared, copy: Path, tmp_path: Path
) -> None:
    """Fails if a setting, or a vocabulary's size or digest, is not compared."""
    other = prepare(replace(config, cache_dir=str(tmp_path)), VOCAB + 1).tokenizer
    digests = prepared.tokenizer.sha256[:8], other.sha256[:8]
    assert digests[0] != digests[1]
    copied = DataConfig(source=str(copy), vocab=str(other.path))
    assert_input_error(lambda: prepare(copied, VOCAB), str(copy), *digests)
    assert_input_error(lambda: prepare(replace(copied, vocab=""), VOCAB - 1), "400 pieces", "model.vocab_size is 399")
    assert_input_error(
        lambda: prepare(replace(config, vocab=str(other.path)), VOCAB), "401 pieces", "model.vocab_size is 400"
    )
    assert_input_error(
        lambda: prepare(replace(copied, vocab="", language="de"), VOCAB), "data.language is 'de'", "prepared with 'en'"
    )
    shutil.copy(other.path, copy / "spiece.model")
    assert_input_error(lambda: prepare(replace(copied, vocab=""), VOCAB), "spiece.model changed")


def test_corrupted_shards(prepared: Prepared, copy: Path) -> None:
    """Fails if the records of a shard are not counted before they are read."""
    opened = prepare(DataConfig(source=str(copy)), VOCAB)
    (shard,) = copy.glob("*train*record*")
    expected = f"shard 1/1: expected {len(read_split(prepared, 'train'))} records"
    content = shard.read_bytes()
    for end in (len(content) // 2, 100, 0):
        shard.write_bytes(content[:end])
        assert_input_error(lambda: open_split(opened, "train", 32), shard.name, expected)
    other = next(copy.glob("*heldout*record*"))
    shard.write_bytes(other.read_bytes())
    actual = f"found {len(read_split(prepared, 'heldout'))}"
    assert_input_error(lambda: open_split(opened, "train", 32), expected, actual)
    shard.unlink()
    assert_input_error(lambda: open_split(opened, "train", 32), expected, "no file")


SINGLE_SENTENCES = "".join(json.dumps({"text": f"Sentence number {i} is alone"}) + "\n" for i in range(60))


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (" \n\n", ["0 usable documents"]),
        ('{"text": ""}\n', ["0 usable documents"]),
        ('{"text": "A document. Of two sentences."}\n', ["0 of 1 documents", "data.eval_fraction"]),
        (SINGLE_SENTENCES, ["0 of 60 documents", "two sentences"]),
        (SINGLE_SENTENCES + "{\n", ["a.jsonl:61:"]),
    ],
)
def test_unusable_text(prepared: Prepared, tmp_path: Path, content: str, parts: list[str]) -> None:
    """Text is refused before anything is written, with a vocabulary and without.

    Fails if the survey is left out, or does not count the documents of each split.
    """
    (tmp_path / "a.jsonl").write_text(content)
    config = DataConfig(source=f"{tmp_path}/a.jsonl", vocab=str(prepared.tokenizer.path), cache_dir=f"{tmp_path}/cache")
    assert_input_error(lambda: prepare(config, VOCAB), *parts)
    assert_input_error(lambda: prepare(replace(config, vocab=""), VOCAB), *parts)
    assert [path for path in tmp_path.glob("cache/**/*") if path.name not in ("cache", "vocab")] == []


def test_split_without_a_pair(prepared: Prepared, tmp_path: Path) -> None:
    """Fails if `sequence_ranges` returns single sentences."""
    (tmp_path / "a.jsonl").write_text(SINGLE_SENTENCES + json.dumps({"text": "A first one. A second one."}) + "\n")
    config = DataConfig(f"{tmp_path}/a.jsonl", str(prepared.tokenizer.path), cache_dir=str(tmp_path), eval_fraction=0.2)
    singles = prepare(config, VOCAB)
    split = next(
        name
        for name in ("train", "heldout")
        if all(len(record["sentence_lengths"]) == 1 for record in read_split(singles, name))
    )
    count = len(read_split(singles, split))
    assert_input_error(lambda: open_split(singles, split, 128), f"0 of {count} documents", "two sentences")
    assert not list(singles.folder.glob(f"sequences*{split}*"))


@pytest.mark.parametrize("max_seq_length", [8, 32, 129])
def test_long_sentences_and_sequence_ranges(max_seq_length: int) -> None:
    """Fails if a split loses a token, if a range exceeds `capacity`, or if the last two sentences are left out."""
    room, rng = max_seq_length - 3, np.random.default_rng(0)
    for _ in range(300):
        lengths = rng.geometric(rng.choice([0.5, 0.1, 0.01]), rng.integers(1, 40)).astype(np.int32)
        parts = split_long_sentences(lengths, max_seq_length)
        assert parts.min() > 0
        assert parts.max() <= room // 2
        ends = np.cumsum(parts)
        assert set(np.cumsum(lengths)) <= set(ends)
        assert len(parts) == sum(-(-int(length) // (room // 2)) for length in lengths)
        position = 0
        for start, end in sequence_ranges(lengths, max_seq_length):
            assert start == position
            inside = parts[(ends > start) & (ends <= end)]
            assert len(inside) >= 2
            assert inside.sum() == end - start <= capacity(max_seq_length)
            assert end == ends[-1] or (end - start >= room > end - start - inside[-1])
            position = end
        assert np.sum(ends > position) <= 1  # a single sentence that remains


def test_sequences_are_the_documents_tokens(prepared: Prepared) -> None:
    """With a computed and a stored index.  Fails if the index is stored under the name of a different length."""
    for split, length in itertools.product(("train", "heldout"), (16, 64)):
        records = stored(prepared, split)
        expected = [(i, *ends) for i, (_, lengths) in enumerate(records) for ends in sequence_ranges(lengths, length)]
        for sequences in (open_split(prepared, split, length), open_split(prepared, split, length)):
            assert [tuple(row) for row in sequences.index.tolist()] == expected
            for i in range(0, len(sequences), 7):
                document, start, end = expected[i]
                row, n = sequences[i], end - start
                assert row["document"] == document
                np.testing.assert_array_equal(row["tokens"][:n], records[document][0][start:end])
                assert not row["tokens"][n:].any()
                ends = np.cumsum(split_long_sentences(records[document][1], length))
                number = np.searchsorted(ends, np.arange(start, end), side="right")
                np.testing.assert_array_equal(row["sentence"][:n], number - number[0])
                assert np.all(row["sentence"][n:] == -1)


def stacked_batches(sequences: loader.Sequences, count: int, start: int = 0, process: int = 0, of: int = 1) -> Any:
    batches = list(itertools.islice(train_batches(sequences, 8, 1, start, process, of), count))
    return {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}


def test_train_batches() -> None:
    """Each of 50 sequences occurs once per epoch, in a new order, in batches of 8 that span epochs.  Batch k is the same from
    any start and for any number of processes.

    Fails if shuffling comes after repeating, if the end of an epoch is dropped, if the seed is not used, or if processes
    take every other row.
    """
    sequences = oracle.text_sequences(50, 32)
    batches = stacked_batches(sequences, 19)
    first_tokens = [row["tokens"][0] for row in map(sequences.__getitem__, range(50))]
    order = batches["tokens"][..., 0].ravel()
    epochs = [order[start : start + 50].tolist() for start in (0, 50, 100)]
    assert all(sorted(epoch) == sorted(first_tokens) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, first_tokens]}) == 4
    assert next(train_batches(sequences, 8, 2, 0))["tokens"][:, 0].tolist() != epochs[0][:8]
    shuffled = grain.MapDataset.range(50).seed(1).shuffle().repeat()
    assert order.tolist() == [first_tokens[shuffled[place]] for place in range(19 * 8)]
    for start in (1, 5, 6, 13):
        for name, array in stacked_batches(sequences, 4, start).items():
            np.testing.assert_array_equal(array, batches[name][start : start + 4])
    for start in (0, 5):
        parts = [stacked_batches(sequences, 4, start, process, 2) for process in (0, 1)]
        for name, array in batches.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts], 1), array[start : start + 4])
    check_enough_rows(sequences, 50)
    assert_input_error(
        lambda: check_enough_rows(sequences, 51), "train.global_batch_size is 51", "only 50 training examples"
    )


def test_bucketed_batches() -> None:
    """Each sequence occurs at most once per epoch; those that do not fill a batch are left out.  Rows are complete, and as wide
    as the longest row of their batch needs.  Batch k is the same from any start and for any number of processes.

    Fails if a sequence is truncated, if the epoch is not part of the seed, or if a process pads to the longest of its rows.
    """
    sequences = oracle.text_sequences(300, 256)
    per_epoch = 300 // 8
    batches = list(itertools.islice(bucketed_batches(sequences, 8, 1, 0), 2 * per_epoch + 3))
    by_first_token = {int(sequences[i]["tokens"][0]): sequences[i] for i in range(300)}
    orders = []
    for batch in batches:
        longest = (batch["sentence"] >= 0).sum(1).max() + 3
        columns = capacity(next((width for width in WIDTHS if longest <= width < 256), 256))
        assert batch["tokens"].shape == batch["sentence"].shape == (8, columns)
        for tokens, sentence, document in zip(*batch.values(), strict=True):
            row = by_first_token[int(tokens[0])]
            np.testing.assert_array_equal(tokens, row["tokens"][:columns])
            np.testing.assert_array_equal(sentence, row["sentence"][:columns])
            assert not row["tokens"][columns:].any()
            assert document == row["document"]
        orders.append(batch["tokens"][:, 0].tolist())
    for epoch in (0, 1):
        seen = list(itertools.chain.from_iterable(orders[epoch * per_epoch : (epoch + 1) * per_epoch]))
        assert len(set(seen)) == len(seen) == 8 * per_epoch
    assert orders[:per_epoch] != orders[per_epoch : 2 * per_epoch]
    assert len({batch["tokens"].shape for batch in batches}) > 4
    for start in (1, per_epoch - 1, per_epoch + 5):
        resumed = bucketed_batches(sequences, 8, 1, start)
        parts = [bucketed_batches(sequences, 8, 1, start, process, 2) for process in (0, 1)]
        for expected, batch, *halves in zip(batches[start : start + 4], resumed, *parts, strict=False):
            for name, array in expected.items():
                np.testing.assert_array_equal(batch[name], array)
                np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), array)


def test_eval_batches() -> None:
    """Each sequence occurs once, in the same random order in every call; empty rows fill up the last batch.

    Fails if the last batch is dropped, or if the order is that of the split.
    """
    sequences = oracle.text_sequences(20, 32)
    batches = list(eval_batches(sequences, 8, 100))
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    first_tokens = [int(sequences[i]["tokens"][0]) for i in range(20)]
    order = [first_tokens.index(token) for token in rows["tokens"][:20, 0].tolist()]
    assert sorted(order) == list(range(20))
    assert order != sorted(order)
    for (place, i), name in itertools.product(enumerate(order), rows):
        np.testing.assert_array_equal(rows[name][place], sequences[i][name])
    for batch, repeated in zip(batches, eval_batches(sequences, 8, 100), strict=True):
        np.testing.assert_array_equal(batch["tokens"], repeated["tokens"])
    assert rows["tokens"].shape == (24, capacity(32))
    assert np.all(rows["sentence"][20:] == -1)
    assert np.all(rows["document"][20:] == -1)
    assert len(list(eval_batches(sequences, 8, 2))) == 2
    assert len(list(eval_batches(sequences, 10, 2))) == 2

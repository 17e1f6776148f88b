"""From files to batches: sources, prepared folders, sequences, and what each refuses.

Every break that a docstring names was made once, and turned that test red.
"""

import gzip
import itertools
import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grain
import numpy as np
import pytest
import tensorflow_datasets as tfds

from albert_jax import data
from albert_jax.config import InputError
from albert_jax.data import loader, sources
from albert_jax.data.batches import WIDTHS
from albert_jax.data.loader import bucketed_batches, eval_batches, open_split, train_batches
from albert_jax.data.prepare import Prepared, prepare, read_split, token_counts
from albert_jax.data.sequences import capacity, pieces, spans
from albert_jax.data.sources import DataConfig, documents, sentences
from albert_jax.data.tokenizer import preprocess
from tests import oracle

VOCAB = 400


def refused(call: Callable[[], Any], *words: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


@pytest.fixture(scope="module")
def config(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    return DataConfig(source=str(corpus), eval_fraction=0.2, cache_dir=str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def prepared(config: DataConfig) -> Prepared:
    return prepare(config, VOCAB)


@pytest.fixture
def copy(prepared: Prepared, tmp_path: Path) -> Path:
    """The prepared folder, handed on to somebody else."""
    return Path(shutil.copytree(prepared.folder, tmp_path / "handed on"))


def test_python_docs() -> None:
    """Fails if the help topics are left out, or if short docstrings count."""
    first = list(documents(DataConfig()))
    sources._python_docs.cache_clear()
    assert list(documents(DataConfig())) == first
    assert sum(map(len, first)) > 1_500_000
    assert min(map(len, first)) > 100
    assert sources.fingerprint(DataConfig()) == sources.fingerprint(DataConfig(text_field="x"))


LINES = "\ufeffOne a.\r\nTwo\0 b.\r\n\r\n \r\nThree c.\n\ufeffFour".encode()
ROWS = '\ufeff{"text": "One a.\\nTwo b."}\r\n\r\n{"text": " "}\n{"text": "x\\ud800\\u0000y", "n": 1}'.encode()
BLANK, BODY, REPLACE = {"txt_documents": "blank-line"}, {"text_field": "body"}, {"encoding_errors": "replace"}


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(
    ("name", "written", "settings", "found", "repairs"),
    [
        ("a.txt", LINES, {}, ["One a.\nTwo b.\n\n \nThree c.\n\ufeffFour"], {"CRLF": 4, "NUL": 1, "byte-order": 1}),
        ("a.txt", LINES, BLANK, ["One a.\nTwo b.", "Three c.\n\ufeffFour"], {"CRLF": 4, "NUL": 1, "byte-order": 1}),
        ("a.txt", b"a\xff\nb\n\xfec", REPLACE, ["a\ufffd\nb\n\ufffdc"], {"UTF-8": 2}),
        ("a.txt", b"\n \n", {}, [], {"without a document": 1}),
        ("a.jsonl", ROWS, {}, ["One a.\nTwo b.", "x\ufffdy"], {"CRLF": 2, "broken": 1, "byte-order": 1}),
        ("a.jsonl", b'{"body": "b", "text": "t"}', BODY, ["b"], {}),
    ],
)
def test_files(tmp_path: Path, pack: Any, name: str, written: bytes, settings: Any, found: Any, repairs: Any) -> None:
    """Fails if the mark is looked for on every line, if NUL is kept, or if a blank-line document keeps its blanks."""
    (tmp_path / (name + ".gz" * (pack is gzip.compress))).write_bytes(pack(written))
    counted: Counter[str] = Counter()
    assert list(documents(DataConfig(source=str(tmp_path / "*"), **settings), counted)) == found
    assert {part: n for key, n in (+counted).items() for part in repairs if part in key} == repairs
    assert len(+counted) == len(repairs)


def test_several_files(tmp_path: Path) -> None:
    """Sorted within a glob, globs in the order given; the fingerprint is of the bytes, whatever the names.

    Fails if the matches are not sorted, or if the fingerprint takes in the paths.
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


PACKED = gzip.compress(b"".join(b'{"text": "%d"}\n' % (i * i) for i in range(3000)))
FLIPPED = bytes([*PACKED[:2000], PACKED[2000] ^ 255, *PACKED[2001:]])


@pytest.mark.parametrize(
    ("name", "written", "words"),
    [
        ("a.txt", "ä\n".encode() + b"fine \xff\n", ["a.txt:2:", "byte 8", "--data.encoding-errors replace"]),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe4"}\n', ["a.jsonl:2:", "byte 24"]),
        ("a.jsonl", b'\n{"text": \n', ["a.jsonl:2:", "not JSON"]),
        ("a.jsonl", b'{"text": "a", "n": ' + b"1" * 5000 + b"}", ["a.jsonl:1:"]),
        ("a.jsonl", b'{"text": ' + b"[" * 100000, ["a.jsonl:1:"]),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', ["a.jsonl:2:", "'text'", "--data.text-field"]),
        ("a.jsonl", b'["text"]\n', ["a.jsonl:1:", "'text'"]),
        ("a.jsonl.gz", PACKED[:-2000], ["a.jsonl.gz:", "damaged or cut off"]),
        ("a.jsonl.gz", FLIPPED, ["a.jsonl.gz:", "damaged"]),
        ("a.txt.gz", b"plain", ["a.txt.gz:1:", "damaged"]),
        ("a.csv", b"x", ["a.csv", "'.csv'", ".txt, .jsonl"]),
        ("b.md", b"x", ["matches no file", "/a.*"]),
        ("a.txt", b"x" * 1001, ["a.txt:1:", "1000"]),
        ("a.txt", b"x" * 600 + b"\n" + b"x" * 600, ["a.txt:2:", "1000", "blank-line"]),
    ],
)
def test_unreadable_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, written: bytes, words: Any
) -> None:
    """Fails if lines or bytes are counted wrongly, or if another exception than these comes through."""
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 1000 if b"x" * 600 in written else 10**6)
    (tmp_path / name).write_bytes(written)
    refused(lambda: list(documents(DataConfig(source=f"{tmp_path}/a.*"))), *words)


def tfds_set(folder: Path, splits: dict[str, list[Any]], shards: int = 1, file_format: str = "array_record") -> Path:
    """Prepares a data set `made_texts` without TensorFlow: `text`, the same in `other`, and a number."""
    import tensorflow_datasets as tfds

    class MadeTexts(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            kinds: dict[str, Any] = {
                "text": tfds.features.Text(),
                "other": np.object_,
                "number": np.int64,
                "list": tfds.features.Sequence(np.int64),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(kinds))

        def _split_generators(self, manager: Any) -> Any:
            return {name: self._generate_examples(texts) for name, texts in splits.items()}

        def _generate_examples(self, texts: Any) -> Any:
            for i, text in enumerate(texts):
                yield i, {"text": text, "other": text, "number": i, "list": [i]}

    builder = MadeTexts(data_dir=folder, file_format=file_format)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    return Path(builder.data_dir)


def test_tfds_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By name and by folder, all splits or some, with globs beside; the fingerprint is of the bytes, wherever they lie.

    Fails if a version is taken for a split, if shards are left out, or if NUL or invalid UTF-8 comes through.
    """
    texts: dict[str, Any] = {"train": [f"One {i}.\nTwo {i}." for i in range(9)], "test": [" ", "Nu\0l.", b"b\xffd."]}
    folder = tfds_set(tmp_path / "sets", texts, shards=3)
    monkeypatch.setattr("tensorflow_datasets.core.utils.file_utils.list_data_dirs", lambda **_: [tmp_path / "sets"])
    (tmp_path / "a.txt").write_text("a")
    train, test = Counter(texts["train"]), Counter(["Nul.", "b\ufffdd."])
    for name, expected in {
        str(folder): train + test,
        "made_texts": train + test,
        "made_texts:1.0.0": train + test,
        "made_texts:1.0.0:train": train,
        f"{folder}:test": test,
        "made_texts:test+train": train + test,
        f"made_texts:train, {tmp_path}/a.txt": train + Counter(["a"]),
    }.items():
        for field in ("text", "other"):
            repairs: Counter[str] = Counter()
            config = DataConfig(f"tfds:{name}", text_field=field, encoding_errors="replace")
            assert Counter(documents(config, repairs)) == expected
            assert repairs["lines with invalid UTF-8 replaced"] == ("b\ufffdd." in expected)
            assert repairs["documents with broken characters mended"] == ("Nul." in expected)
    refused(lambda: list(documents(DataConfig(f"tfds:{folder}"))), ": record 0: invalid UTF-8 at byte 1")
    print_of = [sources.fingerprint(DataConfig(f"tfds:{name}")) for name in (folder, "made_texts", "made_texts:train")]
    assert print_of[0] == print_of[1] != print_of[2]
    other = tfds_set(tmp_path / "other", texts | {"train": ["x", *texts["train"][1:]]}, shards=3)
    assert sources.fingerprint(DataConfig(f"tfds:{other}")) != print_of[0]


def test_tfds_sets_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a shard that was cut off is read as an empty one, or if TFDS's own exceptions come through."""
    folder = tfds_set(tmp_path / "sets", {"train": [f"Text {i}." for i in range(2000)], "test": ["a"]})
    monkeypatch.setattr("tensorflow_datasets.core.utils.file_utils.list_data_dirs", lambda **_: [tmp_path / "sets"])

    def told(name: object, *words: str, **settings: Any) -> None:
        refused(lambda: list(documents(DataConfig(f"tfds:{name}", **settings))), *words)

    told("no_such_set", "data.source tfds:no_such_set", "not found", f"looked into {tmp_path}/sets", "array_record")
    told(tmp_path, f"looked into {tmp_path})")
    told("imdb_reviews", "no split is prepared in", "imdb_reviews/plain_text")
    told("made_texts:dev", "no split 'dev'", "known: train, test")
    told("made_texts", "data.text_field 'body'", "text in", "other, text", "--data.text-field", text_field="body")
    told("made_texts", "data.text_field 'number'", "no text", text_field="number")
    told("made_texts", "data.text_field 'list'", "no text", text_field="list")
    shard = next(folder.glob("*train*"))
    whole = shard.read_bytes()
    middle = len(whole) // 2
    shard.write_bytes(bytes([*whole[:middle], whole[middle] ^ 255, *whole[middle + 1 :]]))
    told(folder, f"{shard}: record", "damaged")
    shard.write_bytes(whole[:middle])
    told(folder, f"{shard}: shard 1/1: expected 2000 records", "prepare the data set again")
    shard.unlink()
    told(folder, "no file")
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    told(folder, "is tfrecord", "only TensorFlow reads", "file_format=array_record")


def test_sentences() -> None:
    """Fails if a newline does not end a sentence, or if blank ones are kept."""
    text = "Mr. Smith went to Washington. He was late!\n\n \nA heading\nIs it? Yes."
    found = [sentence.strip() for sentence in sentences(text, "en")]
    assert found == ["Mr. Smith went to Washington.", "He was late!", "A heading", "Is it?", "Yes."]


def stored(prepared: Prepared, split: str) -> list[tuple[np.ndarray, np.ndarray]]:
    records = read_split(prepared, split)
    return [(records[i]["tokens"], records[i]["sentence_lengths"]) for i in range(len(records))]


def test_records_are_decoded_as_tfds_does(prepared: Prepared) -> None:
    """One by one and in order; fails if a feature's dtype is not its own."""
    for split in ("train", "heldout"):
        theirs = tfds.builder_from_directory(str(prepared.folder)).as_data_source(split)
        ours = read_split(prepared, split)
        assert len(ours) == len(theirs) == len(list(ours))
        for number, record in enumerate(ours):
            for name, array in theirs[number].items():
                for found in (record[name], ours[number][name]):
                    assert found.dtype == array.dtype
                    np.testing.assert_array_equal(found, array)


def test_prepared_text_comes_back(
    config: DataConfig, prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sentence by sentence, from both splits, nothing twice, long documents in parts.

    Fails if the last part is lost, if parts overlap, or if an empty sentence keeps its place among the lengths.
    """
    own = prepared.tokenizer
    texts = [sentence for text in documents(config) for sentence in sentences(text, "en") if preprocess(sentence)]
    expected = Counter(tuple(own.encode(sentence)) for sentence in texts)
    known = [sentence for sentence in texts if own.unk_id not in own.encode(sentence)]
    assert len(known) > 0.98 * len(texts)
    assert [own.decode(own.encode(sentence)) for sentence in known] == list(map(preprocess, known))
    monkeypatch.setattr(data.prepare, "MAX_RECORD_TOKENS", 100)
    in_parts = prepare(replace(config, cache_dir=str(tmp_path)), VOCAB)
    for folder, most in ((prepared, 8192), (in_parts, 100)):
        found: Counter[tuple[int, ...]] = Counter()
        for tokens, lengths in stored(folder, "train") + stored(folder, "heldout"):
            assert lengths.sum() == len(tokens)
            assert len(tokens) <= most or len(lengths) == 1
            found.update(tuple(part.tolist()) for part in np.split(tokens, np.cumsum(lengths)[:-1]))
        assert found == expected
    assert len(stored(in_parts, "train")) > 5 * len(stored(prepared, "train"))
    counts = sum(np.bincount(tokens, minlength=VOCAB) for tokens, _ in stored(prepared, "train"))
    np.testing.assert_array_equal(token_counts(prepared), counts)
    np.testing.assert_array_equal(token_counts(prepared), counts)  # from the file


def test_heldout_is_chosen_by_content(config: DataConfig, prepared: Prepared, tmp_path: Path) -> None:
    """Every document twice, in another order: each side is the same, twice.  Fails if the split is by number."""
    texts = list(documents(config))
    path = tmp_path / "twice.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*reversed(texts), *texts]))
    vocab = str(prepared.tokenizer.path)
    twice = prepare(replace(config, source=str(path), vocab=vocab, cache_dir=str(tmp_path)), VOCAB)
    sides = []
    for split in ("train", "heldout"):
        once = Counter(tokens.tobytes() for tokens, _ in stored(prepared, split))
        assert Counter(tokens.tobytes() for tokens, _ in stored(twice, split)) == once + once
        sides.append(set(once))
    assert sides[0].isdisjoint(sides[1])
    assert 0.05 < len(sides[1]) / len(sides[0] | sides[1]) < 0.5


def test_prepared_data_is_kept(config: DataConfig, prepared: Prepared, copy: Path) -> None:
    """Fails if anything is written again, if a setting is left out of the fingerprint, or if a folder needs its cache."""

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in Path(config.cache_dir).rglob("*")}

    before = state()
    assert prepare(config, VOCAB).folder == prepared.folder
    assert state() == before
    other = prepare(replace(config, eval_fraction=0.3), VOCAB)
    assert other.folder != prepared.folder
    assert other.fingerprint != prepared.fingerprint
    handed = prepare(DataConfig(source=str(copy), cache_dir=str(copy / "none")), VOCAB)
    assert handed.fingerprint == prepared.fingerprint
    assert handed.tokenizer.sha256 == prepared.tokenizer.sha256
    assert handed.folder == copy
    assert len(open_split(handed, "train", 32)) == len(open_split(prepared, "train", 32))


def test_another_vocabulary_is_refused(config: DataConfig, prepared: Prepared, copy: Path, tmp_path: Path) -> None:
    """Fails if a size or hash is not compared."""
    other = prepare(replace(config, cache_dir=str(tmp_path)), VOCAB + 1).tokenizer
    own = prepared.tokenizer
    assert own.sha256 != other.sha256
    handed = DataConfig(source=str(copy), vocab=str(other.path))
    refused(lambda: prepare(handed, VOCAB), str(copy), own.sha256[:8], other.sha256[:8])
    refused(lambda: prepare(replace(handed, vocab=""), VOCAB + 1), "400 pieces", "model.vocab_size is 401")
    refused(lambda: prepare(replace(config, vocab=str(other.path)), VOCAB), "401 pieces", "model.vocab_size is 400")
    shutil.copy(other.path, copy / "spiece.model")
    refused(lambda: prepare(replace(handed, vocab=""), VOCAB), "spiece.model is not the one")


def test_damaged_shards_are_refused(prepared: Prepared, copy: Path) -> None:
    """Fails if the records of a shard are not counted before they are read."""
    handed = prepare(DataConfig(source=str(copy)), VOCAB)
    (shard,) = copy.glob("*train*record*")
    expected = f"shard 1/1: expected {len(read_split(prepared, 'train'))} records"
    whole = shard.read_bytes()
    for end in (len(whole) // 2, 100, 0):
        shard.write_bytes(whole[:end])
        refused(lambda: open_split(handed, "train", 32), shard.name, expected)
    other = next(copy.glob("*heldout*record*"))
    shard.write_bytes(other.read_bytes())
    refused(lambda: open_split(handed, "train", 32), expected, f"found {len(read_split(prepared, 'heldout'))}")
    shard.unlink()
    refused(lambda: open_split(handed, "train", 32), expected, "no file")


ONE_EACH = "".join(json.dumps({"text": f"Sentence number {i} is alone"}) + "\n" for i in range(60))


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (" \n\n", ["0 usable documents"]),
        ('{"text": ""}\n', ["0 usable documents"]),
        ('{"text": "A document. Of two sentences."}\n', ["0 of 1 documents", "data.eval_fraction"]),
        (ONE_EACH + "{\n", ["a.jsonl:61:"]),
    ],
)
def test_useless_text_is_refused(prepared: Prepared, tmp_path: Path, written: str, words: Any) -> None:
    """And leaves no folder under the final name, with a vocabulary given or one to train.  Fails if the survey is left
    out, or does not look for documents on either side.
    """
    (tmp_path / "a.jsonl").write_text(written)
    config = DataConfig(source=f"{tmp_path}/a.jsonl", vocab=str(prepared.tokenizer.path), cache_dir=f"{tmp_path}/cache")
    refused(lambda: prepare(config, VOCAB), *words)
    refused(lambda: prepare(replace(config, vocab=""), VOCAB), *words)
    assert [path for path in tmp_path.glob("cache/**/*") if path.name not in ("cache", "vocab")] == []


def test_documents_of_one_sentence_are_refused(prepared: Prepared, tmp_path: Path) -> None:
    """Before anything is written; and for a split of them alone, fails if `spans` gives single sentences."""
    (tmp_path / "a.jsonl").write_text(ONE_EACH)
    config = DataConfig(f"{tmp_path}/a.jsonl", str(prepared.tokenizer.path), cache_dir=str(tmp_path), eval_fraction=0.2)
    refused(lambda: prepare(config, VOCAB), "0 of 60 documents", "two sentences")
    assert not (tmp_path / "albert_text").exists()
    (tmp_path / "a.jsonl").write_text(ONE_EACH + json.dumps({"text": "A first one. A second one."}) + "\n")
    alone = prepare(config, VOCAB)
    records = {split: read_split(alone, split) for split in ("train", "heldout")}
    split = next(
        name for name, read in records.items() if all(len(read[i]["sentence_lengths"]) == 1 for i in range(len(read)))
    )
    refused(lambda: open_split(alone, split, 128), f"0 of {len(read_split(alone, split))} documents", "two sentences")
    assert not list(alone.folder.glob(f"sequences*{split}*"))


@pytest.mark.parametrize("max_seq_length", [8, 32, 129])
def test_pieces_and_spans(max_seq_length: int) -> None:
    """Fails if a cut loses a token, if a span may pass `capacity`, or if the last two sentences are left out."""
    room, rng = max_seq_length - 3, np.random.default_rng(0)
    for _ in range(300):
        lengths = rng.geometric(rng.choice([0.5, 0.1, 0.01]), rng.integers(1, 40)).astype(np.int32)
        cut = pieces(lengths, max_seq_length)
        assert cut.min() > 0
        assert cut.max() <= room // 2
        ends = np.cumsum(cut)
        assert set(np.cumsum(lengths)) <= set(ends)
        assert len(cut) == sum(-(-int(length) // (room // 2)) for length in lengths)
        at = 0
        for start, end in spans(lengths, max_seq_length):
            assert start == at
            inside = cut[(ends > start) & (ends <= end)]
            assert len(inside) >= 2
            assert inside.sum() == end - start <= capacity(max_seq_length)
            assert end == ends[-1] or (end - start >= room > end - start - inside[-1])
            at = end
        assert np.sum(ends > at) <= 1  # one sentence without a partner


def test_sequences_are_the_documents_tokens(prepared: Prepared) -> None:
    """Also from the stored index; fails if the index is kept under another length's name."""
    for split, length in itertools.product(("train", "heldout"), (16, 64)):
        records = stored(prepared, split)
        expected = [(i, *span) for i, (_, lengths) in enumerate(records) for span in spans(lengths, length)]
        for sequences in (open_split(prepared, split, length), open_split(prepared, split, length)):
            assert [tuple(row) for row in sequences.index.tolist()] == expected
            for i in range(0, len(sequences), 7):
                document, start, end = expected[i]
                row, n = sequences[i], end - start
                assert row["document"] == document
                np.testing.assert_array_equal(row["tokens"][:n], records[document][0][start:end])
                assert not row["tokens"][n:].any()
                ends = np.cumsum(pieces(records[document][1], length))
                number = np.searchsorted(ends, np.arange(start, end), side="right")
                np.testing.assert_array_equal(row["sentence"][:n], number - number[0])
                assert np.all(row["sentence"][n:] == -1)


def batches(sequences: loader.Sequences, count: int, start: int = 0, process: int = 0, of: int = 1) -> Any:
    found = list(itertools.islice(train_batches(sequences, 8, 1, start, process, of), count))
    return {name: np.stack([batch[name] for batch in found]) for name in found[0]}


def test_batches() -> None:
    """50 sequences in batches of 8: every one once an epoch, in another order, across the epochs' edges; batch k is the
    same from any start and for any number of processes.

    Fails if shuffling comes after repeating, if a rest of an epoch is dropped, if the seed is not used, or if processes
    take every other row.
    """
    sequences = oracle.text_sequences(50, 32)
    all_of_them = batches(sequences, 19)
    first = [row["tokens"][0] for row in map(sequences.__getitem__, range(50))]
    order = all_of_them["tokens"][..., 0].ravel()
    epochs = [order[at : at + 50].tolist() for at in (0, 50, 100)]
    assert all(sorted(epoch) == sorted(first) for epoch in epochs)
    assert len({tuple(epoch) for epoch in [*epochs, first]}) == 4
    assert next(train_batches(sequences, 8, 2, 0))["tokens"][:, 0].tolist() != epochs[0][:8]
    shuffled = grain.MapDataset.range(50).seed(1).shuffle().repeat()
    assert order.tolist() == [first[shuffled[place]] for place in range(19 * 8)]
    for start in (1, 5, 6, 13):
        for name, array in batches(sequences, 4, start).items():
            np.testing.assert_array_equal(array, all_of_them[name][start : start + 4])
    for start in (0, 5):
        parts = [batches(sequences, 4, start, process, 2) for process in (0, 1)]
        for name, array in all_of_them.items():
            np.testing.assert_array_equal(np.concatenate([part[name] for part in parts], 1), array[start : start + 4])
    loader.check_batch(sequences, 50)
    refused(lambda: loader.check_batch(sequences, 51), "50 sequences", "train.global_batch_size needs 51")


def test_length_buckets() -> None:
    """Every sequence once an epoch, but for less than a batch; whole, in rows as wide as the longest of its batch needs; batch k
    is the same from any start and for any number of processes.

    Fails if a sequence is cut, if the epoch is not a part of the seed, or if each process pads to its own longest.
    """
    sequences = oracle.text_sequences(300, 256)
    per_epoch = 300 // 8
    found = list(itertools.islice(bucketed_batches(sequences, 8, 1, 0), 2 * per_epoch + 3))
    whole = {int(sequences[i]["tokens"][0]): sequences[i] for i in range(300)}
    orders = []
    for batch in found:
        longest = (batch["sentence"] >= 0).sum(1).max() + 3
        width = next((w for w in WIDTHS if longest <= w < 256), 256)
        assert batch["tokens"].shape == batch["sentence"].shape == (8, capacity(width))
        for tokens, sentence, document in zip(*batch.values(), strict=True):
            row, columns = whole[int(tokens[0])], capacity(width)
            np.testing.assert_array_equal(tokens, row["tokens"][:columns])
            np.testing.assert_array_equal(sentence, row["sentence"][:columns])
            assert not row["tokens"][columns:].any()
            assert document == row["document"]
        orders.append(batch["tokens"][:, 0].tolist())
    for epoch in (0, 1):
        seen = list(itertools.chain.from_iterable(orders[epoch * per_epoch : (epoch + 1) * per_epoch]))
        assert len(set(seen)) == len(seen) == 8 * per_epoch
    assert orders[:per_epoch] != orders[per_epoch : 2 * per_epoch]
    assert len({batch["tokens"].shape for batch in found}) > 4
    for start in (1, per_epoch - 1, per_epoch + 5):
        later = bucketed_batches(sequences, 8, 1, start)
        parts = [bucketed_batches(sequences, 8, 1, start, process, 2) for process in (0, 1)]
        for wanted, one, *both in zip(found[start : start + 4], later, *parts, strict=False):
            for name, array in wanted.items():
                np.testing.assert_array_equal(one[name], array)
                np.testing.assert_array_equal(np.concatenate([part[name] for part in both]), array)


def test_eval_batches() -> None:
    """Each once, the same every time, not in the split's order; the last batch filled with empty rows, `most` at most.

    Fails if the rest is dropped, or if neighbours stay neighbours.
    """
    sequences = oracle.text_sequences(20, 32)
    found = list(eval_batches(sequences, 8, 100))
    whole = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    first = [int(sequences[i]["tokens"][0]) for i in range(20)]
    order = [first.index(token) for token in whole["tokens"][:20, 0].tolist()]
    assert sorted(order) == list(range(20))
    assert order != sorted(order)
    for (place, i), name in itertools.product(enumerate(order), whole):
        np.testing.assert_array_equal(whole[name][place], sequences[i][name])
    for one, other in zip(found, eval_batches(sequences, 8, 100), strict=True):
        np.testing.assert_array_equal(one["tokens"], other["tokens"])
    assert whole["tokens"].shape == (24, capacity(32))
    assert np.all(whole["sentence"][20:] == -1)
    assert np.all(whole["document"][20:] == -1)
    assert len(list(eval_batches(sequences, 8, 2))) == 2
    assert len(list(eval_batches(sequences, 10, 2))) == 2

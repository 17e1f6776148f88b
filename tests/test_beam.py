"""Text prepared by Apache Beam: the records and order of a local run, and errors.

Only the first test runs without Beam.  The extra `beam` needs protobuf below 7, and with it sentencepiece below 0.2.3, so it
is not among the packages for tests.  To run this file, install the lock file into a separate environment and then
`pip install 'apache-beam==2.77.0' 'sentencepiece==0.2.2'`.
"""

import gzip
import importlib.util
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from albert_jax.cli import main
from albert_jax.data import builder
from albert_jax.data.prepare import Prepared, prepare, read_split, train_source_vocabulary
from albert_jax.data.sources import DataConfig
from albert_jax.data.survey import SPLITS

from .conftest import TINY, assert_input_error, write_tfds_set

VOCAB = 400
IN_PROCESS: list[tuple[str, str]] = []
TWO_PROCESSES = [("direct_running_mode", "multi_processing"), ("direct_num_workers", "2")]

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="apache_beam is not installed; the docstring of tests/test_beam.py says how to run these tests",
)
pytestmark = [
    # From TFDS, with the protobuf that Beam needs.
    pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning"),
    # From Beam: on import, and when its workers end.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:apache_beam"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def config(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Files of both types: one is empty, one has a document of several records, some documents occur twice."""
    folder = tmp_path_factory.mktemp("files")
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    long = "\n".join(texts * 3)
    assert len(long) > 10 * builder.MAX_RECORD_TOKENS
    for name, some in {"a": [*texts[:9], long], "b": texts[9:20], "c": [], "d": [*texts[5:12], texts[0]]}.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in some)
    for number in (1, 2):
        blocks = (text.replace("\n\n", "\n") for text in texts[20 + 10 * number : 30 + 10 * number])
        (folder / f"e{number}.txt").write_text("\n\n".join(blocks) + "\r\n")
    vocab = folder / "spiece.model"
    config = DataConfig(f"{folder}/*.jsonl.gz,{folder}/*.txt", txt_documents="blank-line", eval_fraction=0.2)
    train_source_vocabulary(DataConfig(str(corpus)), vocab, VOCAB)
    return replace(config, vocab=str(vocab), cache_dir=str(folder / "cache"))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "RECORDS_PER_SHARD", 10)


def stored(prepared: Prepared) -> dict[str, list[tuple[bytes, bytes]]]:
    return {
        split: [(row["tokens"].tobytes(), row["sentence_lengths"].tobytes()) for row in read_split(prepared, split)]
        for split in SPLITS
    }


def test_without_beam(config: DataConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if the command needs Beam for a local run, or if an exception of a different type is raised."""
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "albert_jax.data.beam", raising=False)
    monkeypatch.delattr("albert_jax.data.beam", raising=False)
    assert_input_error(lambda: prepare(config, VOCAB, []), "--engine beam: pip install 'albert_jax[beam]'")
    for words, message in (
        (["--engine", "flink"], "--engine: invalid choice: 'flink'"),
        (["--beam.runner", "DirectRunner"], "--beam.* options need --engine beam"),
    ):
        assert main(["prepare", TINY, *words]) == 2
        assert message in capsys.readouterr().err


@needs_beam
@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("options", [IN_PROCESS, TWO_PROCESSES], ids=["in process", "two processes"])
def test_records_are_those_of_a_local_run(
    config: DataConfig, options: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same order and in several shards; a local run with the same settings finds them in the cache.

    Fails if keys restart in each file or count the other split's records, or if files are read in the order of workers.
    """
    local = prepare(config, VOCAB)
    in_tmp = replace(config, cache_dir=str(tmp_path))
    monkeypatch.chdir(tmp_path)  # workers may have a different working directory
    by_beam = prepare(replace(in_tmp, cache_dir="."), VOCAB, options)
    assert by_beam.fingerprint == local.fingerprint
    assert by_beam.folder.relative_to(tmp_path) == local.folder.relative_to(config.cache_dir)
    assert {path.name.partition("-of-")[0] for path in by_beam.folder.glob("*-00001-of-*")} == {
        f"albert_text-{split}.array_record-00001" for split in SPLITS
    }
    assert stored(by_beam) == stored(local)
    assert (by_beam.folder / "spiece.model").read_bytes() == Path(config.vocab).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert prepare(in_tmp, VOCAB).folder == by_beam.folder
    assert prepare(DataConfig(str(by_beam.folder)), VOCAB).fingerprint == local.fingerprint
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@needs_beam
def test_on_the_command_line(config: DataConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Prints only the folder; fails if a Beam option is taken for a field, or if a list of options loses one."""
    fields = {f"--data.{name}": getattr(config, name) for name in ("source", "vocab", "txt_documents", "eval_fraction")}
    words = ["prepare", TINY, "--model.vocab-size", str(VOCAB), "--data.cache-dir", str(tmp_path), "--engine", "beam"]
    words += [str(word) for field in fields.items() for word in field]
    for wrong, message in (
        (["--beam.runner", "NoRunner"], "--beam.runner NoRunner: Unexpected pipeline runner"),
        (["--beam.runner", "DataflowRunner"], "Missing required option: region"),
        (["--beam.direct-num-workers", "x"], "--beam: argument --direct_num_workers: invalid int value: 'x'"),
        (["--beam.direct-num-wokers=2"], "--beam.direct_num_wokers: DirectRunner has no such option"),
    ):
        assert main([*words, *wrong]) == 2
        assert message in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*words, "--beam.experiments", "a", "--beam.experiments=b", "--beam.runner=DirectRunner"]) == 0
    assert capfd.readouterr().out.strip() == str(next(tmp_path.glob("albert_text/*/1.0.0")))


@needs_beam
def test_options() -> None:
    """Fails if a switch is passed on as text, or if the second value of a name replaces the first."""
    from apache_beam.options.pipeline_options import DebugOptions, StandardOptions, WorkerOptions

    from albert_jax.data.beam import pipeline_options

    words = [("experiments", "a"), ("runner", "DirectRunner"), ("experiments", "b"), ("use_public_ips", "false")]
    options = pipeline_options(words)
    assert options.view_as(DebugOptions).experiments == ["a", "b"]
    assert options.view_as(WorkerOptions).use_public_ips is False
    assert options.view_as(StandardOptions).runner == "DirectRunner"
    assert pipeline_options([]).view_as(StandardOptions).runner == "DirectRunner"
    assert pipeline_options([("runner", "SparkRunner"), ("spark_conf", "x")])  # its job server may know the option


@needs_beam
@pytest.mark.parametrize("options", [IN_PROCESS, TWO_PROCESSES], ids=["in process", "two processes"])
def test_errors(config: DataConfig, options: list[tuple[str, str]], tmp_path: Path) -> None:
    """One line that names file and line, of the first error in the source's order; nothing is left in the cache."""
    folder = tmp_path / "files"
    shutil.copytree(Path(config.vocab).parent, folder, ignore=shutil.ignore_patterns("cache"))
    changed = replace(config, source=f"{folder}/*.jsonl.gz", cache_dir=str(tmp_path / "cache"))
    with gzip.open(folder / "c.jsonl.gz", "wt") as file:
        file.write('{"text": "A first one."}\n{"text": \n')
    with gzip.open(folder / "d.jsonl.gz", "wt") as file:
        file.write('{"txt": "no text"}\n')
    assert_input_error(lambda: prepare(changed, VOCAB, options), "c.jsonl.gz:2:", "not JSON")
    (folder / "c.jsonl.gz").write_bytes(b"plain")
    assert_input_error(lambda: prepare(changed, VOCAB, options), "c.jsonl.gz:1:", "corrupted")
    assert_input_error(
        lambda: prepare(replace(changed, source=f"{folder}/d.*", text_field="txt"), VOCAB, options), "of 1 documents"
    )
    assert_input_error(
        lambda: prepare(replace(changed, cache_dir="gs://bucket/x"), VOCAB, options), "data.cache_dir gs://bucket/x"
    )
    assert_input_error(
        lambda: prepare(replace(changed, source="/nowhere/*"), VOCAB + 1, options), "model.vocab_size is 401"
    )
    assert_input_error(lambda: prepare(replace(changed, vocab=""), VOCAB, options), "--engine beam", "--data.vocab")
    assert_input_error(
        lambda: prepare(replace(changed, source="python-docs"), VOCAB, options), "'python-docs'", "--engine beam"
    )
    assert not [path for path in tmp_path.glob("cache/**/*") if path.name != "cache"]


@needs_beam
def test_workers_that_see_different_files(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Fails if a missing file raises an exception of Beam, or if the job waits for a report that is not visible here."""
    from albert_jax.data import beam

    changed = replace(config, cache_dir=str(tmp_path))
    monkeypatch.setattr(beam, "_numbered_files", lambda config: [(0, "/nowhere/a.txt")])
    assert_input_error(
        lambda: prepare(changed, VOCAB, []), "/nowhere/a.txt", "cannot be read by a worker", "No such file"
    )
    monkeypatch.setattr(beam, "_write_report", lambda rows, report: None)
    assert_input_error(lambda: prepare(changed, VOCAB, []), f"data.cache_dir {tmp_path}", "not visible on this machine")


@needs_beam
def test_tfds_source(config: DataConfig, tmp_path: Path) -> None:
    """Work is distributed over its shards."""
    texts = [f"Number {i} is first. Number {i} is second.\nNumber {i} is third." for i in range(40)]
    folder = write_tfds_set(tmp_path / "sets", {"train": texts[:30], "test": texts[30:]}, shards=3)
    changed = replace(config, source=f"tfds:{folder}", cache_dir=str(tmp_path / "a"))
    assert stored(prepare(changed, VOCAB)) == stored(
        prepare(replace(changed, cache_dir=str(tmp_path / "b")), VOCAB, [])
    )

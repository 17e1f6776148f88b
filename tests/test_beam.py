"""Text prepared by Apache Beam: the records of the local run, in its order, and what it refuses.

Beam is an extra that no other test needs (it holds protobuf down): without it only the first test runs.
"""

import gzip
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.data import prepare as prepare_
from albert_jax.data.prepare import Prepared, prepare, read_split
from albert_jax.data.sources import DataConfig
from albert_jax.data.survey import SPLITS

from .conftest import TINY

VOCAB = 400
IN_PROCESS: list[tuple[str, str]] = []
TWO_PROCESSES = [("direct_running_mode", "multi_processing"), ("direct_num_workers", "2")]

needs_beam = pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is None,
    reason="Beam holds protobuf below 7, so no test environment has it: CONTRIBUTING.md says where these tests are run",
)
pytestmark = [
    # Of TFDS, with the protobuf that Beam asks for.
    pytest.mark.filterwarnings(r"ignore:label\(\) is deprecated:DeprecationWarning"),
    # Of Beam: on import, and as its workers end.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:apache_beam"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def config(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """Files of both kinds, one of them empty, one with a document of several parts, some documents twice."""
    folder = tmp_path_factory.mktemp("files")
    texts = [json.loads(line)["text"] for line in corpus.read_text().splitlines()]
    long = "\n".join(texts * 3)
    assert len(long) > 10 * prepare_.MAX_RECORD_TOKENS
    for name, some in {"a": [*texts[:9], long], "b": texts[9:20], "c": [], "d": [*texts[5:12], texts[0]]}.items():
        with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps({"text": text}) + "\n" for text in some)
    for number in (1, 2):
        blocks = (text.replace("\n\n", "\n") for text in texts[20 + 10 * number : 30 + 10 * number])
        (folder / f"e{number}.txt").write_text("\n\n".join(blocks) + "\r\n")
    vocab = folder / "spiece.model"
    chosen = DataConfig(f"{folder}/*.jsonl.gz,{folder}/*.txt", txt_documents="blank-line", eval_fraction=0.2)
    prepare_.vocabulary(DataConfig(str(corpus)), vocab, VOCAB)
    return replace(chosen, vocab=str(vocab), cache_dir=str(folder / "cache"))


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_, "RECORDS_PER_SHARD", 10)


def stored(prepared: Prepared) -> dict[str, list[tuple[bytes, bytes]]]:
    read = {split: read_split(prepared, split) for split in SPLITS}
    return {
        split: [(rows[i]["tokens"].tobytes(), rows[i]["sentence_lengths"].tobytes()) for i in range(len(rows))]
        for split, rows in read.items()
    }


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == [], message


def test_without_beam(config: DataConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if Beam is asked for where this process does it all, or if another exception comes through."""
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    monkeypatch.delitem(sys.modules, "albert_jax.data.beam", raising=False)
    monkeypatch.delattr("albert_jax.data.beam", raising=False)
    refused(lambda: prepare(config, VOCAB, []), "--engine beam: pip install 'albert_jax[beam]'")
    for words, told in (
        (["--engine", "flink"], "--engine: invalid choice: 'flink'"),
        (["--beam.runner", "DirectRunner"], "--beam options are for --engine beam"),
    ):
        assert main(["prepare", TINY, *words]) == 2
        assert told in capsys.readouterr().err


@needs_beam
@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("options", [IN_PROCESS, TWO_PROCESSES], ids=["in process", "two processes"])
def test_the_records_of_the_local_run(
    config: DataConfig, options: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also their order, in several shards; a local run with the same settings finds them in the cache.

    Fails if keys begin anew in each file or count the other split's records, or if files are taken as they come.
    """
    local = prepare(config, VOCAB)
    own = replace(config, cache_dir=str(tmp_path))
    monkeypatch.chdir(tmp_path)  # workers may stand in another folder
    made = prepare(replace(own, cache_dir="."), VOCAB, options)
    assert made.fingerprint == local.fingerprint
    assert made.folder.relative_to(tmp_path) == local.folder.relative_to(config.cache_dir)
    assert {path.name.partition("-of-")[0] for path in made.folder.glob("*-00001-of-*")} == {
        f"albert_text-{split}.array_record-00001" for split in SPLITS
    }
    assert stored(made) == stored(local)
    assert (made.folder / "spiece.model").read_bytes() == Path(config.vocab).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert prepare(own, VOCAB).folder == made.folder
    assert prepare(DataConfig(str(made.folder)), VOCAB).fingerprint == local.fingerprint
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@needs_beam
def test_on_the_command_line(config: DataConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Prints the folder alone; fails if a Beam option is taken for a field, or a list of them loses one."""
    fields = {f"--data.{name}": getattr(config, name) for name in ("source", "vocab", "txt_documents", "eval_fraction")}
    words = ["prepare", TINY, "--model.vocab-size", str(VOCAB), "--data.cache-dir", str(tmp_path), "--engine", "beam"]
    words += [str(word) for field in fields.items() for word in field]
    for wrong, told in (
        (["--beam.runner", "NoRunner"], "--beam.runner NoRunner: Unexpected pipeline runner"),
        (["--beam.runner", "DataflowRunner"], "Missing required option: region"),
        (["--beam.direct-num-workers", "x"], "--beam: argument --direct_num_workers: invalid int value: 'x'"),
        (["--beam.direct-num-wokers=2"], "--beam.direct_num_wokers: DirectRunner has no such option"),
    ):
        assert main([*words, *wrong]) == 2
        assert told in capfd.readouterr().err
    assert not list(tmp_path.iterdir())
    assert main([*words, "--beam.experiments", "a", "--beam.experiments=b", "--beam.runner=DirectRunner"]) == 0
    assert capfd.readouterr().out.strip() == str(next(tmp_path.glob("albert_text/*/1.0.0")))


@needs_beam
def test_options() -> None:
    """Fails if a switch is handed on as a word, or a name that is given again replaces the first."""
    from apache_beam.options.pipeline_options import DebugOptions, StandardOptions, WorkerOptions

    from albert_jax.data import beam

    given = [("experiments", "a"), ("runner", "DirectRunner"), ("experiments", "b"), ("use_public_ips", "false")]
    options = beam.options(given)
    assert options.view_as(DebugOptions).experiments == ["a", "b"]
    assert options.view_as(WorkerOptions).use_public_ips is False
    assert options.view_as(StandardOptions).runner == "DirectRunner"
    assert beam.options([]).view_as(StandardOptions).runner == "DirectRunner"
    assert beam.options([("runner", "SparkRunner"), ("spark_conf", "x")])  # a job server may know it


@needs_beam
@pytest.mark.parametrize("options", [IN_PROCESS, TWO_PROCESSES], ids=["in process", "two processes"])
def test_what_is_refused(config: DataConfig, options: list[tuple[str, str]], tmp_path: Path) -> None:
    """In one line that names file and line, the first in the source's order; nothing is left behind."""
    folder = tmp_path / "files"
    shutil.copytree(Path(config.vocab).parent, folder, ignore=shutil.ignore_patterns("cache"))
    own = replace(config, source=f"{folder}/*.jsonl.gz", cache_dir=str(tmp_path / "cache"))
    with gzip.open(folder / "c.jsonl.gz", "wt") as file:
        file.write('{"text": "A first one."}\n{"text": \n')
    with gzip.open(folder / "d.jsonl.gz", "wt") as file:
        file.write('{"txt": "no text"}\n')
    refused(lambda: prepare(own, VOCAB, options), "c.jsonl.gz:2:", "not JSON")
    (folder / "c.jsonl.gz").write_bytes(b"plain")
    refused(lambda: prepare(own, VOCAB, options), "c.jsonl.gz:1:", "damaged")
    refused(lambda: prepare(replace(own, source=f"{folder}/d.*", text_field="txt"), VOCAB, options), "of 1 documents")
    refused(lambda: prepare(replace(own, cache_dir="gs://bucket/x"), VOCAB, options), "data.cache_dir gs://bucket/x")
    refused(lambda: prepare(replace(own, source="/nowhere/*"), VOCAB + 1, options), "model.vocab_size is 401")
    refused(lambda: prepare(replace(own, vocab=""), VOCAB, options), "--engine beam", "--data.vocab")
    refused(lambda: prepare(replace(own, source="python-docs"), VOCAB, options), "'python-docs'", "--engine beam")
    assert not [path for path in tmp_path.glob("cache/**/*") if path.name != "cache"]


@needs_beam
def test_workers_that_see_other_files(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Fails if a missing file is an exception of Beam's, or if a report that nobody sees is waited for."""
    from albert_jax.data import beam

    own = replace(config, cache_dir=str(tmp_path))
    monkeypatch.setattr(beam, "_numbered", lambda config: [(0, "/nowhere/a.txt")])
    refused(lambda: prepare(own, VOCAB, []), "/nowhere/a.txt", "cannot be read by a worker", "No such file")
    monkeypatch.setattr(beam, "_write", lambda rows, report: None)
    refused(lambda: prepare(own, VOCAB, []), f"data.cache_dir {tmp_path}", "not seen here")


@needs_beam
def test_a_tfds_source(config: DataConfig, tmp_path: Path) -> None:
    """Its shards are files like others."""
    from .test_data import tfds_set

    texts = [f"Number {i} is first. Number {i} is second.\nNumber {i} is third." for i in range(40)]
    folder = tfds_set(tmp_path / "sets", {"train": texts[:30], "test": texts[30:]}, shards=3)
    own = replace(config, source=f"tfds:{folder}", cache_dir=str(tmp_path / "a"))
    assert stored(prepare(own, VOCAB)) == stored(prepare(replace(own, cache_dir=str(tmp_path / "b")), VOCAB, []))

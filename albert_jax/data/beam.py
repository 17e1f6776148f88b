"""Preparing text on many machines: the builder of `prepare.py` with Apache Beam for an engine (extra `beam`).

Files are what workers share out; which records come of them, and their order, is `prepare.py`'s and the same.  Every worker
must see source and cache under the same paths (ArrayRecord files are written to file systems, not to object stores), and
have this package installed.
"""

import contextlib
import io
import json
import logging
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from albert_jax.config import InputError, check_writable, require
from albert_jax.data import sources
from albert_jax.data.prepare import AlbertText, Example, examples
from albert_jax.data.sources import DataConfig
from albert_jax.data.survey import check_counts, count, split_of
from albert_jax.data.tokenizer import Tokenizer

log = logging.getLogger(__name__)

CLOSED = ("DirectRunner", "DataflowRunner")
"""Runners whose every option Beam for Python knows; others hand those that it does not on to their job server."""


def options(given: Sequence[tuple[str, str]]) -> PipelineOptions:
    """Beam's pipeline options from names and values; a name given several times is a list, `true` and `false` are switches.

    Raises:
      InputError: no such runner or option, or a value that it does not take.
    """
    values: dict[str, Any] = {"runner": "DirectRunner", "default_sdk_harness_log_level": "ERROR"}
    for name in dict(given):
        chosen = [{"true": True, "false": False}.get(value, value) for other, value in given if other == name]
        values[name] = chosen[0] if len(chosen) == 1 else chosen
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):  # argparse says there what is wrong, and ends the process
            made = PipelineOptions.from_dictionary(values)
            unknown = made.get_all_options(retain_unknown_options=True).keys() - PipelineOptions().get_all_options()
            beam.Pipeline(options=made)  # its runner looks at them
    except SystemExit:
        raise InputError(f"--beam: {told.getvalue().strip().rpartition('error: ')[2]}") from None
    except (ImportError, ValueError, AttributeError) as error:
        raise InputError(f"--beam.runner {values['runner']}: {' '.join(str(error).split())}") from None
    closed = values["runner"] in CLOSED
    require(not unknown or not closed, f"--beam.{min(unknown, default='')}: {values['runner']} has no such option")
    return made


def survey(config: DataConfig, beam_options: PipelineOptions) -> tuple[str, tuple[Counter[str], Counter[str]]]:
    """One pass of the workers that writes nothing: the source's fingerprint, its counts, and what had to be mended.

    Raises:
      InputError: as the same pass on one machine; or workers that do not see the files or the cache.
    """
    require(config.source != "python-docs", "--engine beam reads files: data.source 'python-docs' has none")
    told = "ArrayRecord files are written to file systems; name a folder that all machines mount"
    require("://" not in config.cache_dir, f"data.cache_dir {config.cache_dir}: {told}")
    cache = Path(config.cache_dir).expanduser()
    check_writable(cache, "data.cache_dir")
    cache.mkdir(parents=True, exist_ok=True)
    report = cache.absolute() / f"survey-{uuid.uuid4().hex}.json"
    paths = _numbered(config)
    log.info("%s reads %d files", beam_options.view_as(StandardOptions).runner, len(paths))
    try:
        with beam.Pipeline(options=beam_options) as pipeline:
            found = pipeline | beam.Create(paths) | beam.Reshuffle() | beam.Map(_surveyed, config)
            _ = found | beam.combiners.ToList() | beam.Map(_write, str(report))
        told = "what workers write there is not seen here; name a folder that all machines see under this path"
        require(report.exists(), f"data.cache_dir {cache}: {told}")
        rows = sorted(json.loads(report.read_text()))
    finally:
        report.unlink(missing_ok=True)
    counts: Counter[str] = Counter()
    repairs: Counter[str] = Counter()
    for _, _, error, in_file, mended in rows:
        require(not error, error)
        counts.update(in_file)
        repairs.update(mended)
    check_counts(counts, config)
    return sources.fingerprint_of(bytes.fromhex(row[1]) for row in rows), (counts, repairs)


def _numbered(config: DataConfig) -> list[tuple[int, str]]:
    return list(enumerate(str(path.absolute()) for path in sources.files(config)))


def _surveyed(file: tuple[int, str], config: DataConfig) -> tuple[Any, ...]:
    """A file's number, digest, error, counts and repairs.  Errors travel as text: each runner wraps exceptions its own way."""
    number, path = file
    repairs: Counter[str] = Counter()
    try:
        digest = sources.digest_of(Path(path)).hex()
        return number, digest, "", count(sources.documents_of(Path(path), config, repairs), config), repairs
    except InputError as error:
        return number, "", str(error), {}, {}
    except OSError as error:
        told = "every worker must see the source's files under the same path"
        return number, "", f"data.source {path}: cannot be read by a worker ({error.strerror}); {told}", {}, {}


def _write(rows: list[Any], report: str) -> None:
    path = Path(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(rows))
    temporary.replace(path)  # whole, also where a runner tries twice


class BeamText(AlbertText, skip_registration=True):  # type: ignore[call-arg]
    """`AlbertText`, written by a Beam pipeline."""

    name = "albert_text"

    def _split_generators(self, dl_manager: Any, pipeline: Any = None) -> dict[str, Any]:
        splits = super()._split_generators(dl_manager)
        config, tokenizer = self.builder_config.data, self.builder_config.tokenizer
        read = pipeline | beam.Create(_numbered(config)) | beam.Reshuffle() | beam.FlatMap(_records, config, tokenizer)
        return {split: read | split >> _Keyed(split) for split in splits}


def _records(
    file: tuple[int, str], config: DataConfig, tokenizer: Tokenizer
) -> Iterator[tuple[str, int, int, Example]]:
    """The records of a file: each with its split, the file's number, and its own among those of file and split."""
    number, path = file
    of_split: Counter[str] = Counter()
    for text in sources.documents_of(Path(path), config, Counter()):
        split = split_of(text, config)
        for example in examples(text, config, tokenizer):
            yield split, number, of_split[split], example
            of_split[split] += 1


class _Keyed(beam.PTransform):
    """The records of a split with the key of the local run: their running number.  Keys decide the order of what is written."""

    def __init__(self, split: str) -> None:
        super().__init__()
        self.split = split

    def expand(self, read: Any) -> Any:
        split = self.split
        own = read | beam.Filter(lambda record: record[0] == split)
        lengths = own | beam.Map(lambda record: record[1]) | beam.combiners.Count.PerElement()
        starts = lengths | beam.combiners.ToDict() | beam.Map(_starts)
        place = beam.pvalue.AsSingleton(starts)
        return own | "Key" >> beam.Map(lambda record, starts: (starts[record[1]] + record[2], record[3]), place)


def _starts(lengths: dict[int, int]) -> dict[int, int]:
    starts, total = {}, 0
    for number in sorted(lengths):
        starts[number] = total
        total += lengths[number]
    return starts

"""Prepares text on many machines with Apache Beam (extra `beam`); a corpus that outgrows one machine needs it.

Work is distributed per input file.  The records and their order are those of a local run.  Every worker needs this package
installed and must see source and cache under the same paths: ArrayRecord files are written to file systems, not to object
stores.
"""

import contextlib
import io
import itertools
import json
import logging
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions

from albert_jax.config import InputError, check_writable
from albert_jax.data import sources
from albert_jax.data.builder import AlbertText, document_records
from albert_jax.data.hf_datasets import STREAMED
from albert_jax.data.records import Record
from albert_jax.data.sources import DataConfig
from albert_jax.data.survey import check_counts, count_documents, split_of
from albert_jax.data.tokenizer import Tokenizer

log = logging.getLogger(__name__)

CLOSED_RUNNERS = ("DirectRunner", "DataflowRunner")
"""Runners all of whose options Beam for Python knows.  Other runners pass unknown options on to their job server."""


def pipeline_options(options: Sequence[tuple[str, str]]) -> PipelineOptions:
    """Beam's pipeline options from names and values.

    A name that occurs several times becomes a list; the values `true` and `false` become switches.
    """
    values: dict[str, Any] = {"runner": "DirectRunner", "default_sdk_harness_log_level": "ERROR"}
    for name in dict(options):
        texts = [value for other, value in options if other == name]
        typed = [{"true": True, "false": False}.get(text, text) for text in texts]
        values[name] = typed if len(typed) > 1 else typed[0]
    runner = values["runner"]
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):  # Beam's parser prints an error and exits
            parsed = PipelineOptions.from_dictionary(values)
            unknown = parsed.get_all_options(retain_unknown_options=True).keys() - PipelineOptions().get_all_options()
            beam.Pipeline(options=parsed)  # lets the runner check its options
    except SystemExit:
        raise InputError(f"--beam: {message.getvalue().strip().rpartition('error: ')[2]}") from None
    except (ImportError, ValueError, AttributeError) as error:
        raise InputError(f"--beam.runner {runner}: {' '.join(str(error).split())}") from None
    if unknown and runner in CLOSED_RUNNERS:
        raise InputError(f"--beam.{min(unknown)}: {runner} has no such option; see its help")
    return parsed


class BeamText(AlbertText, skip_registration=True):  # type: ignore[call-arg]
    """`AlbertText`, written by a Beam pipeline."""

    name = "albert_text"

    def _split_generators(self, dl_manager: Any, pipeline: Any = None) -> dict[str, Any]:
        splits = super()._split_generators(dl_manager)
        config, tokenizer = self.builder_config.data, self.builder_config.tokenizer
        files = pipeline | beam.Create(_numbered_files(config)) | beam.Reshuffle()
        records = files | beam.FlatMap(_file_records, config, tokenizer)
        return {split: records | split >> _SplitRecords(split) for split in splits}


class BeamEngine:
    """Reads and writes the source in Beam's workers.  Has the same attributes as `prepare.LocalEngine`."""

    builder = BeamText

    def __init__(self, config: DataConfig, options: Sequence[tuple[str, str]], needs_pairs: bool) -> None:
        parsed = pipeline_options(options)
        if not config.vocab:
            advice = "train a vocabulary on one machine ('albert-jax vocab', on a sample)"
            raise InputError(f"--engine beam needs --data.vocab; {advice}")
        if config.source == "python-docs" or STREAMED in config.source:
            raise InputError(f"data.source '{config.source}': --engine beam reads files only; name files")
        if "://" in config.cache_dir:
            advice = "name a folder that all machines mount"
            raise InputError(f"data.cache_dir {config.cache_dir}: ArrayRecord files need a file system; {advice}")
        self.cache = Path(config.cache_dir).expanduser().absolute()
        self.options: dict[str, Any] = {"beam_options": parsed}
        rows = _survey_files(config, parsed, self.cache)
        self.source_fingerprint = sources.combine_digests(bytes.fromhex(row["digest"]) for row in rows)
        counts: Counter[str] = Counter()
        repairs: Counter[str] = Counter()
        for row in rows:
            counts.update(row["counts"])
            repairs.update(row["repairs"])
        check_counts(counts, config, needs_pairs)
        self.survey = counts, repairs


def _survey_files(config: DataConfig, options: PipelineOptions, cache: Path) -> list[dict[str, Any]]:
    """The result of `_survey_file` for each file, in the source's order."""
    check_writable(cache, "data.cache_dir")
    cache.mkdir(parents=True, exist_ok=True)
    report = cache / f"survey-{uuid.uuid4().hex}.json"
    paths = _numbered_files(config)
    log.info("%s reads %d files", options.view_as(StandardOptions).runner, len(paths))
    try:
        with beam.Pipeline(options=options) as pipeline:
            rows = pipeline | beam.Create(paths) | beam.Reshuffle() | beam.Map(_survey_file, config)
            _ = rows | beam.combiners.ToList() | beam.Map(_write_report, str(report))
        if not report.exists():
            problem = "files that workers write there are not visible on this machine"
            raise InputError(
                f"data.cache_dir {cache}: {problem}; name a folder that all machines mount under this path"
            )
        surveyed = sorted(json.loads(report.read_text()), key=lambda row: row["number"])
    finally:
        report.unlink(missing_ok=True)
    for row in surveyed:
        if row["error"]:
            raise InputError(row["error"])
    return surveyed


def _numbered_files(config: DataConfig) -> list[tuple[int, str]]:
    return list(enumerate(str(Path(path).absolute()) for path in sources.files(config)))


def _survey_file(file: tuple[int, str], config: DataConfig) -> dict[str, Any]:
    """A file's number, digest, counts and repairs, or its error.

    Errors are returned as text, because every runner wraps exceptions in its own way, and the error to report is the
    first in the source's order.
    """
    number, path = file
    repairs: Counter[str] = Counter()
    row = {"number": number, "digest": "", "counts": {}, "repairs": repairs, "error": ""}
    try:
        row["digest"] = sources.file_digest(Path(path), config).hex()
        row["counts"] = count_documents(sources.file_documents(Path(path), config, repairs), config)
    except InputError as error:
        row["error"] = str(error)
    except OSError as error:
        advice = "every worker must see the source's files under the same path"
        row["error"] = f"data.source {path}: cannot be read by a worker ({error.strerror}); {advice}"
    return row


def _write_report(rows: list[dict[str, Any]], report: str) -> None:
    path = Path(report)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{uuid.uuid4().hex}")
    temporary.write_text(json.dumps(rows))
    temporary.replace(path)  # the report is complete, even if a runner executes this twice


def _file_records(
    file: tuple[int, str], config: DataConfig, tokenizer: Tokenizer
) -> Iterator[tuple[str, int, int, Record]]:
    """The records of a file: split, file number, number of the record within file and split, and the record."""
    file_number, path = file
    numbers: Counter[str] = Counter()
    for text in sources.file_documents(Path(path), config, Counter()):
        split = split_of(text, config)
        for record in document_records(text, config, tokenizer):
            yield split, file_number, numbers[split], record
            numbers[split] += 1


class _SplitRecords(beam.PTransform):
    """The records of a split, each with its running number as key, as in a local run.

    TFDS orders records by a hash of the key, so both engines write the same order.
    """

    def __init__(self, split: str) -> None:
        super().__init__()
        self.split = split

    def expand(self, records: Any) -> Any:
        split = self.split
        selected = records | beam.Filter(lambda record: record[0] == split)
        counts = selected | beam.Map(lambda record: record[1]) | beam.combiners.Count.PerElement()
        offsets = beam.pvalue.AsSingleton(counts | beam.combiners.ToDict() | beam.Map(_offsets))
        return selected | "Key" >> beam.Map(lambda record, starts: (starts[record[1]] + record[2], record[3]), offsets)


def _offsets(counts: dict[int, int]) -> dict[int, int]:
    """File number -> running number of the file's first record, from file number -> number of records."""
    numbers = sorted(counts)
    totals = itertools.accumulate((counts[number] for number in numbers), initial=0)
    return dict(zip(numbers, totals, strict=False))

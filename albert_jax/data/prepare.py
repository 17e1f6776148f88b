"""Convert text to token ids, once, and open the result.

The result is a folder whose name is a fingerprint of source, vocabulary and settings.  It also holds the vocabulary, so it can
be copied elsewhere and named as a source.
"""

import contextlib
import dataclasses
import functools
import io
import logging
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from albert_jax.config import InputError, check_writable, read_json
from albert_jax.data import sources
from albert_jax.data.builder import (
    READING_FIELDS,
    AlbertText,
    number_of_shards,
    reading_digest,
    text_config,
    with_progress,
)
from albert_jax.data.hf_datasets import is_saved
from albert_jax.data.records import Records
from albert_jax.data.sentencepiece_tokenizer import VOCABULARY, SentencePieceTokenizer, train_vocabulary
from albert_jax.data.sources import DataConfig
from albert_jax.data.survey import check_counts, count_documents
from albert_jax.data.tfds import check_shards
from albert_jax.data.tokenizer import TEXT_OPTIONS, Tokenizer, text_options, warn_of_lost_marks
from albert_jax.data.tokenizer_files import CLASSES, open_tokenizer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A folder of prepared text with splits `train` and `heldout`, and its vocabulary."""

    folder: Path
    tokenizer: Tokenizer
    fingerprint: str


class LocalEngine:
    """Reads the source and writes the records in this process.  `beam.BeamEngine` has the same attributes."""

    builder = AlbertText

    def __init__(self, config: DataConfig, needs_pairs: bool) -> None:
        self.config, self.needs_pairs = config, needs_pairs
        self.cache = Path(config.cache_dir).expanduser()
        self.options: dict[str, Any] = {}
        """Options of TFDS's download configuration."""
        self.source_fingerprint = sources.fingerprint(config)

    @functools.cached_property
    def survey(self) -> tuple[Counter[str], Counter[str]]:
        """Counts of documents, and of repaired problems.

        This pass over the source writes nothing.  It reports errors in the text before any other work.
        """
        check_writable(self.cache, "data.cache_dir")
        repairs: Counter[str] = Counter()
        texts = with_progress(sources.documents(self.config, repairs), None, "reading")
        counts = count_documents(texts, self.config)
        check_counts(counts, self.config, self.needs_pairs)
        return counts, repairs


def prepare(
    config: DataConfig,
    vocab_size: int,
    beam_options: Sequence[tuple[str, str]] | None = None,
    needs_pairs: bool = True,
) -> Prepared:
    """Prepare `config.source`, or open it if it is a prepared folder or the cache holds the result.

    Args:
      config: the source and settings.
      vocab_size: number of rows of the embedding table: at least the pieces of a vocabulary that exists; the size of one that is trained.
      beam_options: names and values of Beam's pipeline options, to prepare on many machines; the records and their order
        are the same.  None: prepare in this process.
      needs_pairs: raise an error if no document has two sentences.
    """
    folder = Path(config.source).expanduser()
    if (folder / "dataset_info.json").is_file() and not is_saved(folder):
        return _open(folder, config, vocab_size)
    if config.vocab:
        _check_vocab_size(open_tokenizer(config.vocab), vocab_size)
    engine = (
        LocalEngine(config, needs_pairs) if beam_options is None else _beam_engine(config, beam_options, needs_pairs)
    )
    vocab = Path(config.vocab)
    if not config.vocab:
        name = f"{reading_digest(engine.source_fingerprint, config)[:16]}-{vocab_size}.model"
        vocab = engine.cache / "vocab" / name
        if not vocab.exists():
            engine.survey  # noqa: B018  (reports errors before the training)
            train_source_vocabulary(config, vocab, vocab_size)
    tokenizer = open_tokenizer(vocab, **text_options(config))
    builder_config = text_config(config, tokenizer, engine.source_fingerprint)
    builder = engine.builder(data_dir=engine.cache, config=builder_config, file_format="array_record")
    if not Path(builder.data_dir).exists():
        _write(builder, engine)
    prepared = _open(Path(builder.data_dir), config, vocab_size)
    _warn_of_unknown_tokens(prepared)
    return prepared


def _beam_engine(config: DataConfig, options: Sequence[tuple[str, str]], needs_pairs: bool) -> Any:
    logging.disable(logging.WARNING)  # on import, Beam warns about cloud clients that are not installed
    try:
        from albert_jax.data.beam import BeamEngine
    except ImportError as error:
        raise InputError(f"--engine beam: pip install 'albert_jax[beam]' ({error})") from None
    finally:
        logging.disable(logging.NOTSET)
    return BeamEngine(config, options, needs_pairs)


def _write(builder: AlbertText, engine: Any) -> None:
    counts, repairs = engine.survey
    for problem, number in sorted(repairs.items()):
        if number:
            log.warning("%s: %d", problem, number)
    if not builder.builder_config.tokenizer.keep_accents:
        warn_of_lost_marks(counts["letters"], counts["marks"])
    folder = Path(builder.data_dir)
    builder.builder_config.counts.update(counts)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download, although there is none
            download = tfds.download.DownloadConfig(num_shards=number_of_shards(counts), **engine.options)
            builder.download_and_prepare(download_config=download)
    except OSError:
        if not folder.exists():  # if it exists, a concurrent run has prepared the same text
            raise
    log.info("prepared %d documents, %d held out: %s", counts["train"] + counts["heldout"], counts["heldout"], folder)


def train_source_vocabulary(config: DataConfig, path: Path, vocab_size: int) -> None:
    """Train a SentencePiece vocabulary on the source, with the released flags, and write it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("training a vocabulary of %d pieces: %s", vocab_size, path)
    sentences = (
        text for document in sources.documents(config) for text in sources.sentences(document, config.language)
    )
    train_vocabulary(sentences, path, vocab_size, **text_options(config))


def token_counts(prepared: Prepared) -> np.ndarray:
    """[V] int64: number of times each piece occurs in the train split; stored beside the data."""
    path = prepared.folder / "token_counts.npy"
    if path.exists():
        return np.load(path)
    counts = np.zeros(prepared.tokenizer.vocab_size, np.int64)
    records = read_split(prepared, "train")
    for record in with_progress(records, len(records), "counting tokens"):
        counts += np.bincount(record["tokens"], minlength=len(counts))
    save_array(path, counts)
    return counts


def read_split(prepared: Prepared, split: str) -> Records:
    """The records of a split."""
    builder = tfds.builder_from_directory(str(prepared.folder))
    check_shards(builder.info.splits[split], "delete the folder and prepare again")
    stored: Any = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    return Records(stored, {name: feature.np_dtype for name, feature in builder.info.features.items()})


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array beside prepared data, atomically; do nothing if the folder is read-only."""
    if os.access(path.parent, os.W_OK):
        temporary = path.with_suffix(f".{os.getpid()}.npy")
        np.save(temporary, array)
        temporary.replace(path)


def _open(folder: Path, config: DataConfig, vocab_size: int) -> Prepared:
    path = folder / "metadata.json"
    metadata = read_json(path) if path.exists() else {}
    if "fingerprint" not in metadata:
        raise InputError(
            f"data.source {folder} was not written by albert-jax prepare; name a data set of TFDS as tfds:{folder}, "
            f"and the files of Hugging Face's cache as '{folder}/*.arrow'"
        )
    for name in (*READING_FIELDS, "eval_fraction"):
        value, stored = getattr(config, name), metadata["data"].get(name, getattr(DataConfig(), name))
        if value not in (stored, getattr(DataConfig(), name)):
            raise InputError(
                f"data.{name} is {value!r}, but {folder} was prepared with {stored!r}; remove the setting or prepare again"
            )
    options = {name: metadata["data"].get(name, default) for name, default in TEXT_OPTIONS.items()}
    file = next((name for name in CLASSES if (folder / name).is_file()), VOCABULARY)
    tokenizer = open_tokenizer(folder / file, **options)
    if tokenizer.sha256 != metadata["vocab_sha256"]:
        problem = f"{folder}: the vocabulary {file} changed after the text was prepared"
        raise InputError(f"{problem}; delete the folder and prepare again")
    if config.vocab and (digest := open_tokenizer(config.vocab).sha256) != tokenizer.sha256:
        problem = f"has the digest {digest[:8]}, but {folder} was prepared with {tokenizer.sha256[:8]}"
        raise InputError(f"data.vocab {config.vocab} {problem}; remove the setting or prepare again")
    _check_vocab_size(tokenizer, vocab_size)
    return Prepared(folder, tokenizer, metadata["fingerprint"])


def _check_vocab_size(tokenizer: Tokenizer, vocab_size: int) -> None:
    pieces = f"the vocabulary {tokenizer.path} has {tokenizer.vocab_size} pieces"
    advice = f"set --model.vocab-size {tokenizer.vocab_size}"
    if tokenizer.vocab_size > vocab_size:
        raise InputError(f"model.vocab_size is {vocab_size}, but {pieces}; {advice} or name a different vocabulary")
    if tokenizer.vocab_size < vocab_size:  # such as an embedding table padded to a multiple of 64
        log.warning("model.vocab_size is %d, but %s; %s to avoid unused rows", vocab_size, pieces, advice)


def _warn_of_unknown_tokens(prepared: Prepared) -> None:
    counts = token_counts(prepared)
    fraction = counts[prepared.tokenizer.unk_id] / counts.sum()
    if fraction > 0.01:
        can_map = isinstance(prepared.tokenizer, SentencePieceTokenizer) and not prepared.tokenizer.map_punctuation
        advice = "--data.map-punctuation true or a different vocabulary" if can_map else "a different vocabulary"
        log.warning("%.1f %% of the tokens are unknown to the vocabulary; use %s", 100 * fraction, advice)

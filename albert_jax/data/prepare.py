"""Text to token ids, once: a TFDS builder that writes ArrayRecord files and needs no TensorFlow.

A record is a document as tokens and sentence lengths, nothing else: pairs, masks and the sequence length are chosen later.
The result is kept under a fingerprint of source, vocabulary and settings, and is complete in itself (its vocabulary lies
beside it), so the folder can be handed on and named as a source.
"""

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from albert_jax.config import InputError, check_writable, read_json, require
from albert_jax.data import sources
from albert_jax.data.records import Records
from albert_jax.data.sources import DataConfig
from albert_jax.data.survey import SPLITS, check_counts, count, split_of
from albert_jax.data.tfds import check_shards
from albert_jax.data.tokenizer import Tokenizer, train_vocabulary

T = TypeVar("T")
Example = dict[str, np.ndarray]
log = logging.getLogger(__name__)

VERSION = "1.0.0"
"""Of the record's format; part of the fingerprint."""

MAX_RECORD_TOKENS = 8192
"""Longer documents are stored in parts: a sequence is read by reading its record.  To NSP, parts are documents."""

READING = ("text_field", "txt_documents", "encoding_errors", "language", "map_punctuation")
"""Fields of `DataConfig` that decide what is read out of a file."""

RECORDS_PER_SHARD = 4096
"""ArrayRecord finds a record in time proportional to the records of its file: 4 us at 1 k, 194 us at 100 k."""


NO_VOCAB = "--engine beam needs --data.vocab: a vocabulary is trained on one machine ('albert-jax vocab', on a sample)"


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A folder of prepared text: splits `train` and `heldout`, and the vocabulary they were made with."""

    folder: Path
    tokenizer: Tokenizer
    fingerprint: str


def prepare(config: DataConfig, vocab_size: int, beam: Sequence[tuple[str, str]] | None = None) -> Prepared:
    """The prepared form of `config.source`, made now unless the cache holds it.

    Args:
      config: the source and settings.
      vocab_size: pieces that the vocabulary must have, or that one trained here gets.
      beam: names and values of Beam's pipeline options: its workers read and write, the records and their order are the
        same.  None: this process does it.

    Raises:
      InputError: unreadable text (file and line), nothing usable, or a vocabulary of another size or kind.
    """
    folder = Path(config.source).expanduser()
    if (folder / "dataset_info.json").is_file():
        return _open(folder, config, vocab_size)
    cache = Path(config.cache_dir).expanduser()
    make, engine = AlbertText, {}
    if beam is None:
        of_source = sources.fingerprint(config)
        survey = functools.cache(functools.partial(_survey, config))
    else:
        pipeline = _beam()
        engine["beam_options"] = pipeline.options(beam)
        require(bool(config.vocab), NO_VOCAB)
        _check_vocab_size(Tokenizer(config.vocab), vocab_size)  # before the workers read everything
        make, cache = pipeline.BeamText, cache.absolute()
        of_source, counted = pipeline.survey(config, **engine)
        survey = functools.cache(lambda: counted)
    reading = {name: getattr(config, name) for name in READING}
    if config.vocab:
        tokenizer = Tokenizer(config.vocab, map_punctuation=config.map_punctuation)
        _check_vocab_size(tokenizer, vocab_size)
    else:
        path = cache / "vocab" / f"{_digest(of_source, reading)[:16]}-{vocab_size}.model"
        if not path.exists():
            survey()
            vocabulary(config, path, vocab_size)
        tokenizer = Tokenizer(path, map_punctuation=config.map_punctuation)
    fingerprint = _digest(VERSION, of_source, tokenizer.sha256, reading, config.eval_fraction, MAX_RECORD_TOKENS)
    builder_config = TextConfig(name=fingerprint[:16], data=config, tokenizer=tokenizer, fingerprint=fingerprint)
    builder = make(data_dir=cache, config=builder_config, file_format="array_record")
    folder = Path(builder.data_dir)
    if not folder.exists():
        counts, repairs = survey()
        for what, times in sorted(repairs.items()):
            if times:
                log.warning("%s: %d", what, times)
        tfds.disable_progress_bar()
        builder_config.counts.update(counts)
        # TFDS takes one number for both splits, and no shard may be empty.
        shards = 1 + (counts["train"] + counts["characters"] // (3 * MAX_RECORD_TOKENS)) // RECORDS_PER_SHARD
        shards = min(shards, counts["heldout"])
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download that there is not
                download = tfds.download.DownloadConfig(num_shards=shards, **engine)
                builder.download_and_prepare(download_config=download)
        except OSError:
            if not folder.exists():  # else another run prepared the same text meanwhile
                raise
        log.info(
            "prepared %d documents, %d held out: %s", counts["train"] + counts["heldout"], counts["heldout"], folder
        )
    prepared = _open(folder, config, vocab_size)
    _warn_of_unknown(prepared)
    return prepared


def _beam() -> Any:
    logging.disable(logging.WARNING)  # as it is imported, Beam tells of clients of cloud services that are not there
    try:
        from albert_jax.data import beam
    except ImportError as error:
        raise InputError(f"--engine beam: pip install 'albert_jax[beam]' ({error})") from None
    finally:
        logging.disable(logging.NOTSET)
    return beam


def vocabulary(config: DataConfig, path: Path, vocab_size: int) -> None:
    """Trains a SentencePiece vocabulary on the source, with the released flags, and writes it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    log.info("training a vocabulary of %d pieces: %s", vocab_size, path)
    lines = (line for document in sources.documents(config) for line in sources.sentences(document, config.language))
    train_vocabulary(lines, path, vocab_size, map_punctuation=config.map_punctuation)


def token_counts(prepared: Prepared) -> np.ndarray:
    """[V] int64: how often each piece occurs in the train split; kept beside the data."""
    path = prepared.folder / "token_counts.npy"
    if not path.exists():
        counts = np.zeros(prepared.tokenizer.vocab_size, np.int64)
        split = read_split(prepared, "train")
        for record in _progress(split, len(split), "counting tokens"):
            counts += np.bincount(record["tokens"], minlength=len(counts))
        save_array(path, counts)
        return counts
    return np.load(path)


def read_split(prepared: Prepared, split: str) -> Records:
    """The records of a split.

    Raises:
      InputError: a shard is missing, cut off, or holds another number of records than was written.
    """
    builder = tfds.builder_from_directory(str(prepared.folder))
    check_shards(builder.info.splits[split], "delete the folder and prepare again")
    stored: Any = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    return Records(stored, {name: feature.np_dtype for name, feature in builder.info.features.items()})


def save_array(path: Path, array: np.ndarray) -> None:
    """Keeps an array beside prepared data, whole or not at all; a folder that cannot be written to is left as it is."""
    if os.access(path.parent, os.W_OK):
        temporary = path.with_suffix(f".{os.getpid()}.npy")
        np.save(temporary, array)
        temporary.replace(path)


@dataclasses.dataclass
class TextConfig(tfds.core.BuilderConfig):
    """What `AlbertText` is built from; its name, a fingerprint, names the folder."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    tokenizer: Any = None
    fingerprint: str = ""
    counts: Counter[str] = dataclasses.field(default_factory=Counter)


class AlbertText(tfds.core.GeneratorBasedBuilder):
    """Documents as token ids with the length of each sentence, in splits `train` and `heldout`."""

    VERSION = tfds.core.Version(VERSION)
    builder_config: TextConfig

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        # Stored as bytes: decoding a list of integers costs more than the rest of the pipeline.
        features = {
            "tokens": tfds.features.Tensor(shape=(None,), dtype=_token_dtype(config.tokenizer), encoding="bytes"),
            "sentence_lengths": tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding="bytes"),
        }
        facts = {
            "fingerprint": config.fingerprint,
            "vocab_sha256": config.tokenizer.sha256,
            "data": dataclasses.asdict(config.data),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Text prepared for ALBERT pretraining.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(facts),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        # The folder appears under its name only when all is written, vocabulary included.
        shutil.copyfile(self.builder_config.tokenizer.path, Path(self.data_dir) / "spiece.model")
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Example]]:
        config = self.builder_config
        chosen = (text for text in sources.documents(config.data) if split_of(text, config.data) == split)
        texts = _progress(chosen, config.counts[split], f"preparing {split}")
        yield from enumerate(example for text in texts for example in examples(text, config.data, config.tokenizer))


def examples(text: str, config: DataConfig, tokenizer: Tokenizer) -> Iterator[Example]:
    """The records of a document: one, or its parts."""
    encoded = tokenizer.encode_batch(list(sources.sentences(text, config.language)))
    lengths = [len(ids) for ids in encoded if ids]
    tokens: np.ndarray = np.array([i for ids in encoded for i in ids], _token_dtype(tokenizer))
    for part, part_lengths in _parts(tokens, np.array(lengths, np.int32)):
        yield {"tokens": part, "sentence_lengths": part_lengths}


def _token_dtype(tokenizer: Tokenizer) -> type:
    return np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32


def _parts(tokens: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """A document cut at sentences into parts of at most MAX_RECORD_TOKENS; a longer sentence makes a part of its own."""
    start = 0
    while start < len(lengths):
        fits = int(np.searchsorted(np.cumsum(lengths[start:]), MAX_RECORD_TOKENS, side="right"))
        end = start + max(1, fits)
        first, count = int(lengths[:start].sum()), int(lengths[start:end].sum())
        yield tokens[first : first + count], lengths[start:end]
        start = end


def _survey(config: DataConfig) -> tuple[Counter[str], Counter[str]]:
    """One pass that reads everything and writes nothing: errors are told before any work, and the counts are known."""
    check_writable(Path(config.cache_dir).expanduser(), "data.cache_dir")
    repairs: Counter[str] = Counter()
    counts = count(_progress(sources.documents(config, repairs), None, "reading"), config)
    check_counts(counts, config)
    return counts, repairs


def _open(folder: Path, config: DataConfig, vocab_size: int) -> Prepared:
    path = folder / "metadata.json"
    require(
        path.exists() and "fingerprint" in read_json(path),
        f"data.source {folder} was not written by albert-jax prepare; a data set of others is named tfds:{folder}",
    )
    metadata = read_json(path)
    for name in (*READING, "eval_fraction"):
        asked, used = getattr(config, name), metadata["data"][name]
        require(
            asked in (used, getattr(DataConfig(), name)),
            f"data.{name} is {asked!r}, but {folder} was prepared with {used!r}",
        )
    tokenizer = Tokenizer(folder / "spiece.model", map_punctuation=metadata["data"]["map_punctuation"])
    require(
        tokenizer.sha256 == metadata["vocab_sha256"],
        f"{folder}: its spiece.model is not the one it was prepared with; delete the folder and prepare again",
    )
    if config.vocab:
        wanted = Tokenizer(config.vocab)
        require(
            wanted.sha256 == tokenizer.sha256,
            f"{folder}: prepared with the vocabulary {tokenizer.sha256[:8]}, but data.vocab {config.vocab} is {wanted.sha256[:8]}",
        )
    _check_vocab_size(tokenizer, vocab_size)
    return Prepared(folder, tokenizer, metadata["fingerprint"])


def _check_vocab_size(tokenizer: Tokenizer, vocab_size: int) -> None:
    require(
        tokenizer.vocab_size == vocab_size,
        f"data.vocab {tokenizer.path} has {tokenizer.vocab_size} pieces, but model.vocab_size is {vocab_size}",
    )


def _warn_of_unknown(prepared: Prepared) -> None:
    counts = token_counts(prepared)
    share = counts[prepared.tokenizer.unk_id] / counts.sum()
    if share > 0.01:
        log.warning(
            "%.1f %% of the tokens are unknown to the vocabulary; --data.map-punctuation true or another vocabulary helps",
            100 * share,
        )


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _progress(items: Iterable[T], total: int | None, what: str, every_s: float = 20.0) -> Iterator[T]:
    """A bar on a terminal, a plain line now and then elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, unit=" documents", leave=False)
        return
    last = time.monotonic()
    for done, item in enumerate(items, 1):
        if time.monotonic() - last > every_s:
            last = time.monotonic()
            log.info("%s: %d%s documents", what, done, f" of {total}" if total else "")
        yield item

"""The TFDS builder that stores documents as token ids in ArrayRecord files, without TensorFlow.

A record holds the tokens and sentence lengths of one document.  Pairs, masks and the sequence length are chosen later.
"""

import dataclasses
import hashlib
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from albert_jax.data.records import Record
from albert_jax.data.sources import SENTENCE_GAPS, DataConfig, documents, sentences
from albert_jax.data.survey import SPLITS, split_of
from albert_jax.data.tokenizer import Tokenizer

T = TypeVar("T")
log = logging.getLogger(__name__)

VERSION = "1.0.0"
"""Version of the record format; part of the fingerprint."""

MAX_RECORD_TOKENS = 8192
"""Longer documents are stored in parts, because reading a sequence reads its whole record.  NSP treats parts as documents."""

RECORDS_PER_SHARD = 4096
"""ArrayRecord finds a record in time proportional to the size of its file: 4 us with 1 k records, 194 us with 100 k."""

ADDED_FIELDS = ("encoding", "malformed", "lower_case", "keep_accents")
"""Fields that the fingerprint includes only if they are not at their defaults, so that older folders are still found."""

READING_FIELDS = ("text_field", "txt_documents", "encoding_errors", "language", "map_punctuation", *ADDED_FIELDS)
"""Fields of `DataConfig` that determine how a file is read.  (Its type is a part of its digest.)"""


def digest(*parts: Any) -> str:
    """SHA-256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def reading_digest(source_fingerprint: str, config: DataConfig) -> str:
    """Fingerprint of the text of a source before tokenization."""
    fields = {name: getattr(config, name) for name in READING_FIELDS}
    fields = {
        name: value
        for name, value in fields.items()
        if name not in ADDED_FIELDS or value != getattr(DataConfig(), name)
    }
    if config.language in SENTENCE_GAPS:
        fields["sentence_gap"] = SENTENCE_GAPS[config.language]
    return digest(source_fingerprint, fields)


@dataclasses.dataclass
class TextConfig(tfds.core.BuilderConfig):
    """Configuration of `AlbertText`.  Its name, the start of the fingerprint, is also the folder's."""

    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    tokenizer: Any = None
    fingerprint: str = ""
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    """Number of documents of each split, for the progress bar only."""


def text_config(config: DataConfig, tokenizer: Tokenizer, source_fingerprint: str) -> TextConfig:
    """The builder configuration, with a fingerprint of the text, the vocabulary and the settings."""
    text = reading_digest(source_fingerprint, config)
    fingerprint = digest(VERSION, text, tokenizer.sha256, config.eval_fraction, MAX_RECORD_TOKENS)
    data = dataclasses.replace(config, **tokenizer.options)  # those of a tokenizer.json are its own
    return TextConfig(name=fingerprint[:16], data=data, tokenizer=tokenizer, fingerprint=fingerprint)


class AlbertText(tfds.core.GeneratorBasedBuilder):
    """Documents as token ids with the length of each sentence, in splits `train` and `heldout`."""

    VERSION = tfds.core.Version(VERSION)
    builder_config: TextConfig

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        # Arrays are stored as bytes: decoding lists of integers would cost more than the rest of the pipeline.
        features = {
            "tokens": tfds.features.Tensor(shape=(None,), dtype=_token_dtype(config.tokenizer), encoding="bytes"),
            "sentence_lengths": tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding="bytes"),
        }
        metadata = {
            "fingerprint": config.fingerprint,
            "vocab_sha256": config.tokenizer.sha256,
            "data": dataclasses.asdict(config.data),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Text prepared for ALBERT pretraining.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(metadata),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        # TFDS renames its temporary folder at the end, so a prepared folder always has a vocabulary.
        tokenizer = self.builder_config.tokenizer
        (Path(self.data_dir) / tokenizer.file_name).write_bytes(tokenizer.contents)
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Record]]:
        config = self.builder_config
        split_texts = (text for text in documents(config.data) if split_of(text, config.data) == split)
        texts = with_progress(split_texts, config.counts[split], f"preparing {split}")
        yield from enumerate(
            record for text in texts for record in document_records(text, config.data, config.tokenizer)
        )


def number_of_shards(counts: Counter[str]) -> int:
    """Number of shards of each split.  TFDS takes one number for both splits, and no shard may be empty."""
    records = counts["train"] + counts["characters"] // (3 * MAX_RECORD_TOKENS)
    return min(1 + records // RECORDS_PER_SHARD, counts["heldout"])


def document_records(text: str, config: DataConfig, tokenizer: Tokenizer) -> Iterator[Record]:
    """The records of a document: one, or several if it is longer than `MAX_RECORD_TOKENS`."""
    encoded = tokenizer.encode_batch(list(sentences(text, config.language)))
    lengths: np.ndarray = np.array([len(ids) for ids in encoded if ids], np.int32)
    tokens: np.ndarray = np.array([i for ids in encoded for i in ids], _token_dtype(tokenizer))
    first_sentence = first_token = 0
    while first_sentence < len(lengths):
        # A sentence that is longer than a record gets its own record.
        fitting = int(np.searchsorted(np.cumsum(lengths[first_sentence:]), MAX_RECORD_TOKENS, side="right"))
        end_sentence = first_sentence + max(1, fitting)
        part_lengths = lengths[first_sentence:end_sentence]
        end_token = first_token + int(part_lengths.sum())
        yield {"tokens": tokens[first_token:end_token], "sentence_lengths": part_lengths}
        first_sentence, first_token = end_sentence, end_token


def _token_dtype(tokenizer: Tokenizer) -> type:
    return np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32


def with_progress(items: Iterable[T], total: int | None, description: str) -> Iterator[T]:
    """`items`, with a progress bar on a terminal and a log line every 20 seconds elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=description, unit=" documents", leave=False)
        return
    last = time.monotonic()
    for number, item in enumerate(items, 1):
        if time.monotonic() - last > 20:
            last = time.monotonic()
            log.info("%s: %d%s documents", description, number, f" of {total}" if total else "")
        yield item

"""What all tokenizers have in common, and ALBERT's preprocessing of text.

`tokenizer_files.open_tokenizer` opens a vocabulary.  No text is encoded as the tokens [CLS] or [SEP].
"""

import hashlib
import itertools
import logging
import string
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from albert_jax.config import InputError

log = logging.getLogger(__name__)

SPECIAL_NAMES = (("<pad>", "[PAD]"), ("<unk>", "[UNK]"), ("[CLS]", "<s>"), ("[SEP]", "</s>"), ("[MASK]", "<mask>"))
"""The spellings of padding, unknown pieces, [CLS], [SEP] and [MASK]; the first is ALBERT's."""
SPECIAL_PIECES = tuple(names[0] for names in SPECIAL_NAMES)
"""Ids 0 to 4 in every SentencePiece vocabulary of ALBERT."""
TEXT_OPTIONS: dict[str, Any] = {"lower_case": True, "keep_accents": False, "map_punctuation": False}
"""Options of `preprocess`, with the values of the released code.  Configurations of data have fields with these names."""

MASK = "[MASK]"  # as users write it
SPACE = "▁"  # U+2581, SentencePiece's visible space
# Each character maps to one character, so that offsets stay simple.  The em dash becomes the en dash, its usual substitute.
PUNCTUATION = str.maketrans("“”„‟«»″‘’‚‛‹›′´‒‐‑−—―", '"' * 7 + "'" * 8 + "-" * 4 + "–" * 2)
# Used by `starts_word`.  The released set also lacks the apostrophe and < = >.
ASCII_SYMBOLS = frozenset(string.punctuation) - frozenset("'<=>")


def preprocess(text: str, *, map_punctuation: bool = False, keep_accents: bool = False, lower_case: bool = True) -> str:
    """Clean `text` as in the released code (google-research/albert tokenization.py, preprocess_text).

    Collapses whitespace, removes accents (NFKD) and converts to lower case.  Unlike the released code it drops NUL, which
    would become <unk>; SentencePiece drops the other control characters.
    """
    text = " ".join(text.replace("\0", "").split())
    if not text.isascii():
        refuse_lone_surrogates(text)
        if map_punctuation:
            text = text.translate(PUNCTUATION)  # before NFKD, which turns ´ into a space and an accent
        if not keep_accents:
            text = unicodedata.normalize("NFKD", text)
            for mark in filter(unicodedata.combining, set(text)):  # a long text has few distinct characters
                text = text.replace(mark, "")
    return text.lower() if lower_case else text


def text_options(config: Any) -> dict[str, Any]:
    """The `TEXT_OPTIONS` of a configuration."""
    return {name: getattr(config, name) for name in TEXT_OPTIONS}


def letters_and_marks(text: str) -> tuple[int, int]:
    """The number of letters in a text, and the number of accents, umlauts, tones and other marks that `preprocess` removes."""
    letters = sum(map(str.isalpha, text))
    if text.isascii():
        return letters, 0
    return letters, sum(map(bool, map(unicodedata.combining, unicodedata.normalize("NFKD", text))))


def warn_of_lost_marks(letters: int, marks: int) -> None:
    """Warn if more than 1 % of the letters lose a mark."""
    if marks > 0.01 * letters:
        log.warning(
            "the text loses %.0f accents or other marks per 100 letters; keep them with --data.keep-accents true",
            100 * marks / max(letters, 1),
        )


def refuse_lone_surrogates(text: str) -> None:
    """Raise `InputError` if a text cannot be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        character, before = text[error.start], text[max(0, error.start - 20) : error.start]
        problem = f"lone surrogate {character!r} after {before!r} in a text"
        raise InputError(f"{problem}; read it with errors='replace'") from None


def read_vocabulary(path: Path) -> bytes:
    """The bytes of a vocabulary's file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the vocabulary: {error.strerror}; name a spiece.model, vocab.txt or tokenizer.json"
        ) from None


class UnsuitableVocabulary(InputError):
    """A vocabulary that lacks pieces that ALBERT needs."""


class Tokenizer(ABC):
    """Text to token ids and back.  Immutable, deterministic and picklable.

    Attributes:
      path: the vocabulary's file.
      contents: the bytes of the vocabulary.
      sha256: digest of these bytes; identifies the vocabulary.
      options: `TEXT_OPTIONS`; also `lower_case`, `keep_accents` and `map_punctuation`.
      vocab_size: V, special pieces included.
      special_ids: of padding, unknown pieces, [CLS], [SEP] and [MASK]; also `pad_id`, `unk_id`, `cls_id`, `sep_id` and `mask_id`.
      starts_word: [V] bool, whether a piece starts a new word for whole-word masking.
    """

    file_name: str
    """Name of the vocabulary's file in the folder of a model, a run or prepared data."""

    def __init__(self, path: Path, contents: bytes, options: Mapping[str, bool], pieces: Sequence[str]) -> None:
        self.path, self.contents, self.options = path, contents, dict(options)
        self.sha256 = hashlib.sha256(contents).hexdigest()
        self.lower_case, self.keep_accents = options["lower_case"], options["keep_accents"]
        self.map_punctuation = options["map_punctuation"]
        self.vocab_size = len(pieces)
        numbers = {piece: number for number, piece in enumerate(pieces)}
        for name, *others in SPECIAL_NAMES:
            if not {name, *others} & numbers.keys():
                advice = "train one with 'albert-jax vocab'"
                raise UnsuitableVocabulary(f"{path}: this vocabulary lacks the special piece '{name}'; {advice}")
        self.special_ids = tuple(next(numbers[name] for name in names if name in numbers) for names in SPECIAL_NAMES)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = self.special_ids

    starts_word: np.ndarray

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without [CLS] and [SEP]."""

    @abstractmethod
    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and for each the range [start, end) of the characters of `text` that it comes from."""

    @abstractmethod
    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids, with single spaces and without special pieces."""

    @abstractmethod
    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The piece of each token id, as spelled in the vocabulary; raises like `decode`."""

    def encode(self, text: str) -> list[int]:
        """Token ids of one text, without [CLS] and [SEP]."""
        return self.encode_batch([text])[0]

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        pad_to_multiple_of: int = 1,
    ) -> dict[str, np.ndarray]:
        """Model inputs for texts or pairs of texts: `input_ids`, `attention_mask`, `token_type_ids`, int32 [B, S].

        A row is `[CLS] text [SEP]` or `[CLS] text [SEP] pair [SEP]`, with the pair as segment 1.  `[MASK]` in a text becomes
        the mask token.  One text gives B = 1.

        Args:
          text: one text or several.
          text_pair: the second text of each pair, as many as `text`.
          max_length: longer rows are truncated at the end of the longer text, see `fit`.
          pad_to_multiple_of: rows are padded to the length of the longest, rounded up to a multiple of this number.
        """
        groups = [
            [group] if isinstance(group, str) else list(group) for group in (text, text_pair) if group is not None
        ]
        if len(groups[0]) != len(groups[-1]):
            raise InputError(f"{len(groups[0])} texts but {len(groups[1])} text pairs; give equally many")
        num_special = 1 + len(groups)
        if max_length is not None and max_length < num_special:
            raise InputError(f"max_length must be at least {num_special}, got {max_length}")
        rows = list(zip(*map(self._encode_masked, groups), strict=True))
        if max_length is not None:
            for first, *second in rows:
                sizes = fit(len(first), sum(map(len, second)), max_length - num_special)
                for ids, size in zip((first, *second), sizes, strict=False):
                    del ids[size:]
        joined = [self.join(*row) for row in rows]
        width = max((len(inputs["input_ids"]) for inputs in joined), default=num_special)
        width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
        ids = np.full((len(rows), width), self.pad_id, np.int32)
        mask, segments = np.zeros_like(ids), np.zeros_like(ids)
        for number, inputs in enumerate(joined):
            size = len(inputs["input_ids"])
            ids[number, :size], segments[number, :size] = inputs["input_ids"], inputs["token_type_ids"]
            mask[number, :size] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}

    def join(self, *texts: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """`[CLS] text [SEP]` or `[CLS] text [SEP] pair [SEP]` from token ids: `input_ids` and `token_type_ids`, int32 [S]."""
        parts = [part for text in texts for part in (text, [self.sep_id])]
        ids = np.concatenate([[self.cls_id], *parts], dtype=np.int32, casting="unsafe")
        return {"input_ids": ids, "token_type_ids": (np.arange(len(ids)) >= len(texts[0]) + 2).astype(np.int32)}

    def _encode_masked(self, texts: Sequence[str]) -> list[list[int]]:
        """Like `encode_batch`, but `[MASK]` in a text becomes the mask token."""
        rows = []
        for text in texts:
            first, *others = self.encode_batch([part for _, part in between_masks(text)])
            rows.append([*first, *(i for ids in others for i in (self.mask_id, *ids))])
        return rows

    def _checked(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        """Token ids as Python integers, since tokenizers do not accept numpy's."""
        plain = [int(i) for i in ids]
        for i in plain:
            if not 0 <= i < self.vocab_size:
                raise InputError(f"token id {i} is not in {self.path}, which has {self.vocab_size} pieces")
        return plain


def between_masks(text: str) -> list[tuple[int, str]]:
    """The parts of a text before, between and after its [MASK]s, each with the place of its first character.

    [MASK] takes the spaces before it, as in Hugging Face's tokenizers.
    """
    *before, last = text.split(MASK)
    starts = itertools.accumulate((len(part) + len(MASK) for part in before), initial=0)
    return list(zip(starts, [*(part.rstrip() for part in before), last], strict=True))


def fit(first: int, second: int, room: int) -> tuple[int, int]:
    """Lengths of two texts after removing tokens from the longer one (the second if equal) until both fit.

    google-research/albert classifier_utils.py, _truncate_seq_pair.
    """
    excess = first + second - room
    if excess <= 0:
        return first, second
    from_longer = min(excess, abs(first - second))
    first, second = (first - from_longer, second) if first > second else (first, second - from_longer)
    from_both = excess - from_longer
    return first - from_both // 2, second - (from_both + 1) // 2


def starts_word(piece: str) -> bool:
    """Whether a piece starts a word, as in google-research/albert create_pretraining_data.py, _is_start_piece_sp.

    A piece with a character that is neither an ASCII letter nor an ASCII symbol always does.
    """
    starts = piece.startswith((SPACE, "<")) or piece in ASCII_SYMBOLS
    return starts or not ASCII_SYMBOLS.union(string.ascii_letters).issuperset(piece)

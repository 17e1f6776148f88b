"""Text to token ids and back: SentencePiece with ALBERT's preprocessing, and training of a vocabulary.

This module determines how text is cleaned, how it is split into pieces, and which pieces start a word.  No text is encoded as
the tokens [CLS] or [SEP].
"""

import functools
import hashlib
import io
import itertools
import os
import string
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from albert_jax.config import InputError

SPECIAL_PIECES = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
"""Ids 0 to 4 in every ALBERT vocabulary."""
SYMBOLS = ("(", ")", '"', "-", ".", "–", "£", "€")
"""Ids 5 to 12: user-defined symbols, always separate pieces."""

VOCABULARY = "spiece.model"
"""Name of the vocabulary file in the folder of a model, a run or prepared data."""

TEXT_OPTIONS: dict[str, Any] = {"lower_case": True, "keep_accents": False, "map_punctuation": False}
"""Options of `preprocess`, with the values of the released code.  Configurations of data have fields with these names."""

SPACE = "▁"  # U+2581, SentencePiece's visible space
# Each character maps to one character, so that offsets stay simple.  The em dash becomes the en dash, its usual substitute.
PUNCTUATION = str.maketrans("“”„‟«»″‘’‚‛‹›′´‒‐‑−—―", '"' * 7 + "'" * 8 + "-" * 4 + "–" * 2)
# Used by `_starts_word`.  The released set also lacks the apostrophe and < = >.
ASCII_SYMBOLS = frozenset(string.punctuation) - frozenset("'<=>")


def preprocess(text: str, *, map_punctuation: bool = False, keep_accents: bool = False, lower_case: bool = True) -> str:
    """Clean `text` as in the released code (google-research/albert tokenization.py, preprocess_text).

    Collapses whitespace, removes accents (NFKD) and converts to lower case.  Unlike the released code it drops NUL, which
    would become <unk>; SentencePiece drops the other control characters.
    """
    text = " ".join(text.replace("\0", "").split())
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            character, before = text[error.start], text[max(0, error.start - 20) : error.start]
            problem = f"lone surrogate {character!r} after {before!r} in a text"
            raise InputError(f"{problem}; read it with errors='replace'") from None
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


def share_with_marks(text: str) -> tuple[int, int]:
    """The number of letters in a text, and the number of those that lose an accent, umlaut or voicing mark in `preprocess`."""
    letters = sum(map(str.isalpha, text))
    return letters, 0 if text.isascii() else sum(map(_has_mark, text))


@functools.cache
def _has_mark(character: str) -> bool:
    return character.isalpha() and any(map(unicodedata.combining, unicodedata.normalize("NFKD", character)))


class Tokenizer:
    """SentencePiece with ALBERT's preprocessing and digit-comma rule.  Immutable, deterministic and picklable.

    Args:
      path: a SentencePiece model, such as the released `spiece.model`.
      map_punctuation: replace curly quotes and dashes that the released vocabulary lacks (each is <unk>) with ones it has.
        Off in the released code; recommended for new work on web text.
      keep_accents: do not remove accents; same as Hugging Face's option.
      lower_case: turn off for a vocabulary that was trained on cased text.
      model_proto: the SentencePiece model, if `path` is a different file that it was built from.

    Attributes:
      model_proto: the bytes of the SentencePiece model.
      sha256: digest of these bytes; identifies the vocabulary.
      vocab_size: V, special pieces included.
      special_ids: in the order of `SPECIAL_PIECES`; also `pad_id`, `unk_id`, `cls_id`, `sep_id` and `mask_id`.
      starts_word: [V] bool, whether a piece starts a new word for whole-word masking.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        map_punctuation: bool = False,
        keep_accents: bool = False,
        lower_case: bool = True,
        model_proto: bytes | None = None,
    ) -> None:
        self.path = Path(path)
        self.map_punctuation, self.keep_accents, self.lower_case = map_punctuation, keep_accents, lower_case
        self.model_proto = _read(self.path) if model_proto is None else model_proto
        self.sha256 = hashlib.sha256(self.model_proto).hexdigest()
        self._model, pieces = _load(self.model_proto, self.path)
        self.vocab_size = len(pieces)
        for name in SPECIAL_PIECES:
            if not self._is_piece(name):
                advice = "train one with 'albert-jax vocab'"
                raise InputError(f"{path}: this vocabulary lacks the special piece '{name}'; {advice}")
        self.special_ids = tuple(int(self._model.piece_to_id(name)) for name in SPECIAL_PIECES)
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = self.special_ids
        self.starts_word: np.ndarray = np.array([_starts_word(piece) for piece in pieces], bool)
        # Id of a piece such as '▁2010,' -> the ids and pieces that replace it.
        self._replacements = {
            i: [(int(self._model.piece_to_id(name)), name) for name in self._split_digit_comma(piece)]
            for i, piece in enumerate(pieces)
            if ends_in_digit_comma(piece)
        }

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
          max_length: longer rows are truncated at the end of the longer text.
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
        for row in rows:
            while max_length is not None and sum(map(len, row)) > max_length - num_special:
                max(row, key=len).pop()
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
            first, *others = self.encode_batch(text.split("[MASK]"))
            rows.append([*first, *(i for ids in others for i in (self.mask_id, *ids))])
        return rows

    def preprocess(self, text: str) -> str:
        """The module's `preprocess` with this tokenizer's options."""
        map_punctuation, keep_accents, lower_case = self.map_punctuation, self.keep_accents, self.lower_case
        return preprocess(text, map_punctuation=map_punctuation, keep_accents=keep_accents, lower_case=lower_case)

    def encode(self, text: str) -> list[int]:
        """Token ids without [CLS] and [SEP] (google-research/albert tokenization.py, encode_pieces)."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` for each text, with one call of SentencePiece, which is fastest."""
        # One thread, because a second one is no faster, and several processes may prepare data at the same time.
        rows = self._model.encode([self.preprocess(text) for text in texts], out_type=int, num_threads=1)
        replacements = self._replacements
        return [
            row
            if replacements.keys().isdisjoint(row)
            else [new for i in row for new, _ in replacements.get(i, [(i, "")])]
            for row in rows
        ]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode`, and for each token the range [start, end) of the characters of `text` that it comes from.

        A range does not include leading spaces.  A piece that is only a space has an empty range, at the start of the next
        piece.  Accents belong to their letter.  Invisible characters that SentencePiece drops belong to the piece before them.
        Pieces that come from one character, such as both halves of ﬁ, share its range.  Starts never decrease.
        """
        clean, origins = self.preprocess(text), self._origins(text)
        # SentencePiece normalizes `clean` once more, with nmt_nfkc.  offsets[i] is the index in `clean` where the i-th
        # character of the result began; characters that come from one character share its offset.
        normalized, offsets = self._model.normalize(clean, with_offsets=True)
        ends = list(offsets)
        for i in range(len(normalized) - 1, -1, -1):
            ends[i] = offsets[i + 1] if offsets[i + 1] > offsets[i] else ends[i + 1]
        tokens = zip(self._model.encode(clean, out_type=int), self._model.encode(clean, out_type=str), strict=True)
        ids: list[int] = []
        ranges: list[tuple[int, int]] = []
        position = 0  # in `normalized`, which is the concatenation of all pieces
        bytes_left = 0  # of a character that is spelled with several bytes
        for i, piece in itertools.chain.from_iterable(self._replacements.get(i, [(i, piece)]) for i, piece in tokens):
            if self._model.is_byte(i):
                bytes_left = (bytes_left or _bytes_of_character(int(piece[3:-1], 16))) - 1
                ids.append(i)
                ranges.append((origins[offsets[position]][0], origins[ends[position] - 1][1]))
                position += bytes_left == 0
                continue
            first = position + len(piece) - len(piece.lstrip(SPACE))
            position += len(piece)
            ids.append(i)
            if first < position and offsets[first] < ends[position - 1]:
                ranges.append((origins[offsets[first]][0], origins[ends[position - 1] - 1][1]))
            else:
                place = origins[offsets[first]][0] if offsets[first] < len(origins) else origins[-1][1]
                ranges.append((place, place))
        return ids, ranges

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids, with single spaces.  Drops [CLS], [SEP], [MASK] and <pad>; <unk> becomes ' ⁇ '."""
        return self._model.decode(self._checked(ids))

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The piece of each token id, as spelled in the vocabulary; raises like `decode`."""
        return [self._model.id_to_piece(i) for i in self._checked(ids)]

    def _checked(self, ids: Sequence[int] | np.ndarray) -> list[int]:
        """Token ids as Python integers, since SentencePiece does not accept numpy's."""
        plain = [int(i) for i in ids]
        for i in plain:
            if not 0 <= i < self.vocab_size:
                raise InputError(f"token id {i} is not in {self.path}, which has {self.vocab_size} pieces")
        return plain

    def _is_piece(self, text: str) -> bool:
        # For an unknown piece, piece_to_id returns the id of <unk>.
        return self._model.id_to_piece(self._model.piece_to_id(text)) == text

    def _split_digit_comma(self, piece: str) -> list[str]:
        """'▁2010,' -> '▁2010', ',' so that a number has the same pieces with and without a comma after it.

        The released code intends this, and the slow tokenizer of transformers 4 does it.  Both give <unk> if the number
        without '▁' is not a piece; we spell it with single digits.
        """
        head = self._model.encode(piece[:-1].replace(SPACE, ""), out_type=str)
        if not piece.startswith(SPACE) and head[0].startswith(SPACE):
            number = head[0].removeprefix(SPACE)
            head[:1] = [number] if self._is_piece(number) else list(number)
        return [*head, ","]

    def _origins(self, text: str) -> list[tuple[int, int]]:
        """For each character of `preprocess(text)`, the range of `text` that it comes from."""
        characters: list[tuple[str, int]] = []  # with whitespace collapsed
        for place, char in enumerate(text):
            if char.isspace() and characters and characters[-1][0] != " ":
                characters.append((" ", place))
            elif not char.isspace() and char != "\0":
                characters.append((char, place))
        if characters and characters[-1][0] == " ":
            characters.pop()
        origins: list[tuple[int, int]] = []
        for char, place in characters:
            form = char.translate(PUNCTUATION) if self.map_punctuation else char
            if not self.keep_accents:  # NFKD reorders only the combining marks, which are dropped here
                form = "".join(c for c in unicodedata.normalize("NFKD", form) if not unicodedata.combining(c))
            if not form and origins:
                origins[-1] = (origins[-1][0], place + 1)
            origins += [(place, place + 1)] * len(form.lower() if self.lower_case else form)  # İ becomes two
        return origins


def _bytes_of_character(first: int) -> int:
    """The number of bytes of a character in UTF-8, given the first."""
    return 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4


def ends_in_digit_comma(piece: str) -> bool:
    """Whether the digit-comma rule replaces a piece, such as '▁2010,'."""
    return len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit()


def train_vocabulary(sentences: Iterable[str], path: str | Path, vocab_size: int, **options: bool) -> None:
    """Train a unigram vocabulary with the released flags (google-research/albert README) and write it to `path`.

    The same sentences give the same bytes.  SentencePiece trains on a sample if there are more than ten million sentences.

    Args:
      sentences: texts of any length; they go through `preprocess`.
      path: file to write.
      vocab_size: number of pieces, special ones included.
      options: those of `TEXT_OPTIONS` that the `Tokenizer` will have.
    """
    path = Path(path)
    minimum = len(SPECIAL_PIECES) + len(SYMBOLS) + 1
    if vocab_size < minimum:
        raise InputError(f"vocab_size: must be at least {minimum} to hold the special pieces, got {vocab_size}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file for the vocabulary")
    path.parent.mkdir(parents=True, exist_ok=True)  # fails before the training, not after it
    source_errors: list[BaseException] = []

    def preprocessed() -> Iterator[str]:
        try:
            yield from filter(None, (preprocess(text, **options) for text in sentences))
        except BaseException as error:  # SentencePiece would turn it into a RuntimeError whose message is a traceback
            source_errors.append(error)
            raise

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=preprocessed(),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            pad_id=0,
            unk_id=1,
            bos_id=-1,
            eos_id=-1,
            control_symbols=list(SPECIAL_PIECES[2:]),
            user_defined_symbols=list(SYMBOLS),
            character_coverage=0.99995,
            input_sentence_size=10_000_000,
            shuffle_input_sentence=True,
            max_sentence_length=2**30,  # by default, sentences above 4,192 bytes are skipped silently
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if source_errors:
            raise source_errors[0] from None
        reason = str(error).rpartition("] ")[2].strip() or "there is no text, or it has no usable characters"
        raise InputError(f"{path}: cannot train a vocabulary of {vocab_size} pieces: {reason}") from None
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    temporary.write_bytes(model.getvalue())
    temporary.replace(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the vocabulary: {error.strerror}; name a spiece.model") from None


def _load(model_proto: bytes, path: Path) -> tuple[sentencepiece.SentencePieceProcessor, list[str]]:
    """The SentencePiece processor and all pieces; raises `InputError` if the bytes are not a SentencePiece model."""
    problem = f"{path} is not a SentencePiece model ({len(model_proto)} bytes)"
    if model_proto.startswith(b"version https://git-lfs"):
        raise InputError(f"{problem} but a Git LFS pointer; run 'git lfs pull'")
    try:
        if model_proto:  # SentencePiece silently accepts an empty model
            processor = sentencepiece.SentencePieceProcessor(model_proto=model_proto)
            # SentencePiece raises for a piece that is not UTF-8 only when it is read.
            return processor, [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    except (RuntimeError, UnicodeDecodeError):
        pass
    raise InputError(f"{problem}; name a spiece.model")


def _starts_word(piece: str) -> bool:
    """Whether a piece starts a word, as in google-research/albert create_pretraining_data.py, _is_start_piece_sp.

    A piece with a character that is neither an ASCII letter nor an ASCII symbol always does.
    """
    starts = piece.startswith((SPACE, "<")) or piece in ASCII_SYMBOLS
    return starts or not ASCII_SYMBOLS.union(string.ascii_letters).issuperset(piece)

"""Text to token ids and back: SentencePiece with ALBERT's preprocessing, and training of a vocabulary.

Decides how text is cleaned, how it is cut into pieces, and which pieces start a word.  Does not decide where text comes
from or how undecodable bytes are treated (`sources.py`), nor where [CLS] and [SEP] go: special tokens are never made
from text.  Host side only.
"""

import hashlib
import io
import itertools
import os
import string
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from albert_jax.config import InputError, require

SPECIAL_PIECES = ("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]")
"""Ids 0 to 4 in every ALBERT vocabulary."""
SYMBOLS = ("(", ")", '"', "-", ".", "–", "£", "€")
"""Ids 5 to 12: always pieces of their own."""

VOCABULARY = "spiece.model"
"""What the file is called in the folder of a model or a run."""

SPACE = "▁"  # U+2581, SentencePiece's visible space
# One character to one, so that offsets stay simple.  The em dash goes to the en dash, which does its work in prose.
STOCK_PUNCTUATION = str.maketrans("“”„‟«»″‘’‚‛‹›′´‒‐‑−—―", '"' * 7 + "'" * 8 + "-" * 4 + "–" * 2)
# Of the start-piece rule.  The apostrophe and < = > are missing from the released set too.
ASCII_SYMBOLS = frozenset(string.punctuation) - frozenset("'<=>")


def preprocess(text: str, *, map_punctuation: bool = False, keep_accents: bool = False, lower_case: bool = True) -> str:
    """`text` as ALBERT's vocabulary expects it (google-research/albert tokenization.py, preprocess_text).

    Whitespace is stripped and collapsed, accents go by NFKD, letters become small.  Unlike the released code it
    drops NUL, which would become <unk>: SentencePiece drops the other control characters itself.

    Raises:
      InputError: a lone surrogate, which no encoding can write; where files are read is the place to replace it.
    """
    text = " ".join(text.replace("\0", "").split())
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as e:
            bad, before = text[e.start], text[max(0, e.start - 20) : e.start]
            raise InputError(f"lone surrogate {bad!r} after {before!r} in a text; read it with errors='replace'") from e
        if map_punctuation:
            text = text.translate(STOCK_PUNCTUATION)  # before NFKD, which turns ´ into a space and an accent
        if not keep_accents:
            text = unicodedata.normalize("NFKD", text)
            for mark in filter(unicodedata.combining, set(text)):  # texts are long, their alphabets short
                text = text.replace(mark, "")
    return text.lower() if lower_case else text


class Tokenizer:
    """SentencePiece with ALBERT's preprocessing and its digit-comma rule; immutable, picklable, without randomness.

    Args:
      path: a SentencePiece model, such as the released `spiece.model`.
      map_punctuation: replace curly quotes and the dashes that the stock vocabulary lacks (all <unk> there) by ones it
        has.  Off as released; turn it on for new work on text from the web.
      keep_accents: skip NFKD and the dropping of accents, as Hugging Face's flag of this name.
      lower_case: off only for a vocabulary trained on cased text.
      model_proto: the SentencePiece model itself, where `path` is a file that it was made from.

    Raises:
      InputError: no such file, not a SentencePiece model, or one without ALBERT's special pieces.
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
        model = _read(self.path) if model_proto is None else model_proto
        _check(model, self.path)
        self.model_proto = model
        """The model file's bytes."""
        self.sha256 = hashlib.sha256(model).hexdigest()
        """Of the model file's bytes: two vocabularies of one size are told apart by it."""
        self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.vocab_size: int = self._model.vocab_size()
        """V: pieces, special ones included."""
        for name in SPECIAL_PIECES:
            advice = "train one with albert_jax.data.tokenizer.train_vocabulary"
            require(self._known(name), f"{path}: this vocabulary lacks the special piece '{name}'; {advice}")
        self.special_ids = tuple(int(self._model.piece_to_id(name)) for name in SPECIAL_PIECES)
        """In the order of `SPECIAL_PIECES`."""
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = self.special_ids
        pieces = [self._model.id_to_piece(i) for i in range(self.vocab_size)]
        self.starts_word: np.ndarray = np.array([_starts_word(piece) for piece in pieces], bool)
        """[V]: whether a piece begins a new unit of whole-word masking."""
        self._resplit = {
            i: [(int(self._model.piece_to_id(name)), name) for name in self._split_digit_comma(piece)]
            for i, piece in enumerate(pieces)
            if len(piece) > 1 and piece[-1] == "," and piece[-2].isdigit()
        }

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        max_length: int | None = None,
        pad_to_multiple_of: int = 1,
    ) -> dict[str, np.ndarray]:
        """Texts, or pairs of them, as the model takes them: `input_ids`, `attention_mask`, `token_type_ids`, int32 [B, S].

        `[CLS] text [SEP]`, or `[CLS] text [SEP] pair [SEP]` with the pair as segment 1; `[MASK]` in a text is the mask.
        One text gives B = 1.  Rows are padded to the longest, rounded up to `pad_to_multiple_of`.  Beyond `max_length`
        tokens the longer text of a row loses its end.  Raises as `encode`, or where the two are not equally many.
        """
        first = [text] if isinstance(text, str) else list(text)
        second = [text_pair] if isinstance(text_pair, str) else text_pair if text_pair is None else list(text_pair)
        require(second is None or len(first) == len(second), f"{len(first)} texts and {len(second or [])} text pairs")
        parts = [self._encode_masked(texts) for texts in (first, second) if texts is not None]
        extra = 1 + len(parts)
        require(max_length is None or max_length >= extra, f"max_length must be at least {extra}, got {max_length}")
        rows = list(zip(*parts, strict=True))
        for row in rows:
            while max_length is not None and sum(map(len, row)) > max_length - extra:
                max(row, key=len).pop()
        width = max((sum(map(len, row)) + extra for row in rows), default=extra)
        width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
        ids = np.full((len(rows), width), self.pad_id, np.int32)
        mask, segments = np.zeros_like(ids), np.zeros_like(ids)
        for number, row in enumerate(rows):
            end = 1
            ids[number, 0] = self.cls_id
            for segment, part in enumerate(row):
                ids[number, end : end + len(part) + 1] = [*part, self.sep_id]
                segments[number, end : end + len(part) + 1] = segment
                end += len(part) + 1
            mask[number, :end] = 1
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}

    def _encode_masked(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode_batch`, with `[MASK]` in a text as the mask's id."""
        cut = [text.split(SPECIAL_PIECES[4]) for text in texts]
        encoded = iter(self.encode_batch([part for parts in cut for part in parts]))
        rows = []
        for parts in cut:
            row = list(next(encoded))
            for _ in parts[1:]:
                row += [self.mask_id, *next(encoded)]
            rows.append(row)
        return rows

    def preprocess(self, text: str) -> str:
        """The module's `preprocess` with this tokenizer's switches."""
        map_punctuation, keep_accents, lower_case = self.map_punctuation, self.keep_accents, self.lower_case
        return preprocess(text, map_punctuation=map_punctuation, keep_accents=keep_accents, lower_case=lower_case)

    def encode(self, text: str) -> list[int]:
        """Token ids without special tokens (google-research/albert tokenization.py, encode_pieces).

        Raises:
          InputError: a lone surrogate in `text`.
        """
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of each text in one call of SentencePiece: the fast path.  Raises as `encode`."""
        # One thread: a second brought nothing, and data preparation runs in several processes where it must be fast.
        rows = self._model.encode([self.preprocess(text) for text in texts], out_type=int, num_threads=1)
        split = self._resplit
        return [
            row if split.keys().isdisjoint(row) else [new for i in row for new, _ in split.get(i, [(i, "")])]
            for row in rows
        ]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """`encode`'s ids, and for each the range [start, end) of `text`, in characters, that it came from.

        Leading spaces are left out: a piece that is nothing but a space has an empty range, where the next one starts.
        Accents belong to their letter, in either form of Unicode; invisible characters that SentencePiece drops, to the
        piece before them.  Pieces out of one character (both halves of ﬁ) share its range.  Starts never decrease.
        Raises as `encode`.
        """
        clean, origins = self.preprocess(text), self._origins(text)
        # SentencePiece normalises once more, with nmt_nfkc; offsets[i] is where in `clean` its i-th character began.
        # It counts characters (not bytes) for str, and gives all characters out of one the offset of that one.
        normal, offsets = self._model.normalize(clean, with_offsets=True)
        ends = list(offsets)
        for i in range(len(normal) - 1, -1, -1):
            ends[i] = offsets[i + 1] if offsets[i + 1] > offsets[i] else ends[i + 1]
        ids: list[int] = []
        ranges: list[tuple[int, int]] = []
        position = 0  # in `normal`, which is all pieces in a row: an unknown piece is spelled as in the text
        whole = zip(self._model.encode(clean, out_type=int), self._model.encode(clean, out_type=str), strict=True)
        for i, piece in itertools.chain.from_iterable(self._resplit.get(i, [(i, piece)]) for i, piece in whole):
            first = position + len(piece) - len(piece.lstrip(SPACE))
            position += len(piece)
            ids.append(i)
            if first < position and offsets[first] < ends[position - 1]:
                ranges.append((origins[offsets[first]][0], origins[ends[position - 1] - 1][1]))
            else:
                here = origins[offsets[first]][0] if offsets[first] < len(origins) else origins[-1][1]
                ranges.append((here, here))
        return ids, ranges

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of token ids, small letters and single spaces; [CLS], [SEP], [MASK] and <pad> vanish, <unk> is ' ⁇ '.

        Raises:
          InputError: an id outside the vocabulary.
        """
        self.pieces(ids)  # refuses what is no id
        return self._model.decode([int(i) for i in ids])  # SentencePiece refuses numpy's integers

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The piece of each token id, as it stands in the vocabulary.  Raises as `decode`."""
        plain = [int(i) for i in ids]
        for i in plain:
            require(0 <= i < self.vocab_size, f"token id {i} is not in {self.path}, which has {self.vocab_size} pieces")
        return [self._model.id_to_piece(i) for i in plain]

    def _known(self, piece: str) -> bool:
        # piece_to_id answers the unknown piece's id without a word.
        return self._model.id_to_piece(self._model.piece_to_id(piece)) == piece

    def _split_digit_comma(self, piece: str) -> list[str]:
        """'▁2010,' -> '▁2010', ',' so that a number is the same pieces with and without a comma after it.

        As the released code means it and Hugging Face 4's slow tokenizer does it.  Where the number without '▁' is
        no piece, both would make it <unk>: here it is spelled by digits.
        """
        head = self._model.encode(piece[:-1].replace(SPACE, ""), out_type=str)
        if not piece.startswith(SPACE) and head[0].startswith(SPACE):
            bare = head[0].removeprefix(SPACE)
            head[:1] = [bare] if self._known(bare) else list(bare)
        return [*head, ","]

    def _origins(self, text: str) -> list[tuple[int, int]]:
        """For each character of `preprocess(text)`, the range of `text` that it came from."""
        kept: list[tuple[str, int]] = []
        for at, char in enumerate(text):
            if char.isspace() and kept and kept[-1][0] != " ":
                kept.append((" ", at))
            elif not char.isspace() and char != "\0":
                kept.append((char, at))
        if kept and kept[-1][0] == " ":
            kept.pop()
        origins: list[tuple[int, int]] = []
        for char, at in kept:
            form = char.translate(STOCK_PUNCTUATION) if self.map_punctuation else char
            if not self.keep_accents:  # by single characters: NFKD reorders only the marks that are dropped here
                form = "".join(c for c in unicodedata.normalize("NFKD", form) if not unicodedata.combining(c))
            if not form and origins:
                origins[-1] = (origins[-1][0], at + 1)
            origins += [(at, at + 1)] * len(form.lower() if self.lower_case else form)  # İ becomes two
        return origins


def train_vocabulary(
    sentences: Iterable[str], path: str | Path, vocab_size: int, *, map_punctuation: bool = False
) -> None:
    """Trains a unigram vocabulary with the released flags (google-research/albert README) and writes it to `path`.

    The same sentences give the same bytes.  Texts go through `preprocess` (with `map_punctuation`, if they will be encoded so); beyond ten million of them SentencePiece
    trains on a sample.  No text is too long (SentencePiece alone skips those above 4,192 bytes).

    Raises:
      InputError: no text; `vocab_size` (pieces, special ones included) too small or too large; or as `preprocess`.
    """
    path = Path(path)
    least = len(SPECIAL_PIECES) + len(SYMBOLS) + 1
    require(vocab_size >= least, f"vocab_size: at least {least}, for the special pieces come first, got {vocab_size}")
    require(not path.is_dir(), f"{path}: a folder stands where the vocabulary should go; name a file")
    path.parent.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    raised: list[BaseException] = []

    def clean() -> Iterator[str]:
        try:
            yield from filter(None, (preprocess(text, map_punctuation=map_punctuation) for text in sentences))
        except BaseException as error:  # SentencePiece would make it a RuntimeError with a traceback for a message
            raised.append(error)
            raise

    texts = clean()
    first = next(texts, None)
    require(first is not None, f"{path}: no text to train a vocabulary on; the source is empty")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=itertools.chain([first], texts),
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
            max_sentence_length=2**30,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if raised:
            raise raised[0] from None
        reason = str(error).rpartition("] ")[2].strip() or "the text has no usable characters"
        raise InputError(f"{path}: cannot train a vocabulary of {vocab_size} pieces: {reason}") from None
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(model.getvalue())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the vocabulary: {error.strerror}; name a spiece.model") from None


def _check(model: bytes, path: Path) -> None:
    """Refuses what is no SentencePiece model."""
    size = f"{path} is not a SentencePiece model ({len(model)} bytes)"
    require(not model.startswith(b"version https://git-lfs"), f"{size} but a Git LFS pointer; run 'git lfs pull'")
    try:  # SentencePiece takes b"" for nothing to load and succeeds; a piece that is no text it gives only when asked
        loaded = bool(model)
        if loaded:
            found = sentencepiece.SentencePieceProcessor(model_proto=model)
            for i in range(found.vocab_size()):
                found.id_to_piece(i)
    except (RuntimeError, UnicodeDecodeError):
        loaded = False
    require(loaded, f"{size}; name a spiece.model")


def _starts_word(piece: str) -> bool:
    """google-research/albert create_pretraining_data.py, _is_start_piece_sp: what is foreign or a digit is alone."""
    starts = piece.startswith((SPACE, "<")) or piece in ASCII_SYMBOLS
    return starts or not ASCII_SYMBOLS.union(string.ascii_letters).issuperset(piece)

"""SentencePiece with ALBERT's preprocessing: the tokenizer of the released models, and training of a vocabulary."""

import io
import itertools
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from albert_jax.config import InputError
from albert_jax.data.tokenizer import (
    PUNCTUATION,
    SPACE,
    SPECIAL_PIECES,
    TEXT_OPTIONS,
    Tokenizer,
    preprocess,
    read_vocabulary,
    starts_word,
)

SYMBOLS = ("(", ")", '"', "-", ".", "–", "£", "€")
"""Ids 5 to 12: user-defined symbols, always separate pieces."""

VOCABULARY = "spiece.model"
"""Name of the vocabulary file in the folder of a model, a run or prepared data."""


class SentencePieceTokenizer(Tokenizer):
    """SentencePiece with ALBERT's preprocessing and digit-comma rule.

    Args:
      path: a SentencePiece model, such as the released `spiece.model`.
      contents: the bytes of the model, if they are not to be read from `path`.
      options: some of `TEXT_OPTIONS`.  map_punctuation: replace curly quotes and dashes that the released vocabulary lacks (each is
        <unk>) with ones it has; off in the released code; recommended for new work on web text.  keep_accents: do not remove
        accents; same as Hugging Face's option.  lower_case: turn off for a vocabulary that was trained on cased text.
    """

    file_name = VOCABULARY

    def __init__(self, path: str | Path, *, contents: bytes | None = None, **options: bool) -> None:
        path = Path(path)
        contents = read_vocabulary(path) if contents is None else contents
        self._model, pieces = _load(contents, path)
        super().__init__(path, contents, TEXT_OPTIONS | options, pieces)
        self.starts_word = np.array([starts_word(piece) for piece in pieces], bool)
        # Id of a piece such as '▁2010,' -> the ids and pieces that replace it.
        self._replacements = {
            i: [(int(self._model.piece_to_id(name)), name) for name in self._split_digit_comma(piece)]
            for i, piece in enumerate(pieces)
            if ends_in_digit_comma(piece)
        }

    def preprocess(self, text: str) -> str:
        """The module's `preprocess` with this tokenizer's options."""
        return preprocess(text, **self.options)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text (google-research/albert tokenization.py, encode_pieces)."""
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

"""Tokenizers of the `tokenizers` library: WordPiece vocabularies (vocab.txt), and any tokenizer.json with its own steps."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from albert_jax.config import InputError, first_line
from albert_jax.data.tokenizer import (
    SPECIAL_NAMES,
    TEXT_OPTIONS,
    Tokenizer,
    read_vocabulary,
    refuse_lone_surrogates,
    starts_word,
)

# One thread, as for SentencePiece; several would also warn when a process that used them is forked.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

WORDPIECE_FILE = "vocab.txt"
JSON_FILE = "tokenizer.json"
CONTINUES = "##"
"""Prefix of a WordPiece piece that does not start a word."""


class JsonTokenizer(Tokenizer):
    """A tokenizer.json as it is: its normalization, splitting and pieces are those of transformers.

    Args:
      path: the file.
      contents: its bytes, if they are not to be read from `path`.
    """

    file_name = JSON_FILE

    def __init__(self, path: str | Path, *, contents: bytes | None = None) -> None:
        path = Path(path)
        contents = read_vocabulary(path) if contents is None else contents
        self._open(path, contents, contents.decode("utf-8", "replace"))

    def _open(self, path: Path, contents: bytes, text: str) -> None:
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except BaseException as error:  # also the library's panics, which are no `Exception`
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            raise InputError(f"{path}: not a file of the tokenizers library: {first_line(error)}") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True  # "[CLS]" in a text is text
        numbers = self._tokenizer.get_vocab(with_added_tokens=True)
        pieces = [f"<no piece {number}>" for number in range(1 + max(numbers.values(), default=-1))]
        for piece, number in numbers.items():
            pieces[number] = piece
        stored = json.loads(text)
        super().__init__(path, contents, _options(stored), pieces)
        is_wordpiece = stored["model"].get("type") == "WordPiece"
        self.starts_word = np.array(
            [not piece.startswith(CONTINUES) if is_wordpiece else starts_word(piece) for piece in pieces], bool
        )

    def __reduce__(self) -> Any:
        return _opened, (type(self), self.path, self.contents, self.options)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            refuse_lone_surrogates(text)
        return [row.ids for row in self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        refuse_lone_surrogates(text)
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ranges = []
        for start, end in encoding.offsets:
            part = text[start:end]
            start += len(part) - len(part.lstrip())  # a range does not include leading spaces
            ranges.append((start, max(start, end)))
        return encoding.ids, ranges

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self._tokenizer.decode(self._checked(ids), skip_special_tokens=True)

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        return [self._tokenizer.id_to_token(i) or "" for i in self._checked(ids)]

    def to_json(self) -> str:
        """The contents of a tokenizer.json for transformers."""
        return self.contents.decode()


class WordPieceTokenizer(JsonTokenizer):
    """BERT's tokenizer for a vocab.txt: Chinese, and some Korean and Indonesian ALBERTs.

    Args:
      path: the vocabulary, one piece per line.
      contents: its bytes, if they are not to be read from `path`.
      options: some of `TEXT_OPTIONS`; map_punctuation is not available.
    """

    file_name = WORDPIECE_FILE

    def __init__(self, path: str | Path, *, contents: bytes | None = None, **options: bool) -> None:
        path, options = Path(path), TEXT_OPTIONS | options
        contents = read_vocabulary(path) if contents is None else contents
        if options["map_punctuation"]:
            raise InputError(f"{path}: map_punctuation is for SentencePiece vocabularies")
        try:
            lines = [line.removesuffix("\r") for line in contents.decode().removesuffix("\n").split("\n")]
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 at byte {error.start}; it is not a WordPiece vocabulary") from None
        numbers = {piece: number for number, piece in enumerate(lines)}
        if len(numbers) < len(lines) or "[UNK]" not in numbers:
            reason = "it has no [UNK]" if "[UNK]" not in numbers else "a piece occurs twice"
            raise InputError(f"{path}: not a WordPiece vocabulary: {reason}")
        self._open(path, contents, _wordpiece_json(numbers, options))

    def to_json(self) -> str:
        return self._tokenizer.to_str()


def _opened(kind: type[JsonTokenizer], path: Path, contents: bytes, options: dict[str, bool]) -> JsonTokenizer:
    return kind(path, contents=contents, **options if kind is WordPieceTokenizer else {})


def _wordpiece_json(numbers: dict[str, int], options: dict[str, bool]) -> str:
    """BERT's tokenizer with a vocabulary (transformers, convert_slow_tokenizer.py, BertConverter)."""
    tokenizer = tokenizers.Tokenizer(models.WordPiece(numbers, unk_token="[UNK]", continuing_subword_prefix=CONTINUES))
    tokenizer.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=True,
        strip_accents=options["lower_case"] and not options["keep_accents"],  # cased models keep accents, as BERT's
        lowercase=options["lower_case"],
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUES)
    special = [name for names in SPECIAL_NAMES for name in names if name in numbers]
    tokenizer.add_special_tokens(special)
    if {"[CLS]", "[SEP]"} <= numbers.keys():
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(name, numbers[name]) for name in ("[CLS]", "[SEP]")],
        )
    return tokenizer.to_str()


def _options(stored: dict[str, Any]) -> dict[str, bool]:
    """What a tokenizer.json does with case and accents."""
    normalizer = stored.get("normalizer") or {}
    steps = normalizer.get("normalizers", [normalizer])
    types = {step.get("type") for step in steps}
    bert = next((step for step in steps if step.get("type") == "BertNormalizer"), None)
    replaced = {step["pattern"].get("String") for step in steps if step.get("type") == "Replace"}
    if bert is not None:
        strips = bert["lowercase"] if bert.get("strip_accents") is None else bert["strip_accents"]
        return {"lower_case": bert["lowercase"], "keep_accents": not strips, "map_punctuation": False}
    return {
        "lower_case": "Lowercase" in types,
        "keep_accents": "StripAccents" not in types,
        "map_punctuation": "“" in replaced,
    }

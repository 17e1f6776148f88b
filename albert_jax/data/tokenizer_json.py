"""Hugging Face's tokenizer files: written so that transformers gives the ids that ALBERT was trained on, and read back.

transformers 5 builds its tokenizer from `spiece.model` without SentencePiece's user-defined symbols and without the
digit-comma rule.  It uses a `tokenizer.json` instead if there is one.
"""

import base64
import json
import math
import re
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from albert_jax.config import InputError, read_json
from albert_jax.data.tokenizer import (
    PUNCTUATION,
    SPACE,
    SPECIAL_PIECES,
    SYMBOLS,
    TEXT_OPTIONS,
    VOCABULARY,
    Tokenizer,
    ends_in_digit_comma,
)

protobuf: Any = sentencepiece_model_pb2  # its names are defined on import, so the type checker does not know them

KEYS = {"lower_case": "do_lower_case", "keep_accents": "keep_accents", "map_punctuation": "map_punctuation"}
"""Option of `Tokenizer` -> its key in tokenizer_config.json.  Only this package reads the last one."""

PENALTY = -100.0
"""Added to the score of a piece such as '2010,', so that the pieces '2010' and ',' always score better."""

NORMALIZERS = ("Replace", "NFKD", "StripAccents", "Lowercase", "Precompiled")
"""Normalizers of an ALBERT tokenizer.json.  A file with others gives ids that `Tokenizer` cannot reproduce."""


def write(tokenizer: Tokenizer, max_length: int, folder: Path) -> list[str]:
    """Write spiece.model, tokenizer.json and tokenizer_config.json, for `AlbertTokenizer.from_pretrained`.

    Returns:
      Notes for the user.
    """
    write_vocabulary(tokenizer, max_length, folder)
    (folder / "tokenizer.json").write_text(json.dumps(_to_json(tokenizer), ensure_ascii=False), encoding="utf-8")
    note = "map_punctuation: AlbertTokenizer does not do it (curly quotes become <unk>); use PreTrainedTokenizerFast"
    return [note] if tokenizer.map_punctuation else []


def write_vocabulary(tokenizer: Tokenizer, max_length: int, folder: Path) -> None:
    """Write spiece.model, and the tokenizer's options as tokenizer_config.json, for `read`."""
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_PIECES, strict=True))
    config: dict[str, Any] = names | {
        "tokenizer_class": "AlbertTokenizer",
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
        "do_lower_case": tokenizer.lower_case,
        "keep_accents": tokenizer.keep_accents,
        "map_punctuation": tokenizer.map_punctuation,
        "model_max_length": max_length,
        # Without this, transformers 5 omits token_type_ids, and a pair looks like one segment.
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    (folder / VOCABULARY).write_bytes(tokenizer.model_proto)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def read(folder: Path, vocab: str | Path = "") -> Tokenizer | None:
    """The tokenizer of a folder, from spiece.model or else from tokenizer.json; None if it has neither.

    Args:
      folder: written by Hugging Face or by this package.
      vocab: a different SentencePiece model to use with the folder's options.
    """
    path = folder / "tokenizer_config.json"
    stored = read_json(path) if path.is_file() else {}
    options = {option: stored.get(KEYS[option], default) for option, default in TEXT_OPTIONS.items()}
    for option, value in options.items():
        if not isinstance(value, bool):
            raise InputError(f"{path}: {KEYS[option]}: expected true or false, got {value!r}")
    if vocab or (folder / VOCABULARY).is_file():
        return Tokenizer(vocab or folder / VOCABULARY, **options)
    path = folder / "tokenizer.json"  # transformers 5 saves it without a spiece.model
    if not path.is_file():
        return None
    model_proto, options = to_sentencepiece(path)
    return Tokenizer(path, **options, model_proto=model_proto)


def _to_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The contents of tokenizer.json, in the format of the `tokenizers` library."""
    model = protobuf.ModelProto.FromString(tokenizer.model_proto)
    vocabulary = [
        [piece.piece, piece.score + (PENALTY if ends_in_digit_comma(piece.piece) else 0.0)] for piece in model.pieces
    ]
    normalizers: list[dict[str, Any]] = []
    if tokenizer.map_punctuation:
        normalizers += [
            {"type": "Replace", "pattern": {"String": chr(old)}, "content": chr(new)}
            for old, new in PUNCTUATION.items()
        ]
    if not tokenizer.keep_accents:
        normalizers += [{"type": "NFKD"}, {"type": "StripAccents"}]
    if tokenizer.lower_case:
        normalizers.append({"type": "Lowercase"})
    charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    if charsmap:
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    pre_tokenizers: list[dict[str, Any]] = [{"type": "WhitespaceSplit"}, metaspace]
    symbols = [piece.piece for piece in model.pieces if piece.type == protobuf.ModelProto.SentencePiece.USER_DEFINED]
    if symbols:  # SentencePiece splits the text at these before it searches for pieces
        pattern = "|".join(re.escape(symbol) for symbol in sorted(symbols, key=len, reverse=True))
        pre_tokenizers.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})
    added_tokens = [
        {
            "id": token_id,
            "content": name,
            "single_word": False,
            "lstrip": name == "[MASK]",
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name, token_id in zip(SPECIAL_PIECES, tokenizer.special_ids, strict=True)
    ]
    cls = {"SpecialToken": {"id": "[CLS]", "type_id": 0}}
    first_sep, second_sep = ({"SpecialToken": {"id": "[SEP]", "type_id": segment}} for segment in (0, 1))
    first, second = ({"Sequence": {"id": name, "type_id": segment}} for segment, name in enumerate("AB"))
    ids = {"[CLS]": tokenizer.cls_id, "[SEP]": tokenizer.sep_id}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added_tokens,
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizers},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, first, first_sep],
            "pair": [cls, first, first_sep, second, second_sep],
            "special_tokens": {
                name: {"id": name, "ids": [token_id], "tokens": [name]} for name, token_id in ids.items()
            },
        },
        "decoder": metaspace,
        "model": {"type": "Unigram", "unk_id": tokenizer.unk_id, "vocab": vocabulary, "byte_fallback": False},
    }


def to_sentencepiece(path: Path) -> tuple[bytes, dict[str, bool]]:
    """A SentencePiece model that gives the same ids as a tokenizer.json, and the options of `Tokenizer`."""
    stored = read_json(path)
    model = stored.get("model")
    if not isinstance(model, dict) or model.get("type", "Unigram") != "Unigram" or "vocab" not in model:
        raise InputError(f"{path}: does not hold a Unigram model, so it is not an ALBERT tokenizer")
    unk_id = model.get("unk_id")
    if type(unk_id) is not int or not 0 <= unk_id < 2**24:
        raise InputError(f"{path}: corrupted: unk_id is {unk_id!r}; copy it again")
    try:
        proto = _pieces_proto(model["vocab"], unk_id)
        normalizer = stored.get("normalizer") or {"type": "Sequence", "normalizers": []}
        steps = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
        types = [step["type"] for step in steps]
        charsmap = next((step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"), "")
        proto.normalizer_spec.precompiled_charsmap = base64.b64decode(charsmap, validate=True)
        replaced = [step["pattern"].get("String", "") for step in steps if step["type"] == "Replace"]
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: corrupted ({type(error).__name__}: {error}); copy it again") from None
    for name in types:
        if name not in NORMALIZERS:
            known = ", ".join(NORMALIZERS)
            raise InputError(f"{path}: normalizer {name!r} is not one of an ALBERT tokenizer; known: {known}")
    proto.normalizer_spec.name = "nmt_nfkc"
    options = {
        "lower_case": "Lowercase" in types,
        "keep_accents": "StripAccents" not in types,
        "map_punctuation": "“" in replaced,
    }
    return proto.SerializeToString(), options


def _pieces_proto(vocabulary: list[tuple[str, float]], unk_id: int) -> Any:
    """A SentencePiece model with the pieces and scores of a vocabulary."""
    proto = protobuf.ModelProto()
    types = proto.SentencePiece
    for number, (piece, score) in enumerate(vocabulary):
        if not isinstance(piece, str) or not math.isfinite(score):
            raise ValueError(f"piece {number} is {piece!r} with score {score!r}")
        piece_type = types.NORMAL
        if number == unk_id:
            piece_type = types.UNKNOWN
        elif piece in SPECIAL_PIECES:
            piece_type = types.CONTROL
        elif piece in SYMBOLS and score == 0:
            piece_type = types.USER_DEFINED
        proto.pieces.add(piece=piece, score=score, type=piece_type)
    proto.trainer_spec.model_type = protobuf.TrainerSpec.UNIGRAM
    proto.trainer_spec.vocab_size = len(proto.pieces)
    proto.trainer_spec.unk_id = unk_id
    return proto

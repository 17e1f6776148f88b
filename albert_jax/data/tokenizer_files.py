"""Files of tokenizers: vocabularies of every kind, and Hugging Face's files.

transformers 5 builds its tokenizer from `spiece.model` without SentencePiece's user-defined symbols and without the
digit-comma rule.  It uses a `tokenizer.json` instead if there is one, so we write one that gives the ids that ALBERT was trained on.
"""

import base64
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from albert_jax.config import InputError, read_json
from albert_jax.data.json_tokenizer import JSON_FILE, WORDPIECE_FILE, JsonTokenizer, WordPieceTokenizer
from albert_jax.data.sentencepiece_tokenizer import VOCABULARY, SentencePieceTokenizer, ends_in_digit_comma
from albert_jax.data.tokenizer import PUNCTUATION, SPACE, TEXT_OPTIONS, Tokenizer

log = logging.getLogger(__name__)

protobuf: Any = sentencepiece_model_pb2  # its names are defined on import, so the type checker does not know them

KEYS = {"lower_case": "do_lower_case", "keep_accents": "keep_accents", "map_punctuation": "map_punctuation"}
"""Option of `Tokenizer` -> its key in tokenizer_config.json.  Only this package reads the last one."""

PENALTY = -100.0
"""Added to the score of a piece such as '2010,', so that the pieces '2010' and ',' always score better."""


def open_tokenizer(path: str | Path, *, contents: bytes | None = None, **options: bool) -> Tokenizer:
    """Open a vocabulary: a SentencePiece model, a WordPiece vocabulary (.txt), or a tokenizer.json.

    Args:
      path: the file; its suffix decides.
      contents: its bytes, if they are not to be read from `path`.
      options: some of `TEXT_OPTIONS`.

    Raises:
      InputError: the file cannot be read, or it is a tokenizer.json and other options are given than it has.
    """
    suffix = Path(path).suffix
    if suffix == ".txt":
        return WordPieceTokenizer(path, contents=contents, **options)
    if suffix != ".json":
        return SentencePieceTokenizer(path, contents=contents, **options)
    tokenizer = JsonTokenizer(path, contents=contents)
    for name, value in options.items():
        stored = tokenizer.options[name]
        if value not in (stored, TEXT_OPTIONS[name]):
            raise InputError(f"{path}: {name} is {stored} in this file, and cannot be {value}")
        if value != stored:  # the default, so perhaps nobody asked for it
            log.info("%s: %s is %s in this file, so data.%s %s is not used", path, name, stored, name, value)
    return tokenizer


def with_options(tokenizer: Tokenizer, options: Mapping[str, bool]) -> Tokenizer:
    """The tokenizer with other options; raises like `open_tokenizer`."""
    if tokenizer.options == options:
        return tokenizer
    return open_tokenizer(tokenizer.path, contents=tokenizer.contents, **options)


def write(tokenizer: Tokenizer, max_length: int, folder: Path) -> list[str]:
    """Write the vocabulary, tokenizer.json and tokenizer_config.json, for `AutoTokenizer.from_pretrained`.

    Returns:
      Notes for the user.
    """
    write_vocabulary(tokenizer, max_length, folder)
    if isinstance(tokenizer, SentencePieceTokenizer):
        kind = protobuf.ModelProto.FromString(tokenizer.contents).trainer_spec.model_type
        if kind != protobuf.TrainerSpec.UNIGRAM:
            return [f"no {JSON_FILE}: {VOCABULARY} is no unigram model, so transformers may give other ids"]
        contents = json.dumps(_to_json(tokenizer), ensure_ascii=False)
    else:
        assert isinstance(tokenizer, JsonTokenizer)
        contents = tokenizer.to_json()
    (folder / JSON_FILE).write_text(contents, encoding="utf-8")
    return []


CLASSES = {VOCABULARY: "PreTrainedTokenizerFast", WORDPIECE_FILE: "BertTokenizer", JSON_FILE: "PreTrainedTokenizerFast"}
"""Name of a vocabulary's file -> class of transformers.  AlbertTokenizer would replace the steps in tokenizer.json by its own."""


def write_vocabulary(tokenizer: Tokenizer, max_length: int, folder: Path) -> None:
    """Write the vocabulary, and the tokenizer's options as tokenizer_config.json, for `read`."""
    pieces = tokenizer.pieces(tokenizer.special_ids)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), pieces, strict=True))
    config: dict[str, Any] = names | {
        "tokenizer_class": CLASSES[tokenizer.file_name],
        "bos_token": names["cls_token"],
        "eos_token": names["sep_token"],
        "do_lower_case": tokenizer.lower_case,
        "keep_accents": tokenizer.keep_accents,
        "strip_accents": not tokenizer.keep_accents,
        "map_punctuation": tokenizer.map_punctuation,
        "model_max_length": max_length,
        # Without this, transformers 5 omits token_type_ids, and a pair looks like one segment.
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    (folder / tokenizer.file_name).write_bytes(tokenizer.contents)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def read(folder: Path, vocab: str | Path = "") -> Tokenizer | None:
    """The tokenizer of a folder; None if it has none.

    A tokenizer.json has precedence, as in transformers; in folders that this package wrote, the vocabulary from which it was made.

    Args:
      folder: written by Hugging Face or by this package.
      vocab: a different vocabulary to use with the folder's options.
    """
    path = folder / "tokenizer_config.json"
    stored = read_json(path) if path.is_file() else {}
    if "strip_accents" in stored and isinstance(stored["strip_accents"], bool):
        stored = {"keep_accents": not stored["strip_accents"]} | stored
    if stored.get("tokenize_chinese_chars") is False and not (folder / JSON_FILE).is_file():
        raise InputError(
            f"{path}: tokenize_chinese_chars false needs a {JSON_FILE}; save the tokenizer with transformers"
        )
    options = {option: stored.get(KEYS[option], default) for option, default in TEXT_OPTIONS.items()}
    for option, value in options.items():
        if not isinstance(value, bool):
            raise InputError(f"{path}: {KEYS[option]}: expected true or false, got {value!r}")
    if vocab:
        return open_tokenizer(vocab, **options)
    names = [VOCABULARY, WORDPIECE_FILE, JSON_FILE]
    if KEYS["map_punctuation"] not in stored:  # not written by this package
        names = [JSON_FILE, VOCABULARY, WORDPIECE_FILE]
    name = next((name for name in names if (folder / name).is_file()), None)
    if name is None:
        return None
    return open_tokenizer(folder / name, **options if name != JSON_FILE else {})


def _to_json(tokenizer: SentencePieceTokenizer) -> dict[str, Any]:
    """The contents of tokenizer.json, in the format of the `tokenizers` library."""
    model = protobuf.ModelProto.FromString(tokenizer.contents)
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
    names = tokenizer.pieces(tokenizer.special_ids)
    added_tokens = [
        {
            "id": token_id,
            "content": name,
            "single_word": False,
            "lstrip": token_id == tokenizer.mask_id,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for name, token_id in zip(names, tokenizer.special_ids, strict=True)
    ]
    _, _, cls_name, sep_name, _ = names
    cls = {"SpecialToken": {"id": cls_name, "type_id": 0}}
    first_sep, second_sep = ({"SpecialToken": {"id": sep_name, "type_id": segment}} for segment in (0, 1))
    first, second = ({"Sequence": {"id": name, "type_id": segment}} for segment, name in enumerate("AB"))
    ids = {cls_name: tokenizer.cls_id, sep_name: tokenizer.sep_id}
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
        "model": {
            "type": "Unigram",
            "unk_id": tokenizer.unk_id,
            "vocab": vocabulary,
            "byte_fallback": model.trainer_spec.byte_fallback,
        },
    }

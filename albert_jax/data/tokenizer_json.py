"""Hugging Face's tokenizer files: written so that transformers gives the ids that ALBERT was trained on, and read.

transformers 5 rebuilds its tokenizer from a bare `spiece.model` without SentencePiece's user-defined symbols and without
the digit-comma rule; a `tokenizer.json` beside it is what it takes instead.
"""

import base64
import json
import math
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from albert_jax.config import InputError, read_json, require
from albert_jax.data.tokenizer import SPACE, SPECIAL_PIECES, STOCK_PUNCTUATION, SYMBOLS, VOCABULARY, Tokenizer

proto: Any = sentencepiece_model_pb2  # its names are made as it is imported

SWITCHES = (
    ("lower_case", "do_lower_case", True),
    ("keep_accents", "keep_accents", False),
    ("map_punctuation", "map_punctuation", False),
)
"""Ours, the key in tokenizer_config.json, what it is where it is not said.  Only we read the last one."""

NEVER = -100.0
"""Added to the score of '2010,': the pieces of '2010' and ',' are then always better."""


def write(tokenizer: Tokenizer, max_length: int, folder: Path) -> list[str]:
    """Writes spiece.model, tokenizer.json and tokenizer_config.json, for `AlbertTokenizer.from_pretrained`.

    Returns:
      What a user should know of it.
    """
    write_vocabulary(tokenizer, max_length, folder)
    (folder / "tokenizer.json").write_text(json.dumps(_fast(tokenizer), ensure_ascii=False), encoding="utf-8")
    lost = "map_punctuation: AlbertTokenizer lacks it, and curly quotes become <unk>; PreTrainedTokenizerFast has it"
    return [lost] if tokenizer.map_punctuation else []


def write_vocabulary(tokenizer: Tokenizer, max_length: int, folder: Path) -> None:
    """Writes spiece.model, and the switches as tokenizer_config.json: what `read` wants."""
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL_PIECES, strict=True))
    config: dict[str, Any] = names | {
        "tokenizer_class": "AlbertTokenizer",
        "bos_token": "[CLS]",
        "eos_token": "[SEP]",
        "do_lower_case": tokenizer.lower_case,
        "keep_accents": tokenizer.keep_accents,
        "map_punctuation": tokenizer.map_punctuation,
        "model_max_length": max_length,
        # transformers 5 leaves token_type_ids out unless told, and pairs then look like one segment.
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
    }
    (folder / VOCABULARY).write_bytes(tokenizer.model_proto)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def read(folder: Path, vocab: str | Path = "") -> Tokenizer | None:
    """The tokenizer of a folder: spiece.model, or tokenizer.json alone as transformers 5 saves it; None if neither is there.

    Args:
      folder: of Hugging Face's or of ours.
      vocab: another SentencePiece model to take, with the folder's switches.

    Raises:
      InputError: a file that is damaged or not of an ALBERT tokenizer.
    """
    path = folder / "tokenizer_config.json"
    stored = read_json(path) if path.is_file() else {}
    switches = {}
    for ours, theirs, default in SWITCHES:
        switches[ours] = stored.get(theirs, default)
        require(isinstance(switches[ours], bool), f"{path}: {theirs}: expected true or false, got {switches[ours]!r}")
    if vocab or (folder / VOCABULARY).is_file():
        return Tokenizer(vocab or folder / VOCABULARY, **switches)
    made = folder / "tokenizer.json"
    if not made.is_file():
        return None
    model_proto, own = to_sentencepiece(made)
    return Tokenizer(made, **own, model_proto=model_proto)


def _fast(tokenizer: Tokenizer) -> dict[str, Any]:
    """The same tokenizer in the words of the `tokenizers` library."""
    model = proto.ModelProto.FromString(tokenizer.model_proto)
    defined = [piece.piece for piece in model.pieces if piece.type == proto.ModelProto.SentencePiece.USER_DEFINED]
    vocabulary = []
    for piece in model.pieces:
        merged = len(piece.piece) > 1 and piece.piece[-1] == "," and piece.piece[-2].isdigit()
        vocabulary.append([piece.piece, piece.score + (NEVER if merged else 0.0)])
    normalizers: list[dict[str, Any]] = []
    if tokenizer.map_punctuation:
        normalizers += [_replace(chr(old), chr(new)) for old, new in STOCK_PUNCTUATION.items()]
    if not tokenizer.keep_accents:
        normalizers += [{"type": "NFKD"}, {"type": "StripAccents"}]
    if tokenizer.lower_case:
        normalizers.append({"type": "Lowercase"})
    charsmap = base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()
    if charsmap:
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    space = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    cutters: list[dict[str, Any]] = [{"type": "WhitespaceSplit"}, space]
    if defined:  # SentencePiece cuts the text at these before it looks for pieces
        pattern = "|".join(_escaped(symbol) for symbol in sorted(defined, key=len, reverse=True))
        cutters.append({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})

    def special(name: str, segment: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": name, "type_id": segment}}

    def text(name: str, segment: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": segment}}

    single = [special("[CLS]", 0), text("A", 0), special("[SEP]", 0)]
    ids = {"[CLS]": tokenizer.cls_id, "[SEP]": tokenizer.sep_id}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": id_,
                "content": name,
                "single_word": False,
                "lstrip": name == "[MASK]",
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for name, id_ in zip(SPECIAL_PIECES, tokenizer.special_ids, strict=True)
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": cutters},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, text("B", 1), special("[SEP]", 1)],
            "special_tokens": {name: {"id": name, "ids": [id_], "tokens": [name]} for name, id_ in ids.items()},
        },
        "decoder": space,
        "model": {"type": "Unigram", "unk_id": tokenizer.unk_id, "vocab": vocabulary, "byte_fallback": False},
    }


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": old}, "content": new}


def _escaped(symbol: str) -> str:
    return "".join(f"\\{c}" if c.isascii() and not c.isalnum() else c for c in symbol)


NORMALIZERS = ("Replace", "NFKD", "StripAccents", "Lowercase", "Precompiled")
"""What an ALBERT tokenizer does to text before it is cut; by anything else it would be another tokenizer."""


def to_sentencepiece(path: Path) -> tuple[bytes, dict[str, bool]]:
    """The SentencePiece model that a tokenizer.json was made from, near enough to give the same ids; and its switches.

    Raises:
      InputError: it is damaged, or not of an ALBERT tokenizer (Unigram).
    """
    stored = read_json(path)
    model = stored.get("model")
    wanted = f"{path}: an ALBERT tokenizer's is a Unigram model"
    require(isinstance(model, dict) and model.get("type", "Unigram") == "Unigram" and "vocab" in model, wanted)
    assert model is not None  # for the type checker
    unk_id = model.get("unk_id")
    require(type(unk_id) is int and 0 <= unk_id < 2**24, f"{path}: damaged: unk_id is {unk_id!r}; copy it again")
    made = proto.ModelProto()
    kinds = proto.ModelProto.SentencePiece
    try:
        for number, (piece, score) in enumerate(model["vocab"]):
            if number == unk_id:
                kind = kinds.UNKNOWN
            elif piece in SPECIAL_PIECES:
                kind = kinds.CONTROL
            else:
                kind = kinds.USER_DEFINED if piece in SYMBOLS and score == 0 else kinds.NORMAL
            require(isinstance(piece, str) and math.isfinite(score), f"{path}: piece {number} is damaged")
            made.pieces.add(piece=piece, score=score, type=kind)
        first = stored.get("normalizer") or {"type": "Sequence", "normalizers": []}
        steps = first["normalizers"] if first["type"] == "Sequence" else [first]
        done = [step["type"] for step in steps]
        charsmap = next((step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"), "")
        made.normalizer_spec.precompiled_charsmap = base64.b64decode(charsmap, validate=True)
        replaced = [step["pattern"].get("String", "") for step in steps if step["type"] == "Replace"]
    except InputError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}: {error}); copy it again") from None
    for step in done:
        require(
            step in NORMALIZERS,
            f"{path}: normalizer {step!r} is no ALBERT tokenizer's; known: {', '.join(NORMALIZERS)}",
        )
    made.normalizer_spec.name = "nmt_nfkc"
    made.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
    made.trainer_spec.vocab_size = len(made.pieces)
    made.trainer_spec.unk_id = unk_id
    switches = {"lower_case": "Lowercase" in done, "keep_accents": "StripAccents" not in done}
    return made.SerializeToString(), switches | {"map_punctuation": "“" in replaced}

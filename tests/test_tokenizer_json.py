"""Hugging Face's tokenizer files: the `tokenizers` library, which transformers uses, gives the same ids; reading them back."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from albert_jax.config import InputError
from albert_jax.data import tokenizer_json
from albert_jax.data.tokenizer import Tokenizer

from .conftest import GOLDEN_TOKENIZER, RELEASED_VOCABULARY, needs_released_vocabulary
from .golden.make_tokenizer import TEXTS

OPTIONS: list[dict[str, bool]] = [
    {},
    {"keep_accents": True},
    {"keep_accents": True, "lower_case": False},
    {"map_punctuation": True},
]
PATHS = {"small": GOLDEN_TOKENIZER / "spiece.model", "released": RELEASED_VOCABULARY}


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("vocabulary", ["small", pytest.param("released", marks=needs_released_vocabulary)])
def test_tokenizers_library_gives_the_same_ids(vocabulary: str, options: dict[str, bool], tmp_path: Path) -> None:
    """On hard text; fails if '2010,' keeps its score, or if text is not split at user-defined symbols such as '-' first."""
    ours = Tokenizer(PATHS[vocabulary], **options)
    tokenizer_json.write(ours, 512, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        assert theirs.encode(text, add_special_tokens=False).ids == ids, text
    for pair in (("a [MASK] cat", "in 2010, (x)"), ("alone [MASK], 7,",)):
        encoding, expected = theirs.encode(*pair), ours(*pair)
        assert encoding.ids == expected["input_ids"][0].tolist()
        assert encoding.type_ids == expected["token_type_ids"][0].tolist()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("file", ["spiece.model", "tokenizer.json"])
def test_read_back(file: str, options: dict[str, bool], tmp_path: Path) -> None:
    """From either file alone; transformers 5 saves only tokenizer.json."""
    ours = Tokenizer(PATHS["small"], **options)
    tokenizer_json.write(ours, 128, tmp_path)
    for name in {"spiece.model", "tokenizer.json"} - {file}:
        (tmp_path / name).unlink()
    back = tokenizer_json.read(tmp_path)
    assert back is not None
    assert back.encode_batch(TEXTS) == ours.encode_batch(TEXTS)
    assert (back.special_ids, back.vocab_size) == (ours.special_ids, ours.vocab_size)
    assert (back.starts_word == ours.starts_word).all()
    names = ("map_punctuation", "keep_accents", "lower_case")
    assert [getattr(back, name) for name in names] == [getattr(ours, name) for name in names]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_are_read_from_tokenizer_json(options: dict[str, bool], tmp_path: Path) -> None:
    """Without tokenizer_config.json; fails if the defaults are used then."""
    ours = Tokenizer(PATHS["small"], **options)
    tokenizer_json.write(ours, 128, tmp_path)
    (tmp_path / "spiece.model").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    back = tokenizer_json.read(tmp_path)
    assert back is not None
    assert back.encode_batch(TEXTS) == ours.encode_batch(TEXTS)


def test_single_normalizer_that_is_not_in_a_sequence(tmp_path: Path) -> None:
    tokenizer_json.write(Tokenizer(PATHS["small"], keep_accents=True, lower_case=False), 128, tmp_path)
    (tmp_path / "spiece.model").unlink()
    expected = tokenizer_json.read(tmp_path)
    rewrite_json(lambda t: t.update(normalizer=t["normalizer"]["normalizers"][0]))(tmp_path / "tokenizer.json")
    actual = tokenizer_json.read(tmp_path)
    assert actual is not None
    assert expected is not None
    assert actual.model_proto == expected.model_proto


def test_folder_without_tokenizer_files(tmp_path: Path) -> None:
    assert tokenizer_json.read(tmp_path) is None
    tokenizer = tokenizer_json.read(tmp_path, PATHS["small"])
    assert tokenizer is not None
    assert tokenizer.path == PATHS["small"]


def rewrite_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def rewrite(path: Path) -> None:
        stored = json.loads(path.read_text())
        change(stored)
        path.write_text(json.dumps(stored))

    return rewrite


@dataclasses.dataclass
class Bad:
    change: Callable[[Path], Any]
    message: str


BAD = {
    "no JSON": Bad(lambda path: path.write_text("{"), "tokenizer.json:1: not JSON"),
    "cut short": Bad(lambda path: path.write_text(path.read_text()[:-9]), "not JSON"),
    "not UTF-8": Bad(lambda path: path.write_bytes(b'{"a": "\xff"}'), "not UTF-8"),
    "different model type": Bad(
        rewrite_json(lambda t: t["model"].update(type="WordPiece")), "does not hold a Unigram model"
    ),
    "no model": Bad(rewrite_json(lambda t: t.pop("model")), "does not hold a Unigram model"),
    "no unk_id": Bad(rewrite_json(lambda t: t["model"].pop("unk_id")), "corrupted: unk_id is None"),
    "unk_id": Bad(rewrite_json(lambda t: t["model"].update(unk_id="1")), "corrupted: unk_id is '1'"),
    "unknown normalizer": Bad(
        rewrite_json(lambda t: t["normalizer"]["normalizers"].insert(0, {"type": "Prepend", "prepend": "x"})),
        "normalizer 'Prepend' is not one of an ALBERT tokenizer",
    ),
    "score too large": Bad(rewrite_json(lambda t: t["model"]["vocab"].__setitem__(9, ["x", 10**400])), "corrupted"),
    "piece is a number": Bad(rewrite_json(lambda t: t["model"]["vocab"].__setitem__(9, [7, 0.0])), "corrupted"),
    "score is text": Bad(rewrite_json(lambda t: t["model"]["vocab"].__setitem__(9, ["x", "high"])), "corrupted"),
    "rows": Bad(rewrite_json(lambda t: t["model"].update(vocab=[1, 2])), "corrupted"),
    "charsmap": Bad(
        rewrite_json(lambda t: t["normalizer"]["normalizers"][-1].update(precompiled_charsmap="?")), "corrupted"
    ),
    "specials": Bad(
        rewrite_json(lambda t: t["model"]["vocab"].__setitem__(4, ["xyzzy", 0.0])), "lacks the special piece"
    ),
    "duplicate piece": Bad(
        rewrite_json(lambda t: t["model"]["vocab"].__setitem__(20, ["x", 0.0])), "not a SentencePiece model"
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_gives_a_one_line_error(case: str, tmp_path: Path) -> None:
    tokenizer_json.write(Tokenizer(PATHS["small"]), 512, tmp_path)
    (tmp_path / "spiece.model").unlink()
    BAD[case].change(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match=BAD[case].message) as caught:
        tokenizer_json.read(tmp_path)
    assert "\n" not in str(caught.value)

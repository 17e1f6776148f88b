"""Hugging Face's tokenizer files: the `tokenizers` library, which transformers runs on, gives our ids by them; and back."""

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

from .golden.make_tokenizer import TEXTS
from .test_tokenizer import GOLDEN, RELEASED, needs_released

SWITCHES: list[dict[str, bool]] = [
    {},
    {"keep_accents": True},
    {"keep_accents": True, "lower_case": False},
    {"map_punctuation": True},
]
PATHS = {"small": GOLDEN / "spiece.model", "released": RELEASED}


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("vocabulary", ["small", pytest.param("released", marks=needs_released)])
def test_the_same_ids(vocabulary: str, switches: dict[str, bool], tmp_path: Path) -> None:
    """On hard text; fails if '2010,' keeps its score, or a user-defined symbol such as '-' is not cut off first."""
    ours = Tokenizer(PATHS[vocabulary], **switches)
    tokenizer_json.write(ours, 512, tmp_path)
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text, ids in zip(TEXTS, ours.encode_batch(TEXTS), strict=True):
        assert theirs.encode(text, add_special_tokens=False).ids == ids, text
    for pair in (("a [MASK] cat", "in 2010, (x)"), ("alone [MASK], 7,",)):
        found, wanted = theirs.encode(*pair), ours(*pair)
        assert found.ids == wanted["input_ids"][0].tolist()
        assert found.type_ids == wanted["token_type_ids"][0].tolist()


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("kept", ["spiece.model", "tokenizer.json"])
def test_read_back(kept: str, switches: dict[str, bool], tmp_path: Path) -> None:
    """From either file; transformers 5 saves tokenizer.json alone."""
    ours = Tokenizer(PATHS["small"], **switches)
    tokenizer_json.write(ours, 128, tmp_path)
    for name in {"spiece.model", "tokenizer.json"} - {kept}:
        (tmp_path / name).unlink()
    back = tokenizer_json.read(tmp_path)
    assert back is not None
    assert back.encode_batch(TEXTS) == ours.encode_batch(TEXTS)
    assert (back.special_ids, back.vocab_size) == (ours.special_ids, ours.vocab_size)
    assert (back.starts_word == ours.starts_word).all()
    names = ("map_punctuation", "keep_accents", "lower_case")
    assert [getattr(back, name) for name in names] == [getattr(ours, name) for name in names]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_tokenizer_json_says_how_text_is_cleaned(switches: dict[str, bool], tmp_path: Path) -> None:
    """Without tokenizer_config.json; fails if the switches are the defaults then."""
    ours = Tokenizer(PATHS["small"], **switches)
    tokenizer_json.write(ours, 128, tmp_path)
    (tmp_path / "spiece.model").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    back = tokenizer_json.read(tmp_path)
    assert back is not None
    assert back.encode_batch(TEXTS) == ours.encode_batch(TEXTS)


def test_one_normalizer_without_a_list(tmp_path: Path) -> None:
    tokenizer_json.write(Tokenizer(PATHS["small"], keep_accents=True, lower_case=False), 128, tmp_path)
    (tmp_path / "spiece.model").unlink()
    wanted = tokenizer_json.read(tmp_path)
    vocabulary(lambda t: t.update(normalizer=t["normalizer"]["normalizers"][0]))(tmp_path / "tokenizer.json")
    found = tokenizer_json.read(tmp_path)
    assert found is not None
    assert wanted is not None
    assert found.model_proto == wanted.model_proto


def test_nothing_there(tmp_path: Path) -> None:
    assert tokenizer_json.read(tmp_path) is None
    other = tokenizer_json.read(tmp_path, PATHS["small"])
    assert other is not None
    assert other.path == PATHS["small"]


def vocabulary(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
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
    "another kind": Bad(vocabulary(lambda t: t["model"].update(type="WordPiece")), "is a Unigram model"),
    "no model": Bad(vocabulary(lambda t: t.pop("model")), "is a Unigram model"),
    "no unk_id": Bad(vocabulary(lambda t: t["model"].pop("unk_id")), "damaged: unk_id is None"),
    "unk_id": Bad(vocabulary(lambda t: t["model"].update(unk_id="1")), "damaged: unk_id is '1'"),
    "another normalizer": Bad(
        vocabulary(lambda t: t["normalizer"]["normalizers"].insert(0, {"type": "Prepend", "prepend": "x"})),
        "normalizer 'Prepend' is no ALBERT tokenizer's",
    ),
    "a large score": Bad(vocabulary(lambda t: t["model"]["vocab"].__setitem__(9, ["x", 10**400])), "damaged"),
    "a piece": Bad(vocabulary(lambda t: t["model"]["vocab"].__setitem__(9, [7, 0.0])), "damaged"),
    "a score": Bad(vocabulary(lambda t: t["model"]["vocab"].__setitem__(9, ["x", "high"])), "damaged"),
    "rows": Bad(vocabulary(lambda t: t["model"].update(vocab=[1, 2])), "damaged"),
    "charsmap": Bad(vocabulary(lambda t: t["normalizer"]["normalizers"][-1].update(precompiled_charsmap="?")), "damag"),
    "specials": Bad(
        vocabulary(lambda t: t["model"]["vocab"].__setitem__(4, ["xyzzy", 0.0])), "lacks the special piece"
    ),
    "a piece twice": Bad(
        vocabulary(lambda t: t["model"]["vocab"].__setitem__(20, ["x", 0.0])), "not a SentencePiece model"
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_told_in_one_line(case: str, tmp_path: Path) -> None:
    tokenizer_json.write(Tokenizer(PATHS["small"]), 512, tmp_path)
    (tmp_path / "spiece.model").unlink()
    BAD[case].change(tmp_path / "tokenizer.json")
    with pytest.raises(InputError, match=BAD[case].message) as caught:
        tokenizer_json.read(tmp_path)
    assert "\n" not in str(caught.value)

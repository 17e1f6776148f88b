"""Tokenizer: golden ids on the released vocabulary, offsets on hard text, training, and every bad input in one line."""

import argparse
import inspect
import json
import os
import pickle
import random
import textwrap
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from albert_jax.config import InputError
from albert_jax.data.tokenizer import SPECIAL_PIECES, SYMBOLS, Tokenizer, preprocess, train_vocabulary

NEAR = Path(__file__).parents[1] / "../shared/data/tokenizer/spiece.model"
RELEASED = Path(os.environ.get("ALBERT_SPIECE_MODEL", NEAR))
needs_released = pytest.mark.skipif(
    not RELEASED.is_file(), reason="set ALBERT_SPIECE_MODEL to ALBERT's spiece.model (30,000 pieces) to run this"
)

# Makes digit-comma pieces likely, at the start of words and inside them.
NUMBERS = ["in 2010, it cost $5,000, in 1999, it cost $1,500,000, (a12,b12,) x7,y7, 00,00, 7,7,7, 42, 42,"] * 40
SOURCE = [line for module in (argparse, textwrap, random) for line in inspect.getsource(module).splitlines()]
# NFKD drops accents, so the small vocabulary knows é only as e; İ, ﬁ, ½ change length on the way.
HARD = ["", " \t\r\n ", "$1,234,567, (x7,y7,)", "Café cafe\u0301 naïve \u0301x ÅNGSTRÖM", "word" * 5000]
HARD += ["漢字かな ｶﾞ 각 \u1100\u1161\u11a8", "🙂👩‍👩‍👧 🇫🇮", "a\x01b\x07 c\x7f\x00d \x00 e\x00", "\ufeffbom\r\ncrlf\r\n"]
HARD += ["ﬁrst ﬃ ½ ﷺ İstanbul ΟΔΟΣ ¨x ▁y…", "“quoted” – it’s — a−b 5″ n´t x", "\u200b\u00ad\u2028x\u2029 \u3000"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    train_vocabulary(SOURCE + NUMBERS, path, 600)
    return Tokenizer(path)


@pytest.fixture(scope="module")
def released() -> Tokenizer:
    return Tokenizer(RELEASED)


def surface(tokenizer: Tokenizer, token: int) -> str:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path)).id_to_piece(token)


@needs_released
@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("This is a test", [48, 25, 21, 1289]),
        ("1,234,567 apples, in 2010, cost $5", [137, 15, 20404, 15, 264, 4167, 4037, 18, 15, 19, 498, 15, 1516, 8367]),
        ("in 2010, cost", [19, 498, 15, 1516]),  # without the digit-comma rule: [19, 1534, 1516]
        ("The Cat", [14, 2008]),  # cased: [13, 1, 438, 13, 1, 721]
    ],
)
def test_golden_ids(released: Tokenizer, text: str, ids: list[int]) -> None:
    assert released.encode(text) == ids


GOLDEN = Path(__file__).parent / "golden" / "tokenizer"


@pytest.mark.parametrize("switches", [{}, {"keep_accents": True}, {"keep_accents": True, "lower_case": False}], ids=str)
@pytest.mark.parametrize("vocabulary", ["small", pytest.param("released", marks=needs_released)])
def test_golden_hard_text(vocabulary: str, switches: dict[str, bool]) -> None:
    """What transformers 4's slow AlbertTokenizer gave; fails without NFKD, the digit-comma rule, or by NFC."""
    tokenizer = Tokenizer(RELEASED if vocabulary == "released" else GOLDEN / "spiece.model", **switches)
    name = "" if not switches else "cased" if "lower_case" in switches else "keep_accents"
    rows = json.loads((GOLDEN / "ids.json").read_text())
    assert len(rows) == 23
    for row, ids in zip(rows, tokenizer.encode_batch([row["text"] for row in rows]), strict=True):
        assert ids == row[vocabulary][name], row["text"]


@needs_released
def test_released_vocabulary(released: Tokenizer) -> None:
    """The counts break when the start-piece rule counts capitals ([CLS]), apostrophes or digits otherwise."""
    assert released.sha256 == "fefb02b667a6c5c2fe27602d28e5fb3428f66ab89c7d6f388e7c8d44a02d0336"
    assert released.vocab_size == 30000
    assert np.bincount(released.starts_word).tolist() == [6758, 23242]
    for hard in HARD:
        check_offsets(released, hard)
    kept = Tokenizer(RELEASED, keep_accents=True)
    text = "I was born in 92000, and this is falsé."
    assert kept.encode(text) == [31, 23, 386, 19, 561, 3050, 15, 17, 48, 25, 8256, 18, 1, 9]
    assert Tokenizer(RELEASED, lower_case=False).encode("The Cat") == [13, 1, 438, 13, 1, 721]


@needs_released
def test_map_punctuation_leaves_nothing_unknown(released: Tokenizer) -> None:
    text = "“He said — or ― it’s ‘so’”, 3‑4, 5−2 ´n′"
    mapped = Tokenizer(RELEASED, map_punctuation=True)
    assert released.unk_id in released.encode(text)
    assert mapped.unk_id not in mapped.encode(text)
    assert mapped.encode("1990–2010") == released.encode("1990–2010")  # the en dash has a piece of its own
    assert mapped.encode("it’s “so”") == released.encode('it\'s "so"')


def test_preprocess_is_the_released_one() -> None:
    """Against the released steps, spelled out; fails if marks are dropped before NFKD or case is folded per letter."""
    for text in HARD:
        slow = unicodedata.normalize("NFKD", " ".join(text.replace("\0", "").split()))
        assert preprocess(text) == "".join(c for c in slow if not unicodedata.combining(c)).lower()
    assert preprocess("  The\tCafé\r\nﬁn ") == "the cafe fin"
    assert preprocess("Café", keep_accents=True, lower_case=False) == "Café"


def check_offsets(tokenizer: Tokenizer, text: str) -> None:
    """What holds of any text.  A range may be wider than its piece (½ is three), hence `in`; ς needs context."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    ids, ranges = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text)
    starts = [start for start, _ in ranges]
    assert starts == sorted(starts)
    for token, (start, end) in zip(ids, ranges, strict=True):
        assert 0 <= start <= end <= len(text)
        part = text[start:end]
        piece = model.id_to_piece(token).lstrip("▁")
        assert part == part.lstrip()  # no leading space
        if token != tokenizer.unk_id:
            assert bool(piece) == (start < end)
            clean = model.normalize(tokenizer.preprocess(part)).lstrip("▁").replace("ς", "σ")
            assert piece.replace("ς", "σ") in clean
            assert piece == clean or not part.isascii()
    if text.isascii() and text.isprintable():  # here nothing expands: the ranges part the text
        assert "".join(text[start:end] for start, end in ranges) == text.replace(" ", "")


SWITCHES = [{}, {"map_punctuation": True}, {"keep_accents": True, "lower_case": False}, {"keep_accents": True}]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_hard_text(small: Tokenizer, switches: dict[str, bool]) -> None:
    """The three ways to encode agree; the batch fails if the re-split of one row leaks into another."""
    tokenizer = Tokenizer(small.path, **switches)
    for text, row in zip(HARD, tokenizer.encode_batch(HARD), strict=True):
        assert row == tokenizer.encode(text)
        check_offsets(tokenizer, text)
    assert tokenizer.encode_batch([]) == []


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
        st.text(st.sampled_from(list("aeé\u0301İΣﬁ½…ﷺ 　\t\0\x01\u200b▁7,.2“—漢각🙂")), max_size=30),
        st.text(st.sampled_from(list("in th7,0 def(self")), max_size=60),
    ),
    switches=st.sampled_from(SWITCHES),
)
@example(text="ΑΣ Σ", switches={})
def test_offsets_property(small: Tokenizer, text: str, switches: dict[str, bool]) -> None:
    check_offsets(Tokenizer(small.path, **switches), text)


def test_offsets_by_hand(small: Tokenizer) -> None:
    """Words come back from the ranges of their pieces, whatever the pieces; fails if offsets count bytes."""
    text = "  Über  the cafe\u0301, ﬁve\u00a0İ in 2010, x"
    _, ranges = small.encode_with_offsets(text)
    covered = {at for start, end in ranges for at in range(start, end)}
    assert "".join(c for at, c in enumerate(text) if at in covered) == "Überthecafe\u0301,ﬁveİin2010,x"
    assert [text[s:e] for s, e in ranges if "," in text[s:e]] == [",", ","]


def test_no_digit_comma_piece_survives(small: Tokenizer) -> None:
    """Also inside words, where Google's code under Python 3 would add a space; fails if '▁' is not taken off again."""
    text = "in 2010, it cost $5,000, (a12,b12,) x7,y7, 42, 42,"
    pieces = [surface(small, token) for token in small.encode(text)]
    assert not [piece for piece in pieces if len(piece) > 1 and piece.endswith(",")]
    assert "".join(pieces) == "▁" + text.replace(" ", "▁")
    plain = sentencepiece.SentencePieceProcessor(model_file=str(small.path)).encode(text, out_type=str)
    replaced = [piece for piece in plain if piece[-2:-1].isdigit() and piece[-1] == ","]
    assert {piece[0] == "▁" for piece in replaced} == {True, False}  # both kinds were there to replace


def test_decode(small: Tokenizer) -> None:
    ids = [small.cls_id, *small.encode("return  The Value"), small.sep_id, small.pad_id, small.mask_id]
    assert small.decode(ids) == "return the value" == small.decode(np.array(ids, np.int32))
    assert pickle.loads(pickle.dumps(small)).encode("self, 7,") == small.encode("self, 7,")


def test_start_pieces_of_whole_words(small: Tokenizer) -> None:
    starts = {surface(small, i): bool(small.starts_word[i]) for i in range(small.vocab_size)}
    assert [starts[piece] for piece in ("<unk>", "▁self", "(", "7", "'")] == [True] * 5
    assert [starts[piece] for piece in ("e", "[MASK]")] == [False] * 2


def test_train_layout_and_determinism(small: Tokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Fails with a second thread, a seed from the clock, or the symbols given as one string ('"' and ',' quote it)."""
    again = tmp_path / "new" / "again.model"
    train_vocabulary(iter(SOURCE + NUMBERS), again, 600)
    assert again.read_bytes() == small.path.read_bytes()
    assert [file.name for file in again.parent.iterdir()] == ["again.model"]  # no temporary file left
    assert [surface(small, i) for i in range(13)] == [*SPECIAL_PIECES, *SYMBOLS]
    assert (small.pad_id, small.unk_id, small.cls_id, small.sep_id, small.mask_id) == (0, 1, 2, 3, 4)
    assert small.vocab_size == 600 == len(small.starts_word)
    assert surface(small, small.encode("SELF")[0]) == "▁self"  # trained on small letters
    assert capfd.readouterr() == ("", "")


def test_a_long_text_is_not_skipped(tmp_path: Path) -> None:
    """SentencePiece leaves out sentences above 4,192 bytes with a warning that nobody sees."""
    train_vocabulary(["long text " * 1000], tmp_path / "v.model", 22)
    assert Tokenizer(tmp_path / "v.model").unk_id not in Tokenizer(tmp_path / "v.model").encode("long text")


def written(folder: Path, content: bytes) -> Path:
    (folder / "x.model").write_bytes(content)
    return folder / "x.model"


def without_specials(folder: Path) -> Path:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SOURCE[:300]), model_prefix=str(folder / "plain"), vocab_size=200, minloglevel=2
    )
    return folder / "plain.model"


def broken_source() -> Iterator[str]:
    raise InputError("corpus.txt:7: not UTF-8 at byte 12")
    yield "never"


BAD = {
    "no such file": (lambda d, t: Tokenizer(d / "none.model"), "none.model: cannot read the vocabulary: No such file"),
    "a folder": (lambda d, t: Tokenizer(d), "Is a directory"),
    "garbage": (
        lambda d, t: Tokenizer(written(d, b"garbage" * 100)),
        r"x.model is not a SentencePiece model \(700 bytes\)",
    ),
    "empty": (lambda d, t: Tokenizer(written(d, b"")), r"x.model is not a SentencePiece model \(0 bytes\)"),
    "cut short": (lambda d, t: Tokenizer(written(d, t.path.read_bytes()[:-7])), "x.model is not a SentencePiece model"),
    "lfs": (lambda d, t: Tokenizer(written(d, b"version https://git-lfs.github.com/spec/v1\n")), "git lfs pull"),
    "specials": (lambda d, t: Tokenizer(without_specials(d)), "plain.model: .*lacks the special piece '<pad>'"),
    "surrogate": (lambda d, t: t.encode_batch(["fine", "bad \ud800"]), r"lone surrogate '\\ud800' after 'bad '"),
    "surrogate, offsets": (lambda d, t: t.encode_with_offsets("\udcff"), "lone surrogate"),
    "id": (lambda d, t: t.decode([0, 600]), "token id 600 is not in .*small.model, which has 600 pieces"),
    "negative id": (lambda d, t: t.decode([-1]), "token id -1"),
    "too large": (lambda d, t: train_vocabulary(SOURCE[:50], d / "v", 9000), r"v: .* 9000 .*set it to a value <= \d+"),
    "too small": (lambda d, t: train_vocabulary(SOURCE[:50], d / "v", 20), "smaller than required_chars. 20 vs"),
    "below the layout": (lambda d, t: train_vocabulary(SOURCE[:50], d / "v", 4), "vocab_size: at least 14.* got 4"),
    "no text": (lambda d, t: train_vocabulary([], d / "v", 100), "v: no text to train"),
    "blank text": (lambda d, t: train_vocabulary(["", " \n"], d / "v", 100), "v: no text to train"),
    "invisible text": (lambda d, t: train_vocabulary(["\u200b"], d / "v", 100), "no usable characters"),
    "surrogate, trained": (lambda d, t: train_vocabulary(["a", "\ud800"], d / "v", 100), "^lone surrogate"),
    "its source fails": (lambda d, t: train_vocabulary(broken_source(), d / "v", 100), "^corpus.txt:7: not UTF-8"),
    "trained onto a folder": (lambda d, t: train_vocabulary(["a"], d, 100), "a folder stands where"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_told_in_one_line(small: Tokenizer, tmp_path: Path, case: str) -> None:
    act, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        act(tmp_path, small)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "v").exists()

"""The tokenizer: golden ids of the released vocabulary, offsets on hard text, training of a vocabulary, and errors."""

import argparse
import inspect
import json
import pickle
import random
import textwrap
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from albert_jax.config import InputError
from albert_jax.data.sentencepiece_tokenizer import SYMBOLS, train_vocabulary
from albert_jax.data.tokenizer import SPECIAL_PIECES, Tokenizer, preprocess
from albert_jax.data.tokenizer_files import open_tokenizer

from .conftest import GOLDEN_TOKENIZER, HARD_TEXTS, RELEASED_VOCABULARY, needs_released_vocabulary

# Training on these gives digit-comma pieces, at the start of words and inside them.
NUMBERS = ["in 2010, it cost $5,000, in 1999, it cost $1,500,000, (a12,b12,) x7,y7, 00,00, 7,7,7, 42, 42,"] * 40
SOURCE = [line for module in (argparse, textwrap, random) for line in inspect.getsource(module).splitlines()]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("vocabulary") / "small.model"
    train_vocabulary(SOURCE + NUMBERS, path, 600)
    return open_tokenizer(path)


@pytest.fixture(scope="module")
def released() -> Tokenizer:
    return open_tokenizer(RELEASED_VOCABULARY)


def surface(tokenizer: Tokenizer, token: int) -> str:
    return sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path)).id_to_piece(token)


@needs_released_vocabulary
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


@pytest.mark.parametrize("options", [{}, {"keep_accents": True}, {"keep_accents": True, "lower_case": False}], ids=str)
@pytest.mark.parametrize("vocabulary", ["small", pytest.param("released", marks=needs_released_vocabulary)])
def test_golden_hard_text(vocabulary: str, options: dict[str, bool]) -> None:
    """The ids of transformers 4's slow AlbertTokenizer; fails without NFKD or the digit-comma rule, or with NFC."""
    tokenizer = open_tokenizer(
        RELEASED_VOCABULARY if vocabulary == "released" else GOLDEN_TOKENIZER / "spiece.model", **options
    )
    name = "" if not options else "cased" if "lower_case" in options else "keep_accents"
    rows = json.loads((GOLDEN_TOKENIZER / "ids.json").read_text())
    assert len(rows) == 23
    for row, ids in zip(rows, tokenizer.encode_batch([row["text"] for row in rows]), strict=True):
        assert ids == row[vocabulary][name], row["text"]


@needs_released_vocabulary
def test_released_vocabulary(released: Tokenizer) -> None:
    """The counts change if the rule for pieces that start a word treats capitals ([CLS]), apostrophes or digits differently."""
    assert released.sha256 == "fefb02b667a6c5c2fe27602d28e5fb3428f66ab89c7d6f388e7c8d44a02d0336"
    assert released.vocab_size == 30000
    assert np.bincount(released.starts_word).tolist() == [6758, 23242]
    for hard in HARD_TEXTS:
        check_offsets(released, hard)
    with_accents = open_tokenizer(RELEASED_VOCABULARY, keep_accents=True)
    text = "I was born in 92000, and this is falsé."
    assert with_accents.encode(text) == [31, 23, 386, 19, 561, 3050, 15, 17, 48, 25, 8256, 18, 1, 9]
    assert open_tokenizer(RELEASED_VOCABULARY, lower_case=False).encode("The Cat") == [13, 1, 438, 13, 1, 721]


@needs_released_vocabulary
def test_map_punctuation_leaves_nothing_unknown(released: Tokenizer) -> None:
    text = "“He said — or ― it’s ‘so’”, 3‑4, 5−2 ´n′"
    mapped = open_tokenizer(RELEASED_VOCABULARY, map_punctuation=True)
    assert released.unk_id in released.encode(text)
    assert mapped.unk_id not in mapped.encode(text)
    assert mapped.encode("1990–2010") == released.encode("1990–2010")  # the vocabulary has an en dash
    assert mapped.encode("it’s “so”") == released.encode('it\'s "so"')


def test_preprocess_equals_the_released_code() -> None:
    """Compared with the released steps; fails if marks are dropped before NFKD, or if letters are lowered one by one."""
    for text in HARD_TEXTS:
        decomposed = unicodedata.normalize("NFKD", " ".join(text.replace("\0", "").split()))
        assert preprocess(text) == "".join(c for c in decomposed if not unicodedata.combining(c)).lower()
    assert preprocess("  The\tCafé\r\nﬁn ") == "the cafe fin"
    assert preprocess("Café", keep_accents=True, lower_case=False) == "Café"


def check_offsets(tokenizer: Any, text: str) -> None:
    """Check what holds for any text.  A range may be wider than its piece (½ has three), so `in` is used; ς needs context."""
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
    if text.isascii() and text.isprintable():  # no character expands, so the ranges partition the text
        assert "".join(text[start:end] for start, end in ranges) == text.replace(" ", "")


OPTIONS = [{}, {"map_punctuation": True}, {"keep_accents": True, "lower_case": False}, {"keep_accents": True}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_hard_text(small: Tokenizer, options: dict[str, bool]) -> None:
    """All ways to encode agree; fails if replaced digit-comma pieces of one row reach a different row of the batch."""
    tokenizer = open_tokenizer(small.path, **options)
    for text, row in zip(HARD_TEXTS, tokenizer.encode_batch(HARD_TEXTS), strict=True):
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
    options=st.sampled_from(OPTIONS),
)
@example(text="ΑΣ Σ", options={})
def test_offsets_property(small: Tokenizer, text: str, options: dict[str, bool]) -> None:
    check_offsets(open_tokenizer(small.path, **options), text)


def test_offsets_cover_the_words(small: Tokenizer) -> None:
    """The ranges together cover all words, whatever the pieces; fails if offsets count bytes."""
    text = "  Über  the cafe\u0301, ﬁve\u00a0İ in 2010, x"
    _, ranges = small.encode_with_offsets(text)
    covered = {place for start, end in ranges for place in range(start, end)}
    assert "".join(c for place, c in enumerate(text) if place in covered) == "Überthecafe\u0301,ﬁveİin2010,x"
    assert [text[s:e] for s, e in ranges if "," in text[s:e]] == [",", ","]


def test_no_digit_comma_piece_is_returned(small: Tokenizer) -> None:
    """Also inside words, where Google's code under Python 3 adds a space; fails if '▁' is not removed."""
    text = "in 2010, it cost $5,000, (a12,b12,) x7,y7, 42, 42,"
    pieces = [surface(small, token) for token in small.encode(text)]
    assert not [piece for piece in pieces if len(piece) > 1 and piece.endswith(",")]
    assert "".join(pieces) == "▁" + text.replace(" ", "▁")
    plain = sentencepiece.SentencePieceProcessor(model_file=str(small.path)).encode(text, out_type=str)
    replaced = [piece for piece in plain if piece[-2:-1].isdigit() and piece[-1] == ","]
    assert {piece[0] == "▁" for piece in replaced} == {True, False}  # pieces at the start of words and inside them


def test_decode(small: Tokenizer) -> None:
    ids = [small.cls_id, *small.encode("return  The Value"), small.sep_id, small.pad_id, small.mask_id]
    assert small.decode(ids) == "return the value" == small.decode(np.array(ids, np.int32))
    assert pickle.loads(pickle.dumps(small)).encode("self, 7,") == small.encode("self, 7,")


def test_pieces_that_start_a_word(small: Tokenizer) -> None:
    starts = {surface(small, i): bool(small.starts_word[i]) for i in range(small.vocab_size)}
    assert [starts[piece] for piece in ("<unk>", "▁self", "(", "7", "'")] == [True] * 5
    assert [starts[piece] for piece in ("e", "[MASK]")] == [False] * 2


def test_trained_vocabulary_has_the_released_layout_and_is_deterministic(
    small: Tokenizer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Fails with two threads, a seed from the clock, or the symbols as one string (in which '"' and ',' are separators)."""
    again = tmp_path / "new" / "again.model"
    train_vocabulary(iter(SOURCE + NUMBERS), again, 600)
    assert again.read_bytes() == small.path.read_bytes()
    assert [file.name for file in again.parent.iterdir()] == ["again.model"]  # no temporary file
    assert [surface(small, i) for i in range(13)] == [*SPECIAL_PIECES, *SYMBOLS]
    assert (small.pad_id, small.unk_id, small.cls_id, small.sep_id, small.mask_id) == (0, 1, 2, 3, 4)
    assert small.vocab_size == 600 == len(small.starts_word)
    assert surface(small, small.encode("SELF")[0]) == "▁self"  # trained on lower-case text
    assert capfd.readouterr() == ("", "")


def test_long_texts_are_used_for_training(tmp_path: Path) -> None:
    """By default SentencePiece skips sentences above 4,192 bytes."""
    train_vocabulary(["long text " * 1000], tmp_path / "v.model", 22)
    assert open_tokenizer(tmp_path / "v.model").unk_id not in open_tokenizer(tmp_path / "v.model").encode("long text")


def write_model(folder: Path, content: bytes) -> Path:
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
    "no such file": (
        lambda d, t: open_tokenizer(d / "none.model"),
        "none.model: cannot read the vocabulary: No such file",
    ),
    "a folder": (lambda d, t: open_tokenizer(d), "Is a directory"),
    "garbage": (
        lambda d, t: open_tokenizer(write_model(d, b"garbage" * 100)),
        r"x.model is not a SentencePiece model \(700 bytes\)",
    ),
    "empty": (lambda d, t: open_tokenizer(write_model(d, b"")), r"x.model is not a SentencePiece model \(0 bytes\)"),
    "cut short": (
        lambda d, t: open_tokenizer(write_model(d, t.path.read_bytes()[:-7])),
        "x.model is not a SentencePiece model",
    ),
    "lfs": (
        lambda d, t: open_tokenizer(write_model(d, b"version https://git-lfs.github.com/spec/v1\n")),
        "git lfs pull",
    ),
    "specials": (lambda d, t: open_tokenizer(without_specials(d)), "plain.model: .*lacks the special piece '<pad>'"),
    "surrogate": (lambda d, t: t.encode_batch(["fine", "bad \ud800"]), r"lone surrogate '\\ud800' after 'bad '"),
    "surrogate, offsets": (lambda d, t: t.encode_with_offsets("\udcff"), "lone surrogate"),
    "id": (lambda d, t: t.decode([0, 600]), "token id 600 is not in .*small.model, which has 600 pieces"),
    "negative id": (lambda d, t: t.decode([-1]), "token id -1"),
    "too large": (lambda d, t: train_vocabulary(SOURCE[:50], d / "v", 9000), r"v: .* 9000 .*set it to a value <= \d+"),
    "too small": (lambda d, t: train_vocabulary(SOURCE[:50], d / "v", 20), "smaller than required_chars. 20 vs"),
    "below the layout": (lambda d, t: train_vocabulary(SOURCE[:50], d / "v", 4), "must be at least 14 .* got 4"),
    "no text": (lambda d, t: train_vocabulary([], d / "v", 100), "v: .* there is no text"),
    "blank text": (lambda d, t: train_vocabulary(["", " \n"], d / "v", 100), "v: .* there is no text"),
    "invisible text": (lambda d, t: train_vocabulary(["\u200b"], d / "v", 100), "no usable characters"),
    "surrogate, trained": (lambda d, t: train_vocabulary(["a", "\ud800"], d / "v", 100), "^lone surrogate"),
    "error of the source": (lambda d, t: train_vocabulary(broken_source(), d / "v", 100), "^corpus.txt:7: not UTF-8"),
    "the target is a folder": (lambda d, t: train_vocabulary(["a"], d, 100), "is a folder; name a file"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gives_a_one_line_error(small: Tokenizer, tmp_path: Path, case: str) -> None:
    act, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        act(tmp_path, small)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "v").exists()

"""Predictions of a pretrained model: batches equal single texts, and the command line equals the functions."""

import io
import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.data import tokenizer_files
from albert_jax.exchange import huggingface
from albert_jax.exchange.weights import Weights
from albert_jax.inference import answers, pretrained

from .conftest import refused
from .small_models import Loaded, random_model

TEXTS = ["the [MASK] text", "[MASK] in 2010, it cost [MASK] dollars, and so on and so on", "a random [MASK]."]
PAIRS = [("The text is wrapped.", "It has lines."), ("a", "b " * 30), ("", "")]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return random_model()


def outputs(loaded: Loaded, *texts: str) -> dict[str, np.ndarray]:
    """Of one text or pair, without padding."""
    model, params, tokenizer = loaded
    apply: Any = model.apply
    return jax.device_get(apply({"params": params}, **tokenizer(*texts)))


def test_fill_mask(loaded: Loaded) -> None:
    """Fails if padding is attended to, or a row's masks are taken from another place."""
    tokenizer = loaded[2]
    found = pretrained.fill_mask(*loaded, TEXTS, top_k=4)
    assert [len(masks) for masks in found] == [1, 2, 1]
    for text, masks in zip(TEXTS, found, strict=True):
        places = np.flatnonzero(tokenizer(text)["input_ids"][0] == tokenizer.mask_id)
        probabilities = np.asarray(jax.nn.softmax(outputs(loaded, text)["prediction_logits"][0, places]))
        for wanted, choices in zip(probabilities, masks, strict=True):
            best = np.argsort(-wanted)[:4]
            assert [answer["id"] for answer in choices] == best.tolist()
            assert [answer["token"] for answer in choices] == tokenizer.pieces(best)
            assert [answer["probability"] for answer in choices] == pytest.approx(wanted[best], rel=1e-4)


def test_sentence_order(loaded: Loaded) -> None:
    """Fails if the second text is not segment 1."""
    for pair, found in zip(PAIRS, pretrained.sentence_order(*loaded, PAIRS), strict=True):
        wanted = np.asarray(jax.nn.softmax(outputs(loaded, *pair)["sop_logits"][0]))
        assert [found["in_order"], found["swapped"]] == pytest.approx(wanted, rel=1e-4)


def test_three_sentence_classes(loaded: Loaded) -> None:
    """A sentence head with other classes is reported under their names; fails if two classes are assumed."""
    model = loaded[0].clone(sentence_classes=("next", "previous", "another document"))
    params = dict(loaded[1])
    kernel = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    params["sop_classifier"] = {"kernel": kernel, "bias": np.zeros(3, np.float32)}
    expected = np.asarray(jax.nn.softmax(outputs((model, params, loaded[2]), *PAIRS[0])["sop_logits"][0]))
    (record, line), *_ = answers.ANSWERS["sentence-order"]((model, params, loaded[2]), list(PAIRS[0]), Namespace())
    assert [record[name] for name in ("next", "previous", "another_document")] == pytest.approx(expected, rel=1e-4)
    assert line.startswith(f"next {expected[0]:.4f}, previous {expected[1]:.4f}, another document {expected[2]:.4f}: ")


@pytest.mark.parametrize("pooling", ["mean", "pooler"])
def test_embed_in_batches(loaded: Loaded, pooling: Any) -> None:
    """Several batches, the last one short, rows of many lengths."""
    texts = ["word " * (1 + number % 7) for number in range(2 * pretrained.BATCH_SIZE + 3)]
    found = pretrained.embed(*loaded, texts, pooling)
    assert found.shape == (len(texts), 32)
    assert found.dtype == np.float32
    for number in (0, 5, pretrained.BATCH_SIZE, len(texts) - 1):
        alone = outputs(loaded, texts[number])
        wanted = alone["last_hidden_state"][0].mean(0) if pooling == "mean" else alone["pooler_output"][0]
        np.testing.assert_allclose(found[number], wanted, atol=1e-5)
    assert pretrained.embed(*loaded, [], pooling).shape == (0, 32)


def test_warning_if_the_end_of_a_text_is_ignored(loaded: Loaded, caplog: pytest.LogCaptureFixture) -> None:
    whole = pretrained.embed(*loaded, ["word " * 500])
    assert "1 of 1 texts fill all 80 tokens" in caplog.text
    np.testing.assert_allclose(whole, pretrained.embed(*loaded, ["word " * 78]), atol=1e-6)


def test_generate(loaded: Loaded) -> None:
    """The surest first; what was given stays; the seed decides."""
    model, params, tokenizer = loaded
    text = "the [MASK] text has [MASK] lines"
    found = pretrained.generate(*loaded, text, length=9, temperature=0.0)
    assert sorted(found["order"]) == list(range(1, 12))
    ids = tokenizer(text + "[MASK]" * 9)["input_ids"]
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    places = np.flatnonzero(ids[0] == tokenizer.mask_id)
    apply: Any = model.apply
    logits = np.array(apply({"params": params}, ids)["prediction_logits"][0, places])
    logits[:, list(tokenizer.special_ids)] = -np.inf
    first = found["order"].index(1)
    assert first == np.asarray(jax.nn.log_softmax(logits)).max(1).argmax()
    assert tokenizer.pieces([logits[first].argmax()])[0] == found["filled"][first]
    piece_ids = [pieces.index(piece) for piece in found["filled"]]
    ids[0, places] = piece_ids
    assert found["text"] == tokenizer.decode(ids[0])

    drawn = [pretrained.generate(*loaded, text, length=9, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert pretrained.generate(*loaded, text, length=9, temperature=0.0, seed=5) == found


def test_special_pieces_are_not_generated(loaded: Loaded) -> None:
    """By a model that would say nothing else."""
    model, params, tokenizer = loaded
    bias = params["predictions"]["bias"].copy()
    bias[list(tokenizer.special_ids)] = 1000.0
    sold = params | {"predictions": params["predictions"] | {"bias": bias}}
    assert pretrained.fill_mask(model, sold, tokenizer, TEXTS, 1)[0][0][0]["id"] in tokenizer.special_ids
    for temperature in (0.0, 1.0):
        filled = pretrained.generate(model, sold, tokenizer, "the text", length=9, temperature=temperature)["filled"]
        assert not set(filled) & set(tokenizer.pieces(tokenizer.special_ids))


FEW = random_model(("predictions",))
UNPAIRED: list[Any] = [["ab", "cd"], [("a", "b", "c")]]
BAD: dict[str, tuple[Callable[[Loaded], Any], str]] = {
    "no mask": (lambda m: pretrained.fill_mask(*m, ["a [MASK]", "none"]), r"text 2 has no \[MASK\]: 'none'"),
    "mask cut off": (lambda m: pretrained.fill_mask(*m, ["a " * 100 + "[MASK]"]), r"text 1: a \[MASK\] lies beyond 80"),
    "top_k": (lambda m: pretrained.fill_mask(*m, TEXTS, top_k=0), r"top_k must be in \[1, 500\], got 0"),
    "pooling": (
        lambda m: pretrained.embed(*m, TEXTS, "max"),
        "pooling: unknown value 'max'; choose one of mean, pooler",
    ),
    "no SOP head": (
        lambda m: pretrained.sentence_order(*FEW, PAIRS),
        "needs a model with the head sop_classifier; .*: predictions",
    ),
    "no pooler": (lambda m: pretrained.embed(*FEW, TEXTS, "pooler"), "needs a model with the head pooler"),
    "nothing to fill": (lambda m: pretrained.generate(*m, "text"), r"no \[MASK\] to fill; add one, or give --length"),
    "too long": (lambda m: pretrained.generate(*m, "text", length=80), "tokens including masks; the model takes 80"),
    "absurd length": (lambda m: pretrained.generate(*m, "text", length=10**12), r"length must be in \[0, 80\]"),
    "texts for pairs": (lambda m: pretrained.sentence_order(*m, UNPAIRED[0]), "pair 1: expected two texts, got 'ab'"),
    "three for a pair": (lambda m: pretrained.sentence_order(*m, UNPAIRED[1]), "pair 1: expected two texts"),
    "temperature": (lambda m: pretrained.generate(*m, "a", length=1, temperature=float("nan")), "temperature must be"),
    "seed": (lambda m: pretrained.generate(*m, "a", length=1, seed=-1), "seed must be in"),
    "length": (lambda m: pretrained.generate(*m, "a", length=-1), r"length must be in \[0, 80\]"),
    "surrogate": (lambda m: pretrained.embed(*m, ["\ud800"]), "lone surrogate"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_line(case: str, loaded: Loaded) -> None:
    act, message = BAD[case]
    with pytest.raises(InputError, match=message) as caught:
        act(loaded)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def source(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("source")
    huggingface.write(Weights(loaded[0], loaded[1]), folder)
    tokenizer_files.write(loaded[2], 80, folder)
    return str(folder)


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def test_arguments_file_and_standard_input(
    source: str, tmp_path: Path, loaded: Loaded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same answers, for people and for machines."""
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"{text}\n" for text in TEXTS))
    by_words = printed(["predict", source, *TEXTS], capsys)
    assert by_words.splitlines()[0] == TEXTS[0]
    assert "  [MASK] 2" in by_words.splitlines()
    assert printed(["predict", source, "--file", str(file)], capsys) == by_words
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(file.read_bytes())))
    assert printed(["predict", source], capsys) == by_words
    records = [
        json.loads(line) for line in printed(["predict", source, "--json", "--top-k", "2", *TEXTS], capsys).splitlines()
    ]
    wanted = pretrained.fill_mask(*loaded, TEXTS, top_k=2)
    assert [record["text"] for record in records] == TEXTS
    assert [record["masks"] for record in records] == [
        [
            [answer | {"probability": pytest.approx(answer["probability"], rel=1e-4)} for answer in mask]
            for mask in masks
        ]
        for masks in wanted
    ]


def test_pairs_of_the_command_line(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", source, "--task", "sentence-order"]
    (tmp_path / "pairs.tsv").write_text("first one\tsecond one\nthird\tfourth\n")
    flat = printed([*words, "first one", "second one", "third", "fourth"], capsys)
    assert flat == printed([*words, "--file", str(tmp_path / "pairs.tsv")], capsys)
    assert flat.count("in order ") == 2
    assert "got 3" in refused([*words, "a", "b", "c"], capsys)


def test_vectors_to_a_file(source: str, tmp_path: Path, loaded: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", source, "--task", "embed"]
    target = tmp_path / "vectors.npy"
    assert "float32 (3, 32)" in printed([*words, *TEXTS, "--output", str(target)], capsys)
    np.testing.assert_allclose(np.load(target), pretrained.embed(*loaded, TEXTS), atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.npy"]
    record = json.loads(printed([*words, "one", "--json", "--pooling", "pooler"], capsys))
    np.testing.assert_allclose(record["embedding"], pretrained.embed(*loaded, ["one"], "pooler")[0], atol=1e-5)


def test_one_row_per_line_of_the_file(source: str, tmp_path: Path, loaded: Loaded) -> None:
    """A blank line is an empty text; form feeds and Unicode's own line ends are none of the file's; a BOM is no text."""
    (tmp_path / "texts.txt").write_bytes("\ufeffone\r\n\nthree\x0cthree\u2028three\x85\nfour".encode())
    assert answers.read_texts((), tmp_path / "texts.txt") == ["one", "", "three\x0cthree\u2028three\x85", "four"]
    assert (
        main(["predict", source, "--task", "embed", "--file", f"{tmp_path}/texts.txt", "--output", f"{tmp_path}/v.npy"])
        == 0
    )
    assert np.load(tmp_path / "v.npy").shape == (4, 32)


def test_one_text_is_not_a_list_of_letters(loaded: Loaded) -> None:
    np.testing.assert_array_equal(pretrained.embed(*loaded, "abc"), pretrained.embed(*loaded, ["abc"]))
    assert pretrained.fill_mask(*loaded, TEXTS[0]) == pretrained.fill_mask(*loaded, TEXTS[:1])


def test_a_text_may_begin_with_a_dash(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(["predict", source, "--top-k", "1", "--", "-a [MASK]", "--b [MASK]"], capsys).count("-a [MASK]") == 1


def test_two_dashes_before_the_source(source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = printed(["predict", source, "a [MASK]"], capsys)
    assert printed(["predict", "--", source, "a [MASK]"], capsys) == wanted
    assert main(["convert", "--", source, str(tmp_path / "out")]) == 0


def test_broken_pipe(source: str) -> None:
    """`| head -1`; fails if the broken pipe gives a traceback, also while the process ends."""
    words = f"{sys.executable} -m albert_jax predict {source} " + "'a [MASK]' " * 200
    done = subprocess.run(
        f"{words} --top-k 500 | head -1", shell=True, capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout == "a [MASK]\n"
    assert "Error" not in done.stderr
    short = f"{sys.executable} -m albert_jax predict {source} 'a [MASK]' | true"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    assert subprocess.run(short, shell=True, capture_output=True, env=buffered, check=True, timeout=300).stderr == b""


def test_generated_text(source: str, loaded: Loaded, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", source, "--task", "generate", "the text", "--length", "4", "--temperature", "0", "--seed", "1"]
    assert printed(words, capsys) == pretrained.generate(*loaded, "the text", length=4, temperature=0.0)["text"] + "\n"


REFUSED = [
    (["--task", "guess"], "--task: unknown value 'guess'; choose one of fill-mask"),
    (["--top-k", "many"], "invalid int value"),
    (["--nonsense", "1"], "unknown option --nonsense"),
    (["--task", "sentence-order", "--file", "pairs.tsv"], "text 3 has 0 tabs; separate a pair of texts by one tab"),
    (["--task", "sentence-order", "a\tb\tc"], "text 1 has 2 tabs"),
    (["a [MASK]", "--output", "vectors.npy"], "--output is for --task embed"),
    (["text", "--file", "x.txt"], "texts and --file: give one of them"),
    (["--file", "nowhere.txt"], "nowhere.txt: No such file or directory"),
    (["--file", "latin.txt"], "latin.txt:2: not UTF-8 at byte 8"),
    (["--file", "bom.txt"], "bom.txt:2: not UTF-8 at byte 6"),
    (["--file", "empty.txt"], "empty.txt: it holds no text"),
    (["--task", "embed", "a", "--output", "vectors.txt"], "its name must end in .npy"),
    (["--task", "embed", "a", "--output", "nowhere/vectors.npy"], "no folder "),
]


@pytest.mark.parametrize(
    ("words", "message"), REFUSED, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_refused(
    words: list[str],
    message: str,
    source: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.txt").write_bytes(b"good\ncaf\xe9\n")
    Path("empty.txt").touch()
    Path("bom.txt").write_bytes(b"\xef\xbb\xbfok\n\xe9")
    Path("pairs.tsv").write_text("a\tb\nc\td\n\n")
    assert message in refused(["predict", source, *words], capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"latin.txt", "empty.txt", "pairs.tsv", "bom.txt"}

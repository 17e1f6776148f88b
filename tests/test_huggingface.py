"""Hugging Face folders: golden files of transformers, round trips, and one-line errors for files that cannot be read.

`tests/golden/make_huggingface.py` wrote the golden files; outputs agree to 1e-5.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from albert_jax.config import InputError, read_json
from albert_jax.data import tokenizer_files
from albert_jax.data.sentencepiece_tokenizer import train_vocabulary
from albert_jax.data.tokenizer_files import open_tokenizer
from albert_jax.exchange import huggingface
from albert_jax.exchange.load import read

from .conftest import refused
from .golden.make_huggingface import CASES
from .small_models import SMALL, TEXT, assert_near, assert_same
from .weight_files import (
    FUZZ,
    HF,
    MUTATION,
    QUERY,
    attempt,
    into,
    mutated,
    outputs,
    pickled,
    random_weights,
    rewrite,
    shapes,
    write,
)


@pytest.mark.parametrize("case", CASES)
def test_golden_huggingface(case: str) -> None:
    """Fails if a square kernel is not transposed, groups are assigned to layers by a different formula, or "gelu" is the tanh form."""
    found = read(HF / case).weights
    wanted = load_file(HF / case / "outputs.safetensors")
    if case == "masked_lm":
        wanted["prediction_logits"] = wanted.pop("logits")
    assert_near(case, outputs(found), wanted)
    note = {"gelu": "erf form", "masked_lm": "no sop_classifier", "rounded": "by the source's formula: sharing 0,0,1,"}
    assert note.get(case, "") in " ".join(found.notes)
    assert len(found.mapped) == len(load_file(HF / case / "model.safetensors"))  # every tensor has its line


ROUND: dict[str, dict[str, Any]] = {
    "all": {},
    "none": {"sharing": "none"},
    "groups": {"sharing": "groups", "num_hidden_groups": 2},
    "inner": {"sharing": "groups", "num_hidden_groups": 2, "inner_group_num": 2},
    "E = H": {"embedding_size": 16},
    "E = H, mapped": {"embedding_size": 16, "always_map_embeddings": True},
    "no SOP": {"heads": ("pooler", "predictions")},
    "bare": {"heads": ()},
    "sequence": {"heads": ("pooler", "classifier"), "labels": ("no", "yes")},
    "token": {"heads": ("token_classifier",), "labels": ("O", "B-PER", "I-PER")},
    "choice": {"heads": ("pooler", "choice_classifier")},
    "answers": {"heads": ("qa_outputs",)},
    "three sentence classes": {"sentence_classes": ("next", "previous", "other")},
    "other sentence classes": {"sentence_classes": ("next", "other")},
    "relu": {"hidden_act": "relu", "hidden_dropout_prob": 0.1, "classifier_dropout_prob": 0.2, "layer_norm_eps": 1e-6},
}


@pytest.mark.parametrize("case", ROUND)
def test_round_trip_is_bitwise(case: str, tmp_path: Path) -> None:
    weights = random_weights(**ROUND[case])
    back = read(write(weights, tmp_path / "hf")).weights
    assert_same(back.params, weights.params)
    assert back.model == weights.model


@pytest.mark.parametrize("sharing", ["attention", "ffn"])
def test_sharing_that_huggingface_lacks(sharing: str, tmp_path: Path) -> None:
    """It is written with one group per layer, by copying; the outputs are bitwise equal."""
    weights = random_weights(sharing=sharing)
    folder = tmp_path / "hf"
    folder.mkdir()
    _, notes = huggingface.write(weights, folder)
    assert notes == [f"sharing '{sharing}' is written as 4 groups, by copying"]
    back = read(folder).weights
    assert back.model.config == dataclasses.replace(weights.model.config, sharing="none")
    assert_same(outputs(back), outputs(weights))


def test_a_classifier_needs_its_architecture(tmp_path: Path) -> None:
    for number, stated in enumerate((None, ["AlbertForMaskedLM"])):
        folder = Path(shutil.copytree(HF / "choice", tmp_path / str(number)))
        rewrite(folder, lambda tensors: None, architectures=stated)
        with pytest.raises(
            InputError, match=r"holds a classifier, but 'architectures' .* change it to one of AlbertForSeq"
        ):
            read(folder)


def test_note_on_an_encoder_without_pooler(tmp_path: Path) -> None:
    tmp_path.joinpath("hf").mkdir()
    _, notes = huggingface.write(random_weights(heads=()), tmp_path / "hf")
    assert notes == ["no pooler: AlbertModel will initialize it with random numbers, and warn"]


def test_files_of_older_transformers(golden: Path) -> None:
    """They have a position_ids buffer, tied tensors twice or under their second name, and no prefix if the model is a bare encoder."""
    wanted = read(golden).weights.params

    def old(tensors: dict[str, np.ndarray]) -> None:
        tensors["albert.embeddings.position_ids"] = np.arange(16)[None]
        tensors["predictions.decoder.weight"] = tensors["albert.embeddings.word_embeddings.weight"]
        tensors["predictions.decoder.bias"] = tensors.pop("predictions.bias")

    found = read(rewrite(golden, old)).weights
    assert_same(found.params, wanted)
    assert len([line for line in found.skipped if "buffer" in line or "the same as" in line]) == 2

    def bare(tensors: dict[str, np.ndarray]) -> None:
        kept = {k.removeprefix("albert."): v for k, v in tensors.items() if k.startswith("albert.")}
        tensors.clear()
        tensors.update(kept)

    found = read(rewrite(golden, bare, architectures=["AlbertModel"])).weights
    assert_same(found.params, {name: wanted[name] for name in ("embeddings", "encoder", "pooler")})
    assert found.model.heads == ("pooler",)


def config(**changes: Any) -> Callable[[Path], Any]:
    return lambda folder: rewrite(folder, lambda tensors: None, **changes)


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], Any]:
    return lambda folder: rewrite(folder, change)


def cut(name: str, by: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-by])


def replaced(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], Any]:
    return tensors(lambda t: t.update({name: np.ascontiguousarray(value(t[name]))}))


def bert(tensors: dict[str, np.ndarray]) -> None:
    """Replace the tensors by some of BERT's."""
    words = tensors["albert.embeddings.word_embeddings.weight"]
    tensors.clear()
    tensors |= {"bert.embeddings.word_embeddings.weight": words, "bert.encoder.layer.0.output.dense.bias": words[0]}


def classifier_without_pooler(tensors: dict[str, np.ndarray]) -> None:
    """What it classifies is then unknown."""
    for name in [name for name in tensors if name.startswith(("albert.pooler", "sop_classifier"))]:
        del tensors[name]
    tensors["classifier.weight"] = np.ones((2, 16), np.float32)


def index(table: dict[str, str]) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))

    return change


# Case -> what is changed in a good folder, and the message of the error.
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other architecture": (tensors(bert), r"\d+ missing: .*; unknown: 'albert.encoder.layer.0.output.dense.bias'"),
    "missing": (tensors(lambda t: t.pop(QUERY)), f"1 missing: '{QUERY}'"),
    "unknown": (tensors(lambda t: t.update(extra=np.zeros(2, np.float32))), "1 unknown: 'extra'"),
    "part of a head": (tensors(lambda t: t.pop("predictions.dense.bias")), "1 missing: 'predictions.dense.bias'"),
    "transposed": (
        replaced("predictions.dense.weight", lambda x: x.T),
        r"predictions.dense.weight has shape \(16, 8\), config says \(8, 16\); it is transposed",
    ),
    "other size": (
        config(vocab_size=30),
        r"word_embeddings.weight has shape \(40, 8\), config says \(30, 8\); .*40 for 30",
    ),
    "NaN": (replaced(QUERY, lambda x: x * np.float32("nan")), f"{QUERY} holds NaN or infinity"),
    "infinity": (replaced("albert.pooler.bias", lambda x: x + np.float32("inf")), "pooler.bias holds NaN or infinity"),
    "integers": (replaced("albert.pooler.bias", lambda x: x.astype(np.int32)), "albert.pooler.bias is int32"),
    "untied": (
        tensors(lambda t: t.update({"predictions.decoder.weight": np.ones((40, 8), np.float32)})),
        "untied embeddings are not supported",
    ),
    "LFS pointer": (
        into("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"),
        r"model.safetensors \(56 bytes\) is not weights but a Git LFS pointer; run 'git lfs pull'",
    ),
    "web page": (into("model.safetensors", b"<!DOCTYPE html><html>"), "not weights but a web page"),
    "empty": (into("model.safetensors", b""), "it is empty"),
    "cut short": (cut("model.safetensors", 100), "corrupted, or not safetensors"),
    "garbage": (into("model.safetensors", b"garbage" * 50), "corrupted, or not safetensors"),
    "huge header": (into("model.safetensors", b"\xff" * 7 + b"\x7f" + b"{" * 50), "corrupted, or not safetensors"),
    "pickle in disguise": (
        into("model.safetensors", b"\x80\x04\x95abcdefgh"),
        "a pickle with the name of a safetensors file",
    ),
    "pickle": (pickled, "refusing to load a pickle, which can run code; .*--allow-pickle"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "no model.safetensors; the folder holds config",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), "no Hugging Face folder"),
    "config is no JSON": (into("config.json", b"{"), "config.json:1: not JSON"),
    "config of another model": (config(model_type="bert"), "model_type is 'bert'; only 'albert' is supported"),
    "no heads in config": (config(num_attention_heads=None), "missing 'num_attention_heads'"),
    "heads do not divide": (config(num_attention_heads=3), "hidden_size 16 is not divisible by num_attention_heads 3"),
    "text for a number": (config(hidden_size="big"), "hidden_size: expected int, got 'big'"),
    "activation": (config(hidden_act="swish"), "hidden_act: unknown value 'swish'; choose one of"),
    "absurd depth": (config(num_hidden_layers=10**6), "is 1000000, more than 10000"),
    "absurd groups": (config(num_hidden_groups=10**6), "num_hidden_groups 1000000 exceeds num_hidden_layers 3"),
    "absurd vocabulary": (config(vocab_size=2**31), r"vocab_size must be in \[1, 16777216\], got 2147483648"),
    "no pooler": (
        tensors(lambda t: [t.pop(f"albert.pooler.{leaf}") for leaf in ("weight", "bias")]),
        "1 missing: 'albert.pooler.weight', which sop_classifier read",
    ),
    "architectures": (config(architectures=5), "architectures: expected a list of names, got 5"),
    "architectures of lists": (config(architectures=[[1]]), "architectures: expected a list of names"),
    "deep config": (into("config.json", b"[" * 100_000), "config.json: cannot be read: "),
    "endless number": (into("config.json", b'{"a": ' + b"1" * 5000 + b"}"), "config.json: cannot be read: .* digits"),
    "config not UTF-8": (into("config.json", b'{"\xff": 1}'), "config.json: not UTF-8 at byte 2"),
    "another architecture": (
        lambda folder: rewrite(folder, classifier_without_pooler, architectures=["Evil"]),
        "holds a classifier, but 'architectures' in config.json is Evil; change it to one of AlbertForSequence",
    ),
    "path in index": (
        index({QUERY: "../../part.safetensors"}),
        "'../../part.safetensors' is not the name of a file in this folder",
    ),
    "absolute path in index": (index({QUERY: "/etc/passwd"}), "'/etc/passwd' is not the name of a file in this folder"),
    "endless name in index": (index({QUERY: "a" * 400}), "File name too long"),
    "shard is missing": (index({QUERY: "other.safetensors"}), "other.safetensors: no such file"),
    "index and shard differ": (
        index({QUERY: "part.safetensors"}),
        "index.json: it and part.safetensors list different tensors",
    ),
    "vocabulary": (into("spiece.model", b"garbage" * 100), r"spiece.model is not a SentencePiece model \(700 bytes\)"),
    "tokenizer config": (
        into("tokenizer_config.json", b'{"do_lower_case": "yes"}'),
        "do_lower_case: expected true or false",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_of_a_folder_are_one_line(
    case: str, complete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = BAD[case]
    change(complete)
    with pytest.raises(InputError, match=message) as caught:
        read(complete)
    assert "\n" not in str(caught.value)
    assert refused(["convert", str(complete), str(tmp_path / "out")], capsys) == str(caught.value)
    assert not (tmp_path / "out").exists()


def test_vocabulary_of_another_size(golden: Path, tmp_path: Path) -> None:
    train_vocabulary([TEXT] * 20, golden / "spiece.model", 41)
    with pytest.raises(InputError, match="tokenizer has 41 pieces, vocab_size is 40"):
        read(golden)


@FUZZ
@example(text={"architectures": 5})
@example(text={"id2label": None})
@example(text={"id2label": 3})
@example(text={"type_vocab_size": 2**31})
@given(
    text=st.dictionaries(
        st.sampled_from([*SMALL, "num_hidden_groups", "id2label", "architectures"]),
        st.none() | st.integers() | st.text() | st.lists(st.integers()),
    )
)
def test_fuzz_config(tmp_path_factory: pytest.TempPathFactory, text: dict[str, Any]) -> None:
    for case in ("shared", "sequence", "token"):
        target = tmp_path_factory.mktemp("fuzz")
        shutil.copy(HF / case / "model.safetensors", target)
        stored = read_json(HF / case / "config.json")
        (target / "config.json").write_text(json.dumps(stored | text))
        found = attempt(target)
        assert found is None or shapes(found) == shapes(read(HF / case).weights.params)


def vocabulary_or_refused(folder: Path) -> None:
    with contextlib.suppress(InputError):
        found = tokenizer_files.read(folder)
        assert found is not None
        found.encode(TEXT)


@FUZZ
@given(name=st.sampled_from(["spiece.model", "tokenizer.json"]), **MUTATION)
def test_fuzz_tokenizer(
    vocabulary: Path, tmp_path_factory: pytest.TempPathFactory, name: str, flips: Any, length: int
) -> None:
    """Neither file has a checksum, so the result may be a different vocabulary, but never an exception other than `InputError`."""
    target = tmp_path_factory.mktemp("fuzz")
    tokenizer_files.write(open_tokenizer(vocabulary), 16, target)
    data = (target / name).read_bytes()
    (target / "spiece.model").unlink()
    (target / name).write_bytes(mutated(data, [(place % 1500, bit) for place, bit in flips], length))
    vocabulary_or_refused(target)

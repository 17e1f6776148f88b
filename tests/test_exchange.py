"""Reading and writing weights: golden files of transformers and TensorFlow, round trips, resharing, and corrupted files.

`tests/golden/make_*.py` wrote the golden files; outputs agree to 1e-5.
"""

import contextlib
import dataclasses
import functools
import gzip
import importlib.util
import json
import os
import re
import shutil
import struct
import sys
import tarfile
import tempfile
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import albert_jax
from albert_jax.cli import main
from albert_jax.config import InputError, read_json
from albert_jax.data import tokenizer_json
from albert_jax.data.tokenizer import Tokenizer, train_vocabulary
from albert_jax.exchange import archives, huggingface, safetensors, tensor_bundle
from albert_jax.exchange.convert import convert
from albert_jax.exchange.load import read
from albert_jax.exchange.reshare import reshare
from albert_jax.exchange.tensor_bundle import TensorBundle
from albert_jax.exchange.weights import Weights
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import PRETRAINING, SENTENCE_CLASSES, Albert, init_params, param_shapes
from albert_jax.model.tree import leaves

from .conftest import ROOT, USUAL_FUSION, refused
from .golden.make_huggingface import CASES, inputs
from .small_models import SMALL, TEXT, assert_near, assert_same

GOLDEN = Path(__file__).parent / "golden"
HF = GOLDEN / "huggingface"


@functools.cache
def _jitted(model: Albert) -> Callable[..., Any]:
    return jax.jit(model.apply, compiler_options={"xla_backend_optimization_level": 0, **USUAL_FUSION})


def outputs(weights: Weights) -> dict[str, np.ndarray]:
    return jax.device_get(_jitted(weights.model)({"params": weights.params}, **inputs()))


def random_weights(
    heads: tuple[str, ...] = PRETRAINING,
    labels: tuple[str, ...] = (),
    sentence_classes: tuple[str, ...] = SENTENCE_CLASSES,
    **changes: Any,
) -> Weights:
    """A small model whose parameters all differ."""
    model = Albert(AlbertConfig(**SMALL | changes), heads, labels, sentence_classes)
    random = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32) * 0.3, param_shapes(model))
    return Weights(model, params)


def write(weights: Weights, folder: Path) -> Path:
    folder.mkdir()
    huggingface.write(weights, folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_golden_huggingface(case: str) -> None:
    """Fails if a square kernel is not transposed, layers take groups by another formula, or "gelu" is the tanh form."""
    found = read(HF / case).weights
    wanted = load_file(HF / case / "outputs.safetensors")
    if case == "masked_lm":
        wanted["prediction_logits"] = wanted.pop("logits")
    assert_near(case, outputs(found), wanted)
    note = {"gelu": "erf form", "masked_lm": "no sop_classifier", "rounded": "stored unshared"}
    assert note.get(case, "") in " ".join(found.notes)
    assert len(found.mapped) == len(load_file(HF / case / "model.safetensors"))  # every tensor has its line


@pytest.mark.parametrize(("case", "same"), [("inner", "inner"), ("hub", "shared")])
def test_golden_tensorflow(case: str, same: str) -> None:
    """TensorFlow's own files give what transformers gives; fails if "gelu" is taken for the erf form or a slot for a weight."""
    found = read(GOLDEN / "tf1" / case).weights
    wanted = load_file(HF / same / "outputs.safetensors")
    got = outputs(found)
    names = wanted.keys() & got.keys()
    assert names == (wanted.keys() if case == "inner" else {"last_hidden_state"})
    assert_near(f"tf1 {case}", got, {name: wanted[name] for name in names})
    notes = " ".join(found.notes)
    assert "gelu_new here" in notes
    assert ("has no predictions, sop_classifier" in notes) == (case == "hub")
    assert sum("of the optimizer" in line for line in found.skipped) == (7 if case == "inner" else 0)


def tar_of(folder: Path, target: Path, name: str = "albert_tiny") -> Path:
    with tarfile.open(target, "w:gz") as tar:
        tar.add(folder, name)
    return target


def test_tar_prefix_and_folder_are_the_same(tmp_path: Path) -> None:
    folder = GOLDEN / "tf1" / "inner"
    wanted = read(folder).weights.params
    for source in (tar_of(folder, tmp_path / "a.tar.gz"), folder / "model.ckpt-best", folder / "model.ckpt-best.index"):
        assert_same(read(source).weights.params, wanted)


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


def test_round_trip_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what `transformers` writes in shards has this form."""
    monkeypatch.setattr(safetensors, "SHARD_BYTES", 5000)
    weights = random_weights(sharing="none")
    folder = write(weights, tmp_path / "hf")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 2
    assert not (folder / "model.safetensors").exists()
    assert_same(read(folder).weights.params, weights.params)


@pytest.mark.parametrize("sharing", ["attention", "ffn"])
def test_sharing_that_huggingface_lacks(sharing: str, tmp_path: Path) -> None:
    """Copied to a group a layer: the same network, bit for bit."""
    weights = random_weights(sharing=sharing)
    folder = tmp_path / "hf"
    folder.mkdir()
    _, notes = huggingface.write(weights, folder)
    assert notes == [f"sharing '{sharing}' is written as 4 groups, by copying"]
    back = read(folder).weights
    assert back.model.config == dataclasses.replace(weights.model.config, sharing="none")
    assert_same(outputs(back), outputs(weights))


def test_unsharing_and_back() -> None:
    """Unsharing leaves the network as it was; averaging equal layers gives the layer back; fails if rows are mixed up."""
    shared = random_weights(sharing="groups", num_hidden_groups=2, inner_group_num=2)
    unshared = reshare(shared, sharing="none")
    assert unshared.params["encoder"]["ffn"]["intermediate"]["kernel"].shape[0] == 8
    assert_same(outputs(unshared), outputs(shared))
    assert_same(reshare(unshared, sharing="groups", num_hidden_groups=2).params, shared.params)
    halves = reshare(unshared, sharing="all").params["encoder"]["attention"]["query"]["kernel"]
    kernel = shared.params["encoder"]["attention"]["query"]["kernel"]  # sets: group 0 inner 0, 0 1, 1 0, 1 1
    np.testing.assert_allclose(halves, np.stack([kernel[[0, 2]].mean(0), kernel[[1, 3]].mean(0)]), rtol=1e-6)


def test_only_listed_fields_can_be_changed(complete: Path, tmp_path: Path) -> None:
    """Fails if a network with other heads is written: its shapes are the same."""
    for name in ("num_attention_heads", "hidden_size", "inner_group_num", "sharng"):
        with pytest.raises(InputError, match=f"{name} cannot be changed in a conversion; only sharing, "):
            convert(complete, tmp_path / "out", **{name: 4})
        with pytest.raises(InputError, match=f"{name} cannot be changed when a model is loaded"):
            albert_jax.load(complete, **{name: 4})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["sequence", "token", "choice", "answers"])
def test_fine_tuned_heads_survive_a_conversion(case: str, tmp_path: Path) -> None:
    """Also with pretraining heads beside them; fails if a choice comes back as a text classifier."""
    for number, init_missing in enumerate((False, True)):
        target = tmp_path / str(number)
        report = convert(HF / case, target, init_missing=init_missing)
        assert "failed" not in report["parity"]["by"]
        wanted = read(HF / case, init_missing=init_missing).weights
        found = read(target).weights
        assert found.model == wanted.model
        assert_same(found.params, wanted.params)


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


RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "heads": ({"heads": 5}, "heads: expected a list of names, got 5"),
    "a head": ({"heads": ["evil"]}, "heads: unknown value 'evil'; choose one of pooler, "),
    "no pooler": ({"heads": ["classifier"]}, "classifier reads the output of the pooler, which is missing"),
    "labels": ({"labels": [1]}, "labels: expected a list of names"),
    "a key": ({"model": {"hiden": 1}}, "config.json: unknown key 'config.model.hiden'"),
    "no model": ({"model": None}, "config.json: config.model: expected a table"),
}


@pytest.mark.parametrize("case", RUNS)
def test_errors_of_a_run_folder_are_one_line(case: str, tmp_path: Path) -> None:
    changes, message = dict(RUNS[case][0]), RUNS[case][1]
    model = {"model": changes.pop("model")} if "model" in changes else {"model": SMALL}
    (tmp_path / "config.json").write_text(json.dumps({"job": "convert", "config": model} | changes))
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_change_of_the_depth() -> None:
    shared = random_weights()
    deeper = reshare(shared, num_hidden_layers=9)
    assert deeper.model.config.num_hidden_layers == 9
    assert_same(deeper.params, shared.params)  # one set serves any depth
    own = random_weights(sharing="none")
    bias = own.params["encoder"]["ffn"]["output"]["bias"]
    for depth, kept in ((2, [0, 2]), (8, [0, 0, 1, 1, 2, 2, 3, 3]), (3, [0, 1, 2])):
        found = reshare(own, num_hidden_layers=depth)
        assert np.array_equal(found.params["encoder"]["ffn"]["output"]["bias"], bias[kept])
    grouped = random_weights(sharing="groups", num_hidden_groups=2)
    assert_same(reshare(grouped, num_hidden_layers=8).params, grouped.params)


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], Any], **config: Any) -> Path:
    """A golden folder with changed tensors and config."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    stored = read_json(folder / "config.json")
    (folder / "config.json").write_text(json.dumps({k: v for k, v in (stored | config).items() if v is not None}))
    return folder


@pytest.fixture
def golden(tmp_path: Path) -> Path:
    return Path(shutil.copytree(HF / "shared", tmp_path / "hf"))


def test_files_of_older_transformers(golden: Path) -> None:
    """A position_ids buffer, tied tensors written twice or under their second name, no prefix on a bare encoder."""
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


def test_foreign_metadata_is_ignored(golden: Path) -> None:
    """Such as torch's distributed checkpoints write; fails if any table of tensors' names is taken for our checksums."""
    wanted = read(golden).weights.params
    path = golden / "model.safetensors"
    others = {QUERY: {"saved_offsets": [0, 0]}}, {QUERY: "float32"}
    for table in others:
        save_file(load_file(path), path, metadata={"format": "pt", "DCP_SHARDING_INFO": json.dumps(table)})
        assert_same(read(golden).weights.params, wanted)


@pytest.mark.parametrize("table", ["{", "[]", '{"extra": "00000000"}', '"' * 9000])
def test_unreadable_checksums_are_refused(table: str, tmp_path: Path) -> None:
    """Fails if a flipped bit in the table of checksums turns their verification off."""
    folder = write(random_weights(), tmp_path / "hf")
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", safetensors.CHECKSUMS: table})
    with pytest.raises(InputError, match="corrupted: its checksums cannot be read"):
        read(folder)


def test_missing_heads_are_initialized_only_with_init_missing() -> None:
    found = read(HF / "masked_lm").weights
    assert found.model.heads == ("predictions",)
    whole = read(HF / "masked_lm", init_missing=True).weights
    assert whole.model.heads == PRETRAINING
    fresh = jax.jit(lambda: init_params(whole.model, jax.random.key(0)))()
    assert_same(whole.params["pooler"], fresh["pooler"])
    assert_same(whole.params["predictions"], found.params["predictions"])
    assert "initialized with random numbers" in whole.notes[-1]


@pytest.fixture
def complete(golden: Path, vocabulary: Path) -> Path:
    shutil.copy(vocabulary, golden)
    return golden


def test_load_for_notebooks(complete: Path) -> None:
    model, params, tokenizer = albert_jax.load(complete)
    apply: Any = model.apply
    outputs = apply({"params": params}, **tokenizer("the cat sat"))
    assert outputs["prediction_logits"].shape == (1, len(tokenizer.encode("the cat sat")) + 2, 40)
    half, _, _ = albert_jax.load(complete, dtype="bfloat16")
    assert half.config == dataclasses.replace(model.config, dtype="bfloat16")
    with pytest.raises(InputError, match="hidden_size cannot be changed when a model is loaded; only dtype, "):
        albert_jax.load(complete, hidden_size=32)
    with pytest.raises(AttributeError, match="import modules by their full names"):
        _ = albert_jax.nonsense


@pytest.mark.parametrize("page", ["README.md", "docs/checkpoint-exchange.md"])
def test_python_blocks_of_the_docs(
    page: str, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python blocks of a page run in order, with a small model as runs/tiny."""
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    huggingface.write(random_weights(max_position_embeddings=128), folder)
    shutil.copy(vocabulary, folder)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)


def test_convert_there_and_back(complete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Hugging Face -> a run folder of ours -> Hugging Face is bitwise, by the command line, tokenizer included."""
    ours, again = tmp_path / "ours", tmp_path / "again"
    assert main(["convert", str(complete), str(ours), "--to", "albert_jax"]) == 0
    said = capsys.readouterr().out
    assert "albert.pooler.weight" in said
    assert "prediction_logits: 0.0e+00" in said
    assert main(["convert", str(ours), str(again), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parameters"] == sum(value.size for value in load_file(complete / "model.safetensors").values())
    assert report == read_json(again / "conversion.json")
    old, new = (load_file(folder / "model.safetensors") for folder in (complete, again))
    assert old.keys() == new.keys()
    assert all(np.array_equal(old[name], new[name]) for name in old)
    assert (again / "spiece.model").read_bytes() == (complete / "spiece.model").read_bytes()
    assert main(["convert", str(again), str(tmp_path / "un"), "--sharing", "none", "--num-hidden-layers", "6"]) == 0
    assert read(tmp_path / "un").weights.model.config.sharing == "none"
    same = convert(again, tmp_path / "same", hidden_act="gelu_new")
    assert not any("hidden_act changed" in note for note in same["notes"])
    message = refused(["pretrain", str(ours / "config.json"), "--run-dir", str(tmp_path / "run")], capsys)
    assert message.endswith(f"not an experiment; name an experiment, with --init-from {ours}")
    assert "exists; name another" in refused(["convert", str(again), str(tmp_path / "un")], capsys)


# What a user may hand in: name -> (what is done to a good folder, what the one line says).


def into(name: str, content: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(content)


def config(**changes: Any) -> Callable[[Path], Any]:
    return lambda folder: rewrite(folder, lambda tensors: None, **changes)


def tensors(change: Callable[[dict[str, np.ndarray]], Any]) -> Callable[[Path], Any]:
    return lambda folder: rewrite(folder, change)


def cut(name: str, by: int) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-by])


def replaced(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], Any]:
    return tensors(lambda t: t.update({name: np.ascontiguousarray(value(t[name]))}))


def bert(t: dict[str, np.ndarray]) -> None:
    renamed = {k.replace("albert.", "bert.").replace("predictions", "cls.predictions"): v for k, v in t.items()}
    t.clear()
    t.update({k: v for k, v in renamed.items() if k.startswith(("bert.", "cls."))})


def index(table: dict[str, str]) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "part.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))

    return change


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


QUERY = "albert.encoder.albert_layer_groups.0.albert_layers.0.attention.query.weight"
BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "other architecture": (tensors(bert), r"0 of \d+ expected tensors found; the file has names such as 'bert\."),
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
        config(architectures=["Evil"]),
        "architecture 'Evil' is not supported; choose one of AlbertForPreTraining",
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
    train_vocabulary([TEXT] * 20, golden / "spiece.model", 38)
    with pytest.raises(InputError, match="tokenizer has 38 pieces, vocab_size is 40"):
        read(golden)


def test_no_vocabulary(golden: Path, vocabulary: Path) -> None:
    with pytest.raises(InputError, match=r"no spiece.model; give vocab='PATH'"):
        albert_jax.load(golden)
    _, _, tokenizer = albert_jax.load(golden, vocab=vocabulary)
    assert tokenizer.vocab_size == 40


def evil_tar(path: Path) -> Path:
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo("../../first.index"))
        tar.addfile(tarfile.TarInfo("/second.index"))
        for name, kind in (("albert_config.json", tarfile.SYMTYPE), ("config.json", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
    return path


def test_unpacking_stays_inside_the_folder(tmp_path: Path) -> None:
    """Fails if a member's path or a link is followed: what is unpacked are two files, by their last names."""
    target = tmp_path / "a" / "b" / "target"
    target.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    archives.unpack(evil_tar(tmp_path / "x.tar"), target)
    assert sorted({*tmp_path.rglob("*")} - {*before, tmp_path / "x.tar"}) == [
        target / "first.index",
        target / "second.index",
    ]
    assert not Path("/second.index").exists()


def tar_with(path: Path, *names: str, **pax: str) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.pax_headers = pax
            tar.addfile(info)
    return path


@pytest.mark.parametrize("name", ["x.tar", "x.gz", "x.bz2", "x.xz"])
def test_unpacked_files_are_complete(name: str, tmp_path: Path) -> None:
    """Larger than any header may be, and than what is copied at once."""
    (tmp_path / "data").write_bytes(np.random.default_rng(0).bytes(3 * 2**20 + 1))
    with tarfile.open(tmp_path / name, f"w:{name[2:].removeprefix('tar')}") as tar:
        tar.add(tmp_path / "data", "folder/data")
    (tmp_path / "out").mkdir()
    archives.unpack(tmp_path / name, tmp_path / "out")
    assert (tmp_path / "out" / "data").read_bytes() == (tmp_path / "data").read_bytes()


def test_tar_written_by_macos(vocabulary: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "tf1" / "inner", tmp_path / "tf1"))
    shutil.copy(vocabulary, folder / "30k-clean.model")
    for name in ("._model.ckpt-best.index", "._30k-clean.model"):
        (folder / name).write_bytes(b"a note of the Finder")
    for source in (tar_of(folder, tmp_path / "a.tgz"), folder):
        found = read(source)
        assert_same(found.weights.params, _inner())
        assert found.tokenizer is not None


def damaged(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        target = Path(shutil.copytree(GOLDEN / "tf1" / "inner", folder / "tf1"))
        (target / name).write_bytes(change((target / name).read_bytes()))
        return target

    return make


def bomb(folder: Path) -> Path:
    """An index of few bytes whose entries share one long name."""

    def varint(value: int) -> bytes:
        return bytes([value & 0x7F | 0x80, value >> 7]) if value > 0x7F else bytes([value])

    def block(entries: bytes) -> bytes:
        whole = entries + struct.pack("<II", 0, 1) + b"\0"
        return whole + struct.pack("<I", tensor_bundle._masked_crc(whole))

    name = b"x" * 4000
    entries = varint(0) + varint(4000) + varint(0) + name + (varint(3999) + varint(1) + varint(0) + b"y") * 600
    data = block(entries)
    handle = varint(0) + bytes([(len(data) - 5) & 0x7F | 0x80, (len(data) - 5) >> 7])
    top = block(varint(0) + varint(1) + varint(len(handle)) + b"z" + handle)
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(top) - 5)
    (folder / "albert_config.json").write_bytes((GOLDEN / "tf1" / "inner" / "albert_config.json").read_bytes())
    (folder / "m.index").write_bytes(data + top + footer.ljust(40, b"\0") + struct.pack("<Q", tensor_bundle.MAGIC))
    return folder


INDEX, DATA = "model.ckpt-best.index", "model.ckpt-best.data-00000-of-00001"


def without(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        target = Path(shutil.copytree(GOLDEN / "tf1" / "inner", folder / "tf1"))
        (target / name).unlink()
        return target

    return make


BAD_TF1: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a flipped bit": (
        damaged(DATA, lambda b: b[:5000] + bytes([b[5000] ^ 4]) + b[5001:]),
        "is corrupted .checksum differs.; copy it again",
    ),
    "data cut short": (damaged(DATA, lambda b: b[:-50]), "is incomplete: .* the file at"),
    "data is a pointer": (damaged(DATA, lambda b: b"version https://git-lfs.github.com/"), "a Git LFS pointer"),
    "index cut short": (damaged(INDEX, lambda b: b[:-9]), "index: corrupted, or no TensorFlow checkpoint index"),
    "index is a page": (damaged(INDEX, lambda b: b"<html>"), "a web page"),
    "index flipped": (damaged(INDEX, lambda b: b[:90] + b"\0\0" + b[92:]), "the checksum of a block differs"),
    "no data": (without(DATA), "no such file; a checkpoint is its .index and all of its .data files"),
    "no config": (without("albert_config.json"), "no albert_config.json;"),
    "other heads": (
        damaged("albert_config.json", lambda b: b.replace(b'"hidden_size": 16', b'"hidden_size": 32')),
        "shape",
    ),
    "evil tar": (
        lambda folder: evil_tar(folder / "x.tar"),
        r"x.tar: several checkpoints \(first.index, second.index\)",
    ),
    "tar without config": (
        lambda folder: tar_with(folder / "x.tgz", "m.index"),
        r"/x.tgz: no albert_config.json;",
    ),
    "one name twice": (lambda folder: tar_with(folder / "x.tgz", "a/m.index", "b/m.index"), "two files named m.index"),
    "tar that is a bomb": (
        lambda folder: tar_with(folder / "x.tgz", "m.index", comment="x" * 2**23),
        r"x.tgz: not a complete tar archive \(a header of 8,389",
    ),
    "index that is a bomb": (bomb, "corrupted, or no TensorFlow checkpoint index .a name of 4000 bytes"),
    "too long a name": (lambda folder: Path("the text, its source forgotten " * 20), "no such file or folder"),
    "no such user": (lambda folder: Path("~nobody-of-this-name/model"), "no such file or folder"),
    "no tar": (
        lambda folder: into("x.tar.gz", gzip.compress(b"no"))(folder) and folder / "x.tar.gz",
        "not a complete tar",
    ),
    "tar cut short": (
        lambda folder: (
            into("y.tgz", tar_of(GOLDEN / "tf1" / "inner", folder / "z.tgz").read_bytes()[:9000])(folder)
            and folder / "y.tgz"
        ),
        "not a complete tar archive|incomplete",
    ),
    "nothing there": (lambda folder: folder / "not here", "not here: no such file or folder"),
    "an empty folder": (lambda folder: folder, "no Hugging Face folder or run folder"),
}


@pytest.mark.parametrize("case", BAD_TF1)
def test_errors_of_a_checkpoint_are_one_line(case: str, tmp_path: Path) -> None:
    make, message = BAD_TF1[case]
    with pytest.raises(InputError, match=message) as caught:
        read(make(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value) or case in ("too long a name", "no such user")


class FakeTensor:
    """Enough of torch.Tensor for reading weights."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def float(self) -> "FakeTensor":
        return FakeTensor(self.value.astype(np.float32))

    def numpy(self) -> np.ndarray:
        return self.value


@pytest.fixture
def fake_torch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module `torch` in which a test sets `load`; the real one is tested by `pytest -m parity`."""
    module = ModuleType("torch")
    module.__spec__ = ModuleSpec("torch", None)
    vars(module)["Tensor"] = FakeTensor
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


def test_pickles_are_read_by_torch_with_tensors_only(golden: Path, fake_torch: ModuleType) -> None:
    """Fails if torch is called without weights_only, or its tensors are not converted to float32."""
    expected = read(golden).weights.params
    stored = {
        name: FakeTensor(value.astype(np.float64)) for name, value in load_file(golden / "model.safetensors").items()
    }
    calls: list[Any] = []

    def load(path: Path, **options: Any) -> Any:
        calls.append((path, options))
        return stored

    vars(fake_torch)["load"] = load
    pickled(golden)
    assert_same(read(golden, allow_pickle=True).weights.params, expected)
    assert calls == [(golden / "pytorch_model.bin", {"map_location": "cpu", "weights_only": True})]


@pytest.mark.parametrize(
    "content", [[1, 2], {"epoch": 3}, {0: FakeTensor(np.ones(2))}], ids=["list", "numbers", "number as key"]
)
def test_pickles_of_other_objects_are_refused(content: Any, golden: Path, fake_torch: ModuleType) -> None:
    vars(fake_torch)["load"] = lambda path, **options: content
    pickled(golden)
    with pytest.raises(
        InputError, match=r"expected a table of name -> tensor; save model.state_dict\(\) and nothing else"
    ):
        read(golden, allow_pickle=True)


def test_errors_of_torch_are_one_line(golden: Path, fake_torch: ModuleType) -> None:
    def load(path: Path, **options: Any) -> Any:
        raise ValueError("Unsupported class os.system\nmore lines")

    vars(fake_torch)["load"] = load
    pickled(golden)
    with pytest.raises(InputError, match=r"pytorch_model.bin: torch cannot load it \(Unsupported class os.system\)$"):
        read(golden, allow_pickle=True)


def test_a_pickle_without_torch(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    pickled(golden)
    with pytest.raises(InputError, match="reading a pickle needs torch"):
        read(golden, allow_pickle=True)


def mutated(data: bytes, flips: list[tuple[int, int]], length: int) -> bytes:
    changed = bytearray(data[: max(0, len(data) - length)])
    for place, bit in flips:
        if changed:
            changed[place % len(changed)] ^= 1 << bit
    return bytes(changed)


FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
MUTATION = dict(
    flips=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 7)), max_size=3),
    length=st.one_of(st.just(0), st.integers(0, 4000)),
)


def attempt(folder: Path) -> dict[str, Any] | None:
    """The parameters, or None where they are refused in one line."""
    try:
        return read(folder).weights.params
    except InputError as error:
        if "\n" in str(error):
            raise
        return None


def same_or_refused(folder: Path, wanted: dict[str, Any]) -> None:
    found = attempt(folder)
    if found is not None:
        assert_same(found, wanted)


def shapes(params: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    return {path: leaf.shape for path, leaf in leaves(params).items()}


@FUZZ
@given(name=st.sampled_from([INDEX, DATA]), **MUTATION)
def test_fuzz_tensorflow(tmp_path_factory: pytest.TempPathFactory, name: str, flips: Any, length: int) -> None:
    """Flipped and missing bytes: one line, or the same numbers; TensorFlow's checksums see the rest."""
    folder = GOLDEN / "tf1" / "inner"
    target = tmp_path_factory.mktemp("fuzz")
    for path in folder.iterdir():
        data = path.read_bytes()
        (target / path.name).write_bytes(mutated(data, flips, length) if path.name == name else data)
    same_or_refused(target, _inner())


@functools.cache
def _inner() -> dict[str, Any]:
    return read(GOLDEN / "tf1" / "inner").weights.params


@functools.cache
def _exported() -> tuple[bytes, str, dict[str, Any]]:
    """model.safetensors and config.json of an export of ours, and its parameters."""
    weights = random_weights()
    with tempfile.TemporaryDirectory() as folder:
        huggingface.write(weights, Path(folder))
        return Path(folder, "model.safetensors").read_bytes(), Path(folder, "config.json").read_text(), weights.params


@FUZZ
@given(**MUTATION)
def test_fuzz_our_export(tmp_path_factory: pytest.TempPathFactory, flips: Any, length: int) -> None:
    """safetensors carries no checksums; what we write does, in its metadata."""
    data, config, params = _exported()
    target = tmp_path_factory.mktemp("fuzz")
    (target / "config.json").write_text(config)
    (target / "model.safetensors").write_bytes(mutated(data, flips, length))
    same_or_refused(target, params)


@FUZZ
@given(**MUTATION)
def test_fuzz_foreign_safetensors(tmp_path_factory: pytest.TempPathFactory, flips: Any, length: int) -> None:
    """Without checksums a flipped number cannot be seen; a crash or another shape can."""
    target = tmp_path_factory.mktemp("fuzz")
    shutil.copy(HF / "shared" / "config.json", target)
    (target / "model.safetensors").write_bytes(
        mutated((HF / "shared" / "model.safetensors").read_bytes(), flips, length)
    )
    found = attempt(target)
    assert found is None or shapes(found) == shapes(read(HF / "shared").weights.params)


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
        found = tokenizer_json.read(folder)
        assert found is not None
        found.encode(TEXT)


@FUZZ
@given(name=st.sampled_from(["spiece.model", "tokenizer.json"]), **MUTATION)
def test_fuzz_tokenizer(
    vocabulary: Path, tmp_path_factory: pytest.TempPathFactory, name: str, flips: Any, length: int
) -> None:
    """Neither file has a checksum: another vocabulary may come out, a crash may not."""
    target = tmp_path_factory.mktemp("fuzz")
    tokenizer_json.write(Tokenizer(vocabulary), 16, target)
    data = (target / name).read_bytes()
    (target / "spiece.model").unlink()
    (target / name).write_bytes(mutated(data, [(place % 1500, bit) for place, bit in flips], length))
    vocabulary_or_refused(target)


def test_bundle_reads_dtypes() -> None:
    """The step is an int64; asking for it works, and half precision is read as it is."""
    bundle = TensorBundle(GOLDEN / "tf1" / "inner" / "model.ckpt-best")
    assert bundle.read("global_step") == 7
    assert load_file(HF / "head_of_128" / "model.safetensors")["albert.pooler.bias"].dtype == ml_dtypes.bfloat16


def test_tokenizer_outlives_its_files(complete: Path) -> None:
    """A tokenizer of an archive outlives the folder that it was unpacked to."""
    _, _, tokenizer = albert_jax.load(complete)
    os.remove(complete / "spiece.model")
    assert tokenizer("the cat")["input_ids"].shape[0] == 1
    assert isinstance(tokenizer, Tokenizer)

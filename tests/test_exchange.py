"""Loading, converting and resharing any ALBERT."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import albert_jax
from albert_jax.cli import main
from albert_jax.config import InputError, read_json
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.exchange import huggingface
from albert_jax.exchange.convert import convert
from albert_jax.exchange.load import read
from albert_jax.exchange.reshare import reshare
from albert_jax.model.heads import PRETRAINING, init_params
from albert_jax.model.per_pass import Lora

from .conftest import ROOT, refused
from .small_models import SMALL, assert_same
from .weight_files import HF, outputs, random_weights


def test_unsharing_and_back() -> None:
    """Unsharing keeps the outputs, and averaging equal layers gives the original layer.  Fails if parameter sets are mixed up."""
    shared = random_weights(sharing="groups", num_hidden_groups=2, inner_group_num=2)
    unshared = reshare(shared, sharing="none")
    assert unshared.params["encoder"]["ffn"]["intermediate"]["kernel"].shape[0] == 8
    assert_same(outputs(unshared), outputs(shared))
    assert_same(reshare(unshared, sharing="groups", num_hidden_groups=2).params, shared.params)
    halves = reshare(unshared, sharing="all").params["encoder"]["attention"]["query"]["kernel"]
    kernel = shared.params["encoder"]["attention"]["query"]["kernel"]  # sets: group 0 inner 0, 0 1, 1 0, 1 1
    np.testing.assert_allclose(halves, np.stack([kernel[[0, 2]].mean(0), kernel[[1, 3]].mean(0)]), rtol=1e-6)


def test_only_listed_fields_can_be_changed(complete: Path, tmp_path: Path) -> None:
    """Fails if a different number of attention heads is accepted: it would not change any shape."""
    for name in ("num_attention_heads", "hidden_size", "inner_group_num", "sharng"):
        with pytest.raises(InputError, match=f"{name} cannot be changed in a conversion; only sharing, "):
            convert(complete, tmp_path / "out", **{name: 4})
        with pytest.raises(InputError, match=f"{name} cannot be changed when a model is loaded"):
            albert_jax.load(complete, **{name: 4})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", ["sequence", "token", "choice", "answers"])
def test_fine_tuned_heads_survive_a_conversion(case: str, tmp_path: Path) -> None:
    """With and without pretraining heads.  Fails if a multiple-choice head is read as a text classifier."""
    for number, init_missing in enumerate((False, True)):
        target = tmp_path / str(number)
        report = convert(HF / case, target, init_missing=init_missing)
        assert "failed" not in report["parity"]["by"]
        wanted = read(HF / case, init_missing=init_missing).weights
        found = read(target).weights
        assert found.model == wanted.model
        assert_same(found.params, wanted.params)


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
    assert_same(deeper.params, shared.params)  # one set for any depth
    unshared = random_weights(sharing="none")
    bias = unshared.params["encoder"]["ffn"]["output"]["bias"]
    for depth, kept in ((2, [0, 2]), (8, [0, 0, 1, 1, 2, 2, 3, 3]), (3, [0, 1, 2])):
        found = reshare(unshared, num_hidden_layers=depth)
        assert np.array_equal(found.params["encoder"]["ffn"]["output"]["bias"], bias[kept])
    grouped = random_weights(sharing="groups", num_hidden_groups=2)
    assert_same(reshare(grouped, num_hidden_layers=8).params, grouped.params)


def test_missing_heads_are_initialized_only_with_init_missing() -> None:
    found = read(HF / "masked_lm").weights
    assert found.model.heads == ("predictions",)
    completed = read(HF / "masked_lm", init_missing=True).weights
    assert completed.model.heads == PRETRAINING
    fresh = jax.jit(lambda: init_params(completed.model, jax.random.key(0)))()
    assert_same(completed.params["pooler"], fresh["pooler"])
    assert_same(completed.params["predictions"], found.params["predictions"])
    assert "initialized with random numbers" in completed.notes[-1]


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
    """On the command line, Hugging Face -> our model folder -> Hugging Face is bitwise, tokenizer included."""
    ours, again = tmp_path / "ours", tmp_path / "again"
    assert main(["convert", str(complete), str(ours), "--to", "albert_jax"]) == 0
    output = capsys.readouterr().out
    assert "albert.pooler.weight" in output
    assert "prediction_logits: 0.0e+00" in output
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
    source = read(again)
    notes = list(source.weights.notes)
    assert convert(source, tmp_path / "erf", hidden_act="gelu")["source"] == str(again)
    assert source.weights.params["encoder"]
    assert source.weights.notes == notes
    same = convert(source, tmp_path / "same", hidden_act="gelu_new")
    assert source.weights.params["encoder"]
    assert not any("hidden_act changed" in note for note in same["notes"])
    message = refused(["pretrain", str(ours / "config.json"), "--run-dir", str(tmp_path / "run")], capsys)
    assert message.endswith(f"not an experiment; name an experiment, with --init-from {ours}")
    assert "exists; name another" in refused(["convert", str(again), str(tmp_path / "un")], capsys)


def test_convert_to_parameters_of_passes(complete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the command line; the way back gives one group per layer.  Fails if the settings of the variant were lost."""
    lora, back = tmp_path / "lora", tmp_path / "back"
    words = ["convert", str(complete), str(lora), "--to", "albert_jax", "--per-pass", "lora", "--per-pass.rank", "2"]
    assert main([*words, "--per-pass.parts", "ffn", "--initialization", "stepwise"]) == 0
    assert read(lora).weights.model.config.per_pass == Lora(rank=2, parts="ffn")
    assert main(["convert", str(lora), str(back)]) == 0
    assert read_json(back / "config.json")["num_hidden_groups"] == read_json(back / "config.json")["num_hidden_layers"]
    words = ["convert", str(complete), str(tmp_path / "new")]
    for options, message in {
        ("--per-pass.rank", "2"): "--per-pass.rank needs --per-pass NAME",
        (
            "--per-pass",
            "adapter",
        ): "--per-pass: unknown value 'adapter'; choose one of none, norm, scale, embedding, lora",
        ("--per-pass", "lora", "--per-pass.rang", "2"): "unknown key '--per-pass.rang'; did you mean 'rank'?",
        (
            "--per-pass",
            "lora",
            "--per-pass.rank",
            "99",
        ): "per_pass.rank must be in [1, 16], the smallest side of a kernel",
        ("--initialization", "lower"): "initialization: unknown value 'lower'; choose one of average, stepwise",
        ("--sharing", "0,1"): "sharing '0,1': expected one number per layer (num_hidden_layers",
    }.items():
        assert refused([*words, *options], capsys).startswith(message)


def test_no_vocabulary(golden: Path, vocabulary: Path) -> None:
    assert albert_jax.load(golden)[2] is None
    _, _, tokenizer = albert_jax.load(golden, vocab=vocabulary)
    assert tokenizer.vocab_size == 40


def test_tokenizer_outlives_its_files(complete: Path) -> None:
    """As after an archive was read, whose files are in a temporary folder."""
    _, _, tokenizer = albert_jax.load(complete)
    os.remove(complete / "spiece.model")
    assert tokenizer("the cat")["input_ids"].shape[0] == 1
    assert isinstance(tokenizer, Tokenizer)

"""Models as StableHLO programs: a process without flax and this package gets the same outputs."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from albert_jax.cli import main
from albert_jax.exchange.weights import Weights
from albert_jax.model.heads import PRETRAINING, Albert, param_shapes

from .conftest import assert_input_error, refused
from .small_models import random_model

pytest.importorskip("flatbuffers", reason="needs the extra 'stablehlo'")

from albert_jax.exchange import stablehlo
from albert_jax.exchange.load import load

CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...], dict[str, Any]]] = {  # heads, labels, changes of the config
    "pretraining": (PRETRAINING, (), {}),
    "classes": (("pooler", "classifier"), ("no", "yes", "maybe"), {"sharing": "none", "remat": "full"}),
    "tags": (("token_classifier",), ("O", "B", "I"), {"per_pass": "lora", "dtype": "bfloat16"}),
    "choices": (("pooler", "choice_classifier"), (), {"sharing": "attention"}),
    "spans": (("qa_outputs",), (), {"scan_unroll": 2}),
    "spans or none": (("answer_class",), (), {}),
}
SIZES = ((1, 7), (3, 20))
"""Batch and length of the inputs."""

CHILD = """\
import os, sys
sys.modules |= {"albert_jax": None, "flax": None}  # importing them raises
for folder in sys.argv[1:]:
    os.chdir(folder)
    text = open("README.md").read()
    code = text.partition("```python\\n")[2].partition("```")[0]
    exec(code.replace("[[2, 5, 3]]", "[[2, 5, 3, 7, 7]]"))  # long enough for all heads
    for number in range(2):
        inputs = np.load(f"../inputs-{number}.npy")
        np.savez(f"outputs-{number}.npz", **program.call(params, *inputs))
"""


def inputs_of_size(batch: int, length: int) -> np.ndarray:
    """[3, batch, length]: ids, a mask with padding in the last row, segments."""
    random = np.random.default_rng(length)
    ids = random.integers(5, 500, (batch, length))
    mask = np.ones_like(ids)
    mask[-1, length * 2 // 3 :] = 0
    return np.stack([ids, mask, np.arange(length) > length // 2 + 0 * ids]).astype(np.int32)


def test_without_the_package(tmp_path: Path) -> None:
    """Outputs agree to 1e-5 with `model.apply`, at two batch sizes and lengths, for every head.

    Fails if the program has fixed sizes, or ignores the mask or the segments.
    """
    models = {}
    for name, (heads, labels, changes) in CASES.items():
        config = replace(random_model()[0].config, **changes)
        model = Albert(config, heads, labels)
        random = np.random.default_rng(3)
        params = jax.tree.map(
            lambda leaf, random=random: random.normal(size=leaf.shape).astype(np.float32) * 0.3, param_shapes(model)
        )
        (tmp_path / name).mkdir()
        stablehlo.write(Weights(model, params), tmp_path / name)
        models[name] = model.clone(config=replace(config, dtype="float32")), params
    batches = [inputs_of_size(*size) for size in SIZES]
    for number, inputs in enumerate(batches):
        np.save(tmp_path / f"inputs-{number}.npy", inputs)
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    folders = [str(tmp_path / name) for name in models]
    subprocess.run([sys.executable, "-P", script, *folders], check=True, timeout=300, env=os.environ)
    for name, (model, params) in models.items():
        for number, inputs in enumerate(batches):
            expected = jax.jit(model.apply)({"params": params}, *inputs)
            with np.load(tmp_path / name / f"outputs-{number}.npz") as actual:
                assert set(actual) == set(expected)
                for output, value in expected.items():
                    np.testing.assert_allclose(actual[output], value, atol=1e-5, err_msg=f"{name} {output}")


def test_convert_writes_and_checks_the_program(
    complete: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report has the parity of the program; the folder has the tokenizer; `load` explains what the folder is."""
    target = tmp_path / "program"
    assert main(["convert", str(complete), str(target), "--to", "stablehlo", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["parity"].pop("by") == "jax.export, which read the target"
    assert set(report["parity"]) >= {"prediction_logits", "sop_logits"}
    assert max(report["parity"].values()) <= 1e-5
    assert {path.name for path in target.iterdir()} >= {"model.stablehlo", "model.safetensors", "spiece.model"}
    program = jax.export.deserialize(bytearray((target / "model.stablehlo").read_bytes()))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert oct((target / "model.safetensors").stat().st_mode) == oct((target / "README.md").stat().st_mode)
    assert "a StableHLO program" in refused(["predict", str(target), "text"], capsys)
    assert_input_error(lambda: load(target), "name the model from which it was made")


def test_convert_without_flatbuffers(
    complete: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["convert", str(complete), str(tmp_path / "program"), "--to", "stablehlo"]
    assert "pip install 'albert_jax[stablehlo]'" in refused(words, capsys)
    assert not (tmp_path / "program").exists()

"""Plans: counts are the paper's, bytes those of real arrays and of XLA, and what looks wrong is told, and nothing else."""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from albert_jax.cli import main
from albert_jax.config import InputError, load, to_dict
from albert_jax.model.albert import PRESETS
from albert_jax.plan.compiled import collectives, compile_step
from albert_jax.plan.footprint import activations
from albert_jax.plan.planning import Assumed, Plan, plan
from albert_jax.plan.table import describe
from albert_jax.pretraining.run import PretrainConfig

from .conftest import ROOT, refused

FILES = sorted((ROOT / "experiments" / "pretrain").glob("*.py"))
HEADS = {"base": 130_226, "large": 163_506, "xlarge": 296_626, "xxlarge": 562_866}
"""Parameters of the heads but the pooler."""


def experiment(name: str, *words: str) -> PretrainConfig:
    return load(PretrainConfig, str(ROOT / "experiments" / "pretrain" / f"{name}.py"), words)


SMALL = [
    *("--model.vocab-size", "512", "--model.embedding-size", "32", "--model.hidden-size", "64"),
    *("--model.num-hidden-layers", "3", "--model.num-attention-heads", "4", "--model.intermediate-size", "256"),
    *("--model.scan-unroll", "1"),
]


def small(*words: str) -> PretrainConfig:
    return experiment("tiny", *SMALL, *words)


@pytest.mark.parametrize(
    ("name", "parameters", "unshared"),
    [  # transformers' AlbertForPreTraining, and its AlbertModel with as many groups as layers
        ("base", 11_813_810, 89_650_176),
        ("large", 17_847_474, 307_397_120),
        ("xlarge", 59_021_490, 1_216_965_120),
        ("xxlarge", 223_158_450, 2_437_773_824),
    ],
)
def test_parameter_counts(name: str, parameters: int, unshared: int) -> None:
    assert plan(experiment(name)).parameters == parameters
    words = ("--mesh.data", "8", "--model.sharing", "none", "--mesh.sharding", "parameters", "--model.remat", "dots")
    twin = plan(experiment(name, *words))
    assert twin.parameters == unshared + HEADS[name]
    assert 4 / 8 < twin.memory.params / twin.parameters < 4.1 / 8  # norms and biases are not cut


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_and_every_command_in_it_is_planned(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The docstrings' own commands: v1, v2, unshared twins, phases.  Fails if an option in one is not a field."""
    doc = (ast.get_docstring(ast.parse(path.read_text())) or "").replace("\\\n", " ")
    commands = re.findall(r"albert-jax (?:pretrain|plan) (experiments/pretrain/.*)", doc)
    assert commands
    for command in commands:
        words = shlex.split(command)
        words += [] if "--mesh.data" in words else ["--mesh.data=8"]
        assert main(["plan", str(ROOT / words[0]), *words[1:]]) == 0
        out = capsys.readouterr().out
        assert "| parameters |" in out
        assert "Traceback" not in out


@pytest.mark.parametrize(("name", "chips"), [("large", 16), ("xlarge", 32), ("xxlarge", 64)])
def test_recipes_fit_their_hardware_and_are_the_released_networks(name: str, chips: int) -> None:
    made = plan(experiment(name, f"--mesh.data={chips}"))
    assert made.warnings == ()
    dropout = ["--model.hidden-dropout-prob=0.1", "--model.attention-probs-dropout-prob=0.1"]
    for version, words in ((name, []), (f"{name}-v1", [] if name == "xxlarge" else dropout)):
        ours = to_dict(experiment(name, *words, "--model.dtype=float32").model)
        assert ours == to_dict(PRESETS[version])


OCCUPIED = """
import json, sys
import jax
from albert_jax.training import partition
from albert_jax.pretraining import run as pretrain
from albert_jax.training import step as train_step
from albert_jax.config import from_dict
from albert_jax.pretraining.task import some_vocabulary
config = from_dict(pretrain.PretrainConfig, json.load(sys.stdin))
mesh = partition.make_mesh("cpu", config.mesh.data)
task, optimizer, layout = pretrain.make_task(config, some_vocabulary(config.model.vocab_size), mesh, None, None)
state = train_step.make_init(task, optimizer, layout)(train_step.as_argument(0, mesh))
print([sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(part)) for part in state[:2]])
"""


@pytest.mark.parametrize("sharding", ["none", "optimizer", "parameters"])
def test_state_is_as_large_as_real_arrays(sharding: str) -> None:
    words = ["--mesh.data=8", f"--mesh.sharding={sharding}", "--model.sharing=none", "--model.remat=dots"]
    config = small(*words, "--optim.skip-spikes=3", "--train.eval-batch-size=8")
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    found = subprocess.run(
        [sys.executable, "-c", OCCUPIED],
        input=json.dumps(to_dict(config)),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    memory = plan(config).memory
    assert [memory.params, memory.opt_state] == json.loads(found.stdout)


def test_gradients_and_parameters_made_whole() -> None:
    """Plain: a float32 copy.  Cut: the kernels of one layer and all others are whole; gradients of layers are cut, others not."""
    plain = plan(small("--mesh.data=8"))
    assert (plain.memory.gradients, plain.memory.whole) == (4 * plain.parameters, 0)
    words = ["--mesh.data=8", "--mesh.sharding=parameters", "--model.sharing=none", "--model.remat=dots"]
    cut = plan(small(*words))
    layer = 4 * 64 * 64 + 2 * 64 * 256
    others = (512 + 64 + 2) * 32 + 2 * 32 * 64 + 64 * 64 + 64 * 2  # tables; into H and out of it; pooler; sentence
    assert cut.memory.whole == 4 * (layer + others)
    uncut = cut.parameters - 3 * layer - others
    assert cut.memory.gradients == 4 * (3 * layer // 8 + others + uncut)
    assert cut.traffic.all_reduced == 4 * uncut


def moved(config: PretrainConfig, compiled: dict[str, Any]) -> dict[str, int]:
    """Kind -> bytes a step in the compiled text; what stands in the loop over layers runs once a layer."""
    found: dict[str, int] = {}
    for one in compiled["collectives"]:
        times = config.model.num_hidden_layers if one["in_loop"] else 1
        found[one["kind"]] = found.get(one["kind"], 0) + times * one["bytes"]
    return found


def test_compiled_plain_data_parallelism(capsys: pytest.CaptureFixture[str]) -> None:
    """One all-reduce of all gradients, in no loop; besides it only sums of a few numbers."""
    path = str(ROOT / "experiments" / "pretrain" / "tiny.py")
    assert main(["plan", path, *SMALL, "--mesh.data", "8", "--compile", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["traffic"] == {"all_reduced": 4 * made["parameters"], "reduce_scattered": 0, "all_gathered": 0}
    found = made["compiled"]["collectives"]
    assert {one["kind"] for one in found} == {"all-reduce"}
    assert not any(one["in_loop"] for one in found)
    assert sum(one["bytes"] > 1000 for one in found) == 1
    assert 0 <= sum(one["bytes"] for one in found) - 4 * made["parameters"] < 200
    # The state that goes in and out: parameters twice more for LAMB, two counters and the step.
    assert made["compiled"]["alias"] == made["memory"]["params"] + made["memory"]["opt_state"] + 4


@pytest.mark.parametrize(
    ("sharding", "sharing"),
    [
        ("parameters", "none"),
        pytest.param("parameters", "ffn", marks=pytest.mark.slow),
        pytest.param("optimizer", "all", marks=pytest.mark.slow),
    ],
)
def test_compiled_collectives_are_the_planned_ones(sharding: str, sharing: str) -> None:
    """Bytes by kind; with parameters cut, what stands in the loop over layers stands in no other plan's."""
    config = small("--mesh.data=8", f"--mesh.sharding={sharding}", f"--model.sharing={sharing}", "--model.remat=dots")
    compiled = compile_step(config, 8)
    traffic, found = plan(config).traffic, moved(config, compiled)
    assert found["reduce-scatter"] == traffic.reduce_scattered > 0
    assert found["all-gather"] == traffic.all_gathered > 0
    norms = 16 * 3 * 40  # of the trust ratio: two a tensor that is cut, at most 40 for a layer
    assert 0 < found["all-reduce"] - traffic.all_reduced < norms
    assert any(one["in_loop"] for one in compiled["collectives"]) == (sharding == "parameters")


HLO = """\
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %s = f32[] add(%a, %b)
}

%inner (p: f32[64,64]) -> f32[64,64] {
  ROOT %ar.1 = f32[64,64]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1}}, to_apply=%add
}

%body (t: (s32[], f32[64,64])) -> (s32[], f32[64,64]) {
  %c = f32[64,64]{1,0} call(%x), to_apply=%inner
}

%cond (t: (s32[], f32[64,64])) -> pred[] {
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (p: f32[64,64]) -> f32[8,64] {
  %w = (s32[], f32[64,64]{1,0}) while(%t), condition=%cond, body=%body
  %ag = (bf16[16,4]{1,0}, f32[2]{0}) all-gather-start(%a, %b), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %rs = f32[8,64]{1,0} reduce-scatter(%g), channel_id=3, replica_groups=[1,8]<=[8], dimensions={0}, to_apply=%add
}
"""


def test_collectives_of_a_text() -> None:
    """One in a loop is found where the loop's body only calls it; what is scattered counts whole."""
    found = [tuple(one) for one in collectives(HLO)]
    assert found == [
        ("all-reduce", 4096, 16384, True),
        ("all-gather", 64, 136, False),
        ("reduce-scatter", 4096, 16384, False),
    ]


@pytest.mark.parametrize("remat", ["none", pytest.param("elementwise", marks=pytest.mark.slow), "dots", "full"])
def test_activations_against_xla(remat: str) -> None:
    """XLA:CPU's temporaries in float32, gradients taken off: within a quarter of the estimate (ALBERT-base, 8 rows: 0.92 to 1.05).

    In bfloat16 XLA:CPU keeps float32 copies, so that the estimate cannot be held against it.
    """
    config = small(f"--model.remat={remat}", "--train.global-batch-size=128", "--train.eval-batch-size=128")
    temporary = compile_step(config, 1)["temp"] - plan(config).memory.gradients
    assert temporary == pytest.approx(activations(config, 128), rel=0.25)


def test_table_is_markdown_and_says_what_xla_found() -> None:
    """Two cells a line; one in a loop is told apart."""
    config = small("--mesh.data=8")
    sizes = dict.fromkeys(("argument", "output", "temp", "alias"), 1_500_000)
    found = [
        {"kind": kind, "elements": count, "bytes": 4 * count, "in_loop": looped}
        for kind, count, looped in (("all-reduce", 4096, True), ("all-reduce", 1, True), ("all-gather", 5000, False))
    ]
    made = replace(plan(config), compiled=sizes | {"seconds": 2.0, "collectives": found}, warnings=("one", "two"))
    lines = describe(made, config, "title").splitlines()
    assert lines[:2] == ["| title | |", "|---|---|"]
    assert lines[-3:] == ["", "warning: one", "warning: two"]
    assert all(line.startswith("| ") and line.endswith(" |") and line.count(" | ") == 1 for line in lines[2:-3])
    assert f"| parameters | {made.parameters:,} |" in lines
    loops = "2, 16.4 kB; of a layer's kernel or larger 1, 1 of them in a loop, counted once"
    assert f"| XLA:CPU's all-reduce | {loops} |" in lines
    assert "| XLA:CPU's all-gather | 1, 20 kB; of a layer's kernel or larger 1, none of them in a loop |" in lines


def test_activations_follow_rows_dtype_and_remat() -> None:
    config = small()
    whole = activations(config, 16)
    assert activations(config, 32) / whole == pytest.approx(2, rel=0.05)
    assert activations(small("--model.dtype=bfloat16"), 16) < 0.8 * whole
    assert activations(small("--model.remat=full"), 16) < activations(small("--model.remat=dots"), 16) < whole


@pytest.mark.parametrize("sharing", ["all", "none"])
def test_parameters_are_no_activations(sharing: str) -> None:
    """What does not grow with rows is next to nothing, also where backward reads the parameters themselves."""
    config = small("--model.remat=full", f"--model.sharing={sharing}")
    assert abs(2 * activations(config, 1) - activations(config, 2)) < 0.1 * plan(config).memory.params


def test_time_and_layout() -> None:
    """262,144,000,000 tokens of 570.38 MFLOP on 16 x 989 TFLOP/s at 40 %: 23,623 s."""
    made = plan(experiment("base", "--mesh.data=16", "--train.gradient-accumulation=8"))
    assert (made.processes, made.devices, made.micro_batches, made.rows) == (2, 16, 8, 32)
    assert made.tokens == 262_144_000_000
    assert made.seconds == pytest.approx(262_144_000_000 * 570.381498e6 / (16 * 0.4 * 989e12))
    half = plan(experiment("base", "--mesh.data=16"), Assumed(device="TPU v3", mfu=0.2, processes=4, tokens=1e9))
    assert half.seconds == pytest.approx(made.seconds * 2 * 989 / 61.5)
    assert (half.processes, half.repeats) == (4, pytest.approx(262.144))


def warned(words: list[str], assumed: Assumed | None = None) -> str:
    made: Plan = plan(experiment("base", "--mesh.data=8", "--train.gradient-accumulation=8", *words), assumed)
    return "\n".join(made.warnings)


@pytest.mark.parametrize(
    ("words", "assumed", "message"),
    [
        (
            ["--train.global-batch-size=256"],
            {},
            "optim.learning_rate 0.00176 is 4.0 times the square-root rule's at batch 256: --optim.learning-rate 0.00044",
        ),
        (["--train.global-batch-size=256", "--optim.learning-rate=4.4e-4"], {}, ""),
        (["--train.global-batch-size=256", "--optim.optimizer=adamw"], {}, ""),
        (
            ["--objective.max-predictions-per-seq=20"],
            {},
            "masks 3.9% of a full sequence of 512, not masked_lm_prob's 15%: --objective.max-predictions-per-seq 77",
        ),
        ([], {"tokens": 3.3e9}, ""),
        ([], {"tokens": 1e9}, "the data is repeated 262 times, the paper's about 80: more text, or --train.num-train"),
        ([], {"device": "A100"}, ""),
        ([], {"memory_gb": 20}, "more than 20 GB: --train.gradient-accumulation 16, or --model.remat dots"),
        ([], {"memory_gb": 0.2}, "--mesh.sharding parameters --model.remat dots"),
        (["--mesh.sharding=optimizer"], {"memory_gb": 0.01}, "--mesh.sharding parameters --model.remat dots"),
    ],
)
def test_warnings(words: list[str], assumed: dict[str, Any], message: str) -> None:
    """The right one, alone, or none."""
    told = warned(words, Assumed(**assumed))
    assert message in told
    assert len(told.splitlines()) == bool(message)


def test_what_a_memory_warning_says_fits() -> None:
    """Each of its ways, taken, is planned without a warning."""
    told = warned([], Assumed(memory_gb=7))
    ways = told.partition(" GB: ")[2].split(", or ")
    assert len(ways) == 3
    for way in ways:
        assert warned(shlex.split(way), Assumed(memory_gb=7)) == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "B999"], "--device: one of H100, H200"),
        (["--mfu", "40"], "--mfu must be in (0, 1], got 40.0; 0.4 is 40 %"),
        (["--mfu", "much"], "invalid float value: 'much'"),
        (["--tokens", "0"], "--tokens must be finite and > 0, got 0.0"),
        (["--memory-gb", "nan"], "--memory-gb must be finite and > 0, got nan"),
        (["--peak-tflops", "-1"], "--peak-tflops must be finite and > 0"),
        (["--mesh.data", "8", "--distributed.num-processes", "3"], "mesh.data 8 is not divisible by --distributed"),
        (["--distributed.num-processes", "0"], "--distributed.num-processes must be finite and > 0, got 0"),
        (["--mesh.data", "48"], "train.global_batch_size 32 is not divisible by 48 devices"),
        (
            ["--mesh.data", "32", "--train.eval-batch-size", "8"],
            "train.eval_batch_size 8 is not divisible by 32 devices",
        ),
        (["--model.vocab-size", "4"], "model.vocab_size must be above 4"),
        (["--optim.num-warmup-steps", "5000"], "optim.num_warmup_steps (5000) must be < train.num_train_steps"),
        (["--seeds", "3"], "unknown key 'seeds'"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(["plan", str(ROOT / "experiments" / "pretrain" / "tiny.py"), *words], capsys)


def test_a_step_that_does_not_compile_is_told() -> None:
    told = r"--compile: the step does not compile for 3 virtual devices: .*IndivisibleError: .*3 times"
    with pytest.raises(InputError, match=told):
        compile_step(small(), 3)

"""Plans: parameter counts from the paper, bytes of real arrays and of XLA, and a warning for each setting that looks wrong."""

import ast
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import pytest

from albert_jax.cli import main
from albert_jax.config import InputError, load
from albert_jax.model.albert import PRESETS
from albert_jax.plan import estimate
from albert_jax.plan.compiled import collectives, compile_here, compile_step
from albert_jax.plan.estimate import Assumptions, activation_bytes, plan
from albert_jax.plan.printing import plan_table
from albert_jax.pretraining import run as pretrain
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.pretraining.task import batch_shapes, placeholder_vocabulary, pretraining_model, pretraining_workload
from albert_jax.training import partition
from albert_jax.training import step as train_step
from albert_jax.training.partition import Layout

from .conftest import ROOT, TINY, overrides_of, refused

FILES = sorted((ROOT / "experiments" / "pretrain").glob("*.py"))
HEADS = {"base": 130_226, "large": 163_506, "xlarge": 296_626, "xxlarge": 562_866}
"""Parameters of the heads except the pooler."""

SMALL = [
    *("--model.vocab-size", "512", "--model.embedding-size", "32", "--model.hidden-size", "64"),
    *("--model.num-hidden-layers", "2", "--model.num-attention-heads", "4", "--model.intermediate-size", "256"),
    *("--model.scan-unroll", "1"),
    *("--optim.optimizer", "lamb"),
]


def experiment(name: str, *words: str) -> PretrainConfig:
    return load(
        PretrainConfig, str(ROOT / "experiments" / "pretrain" / f"{name}.py"), overrides_of(PretrainConfig, words)
    )


def small(*words: str) -> PretrainConfig:
    return experiment("tiny", *SMALL, *words)


@pytest.fixture
def without_activations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip the estimate of activations, which traces the whole model."""
    monkeypatch.setattr(estimate, "activation_bytes", lambda *_: 0)


@pytest.mark.usefixtures("without_activations")
@pytest.mark.parametrize(
    ("name", "parameters", "unshared"),
    [  # transformers' AlbertForPreTraining, and its AlbertModel with one group per layer
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
    assert 4 / 8 < twin.memory.params / twin.parameters < 4.1 / 8  # LayerNorms and biases are not sharded


@pytest.mark.usefixtures("without_activations")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_command_in_an_experiment_file_can_be_planned(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if an option in a docstring is not a field."""
    doc = (ast.get_docstring(ast.parse(path.read_text())) or "").replace("\\\n", " ")
    commands = re.findall(r"albert-jax (?:pretrain|plan) (experiments/pretrain/.*)", doc)
    assert commands
    for command in commands:
        words = shlex.split(command)
        words += [] if "--mesh.data" in words else ["--mesh.data=8"]
        assert main(["plan", str(ROOT / words[0]), *words[1:]]) == 0
        assert "| parameters |" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "chips"), [("large", 16), ("xlarge", 32), ("xxlarge", 64)])
def test_recipes_fit_their_hardware_and_have_the_released_architecture(name: str, chips: int) -> None:
    assert plan(experiment(name, f"--mesh.data={chips}")).warnings == ()
    dropout = ["--model.hidden-dropout-prob=0.1", "--model.attention-probs-dropout-prob=0.1"]
    for version, words in ((name, []), (f"{name}-v1", [] if name == "xxlarge" else dropout)):
        assert experiment(name, *words, "--model.dtype=float32").model == PRESETS[version]


@pytest.mark.usefixtures("without_activations")
@pytest.mark.parametrize("sharding", ["optimizer", "parameters"])
def test_state_has_the_size_of_real_arrays(sharding: str) -> None:
    words = [f"--mesh.sharding={sharding}", "--model.sharing=none", "--model.remat=dots", "--optim.skip-spikes=3"]
    config = small("--mesh.data=8", "--train.eval-batch-size=8", *words)
    mesh = partition.make_mesh("cpu", 8)
    task, optimizer, layout = pretrain.training_parts(config, placeholder_vocabulary(512), mesh)
    state = train_step.make_init(task, optimizer, layout)(train_step.as_argument(0, mesh))
    params, opt_state = (
        sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(part))
        for part in (state.params, state.opt_state)
    )
    memory = plan(config).memory
    assert (memory.params, memory.opt_state) == (params, opt_state)


@pytest.mark.usefixtures("without_activations")
def test_gradients_and_gathered_parameters() -> None:
    """Replicated: a float32 copy of the parameters.  Sharded: one layer's kernels and everything outside the layers are
    gathered; only the gradients of the layers are sharded."""
    replicated = plan(small("--mesh.data=8"))
    assert replicated.memory.gradients == 4 * replicated.parameters
    assert replicated.memory.gathered_params == 0
    words = ["--mesh.data=8", "--mesh.sharding=parameters", "--model.sharing=none", "--model.remat=dots"]
    sharded = plan(small(*words))
    layer = 4 * 64 * 64 + 2 * 64 * 256
    # Embedding tables; the projections from E to H and back; pooler; sentence head.
    others = (512 + 64 + 2) * 32 + 2 * 32 * 64 + 64 * 64 + 64 * 2
    assert sharded.memory.gathered_params == 4 * (layer + others)
    vectors = sharded.parameters - 2 * layer - others
    assert sharded.memory.gradients == 4 * (2 * layer // 8 + others + vectors)
    assert sharded.traffic["all-reduce"] == 4 * vectors


def compiled_traffic(config: PretrainConfig, compiled: dict[str, Any]) -> dict[str, int]:
    """Kind -> bytes per step in the compiled text.  A collective in the loop over layers runs once per layer."""
    traffic: dict[str, int] = {}
    for one in compiled["collectives"]:
        times = config.model.num_hidden_layers if one["in_loop"] else 1
        traffic[one["kind"]] = traffic.get(one["kind"], 0) + times * one["bytes"]
    return traffic


def test_replicated_parameters_compile_to_one_all_reduce(capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command line and its child process.  Apart from the gradients' all-reduce there are only sums of a few
    numbers, and nothing is in a loop."""
    assert main(["plan", TINY, *SMALL, "--mesh.data", "8", "--compile", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["traffic"] == {"all-reduce": 4 * planned["parameters"], "reduce-scatter": 0, "all-gather": 0}
    found = planned["compiled"]["collectives"]
    assert {one["kind"] for one in found} == {"all-reduce"}
    assert not any(one["in_loop"] for one in found)
    assert sum(one["bytes"] > 1000 for one in found) == 1
    assert 0 <= sum(one["bytes"] for one in found) - 4 * planned["parameters"] < 200
    # The whole state is donated: parameters, optimizer state and the step counter.
    assert planned["compiled"]["alias"] == planned["memory"]["params"] + planned["memory"]["opt_state"] + 4


@pytest.mark.usefixtures("without_activations")
@pytest.mark.parametrize(
    ("sharding", "sharing"),
    [("parameters", "ffn"), ("optimizer", "all"), pytest.param("parameters", "none", marks=pytest.mark.long)],
)
def test_compiled_collectives_are_the_planned_ones(sharding: str, sharing: str) -> None:
    """In bytes by kind.  Only with sharded parameters are there collectives in the loop over layers."""
    words = ["--mesh.data=8", f"--mesh.sharding={sharding}", f"--model.sharing={sharing}", "--model.remat=dots"]
    config = small(*words)
    compiled = compile_here(config, 8)
    planned, found = plan(config).traffic, compiled_traffic(config, compiled)
    assert found["reduce-scatter"] == planned["reduce-scatter"] > 0
    assert found["all-gather"] == planned["all-gather"] > 0
    trust_ratio_norms = 16 * 2 * 40  # two norms per sharded tensor, at most 40 tensors per layer
    assert 0 < found["all-reduce"] - planned["all-reduce"] < trust_ratio_norms
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


def test_collectives_in_hlo() -> None:
    """A collective counts as in a loop if the loop's body only calls it; a reduce-scatter has the size of its input."""
    assert [tuple(one) for one in collectives(HLO, 8)] == [
        ("all-reduce", 4096, 16384, True),
        ("all-gather", 64, 136, False),
        ("reduce-scatter", 4096, 16384, False),
    ]


@pytest.mark.parametrize("remat", ["none", "elementwise", "dots", "full"])
def test_activations_against_xla(remat: str) -> None:
    """XLA:CPU's temporaries of the loss and its gradients in float32 are within a quarter of the estimate.

    In bfloat16 XLA:CPU keeps float32 copies, so its temporaries say nothing about the estimate.
    """
    config, rows = small("--model.num-hidden-layers=3", f"--model.remat={remat}"), 128
    layout = Layout(estimate.abstract_mesh(1))
    model = pretraining_model(config.model, config.objective)
    task = pretraining_workload(model, config.objective, placeholder_vocabulary(512), layout)
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(task.init, key)
    examples = jax.eval_shape(task.draw, batch_shapes(config.objective, rows), key)
    compiled = jax.jit(jax.value_and_grad(task.loss, has_aux=True)).lower(params, examples).compile()
    memory: Any = compiled.memory_analysis()
    assert memory.temp_size_in_bytes == pytest.approx(activation_bytes(config.model, config.objective, rows), rel=0.25)


@pytest.mark.usefixtures("without_activations")
def test_table_is_markdown_with_the_result_of_xla() -> None:
    """Two cells per line; collectives in a loop are counted separately."""
    sizes = dict.fromkeys(("argument", "output", "temp", "alias"), 1_500_000)
    found = [
        {"kind": kind, "elements": count, "bytes": 4 * count, "in_loop": looped}
        for kind, count, looped in (("all-reduce", 4096, True), ("all-reduce", 1, True), ("all-gather", 5000, False))
    ]
    compiled = sizes | {"seconds": 2.0, "collectives": found}
    planned = replace(plan(small("--mesh.data=8")), compiled=compiled, warnings=("one", "two"))
    lines = plan_table(planned, "title").splitlines()
    assert lines[:2] == ["| title |  |", "|---|---|"]
    assert lines[-4:] == ["", "warning: one", "", "warning: two"]
    assert all(line.startswith("| ") and line.endswith(" |") and line.count(" | ") == 1 for line in lines[2:-4])
    assert f"| parameters | {planned.parameters:,} |" in lines
    loops = "2, 16.4 kB; 1 as large as a layer's kernel, 1 of these in a loop (counted once)"
    assert f"| XLA:CPU: all-reduce | {loops} |" in lines
    assert "| XLA:CPU: all-gather | 1, 20 kB; 1 as large as a layer's kernel, 0 of these in a loop |" in lines


def activations(rows: int, *words: str) -> int:
    config = small(*words)
    return activation_bytes(config.model, config.objective, rows)


def test_activations_follow_rows_dtype_and_remat() -> None:
    elementwise = activations(16)
    assert activations(32) / elementwise == pytest.approx(2, rel=0.05)
    assert activations(16, "--model.dtype=bfloat16") < 0.8 * elementwise
    assert activations(16, "--model.remat=full") < activations(16, "--model.remat=dots") < elementwise


@pytest.mark.parametrize("sharing", ["all", "none"])
def test_parameters_do_not_count_as_activations(sharing: str) -> None:
    """The part that does not grow with the rows is small, even where the backward pass reads the parameters."""
    words = ("--model.remat=full", f"--model.sharing={sharing}")
    params = 4 * plan(small(*words)).parameters
    assert abs(2 * activations(1, *words) - activations(2, *words)) < 0.1 * params


@pytest.mark.usefixtures("without_activations")
def test_time_and_batch_layout() -> None:
    """262,144,000,000 tokens of 570.38 MFLOP on 16 x 989 TFLOP/s at 40 %: 23,623 s."""
    h100 = plan(experiment("base", "--mesh.data=16", "--train.gradient-accumulation=8"))
    assert (h100.processes, h100.devices, h100.rows) == (2, 16, 32)
    assert h100.tokens == 262_144_000_000
    assert h100.seconds == pytest.approx(262_144_000_000 * 570.381498e6 / (16 * 0.4 * 989e12))
    tpu = plan(experiment("base", "--mesh.data=16"), Assumptions(device="TPU v3", mfu=0.2, processes=4, tokens=1e9))
    assert tpu.seconds == pytest.approx(h100.seconds * 2 * 989 / 61.5)
    assert (tpu.processes, tpu.repeats) == (4, pytest.approx(262.144))


def warnings(words: list[str], **assumptions: Any) -> tuple[str, ...]:
    config = experiment("base", "--mesh.data=8", "--train.gradient-accumulation=8", *words)
    return plan(config, Assumptions(**assumptions)).warnings


@pytest.mark.parametrize(
    ("words", "assumptions", "message"),
    [
        (
            ["--train.global-batch-size=256"],
            {},
            "optim.learning_rate 0.00176 is 4.0 times the paper's rate, scaled to this batch size (0.00176 x sqrt(256 / "
            "4096)); use --optim.learning-rate 0.00044",
        ),
        (["--train.global-batch-size=256", "--optim.learning-rate=4.4e-4"], {}, ""),
        (["--train.global-batch-size=256", "--optim.optimizer=adamw"], {}, ""),
        (
            ["--objective.max-predictions-per-seq=20"],
            {},
            "masks 3.9% of a full sequence of 512, not masked_lm_prob's 15%; use --objective.max-predictions-per-seq 77",
        ),
        ([], {"tokens": 3.3e9}, ""),
        ([], {"tokens": 1e9}, "the data is repeated 262 times (paper: about 80); use more text, or --train.num-train"),
        ([], {"device": "A100"}, ""),
        ([], {"memory_gb": 20}, "20 GB are available; use --train.gradient-accumulation 16, or --model.remat dots"),
        ([], {"memory_gb": 0.2}, "use --mesh.sharding parameters --model.remat dots"),
        (["--mesh.sharding=optimizer"], {"memory_gb": 0.01}, "use --mesh.sharding parameters --model.remat dots"),
    ],
)
def test_warnings(words: list[str], assumptions: dict[str, Any], message: str) -> None:
    """The expected warning and no other; an empty message stands for no warning."""
    found = warnings(words, **assumptions)
    assert len(found) == bool(message)
    assert message in "".join(found)


def test_each_option_in_a_memory_warning_fits() -> None:
    """A plan with any of the suggested options gives no warning."""
    (warning,) = warnings([], memory_gb=7)
    options = warning.partition("; use ")[2].split(", or ")
    assert len(options) == 3
    for option in options:
        assert warnings(shlex.split(option), memory_gb=7) == ()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "B999"], "--device: unknown device 'B999'; choose one of H100, H200"),
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
        (["--seeds", "3"], "unknown option --seeds"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(["plan", TINY, *words], capsys)


def test_the_error_of_a_step_that_does_not_compile() -> None:
    reason = r"--compile: the step does not compile for 3 virtual devices: .*IndivisibleError: .*3 times"
    with pytest.raises(InputError, match=reason):
        compile_step(small(), 3)

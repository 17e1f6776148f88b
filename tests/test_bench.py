"""The tool that times, and the counts that say, without a clock, that the step has not become slower."""

import dataclasses
import gzip
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from albert_jax.bench import breakdown, measuring, table
from albert_jax.bench.breakdown import KINDS, Event, Instruction, instructions, shares
from albert_jax.bench.measuring import BenchConfig
from albert_jax.cli import main
from albert_jax.config import InputError
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, flops_per_token, param_shapes
from albert_jax.pretraining.objective import ObjectiveConfig

from .conftest import ROOT

SMALL = AlbertConfig(
    vocab_size=300,
    embedding_size=16,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
)


def import_file(path: Path) -> Any:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


WORDS = [
    f"--model.{field.name.replace('_', '-')}={getattr(SMALL, field.name)}"
    for field in dataclasses.fields(SMALL)
    if getattr(SMALL, field.name) != field.default
]


def config(work: str = "gradients", **model: Any) -> BenchConfig:
    objective = ObjectiveConfig(max_seq_length=32, max_predictions_per_seq=5)
    return BenchConfig(dataclasses.replace(SMALL, **model), objective, batch_size=4, work=work)


def compiled(work: str = "gradients", **model: Any) -> Any:
    return measuring.prepare(config(work, **model))[0]()


def counts(program: Any) -> dict[str, int]:
    """FLOPs and bytes (a loop's body once), and what stands in the program."""
    costs, text = program.cost_analysis(), program.as_text()
    names = {
        "loops": r" while\(",
        "products": r" dot\(",
        "converts": r" convert\(",
        "collectives": r" all-\w+(?:-start)?\(",
    }
    found = {name: len(re.findall(pattern, text)) for name, pattern in names.items()}
    return found | {"flops": costs["flops"], "bytes": costs["bytes accessed"], "instructions": len(instructions(text))}


# Of the gradients of `SMALL`, 4 rows of 32, by XLA:CPU of jaxlib 0.10.2.  A loop's body counts once.
COUNTS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "float32": ({}, {"flops": 10_428_522, "bytes": 8_374_806, "loops": 2, "products": 39, "converts": 2}),
    "bfloat16": ({"dtype": "bfloat16"}, {"flops": 11_283_752, "bytes": 8_623_678, "loops": 2, "products": 39}),
    "unshared": ({"sharing": "none"}, {"flops": 10_420_005, "bytes": 8_614_330, "loops": 2, "products": 39}),
    "keeping all": ({"remat": "none"}, {"flops": 10_140_412, "bytes": 10_838_930, "loops": 2, "products": 39}),
}


@pytest.mark.parametrize("name", COUNTS)
def test_gradients_do_no_more_than_they_did(name: str) -> None:
    """A regression of speed without a clock; update the figures if it was the intention, and say in LOG.md what it does to
    the speed.  Fails if something is computed twice, kept for backward that was not, or cast again and again."""
    model, wanted = COUNTS[name]
    found = counts(compiled(**model))
    for what in ("flops", "bytes"):  # newer versions of XLA copy less
        assert 0.7 * wanted[what] < found[what] < 1.05 * wanted[what], (what, found[what], wanted[what])
    assert found["collectives"] == 0
    for what in wanted.keys() - {"flops", "bytes"}:
        assert found[what] == wanted[what], what


def test_less_is_kept_for_backward_by_default() -> None:
    """'elementwise' sets aside about half of what 'none' does."""
    kept, all_kept = (compiled(**m).memory_analysis().temp_size_in_bytes for m in ({}, {"remat": "none"}))
    assert kept < 0.6 * all_kept


def lowered(**model: Any) -> str:
    """A gradient through the encoder, rows of 4 x 32, before XLA has seen it."""
    network = Albert(dataclasses.replace(SMALL, **model), heads=())

    def total(params: Any) -> Any:
        outputs: Any = network.apply({"params": params}, jnp.zeros((4, 32), jnp.int32))
        return jnp.sum(outputs["last_hidden_state"].astype(jnp.float32))

    return jax.jit(jax.grad(total)).lower(param_shapes(network)).as_text()


def test_no_float32_of_the_activation_is_kept_in_bfloat16() -> None:
    """What the layers stack for backward, [L, B, S, F].  Fails if GELU's insides are among it, twice as large as what they come
    from: 3 to 6 % of a step on an H200."""
    text = lowered(dtype="bfloat16", remat="none")
    assert "tensor<4x4x32x64xbf16>" in text
    assert "tensor<4x4x32x64xf32>" not in text


def test_unrolled_blocks_are_made_again_too() -> None:
    """Fails if XLA may merge what backward makes again with what forward made, as it does on a GPU, and keeps it all."""
    assert "optimization_barrier" in lowered(scan_unroll=4)
    assert "optimization_barrier" not in lowered()


@pytest.mark.parametrize("changes", [{}, {"sharing": "none"}], ids=str)
def test_depth_costs_no_compilation(changes: dict[str, Any]) -> None:
    """The program of 16 layers is as long as that of 4.  Fails if layers are unrolled, or listed one by one."""
    short, long = (counts(compiled(**changes, num_hidden_layers=layers)) for layers in (4, 16))
    if not changes:
        assert short["instructions"] == long["instructions"]
    assert long["loops"] == short["loops"]
    assert long["products"] == short["products"]


def test_every_part_of_a_step_is_told_apart() -> None:
    """Each instruction has its kind; fails if a name in the model or the step no longer stands in the compiled text."""
    found = instructions(compiled("step").as_text())
    there = {one.kind for one in found.values()}
    assert there >= {"matmul", "attention", "elementwise", "draw", "optimizer"}
    products = [one.kind for one in found.values() if one.product]
    assert set(products) == {"matmul", "attention"}
    assert products.count("matmul") > products.count("attention") > 0


GPU_TEXT = """
HloModule jit_loss

ENTRY %main (p: bf16[4,4]) -> bf16[4,4] {
  %fusion-start.15 = ((bf16[12,4], s32[]), bf16[1,4], u32[]) fusion-start(%p, %i), kind=kLoop, calls=%slice, metadata={op_name="jit(loss)/while/body/dynamic_slice" deduplicated_name="loop_dynamic_slice_fusion"}
  %custom-call.13 = (bf16[4,4]{1,0}, s8[32]{0}) custom-call(%p, %q), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(loss)/jvp(Albert)/encoder/FeedForward/output/dot_general"}
  %dot_product_attention_fwd.5 = (bf16[4,4]{1,0}, u8[256]{0}) custom-call(%q, %k, %v), custom_call_target="__cudnn$fmhaSoftmax", metadata={op_name="jit(loss)/jvp(Albert)/encoder/Attention/dot_product_attention_fwd"}
  %fusion.124 = bf16[4,4]{1,0} fusion(%p), kind=kCustom, calls=%norm, metadata={op_name="jit(loss)/jvp(Albert)/encoder/Attention/LayerNorm/convert_element_type"}
}
"""
GPU_EVENTS = [("custom-call.13", "nvjet_sm90_tst_128x160", 0, 5), ("custom-call.13", "splitKreduce_kernel", 5, 1)]
GPU_EVENTS += [("dot_product_attention_fwd.5", "cudnn_generated_flash_fprop", 6, 3), ("fusion.124", "fusion_115", 9, 1)]
GPU_EVENTS += [("loop_dynamic_slice_fusion.7", "MemcpyD2D", 10, 2), ("another_program", "kernel", 12, 100)]


def test_a_gpus_profile(tmp_path: Path) -> None:
    """As one of an H200 has it, shortened: several kernels of a product, and a copy on another stream under its own name."""
    found = [
        {"ph": "X", "name": kernel, "ts": start, "dur": length, "args": {"hlo_op": name}}
        for name, kernel, start, length in GPU_EVENTS
    ]
    content = json.dumps({"traceEvents": [*found, {"ph": "M", "name": "process_name"}]})
    (tmp_path / "vm.trace.json.gz").write_bytes(gzip.compress(content.encode()))
    seconds = shares(list(breakdown.events(tmp_path, instructions(GPU_TEXT))))
    wanted = {"matmul": 6e-6, "attention": 3e-6, "elementwise": 3e-6}
    assert seconds == pytest.approx({kind: wanted.get(kind, 0.0) for kind in KINDS})


def test_shares_of_what_runs_at_once() -> None:
    """Two at a time have half each; nobody, and it is idle."""
    found = [Event("matmul", 0, 4e9), Event("draw", 2e9, 4e9), Event("draw", 2e9, 3e9), Event("matmul", 6e9, 7e9)]
    third = 1 / 3
    wanted = {"matmul": 2 + third + 0.5 + 1, "draw": 2 * third + 0.5, "idle": 2.0}
    assert shares(found) == pytest.approx({kind: wanted.get(kind, 0.0) for kind in KINDS})


@pytest.mark.parametrize("work", ["step", pytest.param("gradients", marks=pytest.mark.slow), "inference"])
def test_bench(work: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the command line: the figures hang together, the table says them, the profile stays."""
    file, folder = tmp_path / "found.json", tmp_path / "trace"
    words = ["bench", "base", "--batch-size", "4", "--length", "32", "--work", work, "--rounds", "2", *WORDS]
    assert main([*words, "--json", str(file), "--profile", str(folder)]) == 0
    found = json.loads(file.read_text())
    told = capsys.readouterr().out
    assert found["config"]["objective"]["max_predictions_per_seq"] == 5
    assert found["tokens_per_second"] * found["seconds"] == pytest.approx(4 * 32)
    each = flops_per_token(SMALL, 32, 0) / 3 if work == "inference" else flops_per_token(SMALL, 32, 5)
    assert found["flops"] == pytest.approx(4 * 32 * each)
    assert found["mfu"] == pytest.approx(found["flops"] / found["seconds"] / found["matmul_flops"])
    assert found["seconds_min"] <= found["seconds"] <= found["seconds_max"]
    assert found["mfu_of_peak"] is None
    assert found["memory"] > 4 * found["parameters"]
    assert found["compile_seconds"] > 0
    assert found["warm_compile_seconds"] > 0
    parts = found["breakdown"]
    assert parts["matmul"] > 0
    assert (parts["optimizer"] > 0) == (parts["draw"] > 0) == (work == "step")
    assert (found["floors"]["optimizer"] > 0) == (work == "step")
    assert (
        0
        < found["floors"]["matmul"] + found["floors"]["attention"]
        == pytest.approx(found["flops"] / found["matmul_flops"])
    )
    assert f"| tokens a second | {found['tokens_per_second']:,.0f} |" in told
    assert f"| MFU | {found['mfu']:.1%} of" in told
    assert [line.split(" | ")[0].strip("| ") for line in told.splitlines()[-8:]] == [*KINDS, "all"]
    assert list(folder.rglob("*.xplane.pb"))
    assert list(folder.rglob("perfetto_trace.json.gz"))


@pytest.mark.slow
def test_two_devices_share_the_batch(tmp_path: Path) -> None:
    """In a process of its own; fails if tokens or FLOPs are one device's.  Its file lies in a folder that was not there."""
    file = tmp_path / "new" / "found.json"
    script = f"""
import os; os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
from albert_jax.cli import main
main({["bench", "base", "--batch-size=4", "--length=32", "--rounds=1", "--mesh.data=2", *WORDS]!r} + ["--json", {str(file)!r}])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| device | 2 x cpu" in done.stdout
    found = json.loads(file.read_text())
    assert found["tokens_per_second"] * found["seconds"] == pytest.approx(4 * 32)
    assert found["flops"] == pytest.approx(4 * 32 * flops_per_token(SMALL, 32, 5))
    assert found["mfu"] == pytest.approx(found["flops"] / found["seconds"] / found["matmul_flops"])


NEEDED = {"jax", "jaxlib", "flax", "optax", "numpy"}


@pytest.mark.slow
def test_bench_needs_only_jax_flax_and_optax() -> None:
    """Fails if anything else that setup.cfg installs is imported by us on the way: it runs where little is installed."""
    script = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        caller = sys._getframe(1)
        while "importlib" in caller.f_code.co_filename or "importlib" in str(caller.f_globals.get("__name__")):
            caller = caller.f_back
        top = name.split(".")[0]
        if caller.f_globals.get("__name__", "").startswith("albert_jax") and top in {sorted(_declared() - NEEDED)!r}:
            raise ImportError(name + " is not needed by " + caller.f_globals["__name__"])
sys.meta_path.insert(0, Missing())
from albert_jax.cli import main
import albert_jax.bench.peer
sys.exit(main({["bench", "base", "--batch-size=2", "--length=32", "--rounds=1", *WORDS]!r}))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _declared() -> set[str]:
    """Import names of what setup.cfg installs."""
    text = (ROOT / "setup.cfg").read_text().split("install_requires =")[1].split("[options.packages.find]")[0]
    names = {re.split(r"[\[<>=!~]", line.strip())[0].replace("-", "_") for line in text.splitlines() if line.strip()}
    return names | {"orbax", "tensorflow_datasets", "sklearn", "google_crc32c"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bass"], "size: unknown value 'bass'; choose one of base, large, xlarge, xxlarge, base-v1"),
        (["base", "--length", "1024"], "objective.max_seq_length 1024 > model.max_position_embeddings 512"),
        (["base", "--length", "long"], "objective.max_seq_length: expected int, got 'long'"),
        (["base", "--work", "all"], "work: one of 'step', 'gradients', 'inference', got 'all'"),
        (["base", "--work", "inference", "--mesh.data", "2"], "work 'inference' is timed on one device"),
        (["base", "--mesh.data", "64"], "mesh.data 64: JAX finds 1 devices"),
        (["base", "--attention", "cudnn"], "model.attention_implementation 'cudnn' needs dtype 'bfloat16'"),
        (["base", "--batch-sise", "4"], "unknown option --batch-sise; did you mean --batch-size?"),
        (["base", "--peer", "google"], "argument --peer: invalid choice: 'google'"),
        (["base", "--json", "/proc/no/file.json"], "--json /proc/no: cannot write to /proc"),
        (["base", "--rounds", "0"], "rounds must be at least 1, got 0"),
        (["base", "--json", "."], "--json .: a folder; name a file in it"),
        (["base", "--work", "inference", "--gradient-accumulation", "2"], "work 'inference' takes the batch whole"),
    ],
)
def test_mistakes_are_told_in_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"albert-jax: error: {message}"), error
    assert error.count("\n") == 1


def test_a_device_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some profilers do not."""
    monkeypatch.setattr(breakdown, "instructions", lambda text: {"nothing": Instruction("matmul", True)})
    _, timed = measuring.measure_compiled(dataclasses.replace(config("inference"), rounds=1))
    assert breakdown.breakdown(timed, None) == {}


def test_a_batch_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 65.32GiB.\nMore.")

    monkeypatch.setattr(measuring, "time_rounds", full)
    with pytest.raises(
        InputError, match=r"out of memory \(Out of memory while .* 65.32GiB.\); lower --batch-size, .*"
    ) as error:
        measuring.measure(dataclasses.replace(config("inference"), rounds=1))
    assert "\n" not in str(error.value)


def test_a_profiler_that_writes_nothing(tmp_path: Path) -> None:
    assert list(breakdown.events(tmp_path, {})) == []


@pytest.mark.parity
@pytest.mark.parametrize("work", ["gradients", "step", "inference"])
def test_the_peer_does_the_same_work(work: str) -> None:
    """Loss on the same weights and inputs is Hugging Face's.  Fails if labels or masks went astray on the way."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from albert_jax.bench import peer

    asked = dataclasses.replace(config(work), rounds=1)
    found, timed = measuring.measure_compiled(asked)
    found["peer"] = peer.compare(asked, timed, "huggingface", "float32", 2)
    if work != "inference":
        assert found["peer"]["loss"] == pytest.approx(found["peer"]["peer_loss"], abs=1e-4)
    assert found["peer"]["ratio_min"] <= found["peer"]["ratio"] <= found["peer"]["ratio_max"]
    assert f"| our time to theirs | {found['peer']['ratio']:.3f}" in table.describe(found, "it")


def test_performance_can_be_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every row's network can be made; one is run, small; one that fails does not end the others."""
    script = import_file(ROOT / "experiments" / "performance.py")
    assert len({run.name for run in script.RUNS}) == len(script.RUNS)
    assert all(script.bench_config(run, small=False).tokens == run.batch_size * run.length for run in script.RUNS)
    wrong = script.Run("base", 2, 32, peer="huggingface", options={"sharing": "none"})
    monkeypatch.setattr(script, "RUNS", [wrong, script.Run("base", 2, 32, "inference")])
    monkeypatch.setattr(script, "PREDICTIONS", {32: 5})
    monkeypatch.setattr(sys, "argv", ["performance.py", str(tmp_path / "found"), "--small"])
    script.main()
    told = capsys.readouterr().out
    assert "| base-step-2x32-huggingface-none | InputError: --peer huggingface: " in told
    assert [path.name for path in (tmp_path / "found").glob("*.json")] == ["base-inference-2x32.json"]


def test_the_peer_has_to_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    from albert_jax.bench import peer

    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--peer huggingface: torch is not installed; pip install torch"):
        peer.compare(config(), measuring.Timed(None, lambda: jax.numpy.zeros(())), "huggingface", "float32", 1)

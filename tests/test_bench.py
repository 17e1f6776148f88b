"""Benchmarks, and counts that show without a clock that a step has not become slower.

Machines that run tests are too noisy to compare times.
"""

import argparse
import dataclasses
import functools
import gzip
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from albert_jax.bench import breakdown, command, measure, peer
from albert_jax.bench.breakdown import KINDS, Event, Instruction, instructions, seconds_by_kind
from albert_jax.bench.measure import BenchConfig, Benchmark
from albert_jax.cli import main
from albert_jax.config import InputError, load
from albert_jax.model import albert
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, flops_per_token, param_shapes
from albert_jax.pretraining.objective import ObjectiveConfig
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.training import devices

from .conftest import ROOT, USUAL_FUSION, refused

SMALL = AlbertConfig(
    vocab_size=300,
    embedding_size=16,
    hidden_size=32,
    num_hidden_layers=4,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=64,
)
SMALL_WORDS = [
    f"--model.{field.name.replace('_', '-')}={getattr(SMALL, field.name)}"
    for field in dataclasses.fields(SMALL)
    if "variants" not in field.metadata and getattr(SMALL, field.name) != field.default
]


def config(work: str = "gradients", **model: Any) -> BenchConfig:
    objective = ObjectiveConfig(max_seq_length=32, max_predictions_per_seq=5)
    return BenchConfig(dataclasses.replace(SMALL, **model), objective, batch_size=4, work=work, rounds=1)


@functools.cache
def compiled_gradients(**model: Any) -> Any:
    return Benchmark(config(**model)).compile(USUAL_FUSION)


def counts(program: Any) -> dict[str, int]:
    """FLOPs and bytes (the body of a loop counts once), and the number of instructions of some kinds."""
    costs, text = program.cost_analysis(), program.as_text()
    names = {
        "loops": r" while\(",
        "products": r" dot\(",
        "converts": r" convert\(",
        "collectives": r" all-\w+(?:-start)?\(",
    }
    found = {name: len(re.findall(pattern, text)) for name, pattern in names.items()}
    return found | {"flops": costs["flops"], "bytes": costs["bytes accessed"], "instructions": len(instructions(text))}


# The gradients of `SMALL` for 4 rows of 32, compiled by XLA:CPU of jaxlib 0.10.2.  The body of a loop counts once.
COUNTS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "float32": ({}, {"flops": 10_428_522, "bytes": 8_374_806, "loops": 2, "products": 39, "converts": 2}),
    "bfloat16": ({"dtype": "bfloat16"}, {"flops": 11_283_752, "bytes": 8_623_678, "loops": 2, "products": 39}),
    "unshared": ({"sharing": "none"}, {"flops": 10_420_005, "bytes": 8_614_330, "loops": 2, "products": 39}),
    "without remat": ({"remat": "none"}, {"flops": 10_140_412, "bytes": 10_838_930, "loops": 2, "products": 39}),
}


@pytest.mark.parametrize("name", COUNTS)
def test_gradients_need_no_more_work_than_before(name: str) -> None:
    """A speed regression test without a clock.  If more work is intended, update the counts and note the speed in LOG.md.

    Fails if something is computed twice, saved for the backward pass needlessly, or cast repeatedly.
    """
    model, expected = COUNTS[name]
    found = counts(compiled_gradients(**model))
    for quantity in ("flops", "bytes"):  # newer versions of XLA copy less
        assert 0.7 * expected[quantity] < found[quantity] < 1.05 * expected[quantity], quantity
    assert found["collectives"] == 0
    for quantity in expected.keys() - {"flops", "bytes"}:
        assert found[quantity] == expected[quantity], quantity


def test_gradients_of_kernels_are_computed_without_transposed_copies() -> None:
    """Fails if a product contracts two axes in its gradient: XLA:CPU then transposes the second operand in memory."""
    text = compiled_gradients().as_text()
    assert re.search(r"lhs_contracting_dims=\{0\}, rhs_contracting_dims=\{0\}", text)
    assert not re.search(r"lhs_contracting_dims=\{0\}, rhs_contracting_dims=\{1\}", text)


def test_remat_elementwise_halves_the_temporaries() -> None:
    default, without = (compiled_gradients(**m).memory_analysis().temp_size_in_bytes for m in ({}, {"remat": "none"}))
    assert default < 0.6 * without


def lowered_gradients(**model: Any) -> str:
    """The gradients of the encoder for 4 rows of 32, before XLA optimizes them."""
    encoder = Albert(dataclasses.replace(SMALL, **model), heads=())

    def total(params: Any) -> Any:
        outputs: Any = encoder.apply({"params": params}, jnp.zeros((4, 32), jnp.int32))
        return jnp.sum(outputs["last_hidden_state"].astype(jnp.float32))

    return jax.jit(jax.grad(total)).lower(param_shapes(encoder)).as_text()


def test_no_float32_activations_are_saved_in_bfloat16() -> None:
    """Looks at what the layers stack for the backward pass, [L, B, S, F].

    Fails if GELU's intermediate values are saved, twice as large as its input: 3 to 6 % of a step on an H200.
    """
    text = lowered_gradients(dtype="bfloat16", remat="none")
    assert "tensor<4x4x32x64xbf16>" in text
    assert "tensor<4x4x32x64xf32>" not in text


def test_unrolled_blocks_are_recomputed_behind_barriers() -> None:
    """Without the barriers XLA:GPU merges the recomputation with the forward pass, and saves everything."""
    assert "optimization_barrier" in lowered_gradients(scan_unroll=4)
    assert "optimization_barrier" not in lowered_gradients()


@pytest.mark.parametrize("model", [{}, {"sharing": "none"}], ids=str)
def test_the_program_does_not_grow_with_depth(model: dict[str, Any]) -> None:
    """Compares 4 and 16 layers.  Fails if layers are unrolled."""
    short, long = (counts(compiled_gradients(**model, num_hidden_layers=layers)) for layers in (4, 16))
    if not model:
        assert short["instructions"] == long["instructions"]
    assert long["loops"] == short["loops"]
    assert long["products"] == short["products"]


@pytest.fixture(scope="module")
def known_limits() -> Iterator[None]:
    """Skip the measurement of the device's limits, and time for a short while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "matmul_flops", lambda dtype: 1e11)
        patch.setattr(measure, "copy_bytes", lambda: 1e10)
        patch.setattr(measure, "ROUND_SECONDS", 0.1)
        yield


@pytest.mark.usefixtures("known_limits")
def test_bench_times_a_step_on_two_devices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the command line: the measurements are consistent, the tables show them, the profile is kept.

    Fails if tokens or FLOPs are those of one device, or if a scope of the model or the step is missing in the compiled text.
    """
    found: dict[str, Instruction] = {}
    monkeypatch.setattr(breakdown, "instructions", lambda text: found.update(instructions(text)) or found)
    file, folder = tmp_path / "new" / "results.json", tmp_path / "trace"
    words = ["bench", "base", "--batch-size=4", "--length=32", "--mesh.data=2", "--rounds=2", *SMALL_WORDS]
    assert main([*words, "--json", str(file), "--profile", str(folder)]) == 0
    results = json.loads(file.read_text())
    assert results["config"]["objective"]["max_predictions_per_seq"] == 5
    assert results["tokens_per_second"] * results["seconds"] == pytest.approx(4 * 32)
    assert results["flops"] == pytest.approx(4 * 32 * flops_per_token(SMALL, 32, 5))
    assert results["mfu"] == pytest.approx(results["flops"] / results["seconds"] / results["matmul_flops"])
    assert results["seconds_min"] <= results["seconds"] <= results["seconds_max"]
    assert results["mfu_of_peak"] is None
    assert results["memory"] > 4 * results["parameters"]
    assert results["compile_seconds"] > results["warm_compile_seconds"] > 0
    parts, bounds = results["breakdown"], results["lower_bounds"]
    assert all(parts[kind] > 0 for kind in KINDS if kind != "idle")
    assert bounds["optimizer"] > 0
    assert bounds["matmul"] + bounds["attention"] == pytest.approx(results["flops"] / results["matmul_flops"])
    output = capsys.readouterr().out
    assert "| device | 2 x cpu" in output
    assert f"| tokens per second | {results['tokens_per_second']:,.0f} |" in output
    assert f"| MFU | {results['mfu']:.1%} of" in output
    assert [line.split(" | ")[0].strip("| ") for line in output.splitlines()[-8:]] == [*KINDS, "total"]
    assert list(folder.rglob("*.xplane.pb"))
    assert list(folder.rglob("perfetto_trace.json.gz"))
    products = [one.kind for one in found.values() if one.product]
    assert set(products) == {"matmul", "attention"}
    assert products.count("matmul") > products.count("attention") > 0


@pytest.fixture(scope="module")
def measured_inference(known_limits: None) -> tuple[dict[str, Any], Benchmark]:
    return measure.measure(config("inference"))


def test_inference_is_a_third_of_the_flops_and_draws_and_updates_nothing(
    measured_inference: tuple[dict[str, Any], Benchmark],
) -> None:
    results, benchmark = measured_inference
    assert results["flops"] == pytest.approx(4 * 32 * flops_per_token(SMALL, 32, 0) / 3)
    parts = breakdown.breakdown(benchmark, None)
    assert parts["matmul"] > 0
    assert parts["optimizer"] == parts["draw"] == 0
    bounds = breakdown.lower_bounds(config("inference"), results["matmul_flops"], results["copy_bytes"])
    assert bounds["optimizer"] == 0


def test_a_device_whose_profile_is_empty(
    measured_inference: tuple[dict[str, Any], Benchmark], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(breakdown, "instructions", lambda text: {"another": Instruction("matmul", True)})
    assert breakdown.breakdown(measured_inference[1], None) == {}
    assert list(breakdown.events(tmp_path, {})) == []


def test_a_cpu_never_has_two_steps_in_flight() -> None:
    """A step that is started while another runs can starve a virtual device, which XLA aborts after 40 s."""
    calls: list[str] = []
    measure.run_steps(lambda: calls.append("run"), lambda _: calls.append("wait"), 3)
    assert calls == ["run", "wait"] * 3 + ["wait"]


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


def test_the_profile_of_a_gpu(tmp_path: Path) -> None:
    """A shortened one of an H200: a product of several kernels, and a copy on another stream under its own name."""
    found = [
        {"ph": "X", "name": kernel, "ts": start, "dur": length, "args": {"hlo_op": name}}
        for name, kernel, start, length in GPU_EVENTS
    ]
    content = json.dumps({"traceEvents": [*found, {"ph": "M", "name": "process_name"}]})
    (tmp_path / "vm.trace.json.gz").write_bytes(gzip.compress(content.encode()))
    seconds = seconds_by_kind(list(breakdown.events(tmp_path, instructions(GPU_TEXT))))
    expected = {"matmul": 6e-6, "attention": 3e-6, "elementwise": 3e-6}
    assert seconds == pytest.approx({kind: expected.get(kind, 0.0) for kind in KINDS})


def test_instructions_that_run_at_once_share_the_time() -> None:
    found = [Event("matmul", 0, 4e9), Event("draw", 2e9, 4e9), Event("draw", 2e9, 3e9), Event("matmul", 6e9, 7e9)]
    third = 1 / 3
    expected = {"matmul": 2 + third + 0.5 + 1, "draw": 2 * third + 0.5, "idle": 2.0}
    assert seconds_by_kind(found) == pytest.approx({kind: expected.get(kind, 0.0) for kind in KINDS})


def test_matmul_flops_counts_a_product_on_every_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "best_seconds", lambda call: float(call().shape[0]))
    assert devices.matmul_flops("bfloat16") == 2 * 2048**3 * jax.device_count() / 2048


NEEDED = {"jax", "jaxlib", "flax", "optax", "numpy"}


def test_bench_needs_only_jax_flax_optax_and_numpy() -> None:
    """Runs in a process where our modules cannot import anything else that setup.cfg installs."""
    script = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        caller = sys._getframe(1)
        while "importlib" in caller.f_code.co_filename or "importlib" in str(caller.f_globals.get("__name__")):
            caller = caller.f_back
        top = name.split(".")[0]
        if caller.f_globals.get("__name__", "").startswith("albert_jax") and top in {sorted(_declared() - NEEDED)!r}:
            raise ImportError(caller.f_globals["__name__"] + " imports " + name)
sys.meta_path.insert(0, Blocked())
from albert_jax.cli import main
import albert_jax.bench.peer
albert_jax.bench.measure.matmul_flops = lambda dtype: 1e11  # it imports nothing, and takes seconds
words = {["--batch-size=2", "--length=32", "--rounds=1", "--work=inference", *SMALL_WORDS]!r}
sys.exit(main(["bench", "base", *words]))
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


def _declared() -> set[str]:
    """Import names of the packages that setup.cfg installs."""
    text = (ROOT / "setup.cfg").read_text().split("install_requires =")[1].split("[options.packages.find]")[0]
    names = {re.split(r"[\[<>=!~]", line.strip())[0].replace("-", "_") for line in text.splitlines() if line.strip()}
    return names | {"orbax", "tensorflow_datasets", "sklearn", "google_crc32c"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bass"], "model: unknown value 'bass'; choose one of base, large, xlarge, xxlarge, base-v1"),
        (["no.py"], "no.py: no such experiment file"),
        (
            [str(ROOT / "experiments/finetune/cola.py")],
            f"{ROOT}/experiments/finetune/cola.py: must set 'config' to a PretrainConfig",
        ),
        (["base", "--length", "1024"], "objective.max_seq_length 1024 > model.max_position_embeddings 512"),
        (["base", "--length", "long"], "objective.max_seq_length: expected int, got 'long'"),
        (["base", "--work", "all"], "work: unknown value 'all'; choose one of step, gradients, inference"),
        (["base", "--work", "inference", "--mesh.data", "2"], "work 'inference' is timed on one device"),
        (["base", "--mesh.data", "64"], "mesh.data 64: JAX found 8 devices"),
        (["base", "--attention", "cudnn"], "model.attention_implementation 'cudnn' needs"),
        (["base", "--batch-sise", "4"], "unknown option --batch-sise; did you mean --batch-size?"),
        (["base", "--peer", "google"], "argument --peer: invalid choice: 'google'"),
        (["base", "--json", "/proc/no/file.json"], "--json /proc/no: cannot write to /proc"),
        (["base", "--rounds", "0"], "rounds must be at least 1, got 0"),
        (["base", "--json", "."], "--json .: a folder; name a file in it"),
        (["base", "--work", "inference", "--gradient-accumulation", "2"], "work 'inference' has no micro-batches"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(["bench", *words], capsys).startswith(message)


def bench_config(model: Path, **overrides: str) -> BenchConfig:
    """The configuration of `albert-jax bench MODEL` with the text of some fields."""
    return command.bench_config(
        argparse.Namespace(
            model=str(model), overrides={name.replace("__", "."): text for name, text in overrides.items()}
        )
    )


def test_the_work_of_an_experiment_file() -> None:
    """Fails if a setting of the file that changes the cost of a step is ignored, or overrides the command line."""
    file = ROOT / "experiments" / "pretrain" / "tiny.py"
    tiny = load(PretrainConfig, str(file))
    full_rows = dataclasses.replace(tiny.objective, short_seq_prob=0.0)
    expected = BenchConfig(tiny.model, full_rows, tiny.optim, batch_size=tiny.train.global_batch_size)
    assert bench_config(file) == expected
    shorter = bench_config(file, objective__max_seq_length="32", batch_size="4", model__dtype="bfloat16")
    assert shorter.model == dataclasses.replace(tiny.model, dtype="bfloat16")
    assert shorter.objective == dataclasses.replace(
        full_rows, max_seq_length=32, max_predictions_per_seq=round(32 * tiny.objective.masked_lm_prob)
    )
    assert shorter.batch_size == 4
    assert bench_config(file, objective__max_predictions_per_seq="3").objective.max_predictions_per_seq == 3


def test_an_experiment_with_micro_batches(tmp_path: Path) -> None:
    """A step has the file's micro-batches; other work has none."""
    file = tmp_path / "micro_batches.py"
    text = (ROOT / "experiments/pretrain/tiny.py").read_text()
    file.write_text(text.replace("global_batch_size=32", "global_batch_size=32, gradient_accumulation=4"))
    assert bench_config(file).gradient_accumulation == 4
    assert bench_config(file, work="gradients").gradient_accumulation == 1


def test_the_error_of_a_batch_that_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 65.32GiB.\nMore.")

    monkeypatch.setattr(measure, "compile_seconds", out_of_memory)
    message = r"out of memory \(Out of memory while .* 65.32GiB.\); lower --batch-size, .*"
    with pytest.raises(InputError, match=message) as error:
        measure.measure(config("inference"))
    assert "\n" not in str(error.value)


@pytest.mark.parity
@pytest.mark.parametrize("work", ["gradients", "step", "inference"])
def test_the_peer_does_the_same_work(work: str) -> None:
    """The loss with the same weights and inputs agrees with Hugging Face's.  Fails if labels or masks are misplaced."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    _, benchmark = measure.measure(config(work))
    results = peer.compare(config(work), benchmark, "huggingface", "float32", 2)
    if work != "inference":
        assert results["loss"] == pytest.approx(results["peer_loss"], abs=1e-4)
    assert results["ratio_min"] <= results["ratio"] <= results["ratio_max"]
    assert f"| our time / their time | {results['ratio']:.3f} (" in peer.peer_table(results)


def test_the_peer_must_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--peer huggingface: torch is not installed; pip install torch"):
        peer.check(config(), "huggingface", 1)


def import_script(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def test_performance_script(
    measured_inference: tuple[dict[str, Any], Benchmark],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The config of every row can be built; a row is printed and stored, after a row that fails."""
    script = import_script(ROOT / "experiments" / "performance.py")
    assert len({run.name for run in script.RUNS}) == len(script.RUNS)
    assert all(script.bench_config(run, small=False).tokens == run.batch_size * run.length for run in script.RUNS)
    wrong = script.Run("base", 2, 32, peer="huggingface", options={"sharing": "none"})
    monkeypatch.setattr(script, "RUNS", [wrong, script.Run("base", 2, 32, "inference")])
    monkeypatch.setattr(script, "PREDICTIONS", {32: 5})
    monkeypatch.setattr(script, "measure", lambda config: measured_inference)
    monkeypatch.setattr(sys, "argv", ["performance.py", str(tmp_path / "results"), "--small"])
    script.main()
    output = capsys.readouterr().out
    assert f"| base-inference-2x32 | {measured_inference[0]['tokens_per_second']:,.0f} |" in output
    assert "| base-step-2x32-huggingface-sharing-none | InputError: --peer huggingface" in output
    assert [path.name for path in (tmp_path / "results").glob("*.json")] == ["base-inference-2x32.json"]
    script.main()
    assert "base-inference-2x32" not in capsys.readouterr().out, "a row that is stored is not measured again"


def test_gpu_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its item `kernels`, interpreted; and an item without its inputs.  The other items run commands."""
    script = import_script(ROOT / "experiments" / "gpu.py")
    monkeypatch.setattr(albert, "uses_kernels", lambda config: config.fused_kernels)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "kernels", str(tmp_path), "--small"])
    script.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| 96 ")]
    assert [row[2].strip() for row in rows] == ["float32", "bfloat16"]
    for row, limit in zip(rows, (1e-4, 0.1), strict=True):
        assert 0 < float(row[5]) < limit
    monkeypatch.setattr(sys, "argv", ["gpu.py", "downstream", str(tmp_path)])
    with pytest.raises(SystemExit):
        script.main()
    assert "downstream needs --glue and FOLDER/exported, which 'curve' writes" in capsys.readouterr().err

"""Time a training step, its gradients or the encoder on synthetic tokens, and compare with the device's limits."""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax.config import InputError, check_fields, choice, first_line, to_dict
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, flops_per_token, num_params, stacked_shapes
from albert_jax.model.sharing import is_stacked
from albert_jax.pretraining.objective import ObjectiveConfig
from albert_jax.pretraining.task import batch_shapes, placeholder_vocabulary, pretraining_model, pretraining_workload
from albert_jax.reports.tables import markdown_table
from albert_jax.training import partition
from albert_jax.training import step as train_step
from albert_jax.training.devices import best_seconds, matmul_flops, peak_flops
from albert_jax.training.optim import OptimConfig, make_optimizer
from albert_jax.training.partition import MeshConfig

WORKS = ("step", "gradients", "inference")

SENTENCE_LENGTH = 24
"""Tokens in a synthetic sentence."""

ROUND_SECONDS = 1.0
"""Approximate length of a timed round.  A round has at least one step."""


@dataclass(frozen=True)
class BenchConfig:
    """The computation to time."""

    model: AlbertConfig
    objective: ObjectiveConfig
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(num_warmup_steps=1))
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=1))
    batch_size: int = 8
    """Rows, over all devices."""
    gradient_accumulation: int = 1
    """Number of micro-batches in a step."""
    work: str = choice("step", WORKS)
    """step: masks, sentence pairs, loss, gradients and update; gradients: loss and gradients; inference: the encoder."""
    rounds: int = 5
    """Timed rounds, of about a second each."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("batch_size", "gradient_accumulation", "rounds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        length, max_length = self.objective.max_seq_length, self.model.max_position_embeddings
        if length > max_length:
            raise InputError(f"objective.max_seq_length {length} > model.max_position_embeddings {max_length}")
        if self.work != "step" and self.mesh.data != 1:
            raise InputError(f"work {self.work!r} is timed on one device; omit --mesh.data, or time the step")
        if self.work != "step" and self.gradient_accumulation != 1:
            raise InputError(f"work {self.work!r} has no micro-batches; omit --gradient-accumulation, or time the step")
        self.mesh.check_remat(self.model.remat)

    @property
    def tokens(self) -> int:
        """Tokens in a batch.  None is padding if `objective.short_seq_prob` is 0."""
        return self.batch_size * self.objective.max_seq_length

    @property
    def flops(self) -> float:
        """The model's matmul FLOPs per step.  Recomputation does not count."""
        length, predictions = self.objective.max_seq_length, self.objective.max_predictions_per_seq
        if self.work == "inference":
            return self.tokens * flops_per_token(self.model, length, 0) / 3
        return self.tokens * flops_per_token(self.model, length, predictions)


class Timed(Protocol):
    """A computation that can be run repeatedly."""

    def run(self) -> Any:
        """Start the computation once; return what `wait` takes."""

    def wait(self, outputs: Any) -> None:
        """Wait until a computation is done."""


class Benchmark:
    """The computation of a `BenchConfig` and its inputs.  The inputs are allocated at the first run."""

    def __init__(self, config: BenchConfig) -> None:
        self.mesh = mesh = partition.make_mesh("any", config.mesh.data)
        partition.check_batch_size("batch_size", config.batch_size, config.gradient_accumulation, mesh.size)
        model = pretraining_model(config.model, config.objective)
        layout = partition.Layout(mesh, config.mesh.sharding, stacked_shapes(model))
        vocabulary = placeholder_vocabulary(config.model.vocab_size)
        task = pretraining_workload(model, config.objective, vocabulary, layout)
        batch = partition.put_batch(mesh, synthetic_batch(config))
        self.updates_state = config.work == "step"
        self.compiled: Any = None
        if self.updates_state:
            optimizer = make_optimizer(config.optim, 1000, is_stacked)
            seed, signals = train_step.as_argument(0, mesh), partition.device_values(mesh, 0)
            self.function = train_step.make_step(task, optimizer, layout, config.gradient_accumulation)
            self.make_inputs = lambda: [train_step.make_init(task, optimizer, layout)(seed), batch, seed, signals]
        else:
            key = jax.random.key(0)
            gradients = jax.value_and_grad(task.loss, has_aux=True)
            self.function = jax.jit(gradients if config.work == "gradients" else _encoder(config.model))
            self.make_inputs = lambda: [jax.jit(task.init)(key), jax.jit(task.draw)(batch, key)]

    @functools.cached_property
    def inputs(self) -> list[Any]:
        """The arguments of the computation: the state or parameters, then the data."""
        return self.make_inputs()

    def compile(self, options: dict[str, Any] | None = None) -> Any:
        """Compile the computation, from shapes alone, with XLA's compiler options."""
        return self.function.lower(*jax.eval_shape(self.make_inputs)).compile(compiler_options=options)

    def run(self, program: Any = None) -> Any:
        """Start `program`, by default `self.compiled`, once."""
        outputs = (program or self.compiled)(*self.inputs)
        if self.updates_state:
            self.inputs[0], outputs = outputs
        return outputs

    def wait(self, outputs: Any) -> None:
        """Wait until a computation is done."""
        jax.block_until_ready(outputs)


def _encoder(model_config: AlbertConfig) -> Callable[..., Any]:
    model = Albert(model_config, heads=("pooler",))

    def encode(params: Any, examples: dict[str, Any]) -> Any:
        names = ("input_ids", "attention_mask", "token_type_ids")
        return model.apply({"params": params}, *(examples[name] for name in names))

    return encode


def synthetic_batch(config: BenchConfig) -> dict[str, np.ndarray]:
    """A batch in the loader's format: random pieces in sentences of `SENTENCE_LENGTH` tokens.  Every row is full."""
    random = np.random.default_rng(0)
    rows, columns = batch_shapes(config.objective, config.batch_size)["tokens"].shape
    tokens_per_row = config.objective.max_seq_length - 3  # without [CLS] and two [SEP]
    used = np.arange(columns) < tokens_per_row
    tokens = np.where(used, random.integers(5, config.model.vocab_size, (rows, columns)), 0)
    sentence = np.where(used, np.arange(columns) // min(SENTENCE_LENGTH, tokens_per_row // 2), -1)
    return {
        "tokens": tokens.astype(np.int32),
        "sentence": np.tile(sentence, (rows, 1)).astype(np.int32),
        "document": np.arange(rows, dtype=np.int32),
    }


def measure(config: BenchConfig) -> tuple[dict[str, Any], Benchmark]:
    """Time a computation.

    Returns:
      The results, for JSON, and the benchmark, ready to run again.  The results are:
        `config`, `device`, `devices`, `versions`, `parameters`;
        `seconds` per step (median of the rounds), `seconds_min`, `seconds_max`, `tokens_per_second`;
        `flops` per step; `matmul_flops`, the FLOP/s of a large matrix product measured now; `mfu` relative to it;
        `mfu_of_peak`, relative to the data sheet, or None; `copy_bytes`, bytes per second of elementwise work;
        `memory`, bytes per device according to XLA; `peak_memory`, bytes that the device has used, or None;
        `compile_seconds` and, from the compilation cache, `warm_compile_seconds`.

    Raises:
      InputError: there are too few devices, the batch does not divide over them, or memory does not suffice.
    """
    try:
        benchmark = Benchmark(config)
        benchmark.compiled, cold, warm = compile_seconds(benchmark.compile)
        steps = steps_per_round(benchmark)
        seconds = [time_round(benchmark, steps) for _ in range(config.rounds)]
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        reason = first_line(error).removeprefix("RESOURCE_EXHAUSTED: ")
        raise InputError(
            f"out of memory ({reason}); lower --batch-size, raise --gradient-accumulation (of a step), or save less for the "
            "backward pass (--remat dots, or full)"
        ) from None
    mesh, median = benchmark.mesh, statistics.median(seconds)
    product = matmul_flops(config.model.dtype) * mesh.size / jax.device_count()
    peak, device = peak_flops(mesh), mesh.devices.flat[0]
    results = {
        "config": to_dict(config),
        "device": device.device_kind,
        "devices": mesh.size,
        "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__},
        "parameters": num_params(pretraining_model(config.model, config.objective)),
        "seconds": median,
        "seconds_min": min(seconds),
        "seconds_max": max(seconds),
        "tokens_per_second": config.tokens / median,
        "flops": config.flops,
        "matmul_flops": product,
        "mfu": config.flops / median / product,
        "mfu_of_peak": config.flops / median / peak if peak else None,
        "copy_bytes": copy_bytes(),
        "memory": train_step.memory(benchmark.compiled),
        "peak_memory": (device.memory_stats() or {}).get("peak_bytes_in_use"),
        "compile_seconds": cold,
        "warm_compile_seconds": warm,
    }
    return results, benchmark


def compile_seconds(compile_program: Callable[[], Any]) -> tuple[Any, float, float]:
    """Compile twice, with an empty and then a full compilation cache.  Return the program and both times.

    The cache settings of the process are restored.
    """
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_enable_compilation_cache",
    )
    settings = {name: getattr(jax.config, name) for name in names}
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        try:
            _set_cache(dict(zip(names, (folder, 0.0, True), strict=True)))
            for _ in range(2):
                jax.clear_caches()
                start = time.perf_counter()
                program = compile_program()
                seconds.append(time.perf_counter() - start)
        finally:
            _set_cache(settings)
    return program, seconds[0], seconds[1]


def _set_cache(settings: dict[str, Any]) -> None:
    from jax.experimental.compilation_cache import compilation_cache

    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # otherwise JAX keeps using the previous folder


def steps_per_round(timed: Timed) -> int:
    """The number of steps that take about `ROUND_SECONDS`."""
    time_round(timed, 1)  # the first step is not typical: it allocates the inputs
    return max(1, round(ROUND_SECONDS / time_round(timed, 1)))


def time_round(timed: Timed, steps: int) -> float:
    """Seconds per step of `steps` steps in a row."""
    start = time.perf_counter()
    run_steps(timed.run, timed.wait, steps)
    return (time.perf_counter() - start) / steps


def run_steps(run: Callable[[], Any], wait: Callable[[Any], None], steps: int) -> None:
    """Run `steps` steps.  An accelerator gets them all at once, so that it never waits for the host."""
    for _ in range(steps):
        outputs = run()
        # Virtual CPU devices share the cores.  With several steps in flight one device can starve, and after 40 s XLA
        # aborts the collective in which the others wait for it.
        if jax.default_backend() == "cpu":
            wait(outputs)
    wait(outputs)


def copy_bytes() -> float:
    """Measure the bytes per second that one device reads and writes when it adds 1 to a large array."""
    count = (2**26 if jax.default_backend() == "cpu" else 2**30) // 4
    array = jnp.zeros(count, jnp.float32)
    add_one = jax.jit(lambda x: x + 1, donate_argnums=0)  # donated, because a CPU is slow to allocate new pages

    def run() -> Any:
        nonlocal array
        array = add_one(array)
        return array

    return 2 * array.nbytes / best_seconds(run)


def results_table(results: dict[str, Any], title: str) -> str:
    """The results of `measure` as a Markdown table."""
    config = results["config"]
    model = config["model"]
    median, fastest, slowest = (1e3 * results[name] for name in ("seconds", "seconds_min", "seconds_max"))
    cold, warm = results["compile_seconds"], results["warm_compile_seconds"]
    memory = f"{results['memory'] / 1e9:,.3g} GB according to XLA"
    if results["peak_memory"] is not None:
        memory += f", {results['peak_memory'] / 1e9:,.3g} GB used at most"
    rows = {
        "device": f"{results['devices']} x {results['device']}, jax {results['versions']['jax']}",
        "model": f"{results['parameters']:,} parameters; {model['dtype']}, remat {model['remat']}, unroll {model['scan_unroll']}, "
        f"attention {model['attention_implementation']}" + (", fused kernels" if model["fused_kernels"] else ""),
        "work": f"{config['work']}, {config['batch_size']:,} x {config['objective']['max_seq_length']} tokens",
        "time per step": f"{median:,.4g} ms ({fastest:,.4g} to {slowest:,.4g} in {config['rounds']} rounds)",
        "tokens per second": f"{results['tokens_per_second']:,.0f}",
        "matmul FLOPs per step": f"{results['flops'] / 1e9:,.4g} G",
        "MFU": f"{results['mfu']:.1%} of {results['matmul_flops'] / 1e12:,.3g} TFLOP/s, measured in a large matrix product",
        "MFU by data sheet": "unknown" if results["mfu_of_peak"] is None else f"{results['mfu_of_peak']:.1%}",
        "memory per device": memory,
        "compile time": f"{cold:.3g} s; {warm:.3g} s ({warm / cold:.0%}) from the compilation cache",
    }
    return markdown_table([title, ""], rows.items())

"""Times a training step, its gradients or the encoder alone on made-up tokens, beside what the device can do at most."""

import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from albert_jax.config import InputError, check_fields, choice, require
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, flops_per_token, init_params, num_params
from albert_jax.model.sharing import is_stacked
from albert_jax.pretraining import objective as pretraining
from albert_jax.pretraining import task as pretrain_task
from albert_jax.pretraining.objective import ObjectiveConfig
from albert_jax.training import partition
from albert_jax.training import step as train_step
from albert_jax.training.devices import best_seconds, matmul_flops, peak_flops
from albert_jax.training.optim import OptimConfig, make_optimizer
from albert_jax.training.partition import MeshConfig

WORKS = ("step", "gradients", "inference")

SENTENCE = 24
"""Tokens of a made-up sentence."""

ROUND_SECONDS = 1.0
"""A round is as many steps as take so long, one at least: the device never waits for the host within it."""


@dataclass(frozen=True)
class BenchConfig:
    """What is timed."""

    model: AlbertConfig
    objective: ObjectiveConfig
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(num_warmup_steps=1))
    mesh: MeshConfig = field(default_factory=lambda: MeshConfig(data=1))
    batch_size: int = 8
    """Rows, over all devices."""
    gradient_accumulation: int = 1
    """Micro-batches a step is added up from."""
    work: str = choice("step", ("step", "gradients", "inference"))
    """The whole step (masks, sentence pairs, loss, gradients, update); loss and gradients alone; or the encoder forward."""
    rounds: int = 5
    """Timed rounds, of about a second each, or one step."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("batch_size", "gradient_accumulation", "rounds"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        require(self.work in WORKS, f"work: one of {', '.join(WORKS)}, got {self.work!r}")
        length, longest = self.objective.max_seq_length, self.model.max_position_embeddings
        require(length <= longest, f"objective.max_seq_length {length} > model.max_position_embeddings {longest}")
        single = self.mesh.data == 1 or self.work == "step"
        require(single, f"work {self.work!r} is timed on one device; leave --mesh.data out, or time the step")
        whole = self.gradient_accumulation == 1 or self.work == "step"
        require(whole, f"work {self.work!r} takes the batch whole; leave --gradient-accumulation out, or time the step")
        self.mesh.check_remat(self.model.remat)

    @property
    def tokens(self) -> int:
        """Of a step; with `objective.short_seq_prob` 0 none of them is padding."""
        return self.batch_size * self.objective.max_seq_length

    @property
    def flops(self) -> float:
        """Matmul FLOPs of a step: the model's, not what is computed twice."""
        length, predictions = self.objective.max_seq_length, self.objective.max_predictions_per_seq
        if self.work == "inference":
            return self.tokens * flops_per_token(self.model, length, 0) / 3
        return self.tokens * flops_per_token(self.model, length, predictions)


class Timed(NamedTuple):
    """A compiled computation, and how it is called again and again."""

    compiled: Any
    again: Callable[[], Any]
    """Starts it once more; returns what `wait` takes."""
    wait: Callable[[Any], Any] = jax.block_until_ready
    """Waits until it is done."""
    with_options: Callable[[dict[str, Any]], "Timed"] | None = None
    """Compiles it again, with these options of XLA."""


def made_up(config: BenchConfig) -> dict[str, np.ndarray]:
    """A batch as the loader makes it: random pieces in sentences of `SENTENCE` tokens, every row full."""
    random = np.random.default_rng(0)
    shapes = pretrain_task.batch_shapes(config.objective, config.batch_size)
    rows, capacity = shapes["tokens"].shape
    used = np.arange(capacity) < config.objective.max_seq_length - 3
    tokens = np.where(used, random.integers(5, config.model.vocab_size, (rows, capacity)), 0)
    sentence = np.where(used, np.arange(capacity) // min(SENTENCE, (config.objective.max_seq_length - 3) // 2), -1)
    return {
        "tokens": tokens.astype(np.int32),
        "sentence": np.tile(sentence, (rows, 1)).astype(np.int32),
        "document": np.arange(rows, dtype=np.int32),
    }


def prepare(config: BenchConfig) -> tuple[Callable[..., Any], Callable[[Any], Timed]]:
    """What compiles the work, with XLA's options if any, and what makes a `Timed` of that."""
    mesh = partition.make_mesh("any", config.mesh.data)
    partition.check_batch_size("batch_size", config.batch_size, config.gradient_accumulation, mesh.size)
    model = pretrain_task.pretraining_model(config.model, config.objective)
    layout = pretrain_task.pretraining_layout(model, mesh, config.mesh.sharding)
    vocabulary = pretrain_task.placeholder_vocabulary(config.model.vocab_size)
    task = pretrain_task.pretraining_workload(model, config.objective, vocabulary, layout)
    optimizer = make_optimizer(config.optim, 1000, is_stacked)
    seed = train_step.as_argument(0, mesh)
    batch = partition.put_batch(mesh, made_up(config))
    if config.work == "step":
        step = train_step.make_step(task, optimizer, layout, config.gradient_accumulation)
        calm = partition.device_values(mesh, 0)
        held = [train_step.make_init(task, optimizer, layout)(seed)]
        shapes = train_step.state_shapes(task, optimizer, layout)

        def compile_step(options: dict[str, Any] | None = None) -> Any:
            return step.lower(shapes, batch, seed, calm).compile(compiler_options=options)

        def timed_step(compiled: Any) -> Timed:
            def again() -> Any:
                held[0], metrics = compiled(held[0], batch, seed, calm)
                return metrics["loss"]

            return Timed(compiled, again, with_options=lambda options: timed_step(compile_step(options)))

        return compile_step, timed_step
    params = jax.jit(functools.partial(init_params, model))(jax.random.key(0))
    examples = jax.jit(task.draw)(batch, jax.random.key(0))
    function = _gradients(task.loss) if config.work == "gradients" else _encoder(config.model)
    arguments = params, examples

    def compile_function(options: dict[str, Any] | None = None) -> Any:
        return jax.jit(function).lower(*arguments).compile(compiler_options=options)

    def timed(compiled: Any) -> Timed:
        again = functools.partial(compiled, *arguments)
        return Timed(compiled, again, with_options=lambda options: timed(compile_function(options)))

    return compile_function, timed


def _gradients(loss: Callable[..., Any]) -> Callable[..., Any]:
    return jax.value_and_grad(loss, has_aux=True)


def _encoder(model_config: AlbertConfig) -> Callable[..., Any]:
    model = Albert(model_config, heads=("pooler",))

    def encode(params: Any, examples: pretraining.Examples) -> Any:
        names = ("input_ids", "attention_mask", "token_type_ids")
        return model.apply({"params": params}, *(examples[name] for name in names))

    return encode


def compile_seconds(compile_it: Callable[[], Any]) -> tuple[Any, float, float]:
    """What is compiled, the seconds that took with an empty compilation cache, and again with a full one.

    The process' own settings of the cache are as before afterwards.
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
            chosen = dict(zip(settings, (folder, 0.0, True), strict=True))
            _set_cache(chosen)
            for _ in range(2):
                jax.clear_caches()
                begun = time.perf_counter()
                compiled = compile_it()
                seconds.append(time.perf_counter() - begun)
        finally:
            _set_cache(settings)
    return compiled, seconds[0], seconds[1]


def _set_cache(settings: dict[str, Any]) -> None:
    from jax.experimental.compilation_cache import compilation_cache

    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it takes a folder once only


def time_rounds(timed: Timed, rounds: int) -> list[float]:
    """Seconds a step, of each round."""
    steps = steps_a_round(timed)
    return [time_round(timed, steps) for _ in range(rounds)]


def steps_a_round(timed: Timed) -> int:
    """How many make a round."""
    time_round(timed, 1)  # the first call may still set things up
    return max(1, round(ROUND_SECONDS / time_round(timed, 1)))


def time_round(timed: Timed, steps: int) -> float:
    """Seconds a step, of `steps` in a row."""
    begun = time.perf_counter()
    for _ in range(steps):
        last = timed.again()
    timed.wait(last)
    return (time.perf_counter() - begun) / steps


def copy_bytes() -> float:
    """Bytes a second that one device reads and writes as it adds 1 to a large array: what elementwise work cannot exceed."""
    count = (2**26 if jax.default_backend() == "cpu" else 2**30) // 4
    held = [jnp.zeros(count, jnp.float32)]
    added = jax.jit(lambda x: x + 1, donate_argnums=0)  # in place, or a CPU would be asked for new pages

    def again() -> Any:
        held[0] = added(held[0])
        return held[0]

    return 2 * held[0].nbytes / best_seconds(again)


def measure(config: BenchConfig) -> dict[str, Any]:
    """Times the work of `config`.

    Returns:
      For JSON: `config`; `device`, `devices`, `versions`; `parameters`; `seconds` a step (the median of rounds), its
      `seconds_min` and `seconds_max`; `tokens_per_second`; `flops` of a step, and `mfu` against `matmul_flops`, a second,
      measured just after; `mfu_of_peak`, against the data sheet, or None; `copy_bytes` a second; `memory`, bytes that
      XLA sets aside on a device, and `peak_memory`, bytes the device has seen, or None; `compile_seconds`, cold, and
      `warm_compile_seconds`, from the cache.

    Raises:
      InputError: more devices than there are, a batch that they cannot share, or one that does not fit into memory.
    """
    return measure_compiled(config)[0]


def measure_compiled(config: BenchConfig) -> tuple[dict[str, Any], Timed]:
    """`measure`, and what it has timed, ready to go on."""
    try:
        compile_it, make_timed = prepare(config)
        compiled, cold, warm = compile_seconds(compile_it)
        timed = make_timed(compiled)
        seconds = sorted(time_rounds(timed, config.rounds))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        told = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        ways = "lower --batch-size, raise --gradient-accumulation (of a step), or keep less (--remat dots, or full)"
        raise InputError(f"out of memory ({told}); {ways}") from None
    mesh = partition.make_mesh("any", config.mesh.data)
    possible = matmul_flops(config.model.dtype) * mesh.size / jax.device_count()
    median = statistics.median(seconds)
    peak = peak_flops(mesh)
    stats = mesh.devices.flat[0].memory_stats() or {}
    found = {
        "config": asdict(config),
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
        "versions": {"jax": jax.__version__, "jaxlib": jax.lib.__version__},
        "parameters": num_params(pretrain_task.pretraining_model(config.model, config.objective)),
        "seconds": median,
        "seconds_min": seconds[0],
        "seconds_max": seconds[-1],
        "tokens_per_second": config.tokens / median,
        "flops": config.flops,
        "matmul_flops": possible,
        "mfu": config.flops / median / possible,
        "mfu_of_peak": config.flops / median / peak if peak else None,
        "copy_bytes": copy_bytes(),
        "memory": train_step.memory(compiled),
        "peak_memory": stats.get("peak_bytes_in_use"),
        "compile_seconds": cold,
        "warm_compile_seconds": warm,
    }
    return found, timed

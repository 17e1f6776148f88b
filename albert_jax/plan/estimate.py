"""Estimate the memory, communication and time of an experiment, and warn about settings that look wrong.

Everything follows from the shapes and shardings of the real training step.  Data, vocabulary and accelerator are not needed.
"""

import functools
import math
from dataclasses import astuple, dataclass, replace
from typing import Any

import jax
from jax.extend.core import Var
from jax.sharding import AbstractMesh, AxisType

from albert_jax.config import InputError
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.depth import max_layers
from albert_jax.model.heads import num_params
from albert_jax.model.products import POLICIES
from albert_jax.plan.compiled import compile_step
from albert_jax.pretraining import run as pretrain
from albert_jax.pretraining.objective import ObjectiveConfig
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.pretraining.task import (
    batch_shapes,
    placeholder_vocabulary,
    pretraining_model,
    pretraining_workload,
)
from albert_jax.training.devices import DATA_SHEETS
from albert_jax.training.partition import DATA, Layout, check_batch_size
from albert_jax.training.paths import path_names
from albert_jax.training.step import state_shapes

GPU_SHARE = 0.75
"""Fraction of a GPU's memory that JAX allocates unless XLA_PYTHON_CLIENT_MEM_FRACTION is set."""

PAPER_RATE, PAPER_BATCH = 0.00176, 4096
"""The paper's learning rate for LAMB.  It scales with the square root of the batch size (You et al., arXiv 1904.00962)."""

MANY_REPEATS = 80
"""The paper trains on 262 G tokens from a corpus of 3.3 G words.  More repetitions are untested here."""


@dataclass(frozen=True)
class Assumptions:
    """The hardware, how well it is used, and the size of the corpus: what an experiment file does not say."""

    device: str = "H100"
    """A key of `DATA_SHEETS`."""
    peak_tflops: float | None = None
    """Per device.  None: from the data sheet."""
    memory_gb: float | None = None
    """Memory per device that a run may use.  None: from the data sheet; `GPU_SHARE` of it on a GPU."""
    mfu: float = 0.4
    """Model FLOPs utilization: the fraction of the peak that the model's matrix products reach."""
    processes: int | None = None
    """None: one process per 8 devices."""
    tokens: float | None = None
    """Size of the corpus."""

    def __post_init__(self) -> None:
        if self.device not in DATA_SHEETS:
            raise InputError(
                f"--device: unknown device {self.device!r}; choose one of {', '.join(DATA_SHEETS)}, or describe yours with "
                "--peak-tflops and --memory-gb"
            )
        for name in ("peak_tflops", "memory_gb", "mfu", "processes", "tokens"):
            value = getattr(self, name)
            option = "distributed.num-processes" if name == "processes" else name.replace("_", "-")
            if value is not None and not (math.isfinite(value) and value > 0):
                raise InputError(f"--{option} must be finite and > 0, got {value}")
        if self.mfu > 1:
            raise InputError(f"--mfu must be in (0, 1], got {self.mfu}; 0.4 is 40 %")

    @property
    def peak(self) -> float:
        """FLOP/s per device."""
        return 1e12 * (self.peak_tflops or DATA_SHEETS[self.device].tflops)

    @property
    def memory(self) -> float:
        """Bytes per device that a run may use."""
        share = 1 if self.device.startswith("TPU") else GPU_SHARE
        return 1e9 * (self.memory_gb or DATA_SHEETS[self.device].memory_gb * share)


@dataclass(frozen=True)
class Memory:
    """Bytes per device of one training step."""

    params: int
    opt_state: int
    gradients: int
    """In float32, before they are summed over devices.  Only the gradients of sharded layers are sharded."""
    gathered_params: int
    """Sharded parameters while they are gathered: those of one layer and all outside the layers.  0 if none are sharded."""
    activations: int
    """Estimate: what autodiff saves of one micro-batch, and what the backward pass recomputes of one block."""

    @property
    def total(self) -> int:
        """The sum.  It does not include XLA's other temporaries."""
        return sum(astuple(self))


@dataclass(frozen=True)
class Plan:
    """The estimated cost of an experiment."""

    config: PretrainConfig
    assumptions: Assumptions
    parameters: int
    flops_per_token: float
    processes: int
    devices: int
    rows: int
    """Sequences per device and micro-batch."""
    memory: Memory
    traffic: dict[str, int]
    """Kind of collective -> bytes per step, counting the full size of each array.  Metrics are not counted."""
    tokens: int
    """Padding included."""
    flops: float
    seconds: float
    repeats: float | None
    """How often the corpus is repeated, if its size is given."""
    warnings: tuple[str, ...]
    compiled: dict[str, Any] | None = None
    """The result of `compile_step`, if it was requested."""


def plan(config: PretrainConfig, assumptions: Assumptions | None = None, compiled: bool = False) -> Plan:
    """Plan `config` on `mesh.data` devices (0: one).

    Args:
      config: the experiment.
      assumptions: the hardware; by default H100s.
      compiled: also compile the step with XLA for as many virtual CPU devices.

    Raises:
      InputError: the batch does not divide evenly over devices, or the step does not compile.
    """
    assumptions = assumptions or Assumptions()
    devices, train = config.mesh.data or 1, config.train
    processes = assumptions.processes or -(-devices // 8)
    if devices % processes != 0:
        raise InputError(f"mesh.data {devices} is not divisible by --distributed.num-processes {processes}")
    check_batch_size(
        "train.global_batch_size", train.global_batch_size, train.gradient_accumulation, devices, processes
    )
    check_batch_size("train.eval_batch_size", train.eval_batch_size, 1, devices, processes)
    vocabulary, mesh = placeholder_vocabulary(config.model.vocab_size), abstract_mesh(devices)
    task, optimizer, layout = pretrain.training_parts(config, vocabulary, mesh)
    state = state_shapes(task, optimizer, layout)
    rows = train.global_batch_size // (devices * train.gradient_accumulation)
    tokens = train.num_train_steps * train.global_batch_size * config.objective.max_seq_length
    flops = tokens * task.flops_per_token
    gradients, gathered, traffic = gradients_and_traffic(config, layout, state.params)
    activations = activation_bytes(config.model, config.objective, rows)
    memory = Memory(device_bytes(state.params), device_bytes(state.opt_state), gradients, gathered, activations)
    return Plan(
        config=config,
        assumptions=assumptions,
        parameters=num_params(pretraining_model(config.model, config.objective)),
        flops_per_token=task.flops_per_token,
        processes=processes,
        devices=devices,
        rows=rows,
        memory=memory,
        traffic=traffic if devices > 1 else {},
        tokens=tokens,
        flops=flops,
        seconds=flops / (devices * assumptions.peak * assumptions.mfu),
        repeats=tokens / assumptions.tokens if assumptions.tokens else None,
        warnings=tuple(_warnings(config, assumptions, memory, rows, tokens)),
        compiled=compile_step(config, devices) if compiled else None,
    )


def abstract_mesh(devices: int) -> Any:
    """A mesh without devices, which is enough for shapes and shardings."""
    return AbstractMesh((devices,), (DATA,), axis_types=(AxisType.Auto,))


def device_bytes(tree: Any) -> int:
    """Bytes per device of the arrays in a tree of shapes with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def activation_bytes(model: AlbertConfig, objective: ObjectiveConfig, rows: int) -> int:
    """Estimate the bytes of activations that the backward pass of a micro-batch needs.

    JAX lists what autodiff saves for the real loss, so the estimate follows dtype, remat, dropout and fused
    attention.  With remat, the activations of one block are added: they exist together while that block is recomputed.
    """
    saved = _saved_bytes(model, objective, rows)
    if model.remat == "none":
        return saved
    depth = at_largest_depth(model).depth
    return saved + _saved_bytes(replace(model, remat="none"), objective, rows) // depth


@functools.cache
def _saved_bytes(model: AlbertConfig, objective: ObjectiveConfig, rows: int) -> int:
    """Bytes of the arrays that autodiff saves for the backward pass, without parameters."""
    vocabulary, layout = placeholder_vocabulary(model.vocab_size), Layout(abstract_mesh(1))
    task = pretraining_workload(pretraining_model(model, objective), objective, vocabulary, layout)
    key = jax.eval_shape(lambda: jax.random.key(0))
    examples = jax.eval_shape(task.draw, batch_shapes(objective, rows), key)
    params = jax.eval_shape(task.init, key)

    def backward(params: Any, examples: Any) -> Any:
        # The function that vjp returns is a pytree of the saved arrays.
        return jax.vjp(lambda p: task.loss(p, examples), params, has_aux=True)[1]

    jaxpr = jax.make_jaxpr(backward)(params, examples).jaxpr
    # Arrays computed from parameters alone, such as the one set of a shared layer, are copies that XLA removes.
    depends_on_examples = set(jaxpr.invars[len(jax.tree.leaves(params)) :])
    for equation in jaxpr.eqns:
        if any(isinstance(x, Var) and x in depends_on_examples for x in equation.invars):
            depends_on_examples.update(equation.outvars)
    saved = {x for x in jaxpr.outvars if isinstance(x, Var)} & depends_on_examples - set(jaxpr.invars)
    arrays: list[Any] = [x.aval for x in saved]
    return sum(x.size * x.dtype.itemsize for x in arrays)


def at_largest_depth(model: AlbertConfig) -> AlbertConfig:
    """The network with the largest number of layers that `depth_sampling` draws: its loop has that many iterations."""
    layers = max_layers(model.depth_sampling, model.num_hidden_layers)
    return replace(model, num_hidden_layers=layers, depth_sampling="fixed")


def gradients_and_traffic(config: PretrainConfig, layout: Layout, params: Any) -> tuple[int, int, dict[str, int]]:
    """`Memory.gradients`, `Memory.gathered_params` and `Plan.traffic` of `partition.summed_gradients`."""
    model, micro_batches = config.model, config.train.gradient_accumulation
    sets = at_largest_depth(model).layer_sets
    gradients = gathered = 0
    traffic = {"all-reduce": 0, "reduce-scatter": 0, "all-gather": 0}
    for key, leaf in jax.tree_util.tree_leaves_with_path(params):
        path, size = path_names(key), leaf.size * leaf.dtype.itemsize
        sharded = layout.axis("params", path, leaf.shape) is not None
        if sharded and path in layout.stacked:
            # One set at a time is gathered and summed, in every micro-batch.  With several sets, each is
            # gathered again in the backward pass of its block.
            set_ids, set_size = sets.get(path[1], range(model.depth)), size // leaf.shape[0]
            unshared = max(set_ids) > 0
            uses = micro_batches * (len(set_ids) if unshared else 1)
            gradients += size // layout.mesh.size
            gathered += set_size
            traffic["all-gather"] += uses * set_size * (2 if unshared else 1)
            traffic["reduce-scatter"] += uses * set_size
            continue
        gradients += size
        if layout.axis("opt_state", path, leaf.shape) is None:
            traffic["all-reduce"] += size
        else:
            gathered += size if sharded else 0
            traffic["all-gather"] += size
            traffic["reduce-scatter"] += size
    return gradients, gathered, traffic


def _warnings(config: PretrainConfig, assumptions: Assumptions, memory: Memory, rows: int, tokens: int) -> list[str]:
    """One line per setting that looks wrong, with what to change."""
    warnings = []
    optim, objective, batch = config.optim, config.objective, config.train.global_batch_size
    scaled_rate = PAPER_RATE * math.sqrt(batch / PAPER_BATCH)
    if optim.optimizer.has_trust_ratio and optim.learning_rate > 1.2 * scaled_rate:  # the paper's rate is LAMB's
        warnings.append(
            f"optim.learning_rate {optim.learning_rate:g} is {optim.learning_rate / scaled_rate:.1f} times the paper's rate, "
            f"scaled to this batch size ({PAPER_RATE} x sqrt({batch} / {PAPER_BATCH})); use --optim.learning-rate {scaled_rate:.2g}"
        )
    length, predictions = objective.max_seq_length, objective.max_predictions_per_seq
    full_predictions = round(length * objective.masked_lm_prob)
    if predictions < full_predictions:
        warnings.append(
            f"objective.max_predictions_per_seq {predictions} masks {predictions / length:.1%} of a full sequence of {length}, "
            f"not masked_lm_prob's {objective.masked_lm_prob:.0%}; use --objective.max-predictions-per-seq {full_predictions}"
        )
    if assumptions.tokens and (repeats := tokens / assumptions.tokens) > MANY_REPEATS:
        steps = max(1, round(config.train.num_train_steps * MANY_REPEATS / repeats))
        warnings.append(
            f"the data is repeated {repeats:,.0f} times (paper: about {MANY_REPEATS}); use more text, or "
            f"--train.num-train-steps {steps}"
        )
    if memory.total > assumptions.memory:
        # The policies are ordered: each saves less than the one before.
        policies = list(POLICIES)
        less_memory = policies[policies.index(config.model.remat) :]
        options = [
            text for remat in less_memory if (text := _fitting_options(config, assumptions, memory, rows, remat))
        ]
        if not options and config.mesh.sharding != "parameters" and config.mesh.data > 1:
            options = ["--mesh.sharding parameters --model.remat dots"]
        warnings.append(
            f"a step needs {bytes_text(memory.total)} per device and {bytes_text(assumptions.memory)} are available; use "
            f"{', or '.join(options) or 'more devices (--mesh.data) or a larger --device'}"
        )
    return warnings


def _fitting_options(config: PretrainConfig, assumptions: Assumptions, memory: Memory, rows: int, remat: str) -> str:
    """The options with which a step fits under this `remat`, with the largest possible micro-batches; empty if none do."""
    activations = activation_bytes(replace(config.model, remat=remat), config.objective, rows)
    room = assumptions.memory - (memory.total - memory.activations)
    parts = next((n for n in range(1, rows + 1) if rows % n == 0 and activations <= n * room), None)
    if parts is None:
        return ""
    options = [] if remat == config.model.remat else [f"--model.remat {remat}"]
    if parts > 1:
        options.append(f"--train.gradient-accumulation {config.train.gradient_accumulation * parts}")
    return " ".join(options)


def bytes_text(count: float) -> str:
    """Format a number of bytes in decimal units: `1.5 GB`."""
    unit, divisor = next(((u, d) for u, d in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)) if count >= d), ("kB", 1e3))
    return f"{count / divisor:,.3g} {unit}" if count < 1e3 * divisor else f"{count / divisor:,.0f} {unit}"

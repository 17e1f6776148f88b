"""What an experiment will take, before it is launched: parameters, FLOPs, memory, communication and time, and what looks wrong.

Everything is on paper but what `compiled.py` asks XLA; neither data, vocabulary nor an accelerator is needed.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from albert_jax.config import require
from albert_jax.model.heads import Albert, num_params
from albert_jax.model.products import POLICIES
from albert_jax.plan.compiled import compile_step
from albert_jax.plan.footprint import Memory, Traffic, abstract_mesh, activations, by_layout, held, size
from albert_jax.pretraining import run as pretrain
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.pretraining.task import some_vocabulary
from albert_jax.training import partition
from albert_jax.training import step as train_step
from albert_jax.training.devices import DATA_SHEETS
from albert_jax.training.partition import MeshConfig

GPU_SHARE = 0.75
"""What JAX takes of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise."""

PAPER_RATE, PAPER_BATCH = 0.00176, 4096
"""Of the paper's LAMB; the square-root rule scales them (You et al., arXiv 1904.00962)."""

MANY_REPEATS = 80
"""The paper's own: 262 G tokens of a corpus of 3.3 G words.  More of them is untried here."""


KEEPING_LESS = tuple(POLICIES)
"""Of `model.remat`: each keeps less of a block than the one before."""


@dataclass(frozen=True)
class Assumed:
    """What the configuration does not say: the machine, and how well it is used."""

    device: str = "H100"
    """A name of `DATA_SHEETS`."""
    peak_tflops: float | None = None
    """Of a device; None: its data sheet's."""
    memory_gb: float | None = None
    """That a run may use of a device, GB; None: of the data sheet's, on a GPU `GPU_SHARE`."""
    mfu: float = 0.4
    """Share of the peak that the model's matrix products run at."""
    processes: int | None = None
    """Hosts; None: one for each 8 devices begun."""
    tokens: float | None = None
    """Of the corpus."""

    def __post_init__(self) -> None:
        near = (
            f"--device: one of {', '.join(DATA_SHEETS)}, got {self.device!r}; others by --peak-tflops and --memory-gb"
        )
        require(self.device in DATA_SHEETS, near)
        for name in ("peak_tflops", "memory_gb", "mfu", "processes", "tokens"):
            value = getattr(self, name)
            option = "distributed.num-processes" if name == "processes" else name.replace("_", "-")
            right = value is None or (math.isfinite(value) and value > 0)
            require(right, f"--{option} must be finite and > 0, got {value}")
        require(self.mfu <= 1, f"--mfu must be in (0, 1], got {self.mfu}; 0.4 is 40 %")

    @property
    def peak(self) -> float:
        """FLOP/s of a device."""
        return 1e12 * (DATA_SHEETS[self.device].tflops if self.peak_tflops is None else self.peak_tflops)

    @property
    def memory(self) -> float:
        """Bytes that a run may use of a device."""
        if self.memory_gb is not None:
            return 1e9 * self.memory_gb
        return 1e9 * DATA_SHEETS[self.device].memory_gb * (1 if self.device.startswith("TPU") else GPU_SHARE)

    @property
    def memory_said(self) -> str:
        """The same, for people."""
        if self.memory_gb is not None or self.device.startswith("TPU"):
            return f"{self.memory / 1e9:g} GB"
        return f"{self.memory / 1e9:g} GB ({GPU_SHARE:.0%} of the {self.device}'s {DATA_SHEETS[self.device].memory_gb}, JAX's default)"


@dataclass(frozen=True)
class Plan:
    """What an experiment will take."""

    parameters: int
    flops_per_token: float
    global_batch_size: int
    max_seq_length: int
    processes: int
    devices: int
    micro_batches: int
    rows: int
    """Sequences a device and micro-batch."""
    memory: Memory
    traffic: Traffic
    steps: int
    tokens: int
    """Positions: padding counted."""
    flops: float
    seconds: float
    repeats: float | None
    """Of the corpus, where its size is given."""
    assumed: Assumed
    warnings: tuple[str, ...]
    compiled: dict[str, Any] | None = None
    """What `compiled.compile_step` returned."""


def plan(config: PretrainConfig, assumed: Assumed | None = None) -> Plan:
    """What `config` will take on `mesh.data` devices (0: one).

    Raises:
      InputError: devices that processes, or batches that devices, cannot share evenly.
    """
    assumed = assumed or Assumed()
    devices = config.mesh.data or 1
    processes = assumed.processes or -(-devices // 8)
    even = f"mesh.data {devices} is not divisible by --distributed.num-processes {processes}; each process has as many devices"
    require(devices % processes == 0, even)
    mesh = abstract_mesh(devices)
    micro, batch = config.train.gradient_accumulation, config.train.global_batch_size
    partition.check_batch_size("train.global_batch_size", batch, micro, devices, processes)
    partition.check_batch_size("train.eval_batch_size", config.train.eval_batch_size, 1, devices, processes)
    task, optimizer, layout = pretrain.make_task(config, some_vocabulary(config.model.vocab_size), mesh, None, None)
    state = train_step.state_shapes(task, optimizer, layout)
    rows = batch // (devices * micro)
    steps, length = config.train.num_train_steps, config.objective.max_seq_length
    tokens = steps * batch * length
    gradients, whole, traffic = by_layout(config, layout, state.params)
    memory = Memory(held(state.params), held(state.opt_state), gradients, whole, activations(config, rows))
    return Plan(
        parameters=num_params(Albert(config.model)),
        flops_per_token=task.flops_per_token,
        global_batch_size=batch,
        max_seq_length=length,
        processes=processes,
        devices=devices,
        micro_batches=micro,
        rows=rows,
        memory=memory,
        traffic=traffic if devices > 1 else Traffic(),
        steps=steps,
        tokens=tokens,
        flops=tokens * task.flops_per_token,
        seconds=tokens * task.flops_per_token / (devices * assumed.peak * assumed.mfu),
        repeats=tokens / assumed.tokens if assumed.tokens else None,
        assumed=assumed,
        warnings=tuple(_warnings(config, assumed, memory, rows, tokens)),
    )


def _warnings(config: PretrainConfig, assumed: Assumed, memory: Memory, rows: int, tokens: int) -> list[str]:
    """One line each, with the way out."""
    found = []
    optim, objective, batch = config.optim, config.objective, config.train.global_batch_size
    rule = PAPER_RATE * math.sqrt(batch / PAPER_BATCH)
    if "lamb" in optim.optimizer and optim.learning_rate > 1.2 * rule:
        found.append(
            f"optim.learning_rate {optim.learning_rate:g} is {optim.learning_rate / rule:.1f} times the square-root rule's at batch "
            f"{batch}: --optim.learning-rate {rule:.2g} ({PAPER_RATE} x sqrt({batch} / {PAPER_BATCH}))"
        )
    length, most = objective.max_seq_length, objective.max_predictions_per_seq
    wanted = round(length * objective.masked_lm_prob)
    if most < wanted:
        found.append(
            f"objective.max_predictions_per_seq {most} masks {most / length:.1%} of a full sequence of {length}, not "
            f"masked_lm_prob's {objective.masked_lm_prob:.0%}: --objective.max-predictions-per-seq {wanted}"
        )
    if assumed.tokens and (repeats := tokens / assumed.tokens) > MANY_REPEATS:
        found.append(
            f"the data is repeated {repeats:,.0f} times, the paper's about {MANY_REPEATS}: more text, or --train.num-train-steps "
            f"{max(1, round(config.train.num_train_steps * MANY_REPEATS / repeats))}"
        )
    if memory.total > assumed.memory:
        ways = [way for remat in KEEPING_LESS if (way := _fitting(config, assumed, memory, rows, remat))]
        if not ways and config.mesh.sharding != "parameters" and config.mesh.data > 1:
            ways = ["--mesh.sharding parameters --model.remat dots"]
        told = f"{size(memory.total)} a device are more than {assumed.memory_said}"
        found.append(f"{told}: {', or '.join(ways) or 'more devices (--mesh.data), or a larger --device'}")
    return found


def _fitting(config: PretrainConfig, assumed: Assumed, memory: Memory, rows: int, remat: Any) -> str:
    """The options that make a step fit with this `remat`, micro-batches as large as can be; empty: none do."""
    if KEEPING_LESS.index(remat) < KEEPING_LESS.index(config.model.remat):
        return ""
    tried = replace(config, mesh=MeshConfig(), model=replace(config.model, remat=remat))
    need, room = activations(tried, rows), assumed.memory - (memory.total - memory.activations)
    parts = next((k for k in range(1, rows + 1) if rows % k == 0 and need <= k * room), None)
    if parts is None:
        return ""
    said = [] if remat == config.model.remat else [f"--model.remat {remat}"]
    said += [f"--train.gradient-accumulation {config.train.gradient_accumulation * parts}"] if parts > 1 else []
    return " ".join(said)


def with_compiled(made: Plan, config: PretrainConfig) -> Plan:
    """The plan with what XLA:CPU makes of the step.

    Raises:
      InputError: it does not compile.
    """
    return replace(made, compiled=compile_step(config, made.devices))

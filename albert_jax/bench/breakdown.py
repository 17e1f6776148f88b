"""The time of a step by kind of work, from a profile, with a lower bound for each kind."""

import gzip
import itertools
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax

from albert_jax.bench.measure import BenchConfig, Benchmark, run_steps
from albert_jax.model.heads import num_params
from albert_jax.pretraining.task import pretraining_model
from albert_jax.reports.tables import markdown_table
from albert_jax.training.step import DRAW, UPDATE

KINDS = ("matmul", "attention", "elementwise", "draw", "optimizer", "communication", "idle")
"""matmul: dense layers and heads; attention: from query, key and value to context; elementwise: everything else in the model,
copies included; draw: masks and sentence pairs; optimizer: gradient norms and update; communication: between devices;
idle: nothing runs."""

STEPS = 3
"""Number of profiled steps."""

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
CONTAINERS = ("while", "call", "conditional", "async-start", "async-done")
"""Instructions that contain others.  Their time is their children's, so they are skipped."""

LIBRARY_PRODUCT = r"custom_call_target=\"[^\"]*(?:gemm|matmul|cublas)"
"""A matrix product of a GPU library."""

END = "end: "
"""XLA:CPU's prefix for the event at the end of an instruction."""

NO_GRAPHS = {"xla_gpu_enable_command_buffer": ""}
"""Compiler options for a GPU.  Instructions in a CUDA graph would appear in a profile under the graph's name."""


class Event(NamedTuple):
    """One execution of one instruction, in nanoseconds."""

    kind: str
    start: float
    end: float


class Instruction(NamedTuple):
    """An instruction of compiled HLO."""

    kind: str
    """One of `KINDS`."""
    product: bool
    """Whether it computes a matrix product."""


def instructions(text: str) -> dict[str, Instruction]:
    """Name -> instruction, from compiled HLO.  Containers are left out."""
    bodies = {part.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%"): part for part in re.split(r"\n(?=\S)", text)}
    found = {}
    for line in text.splitlines():
        match = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = .*? ([\w\-]+)\(", line)
        if match is None or match[2] in CONTAINERS:
            continue
        name, opcode = match.groups()
        called, path = re.search(r"calls=%?([\w.\-]+)", line), re.search(r'op_name="([^"]*)"', line)
        body = bodies.get(called[1], "") if called else ""
        product = opcode == "dot" or " dot(" in body or bool(re.search(LIBRARY_PRODUCT, line))
        found[name] = Instruction(_kind(opcode, path[1].split("/") if path else [], product), product)
        if opcode == "fusion-start" and (inner := re.search(r'deduplicated_name="([^"]*)"', line)):
            # A profile of a GPU shows it on another stream, under this name and a number.
            found.setdefault(inner[1], found[name])
    return found


def _kind(opcode: str, scopes: list[str], product: bool) -> str:
    if opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES:
        return "communication"
    if DRAW in scopes:
        return "draw"
    if UPDATE in scopes:
        return "optimizer"
    if "Attention" in scopes:
        inner = scopes[scopes.index("Attention") + 1 :]
        # "add" is the residual connection.
        if inner and inner[0] not in {"query", "key", "value", "dense", "LayerNorm", "add"}:
            return "attention"
    return "matmul" if product else "elementwise"


def events(folder: Path, known: dict[str, Instruction]) -> Iterator[Event]:
    """The executions of `known` instructions in the newest profile in `folder`."""
    # Not *.xplane.pb: jaxlib 0.12's reader of that format aborts on some events.
    path = max(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime, default=None)
    if path is None:
        return
    executions, ends = defaultdict(list), defaultdict(list)
    for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
        if event.get("ph") != "X":  # not a duration, but the name of a thread
            continue
        start = 1e3 * event["ts"]
        if event["name"].startswith(END):
            ends[event["name"].removeprefix(END)].append(start)
            continue
        operation = event.get("args", {}).get("hlo_op", "")
        name = next((name for name in (operation, operation.split(".")[0]) if name in known), None)
        if name:
            executions[name].append((start, start + 1e3 * event["dur"]))
    for name, spans in executions.items():
        # On a CPU, a product's event may stop when the work is handed to threads; an extra event marks the real end.
        # For other instructions that extra event comes late, after the next instruction has begun.
        marked = known[name].product and len(ends[name]) == len(spans)
        for (start, stop), mark in zip(sorted(spans), sorted(ends[name]) if marked else [0] * len(spans), strict=True):
            if (end := max(stop, mark)) > start:
                yield Event(known[name].kind, start, end)


def seconds_by_kind(found: list[Event]) -> dict[str, float]:
    """Seconds of each kind between the first start and the last end.  Instructions that run at once share the time."""
    times = sorted({time for event in found for time in (event.start, event.end)})
    changes: dict[float, list[tuple[str, int]]] = defaultdict(list)
    for event in found:
        changes[event.start].append((event.kind, 1))
        changes[event.end].append((event.kind, -1))
    seconds = dict.fromkeys(KINDS, 0.0)
    running = dict.fromkeys(KINDS, 0)
    for now, following in itertools.pairwise(times):
        for kind, change in changes[now]:
            running[kind] += change
        total, span = sum(running.values()), (following - now) / 1e9
        if total == 0:
            seconds["idle"] += span
            continue
        for kind, count in running.items():
            seconds[kind] += span * count / total
    return seconds


def breakdown(benchmark: Benchmark, folder: Path | None) -> dict[str, float]:
    """Profile a few steps and return the seconds per step of each of `KINDS`.

    On a GPU the computation is compiled again without CUDA graphs, so the sum can exceed the measured time of a step.

    Args:
      benchmark: from `measure`.
      folder: keeps the profile, for Perfetto or TensorBoard.  None: the profile is deleted.

    Returns:
      An empty dict if the profiler does not record what the device executes.
    """
    program = benchmark.compile(NO_GRAPHS) if jax.default_backend() == "gpu" else benchmark.compiled
    benchmark.wait(benchmark.run(program))
    with tempfile.TemporaryDirectory() as scratch:
        with jax.profiler.trace(folder or scratch, create_perfetto_trace=folder is not None):
            run_steps(lambda: benchmark.run(program), benchmark.wait, STEPS)
        found = list(events(folder or Path(scratch), instructions(program.as_text())))
    return {kind: seconds / STEPS for kind, seconds in seconds_by_kind(found).items()} if found else {}


def lower_bounds(config: BenchConfig, matmul_flops: float, copy_bytes: float) -> dict[str, float]:
    """Seconds per step that each of `KINDS` needs at least; 0 if unknown.

    Products run at the rate of a large product.  Elementwise work between two products is one kernel, which reads and writes
    each value once, at the rate of a copy.  The optimizer makes one pass over the state.
    """
    model, inference = config.model, config.work == "inference"
    hidden, inner, length = model.hidden_size, model.intermediate_size, config.objective.max_seq_length
    devices = config.mesh.data or jax.device_count()
    attention_flops = config.tokens * model.depth * 4 * length * hidden * (1 if inference else 3)
    # A LayerNorm reads two values and writes one, GELU one and one; the backward pass reads them again, and the gradient,
    # and writes a gradient.
    values = config.tokens * model.depth * (6 * hidden + 2 * inner if inference else 14 * hidden + 5 * inner)
    value_bytes = 2 if model.dtype == "bfloat16" else 4
    seconds = dict.fromkeys(KINDS, 0.0) | {
        "matmul": (config.flops - attention_flops) / matmul_flops,
        "attention": attention_flops / matmul_flops,
        "elementwise": values * value_bytes / copy_bytes / devices,
    }
    if config.work == "step":
        # Parameter, gradient and two moments are read; all except the gradient are written.
        holders = 1 if config.mesh.sharding == "none" else devices
        seconds["optimizer"] = num_params(pretraining_model(model, config.objective)) * 4 * 7 / copy_bytes / holders
    return seconds


def breakdown_table(seconds: dict[str, float], bounds: dict[str, float]) -> str:
    """The results of `breakdown` and `lower_bounds` as a Markdown table."""
    total = sum(seconds.values())
    rows = {kind: (seconds[kind], bounds[kind]) for kind in KINDS} | {"total": (total, sum(bounds.values()))}
    header = [f"part of a step (mean of {STEPS})", "ms", "share", "lower bound, ms"]
    return markdown_table(
        header,
        [
            (name, f"{1e3 * time:,.4g}", f"{time / total:.1%}", f"{1e3 * bound:,.3g}" if bound else "")
            for name, (time, bound) in rows.items()
        ],
    )

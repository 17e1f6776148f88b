"""Where the time of a step goes: a profile's instructions by what they are, beside the least that each kind could take."""

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

from albert_jax.bench.measuring import BenchConfig, Timed
from albert_jax.model.heads import Albert, num_params
from albert_jax.training.step import DRAW, UPDATE

KINDS = ("matmul", "attention", "elementwise", "draw", "optimizer", "communication", "idle")
"""Products of dense layers and heads; what lies between query and context; all else of the model, copies included; masks and
sentence pairs; gradient norms and the update; between devices; nothing runs."""

STEPS = 3
"""Profiled."""

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
CONTAINERS = ("while", "call", "conditional", "async-start", "async-done")
"""Instructions whose time is that of those in them."""


PRODUCTS = r"custom_call_target=\"[^\"]*(?:gemm|matmul|cublas)"
"""Libraries' own products, on a GPU."""

END = "end: "
"""What XLA:CPU calls the end of an instruction."""


ONE_BY_ONE = {"xla_gpu_enable_command_buffer": ""}
"""XLA's options for a GPU: a profile names instructions only where they are launched one by one, not as a graph."""


class Event(NamedTuple):
    """One run of one instruction."""

    kind: str
    start: float
    """Nanoseconds, from anywhere."""
    end: float


class Instruction(NamedTuple):
    """What one of compiled HLO is."""

    kind: str
    """One of `KINDS`."""
    product: bool


def instructions(text: str) -> dict[str, Instruction]:
    """Those of compiled HLO by name, without those that only hold others."""
    bodies: dict[str, str] = {}
    for part in re.split(r"\n(?=\S)", text):
        bodies[part.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")] = part
    found = {}
    for line in text.splitlines():
        if match := re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = .*? ([\w\-]+)\(", line):
            name, opcode = match.groups()
            called = re.search(r"calls=%?([\w.\-]+)", line)
            body = bodies[called[1]] if called and called[1] in bodies else ""
            product = opcode == "dot" or " dot(" in body or bool(re.search(PRODUCTS, line))
            path = re.search(r'op_name="([^"]*)"', line)
            if opcode in CONTAINERS:
                continue
            found[name] = Instruction(_kind(opcode, path[1] if path else "", product), product)
            if opcode == "fusion-start" and (inner := re.search(r'deduplicated_name="([^"]*)"', line)):
                # On another stream of a GPU, under this name and a number.
                found.setdefault(inner[1], found[name])
    return found


def _kind(opcode: str, path: str, product: bool) -> str:
    parts = path.split("/")
    if opcode.removesuffix("-start").removesuffix("-done") in COLLECTIVES:
        return "communication"
    if DRAW in parts:
        return "draw"
    if UPDATE in parts:
        return "optimizer"
    if "Attention" in parts:
        below = parts[parts.index("Attention") + 1 :]
        if below and below[0] not in {"query", "key", "value", "dense", "LayerNorm", "add"}:  # add: the residual's
            return "attention"
    return "matmul" if product else "elementwise"


def events(folder: Path, known: dict[str, Instruction]) -> Iterator[Event]:
    """What the newest profile in `folder` says of the instructions that are `known`."""
    # Not *.xplane.pb: jaxlib 0.12's reader of that aborts at some events.
    path = max(folder.rglob("*.trace.json.gz"), key=lambda path: path.stat().st_mtime, default=None)
    if path is None:
        return
    runs, marks = defaultdict(list), defaultdict(list)
    for event in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]:
        if event.get("ph") != "X":  # names of threads
            continue
        start = 1e3 * event["ts"]
        if event["name"].startswith(END):
            marks[event["name"].removeprefix(END)].append(start)
        elif name := _known(event.get("args", {}).get("hlo_op", ""), known):
            runs[name].append((start, start + 1e3 * event["dur"]))
    for name, found in runs.items():
        # The event of a product on a CPU may be over when it is handed to threads; that they are done is an event of its
        # own.  Of other instructions that one comes late, after what follows has begun.
        marked = known[name].product and len(marks[name]) == len(found)
        for (start, end), mark in zip(sorted(found), sorted(marks[name]) if marked else [0] * len(found), strict=True):
            if max(end, mark) > start:
                yield Event(known[name].kind, start, max(end, mark))


def _known(name: str, known: dict[str, Instruction]) -> str:
    """The name under which an instruction is known; empty: it is not."""
    return next((key for key in (name, name.split(".")[0]) if key in known), "")


def shares(found: list[Event]) -> dict[str, float]:
    """Seconds of each kind, between the first event's start and the last one's end.  Where several run at once they share."""
    edges = sorted({edge for event in found for edge in (event.start, event.end)})
    starts, ends = defaultdict(list), defaultdict(list)
    for event in found:
        starts[event.start].append(event.kind)
        ends[event.end].append(event.kind)
    seconds = dict.fromkeys(KINDS, 0.0)
    running: dict[str, int] = defaultdict(int)
    for now, then in itertools.pairwise(edges):
        for kind in starts[now]:
            running[kind] += 1
        for kind in ends[now]:
            running[kind] -= 1
        total = sum(running.values())
        if not total:
            seconds["idle"] += (then - now) / 1e9
        for kind, count in running.items():
            if count:
                seconds[kind] += (then - now) / 1e9 * count / total
    return seconds


def breakdown(timed: Timed, folder: Path | None) -> dict[str, float]:
    """Seconds a step of each of `KINDS`, from a profile of `STEPS` steps; empty where that tells nothing of the device's work.

    On a GPU it is compiled anew for that, `ONE_BY_ONE`, so that the sum may be more than a step takes.

    Args:
      timed: what runs.
      folder: where the profile stays, for Perfetto or TensorBoard; None: it is thrown away.
    """
    if jax.default_backend() == "gpu" and timed.with_options:
        timed = timed.with_options(ONE_BY_ONE)
    jax.block_until_ready(timed.again())
    with tempfile.TemporaryDirectory() as scratch:
        with jax.profiler.trace(folder or scratch, create_perfetto_trace=folder is not None):
            for _ in range(STEPS):
                last = timed.again()
            jax.block_until_ready(last)
        found = list(events(folder or Path(scratch), instructions(timed.compiled.as_text())))
    return {kind: seconds / STEPS for kind, seconds in shares(found).items()} if found else {}


def floors(config: BenchConfig, matmul_flops: float, copy_bytes: float) -> dict[str, float]:
    """Seconds a step that each of `KINDS` takes at least: products at the rate of a large one; elementwise work as one kernel
    between two products, each value read and written once, at the rate of a copy; LAMB's as if in one pass.
    """
    model, inference = config.model, config.work == "inference"
    width, inner, length = model.hidden_size, model.intermediate_size, config.objective.max_seq_length
    attention = config.tokens * model.depth * 4 * length * width * (1 if inference else 3)
    # A LayerNorm reads two values and writes one, GELU one and one; backward reads them again, and the gradient, and writes.
    values = config.tokens * model.depth * (6 * width + 2 * inner if inference else 14 * width + 5 * inner)
    size = 2 if model.dtype == "bfloat16" else 4
    # Parameter, two moments and gradient are read, all but the gradient written.
    update = num_params(Albert(model)) * 4 * 7 if config.work == "step" else 0
    seconds = dict.fromkeys(KINDS, 0.0)
    devices = config.mesh.data or jax.device_count()
    holders = 1 if config.mesh.sharding == "none" else devices
    return seconds | {
        "matmul": (config.flops - attention) / matmul_flops,
        "attention": attention / matmul_flops,
        "elementwise": values * size / copy_bytes / devices,
        "optimizer": update / copy_bytes / holders,
    }

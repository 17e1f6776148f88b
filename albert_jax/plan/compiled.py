"""Memory and collectives of a training step according to XLA, compiled for virtual CPU devices.

The step is compiled from shapes alone: nothing is allocated and nothing runs.  The figures are XLA:CPU's.  A GPU or TPU
shards the program in the same way, but fuses and schedules differently, and XLA:CPU computes some bfloat16 products in
float32.
"""

import json
import math
import os
import re
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from albert_jax.config import InputError, from_dict, to_dict
from albert_jax.pretraining import run as pretrain
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.pretraining.task import batch_shapes, placeholder_vocabulary
from albert_jax.training import partition
from albert_jax.training.step import make_step, state_shapes

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """One collective instruction of compiled HLO.  Sizes are those of whole arrays: before a scatter, after a gather."""

    kind: str
    """One of `KINDS`."""
    elements: int
    """Of its largest array."""
    bytes: int
    """Of all its arrays."""
    in_loop: bool
    """Whether a while loop runs it, directly or through a call."""


def collectives(text: str, devices: int) -> list[Collective]:
    """List the collectives in compiled HLO, the text of `compiled.as_text()`.  Each must span all `devices`."""
    calls: dict[str, set[str]] = {}  # computation -> the computations that it calls
    loops: list[str] = []  # bodies and conditions of while loops
    instructions: list[tuple[str, Collective]] = []
    computation = ""
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            computation = line.removeprefix("ENTRY ").split("(")[0].strip().lstrip("%")
        callees = re.findall(r"(?:to_apply|calls|body|condition)=%?([\w.\-]+)", line)
        for names in re.findall(r"(?:branch_computations|called_computations)=\{([^}]*)\}", line):
            callees += re.findall(r"[\w.\-]+", names)
        calls.setdefault(computation, set()).update(callees)
        if " while(" in line:
            loops += callees
        if match := re.search(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\(", line):
            shapes, kind = match.groups()
            parts = devices if kind == "reduce-scatter" else 1  # its result is one part of the array
            arrays = [
                (math.prod(int(n) for n in dims.split(",") if n) * parts, int(bits or 8))
                for bits, dims in re.findall(r"\b[a-z]+(\d*)\[([\d,]*)\]", shapes)
            ]
            largest = max((count for count, _ in arrays), default=0)
            size = sum(count * bits // 8 for count, bits in arrays)
            instructions.append((computation, Collective(kind, largest, size, in_loop=False)))
    in_loops: set[str] = set()
    while loops:
        name = loops.pop()
        if name not in in_loops:
            in_loops.add(name)
            loops += calls.get(name, ())
    return [collective._replace(in_loop=name in in_loops) for name, collective in instructions]


def compile_here(config: PretrainConfig, devices: int) -> dict[str, Any]:
    """Compile the step of `config` for `devices` CPU devices of this process.

    Returns:
      `argument`, `output`, `temp` and `alias`: bytes per device as XLA counts them; `collectives`: a list of `Collective` as
      dicts; `seconds`: the time of lowering and compiling.
    """
    mesh = partition.make_mesh("cpu", devices)
    task, optimizer, layout = pretrain.training_parts(config, placeholder_vocabulary(config.model.vocab_size), mesh)
    step = make_step(task, optimizer, layout, config.train.gradient_accumulation)
    rows = partition.by_rows(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
        for name, x in batch_shapes(config.objective, config.train.global_batch_size).items()
    }
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=partition.replicated(mesh))
    signals = jax.ShapeDtypeStruct((devices,), jnp.int32, sharding=rows)
    start = time.perf_counter()
    compiled = step.lower(state_shapes(task, optimizer, layout), batch, seed, signals).compile()
    seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    sizes = {name: getattr(memory, f"{name}_size_in_bytes") for name in ("argument", "output", "temp", "alias")}
    found = [collective._asdict() for collective in collectives(compiled.as_text(), devices)]
    return sizes | {"seconds": seconds, "collectives": found}


def compile_step(config: PretrainConfig, devices: int) -> dict[str, Any]:
    """Run `compile_here` in a child process, because the number of CPU devices is fixed when JAX starts.

    Raises:
      InputError: the step does not compile; with the last line of the reason.
    """
    # Replace the user's XLA_FLAGS: XLA:CPU aborts on the flags of a GPU.  LLVM's optimization level changes no figure.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_TRACEBACK_FILTERING": "off"}
    child = subprocess.run(
        [sys.executable, "-m", "albert_jax.plan.compiled", str(devices)],
        input=json.dumps(to_dict(config)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if child.returncode != 0:
        lines = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
        reason = ([line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)] or lines)[-1]
        raise InputError(f"--compile: the step does not compile for {devices} virtual devices: {reason}")
    return json.loads(child.stdout)


if __name__ == "__main__":
    print(json.dumps(compile_here(from_dict(PretrainConfig, json.load(sys.stdin)), int(sys.argv[1]))))

"""What XLA makes of an experiment's training step on devices that are not there: its memory, and its collectives.

The step is lowered from shapes alone for so many virtual CPU devices, in a process of its own, since their number is fixed
as JAX starts.  Nothing is allocated and nothing runs.  Figures are XLA:CPU's: the program is cut over devices as on any
backend, but others fuse and schedule otherwise, and XLA:CPU computes some bfloat16 products in float32.
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
from albert_jax.pretraining.task import batch_shapes, some_vocabulary
from albert_jax.training import partition
from albert_jax.training import step as train_step

KINDS = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """One collective instruction of compiled HLO."""

    kind: str
    """One of `KINDS`."""
    elements: int
    """Of the largest array in it, whole: before it is scattered, or after it is gathered."""
    bytes: int
    """Of all arrays in it, whole."""
    in_loop: bool
    """It stands in the body or the condition of a while loop, or in what these call."""


def collectives(text: str) -> list[Collective]:
    """The collectives in compiled HLO, `compiled.as_text()`, in its order."""
    calls: dict[str, set[str]] = {}
    looped: list[str] = []
    found: list[tuple[str, Collective]] = []
    name = ""
    for line in text.splitlines():
        if line and not line[0].isspace() and line.rstrip().endswith("{"):
            name = re.sub(r"^ENTRY ", "", line).split("(")[0].strip().lstrip("%")
            calls[name] = set()
            continue
        called = re.findall(r"(?:to_apply|calls|body|condition)=%?([\w.\-]+)", line)
        for branches in re.findall(r"(?:branch_computations|called_computations)=\{([^}]*)\}", line):
            called += re.findall(r"[\w.\-]+", branches)
        calls.setdefault(name, set()).update(called)
        if " while(" in line:
            looped += re.findall(r"(?:body|condition)=%?([\w.\-]+)", line)
        if match := re.search(rf"= (.*?) ({'|'.join(KINDS)})(?:-start)?\((.*?)\), ", line):
            result, kind, operands = match.groups()
            # Only what is scattered is whole before; newer texts do not repeat the shapes of operands.
            parts = 1
            if kind == "reduce-scatter" and "[" not in operands:
                # {{0,1,2}}, [groups,size], or, since JAX 0.12, mesh['data'=size].
                groups = re.search(r"replica_groups=(?:\{\{([\d,]+)\}|\[\d+,(\d+)\]|mesh\['\w+'=(\d+)\])", line)
                if groups:
                    parts = len(groups[1].split(",")) if groups[1] else int(groups[2] or groups[3])
            shapes = operands if kind == "reduce-scatter" and "[" in operands else result
            sizes = [
                (math.prod(int(n) for n in dims.split(",") if n) * parts, int(bits or 8))
                for bits, dims in re.findall(r"\b(?:[a-z]+)(\d*)\[([\d,]*)\]", shapes)
            ]
            largest = max((count for count, _ in sizes), default=0)
            found.append((name, Collective(kind, largest, sum(count * bits // 8 for count, bits in sizes), False)))
    inside: set[str] = set()
    while looped:
        one = looped.pop()
        if one not in inside:
            inside.add(one)
            looped += calls.get(one, ())
    return [one._replace(in_loop=computation in inside) for computation, one in found]


def compile_step(config: PretrainConfig, devices: int) -> dict[str, Any]:
    """Compiles the step of `config` for so many virtual CPU devices, in a process of its own.

    Returns:
      `argument`, `output`, `temp` and `alias`, bytes a device as XLA counts them; `collectives`, each a `Collective` as a
      dict; `seconds` that lowering and compiling took.

    Raises:
      InputError: it does not compile; the last line of the reason.
    """
    # Not the user's XLA_FLAGS: a GPU's are unknown to XLA:CPU, which ends at them.  LLVM's part changes no figure.
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_TRACEBACK_FILTERING": "off"}
    done = subprocess.run(
        [sys.executable, "-m", "albert_jax.plan.compiled", str(devices)],
        input=json.dumps(to_dict(config)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        reason = ([line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)] or lines)[-1]
        raise InputError(f"--compile: the step does not compile for {devices} virtual devices: {reason}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _main(devices: int) -> None:
    """The child: a configuration as JSON on standard input, what `compile_step` returns on standard output."""
    config = from_dict(PretrainConfig, json.load(sys.stdin))
    mesh = partition.make_mesh("cpu", devices)
    task, optimizer, layout = pretrain.make_task(config, some_vocabulary(config.model.vocab_size), mesh, None, None)
    step = train_step.make_step(task, optimizer, layout, config.train.gradient_accumulation)
    everywhere, rows = partition.replicated(mesh), partition.by_rows(mesh)
    batch = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows)
        for name, x in batch_shapes(config.objective, config.train.global_batch_size).items()
    }
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=everywhere)
    signals = jax.ShapeDtypeStruct((devices,), jnp.int32, sharding=rows)
    begun = time.perf_counter()
    compiled = step.lower(train_step.state_shapes(task, optimizer, layout), batch, seed, signals).compile()
    seconds = time.perf_counter() - begun
    need: Any = compiled.memory_analysis()
    sizes = {name: getattr(need, f"{name}_size_in_bytes") for name in ("argument", "output", "temp", "alias")}
    found = [one._asdict() for one in collectives(compiled.as_text())]
    print(json.dumps(sizes | {"seconds": seconds, "collectives": found}))


if __name__ == "__main__":
    _main(int(sys.argv[1]))

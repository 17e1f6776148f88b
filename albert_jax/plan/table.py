"""A plan as a Markdown table, and as JSON."""

from dataclasses import asdict
from typing import Any

from albert_jax.plan.compiled import KINDS
from albert_jax.plan.footprint import size
from albert_jax.plan.planning import Assumed, Plan
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.reports.tables import duration


def to_json(made: Plan) -> dict[str, Any]:
    """A plan as it stands in JSON."""
    found = asdict(made)
    found["memory"]["total"] = made.memory.total
    found["assumed"] |= {"peak": made.assumed.peak, "memory": made.assumed.memory}
    return found


def describe(made: Plan, config: PretrainConfig, title: str) -> str:
    """A plan as a Markdown table, and its warnings."""
    memory, traffic, assumed = made.memory, made.traffic, made.assumed
    moved = {name.replace("_", "-"): count for name, count in asdict(traffic).items() if count}
    unknown = "" if config.mesh.data else "; --mesh.data N plans for N"
    parts = (made.processes, made.devices // made.processes, made.micro_batches, made.rows)
    layout = f"{' x '.join(map(str, parts))} (processes x devices each x micro-batches x rows)"
    rows = {
        "parameters": f"{made.parameters:,}",
        "matmul FLOPs a token (training)": f"{made.flops_per_token / 1e6:,.1f} M",
        "batch": f"{made.global_batch_size:,} = {layout}, rows of {made.max_seq_length}{unknown}",
        "a device: parameters": f"{size(memory.params)} (mesh.sharding {config.mesh.sharding})",
        "a device: optimiser state": f"{size(memory.opt_state)} ({config.optim.optimizer})",
        "a device: gradients": f"{size(memory.gradients)} (float32)",
    }
    if memory.whole:
        rows["a device: parameters made whole"] = f"{size(memory.whole)} (one layer's, and all but layers')"
    rows |= {
        "a device: saved activations": f"{size(memory.activations)} (estimate; {config.model.dtype}, remat {config.model.remat})",
        "a device: all of these": f"{size(memory.total)} of {assumed.memory_said}; without XLA's other temporaries",
        "between devices, a step": ", ".join(f"{size(count)} {name}" for name, count in moved.items()) or "nothing",
        "steps": f"{made.steps:,}",
        "tokens (padding counted)": f"{made.tokens:,}",
        "training FLOPs": f"{made.flops:.3g}",
        "time": f"{duration(made.seconds)}, {made.devices * made.seconds / 86400:,.3g} device-days "
        f"(at {assumed.mfu:.0%} of {assumed.peak / 1e12:g} TFLOP/s a device, {_of(assumed)}; on paper)",
    }
    if made.repeats is not None:
        rows["the data"] = f"repeated {made.repeats:,.3g} times ({assumed.tokens:,.3g} tokens)"
    lines = [f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    if made.compiled is not None:
        lines += _compiled_rows(made.compiled, config)
    return "\n".join([*lines, *(["", *(f"warning: {line}" for line in made.warnings)] if made.warnings else [])])


def _of(assumed: Assumed) -> str:
    return assumed.device if assumed.peak_tflops is None else "as given"


def _compiled_rows(compiled: dict[str, Any], config: PretrainConfig) -> list[str]:
    """What XLA:CPU says."""
    sizes = ", ".join(f"{name} {size(compiled[name])}" for name in ("argument", "output", "temp", "alias"))
    rows = [f"| XLA:CPU's memory, a device | {sizes}; compiled in {compiled['seconds']:.0f} s |"]
    large = config.model.hidden_size**2
    for kind in KINDS:
        found = [one for one in compiled["collectives"] if one["kind"] == kind]
        kernels = [one for one in found if one["elements"] >= large]
        looped = sum(one["in_loop"] for one in kernels)
        if found:
            told = f"{len(found)}, {size(sum(one['bytes'] for one in found))}; of a layer's kernel or larger {len(kernels)}"
            rows.append(
                f"| XLA:CPU's {kind} | {told}, {f'{looped} of them in a loop, counted once' if looped else 'none of them in a loop'} |"
            )
    return rows

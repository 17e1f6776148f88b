"""A plan as a Markdown table and as JSON."""

from typing import Any

from albert_jax.config import to_dict, variant_name
from albert_jax.plan.compiled import KINDS
from albert_jax.plan.estimate import Plan, bytes_text
from albert_jax.reports.tables import duration, markdown_table


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan for `json.dumps`."""
    values = to_dict(plan)
    values["memory"]["total"] = plan.memory.total
    values["assumptions"] |= {"peak": plan.assumptions.peak, "memory": plan.assumptions.memory}
    return values


def plan_table(plan: Plan, title: str) -> str:
    """A plan as a Markdown table, followed by its warnings."""
    config, memory, assumptions = plan.config, plan.memory, plan.assumptions
    traffic = [f"{kind} of {bytes_text(size)}" for kind, size in plan.traffic.items() if size]
    device = assumptions.device if assumptions.peak_tflops is None else "as given"
    factors = (plan.processes, plan.devices // plan.processes, config.train.gradient_accumulation, plan.rows)
    rows = {
        "parameters": f"{plan.parameters:,}",
        "matmul FLOPs per token (training)": f"{plan.flops_per_token / 1e6:,.1f} M",
        "batch": f"{config.train.global_batch_size:,} sequences of {config.objective.max_seq_length} = "
        f"{' x '.join(map(str, factors))} (processes x devices per process x micro-batches x rows)"
        + ("" if config.mesh.data else "; plan for N devices with --mesh.data N"),
        "per device: parameters": f"{bytes_text(memory.params)} (mesh.sharding {config.mesh.sharding})",
        "per device: optimizer state": f"{bytes_text(memory.opt_state)} ({variant_name(config.optim, 'optimizer')})",
        "per device: gradients": f"{bytes_text(memory.gradients)} (float32)",
        "per device: gathered parameters": f"{bytes_text(memory.gathered_params)} (one layer's, and all outside the layers)",
        "per device: saved activations": f"{bytes_text(memory.activations)} (estimate; {config.model.dtype}, remat {config.model.remat})",
        "per device: total": f"{bytes_text(memory.total)} of {bytes_text(assumptions.memory)}; XLA's other temporaries are not included",
        "communication per step": ", ".join(traffic) or "none",
        "steps": f"{config.train.num_train_steps:,}",
        "tokens (padding included)": f"{plan.tokens:,}",
        "training FLOPs": f"{plan.flops:.3g}",
        "time (estimate)": f"{duration(plan.seconds)}, {plan.devices * plan.seconds / 86400:,.3g} device-days "
        f"(at {assumptions.mfu:.0%} of {assumptions.peak / 1e12:g} TFLOP/s per device, {device})",
    }
    if not memory.gathered_params:
        del rows["per device: gathered parameters"]
    if plan.repeats is not None:
        rows["data"] = f"repeated {plan.repeats:,.3g} times ({assumptions.tokens:,.3g} tokens)"
    if plan.compiled is not None:
        rows |= _compiled_rows(plan.compiled, config.model.hidden_size**2)
    table = markdown_table([title, ""], rows.items())
    return "\n".join([table, *(f"\nwarning: {warning}" for warning in plan.warnings)])


def _compiled_rows(compiled: dict[str, Any], kernel_elements: int) -> dict[str, str]:
    """Memory and collectives of the step that XLA:CPU compiled.  Arrays of `kernel_elements` or more count as large."""
    sizes = ", ".join(f"{name} {bytes_text(compiled[name])}" for name in ("argument", "output", "temp", "alias"))
    rows = {"XLA:CPU: memory per device": f"{sizes}; compiled in {compiled['seconds']:.0f} s"}
    for kind in KINDS:
        collectives = [one for one in compiled["collectives"] if one["kind"] == kind]
        large = [one for one in collectives if one["elements"] >= kernel_elements]
        in_loop = sum(one["in_loop"] for one in large)
        if collectives:
            rows[f"XLA:CPU: {kind}"] = (
                f"{len(collectives)}, {bytes_text(sum(one['bytes'] for one in collectives))}; {len(large)} as large as a layer's "
                f"kernel, {in_loop} of these in a loop" + (" (counted once)" if in_loop else "")
            )
    return rows

"""The cost of a planned table, for `--dry-run`."""

import statistics
from pathlib import Path

from albert_jax.ablation.budget import step_tokens
from albert_jax.ablation.manifest import Plan
from albert_jax.config import read_json
from albert_jax.reports.tables import QUANTITIES, duration, markdown_table, value_text
from albert_jax.reports.tuning_runs import grid_points
from albert_jax.training import devices


def cost_table(plan: Plan) -> str:
    """Format a plan's rows with size and cost as Markdown, and estimate the time."""
    lines = []
    total, remaining, speeds, tuning_runs = 0.0, 0.0, [], 0
    for row in plan.rows:
        steps = row.config.train.num_train_steps
        tokens = steps * step_tokens(row.config)
        flops = tokens * row.flops_per_token
        values = {
            "parameters": row.parameters,
            "flops_per_token": row.flops_per_token,
            "tokens": tokens,
            "flops": flops,
        }
        cells = [value_text(name, value) for name, value in values.items()]
        lines.append([row.label, f"{steps:,}", *cells, row.paper.get("parameters (M)")])
        points = grid_points(row.grid)
        tuning_runs += len(points)
        for number in (*points, *range(plan.seeds)):
            total += flops
            path = Path(plan.run_config(row, number).run_dir, "summary.json")
            if path.exists():
                summary = read_json(path)
                speeds.append(summary["tokens_per_second"] * summary["flops_per_token"])
            else:
                remaining += flops
    titles = [QUANTITIES[name].title for name in values]
    table = markdown_table(["", "steps", *titles, "paper: parameters (M)"], lines)
    tuning = f" and {tuning_runs} tuning runs" if tuning_runs else ""
    runs = f"{len(plan.rows)} rows x {plan.seeds} seeds{tuning}: {total / 1e15:,.3g} PFLOP in matrix products"
    if remaining != total:
        runs += f", {remaining / 1e15:,.3g} of them in unfinished runs"
    speed = devices.matmul_flops(plan.rows[0].config.model.dtype)
    time = f"at least {duration(remaining / speed)} here (a large product runs at {speed / 1e12:,.2f} TFLOP/s)"
    if speeds:
        time += f"; about {duration(remaining / statistics.median(speeds))} at the speed of the finished runs"
    note = "; fine-tuning is not included" if plan.finetune else ""
    return f"{plan.caption}\n\n{table}\n\n{runs}. Time: {time}{note}."

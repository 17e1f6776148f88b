"""What was measured as Markdown tables."""

from typing import Any

from albert_jax.bench.breakdown import KINDS, STEPS


def describe(found: dict[str, Any], title: str) -> str:
    """`measuring.measure`'s findings as a table, with those of `breakdown` and `peer` where they are in it."""
    lines = [f"| {title} | |", "|---|---|", *(f"| {name} | {value} |" for name, value in _rows(found).items())]
    if "breakdown" in found:
        lines += ["", *_breakdown(found)]
    if "peer" in found:
        lines += ["", *_peer(found["peer"])]
    return "\n".join(lines)


def _rows(found: dict[str, Any]) -> dict[str, str]:
    config = found["config"]
    model, objective = config["model"], config["objective"]
    batch, length = config["batch_size"], objective["max_seq_length"]
    how = f"{model['dtype']}, remat {model['remat']}, unroll {model['scan_unroll']}, attention {model['attention_implementation']}"
    spread = f"{1e3 * found['seconds_min']:,.4g} to {1e3 * found['seconds_max']:,.4g}, {config['rounds']} rounds"
    possible = f"{found['matmul_flops'] / 1e12:,.3g} TFLOP/s in a large product here"
    rows = {
        "device": f"{found['devices']} x {found['device']}, jax {found['versions']['jax']}",
        "network": f"{found['parameters']:,} parameters; {how}",
        "work": f"{config['work']}, {batch:,} x {length} tokens",
        "a step": f"{1e3 * found['seconds']:,.4g} ms ({spread})",
        "tokens a second": f"{found['tokens_per_second']:,.0f}",
        "matmul FLOPs a step": f"{found['flops'] / 1e9:,.4g} G",
        "MFU": f"{found['mfu']:.1%} of {possible}",
    }
    if found["mfu_of_peak"] is not None:
        rows["MFU by the data sheet"] = f"{found['mfu_of_peak']:.1%}"
    seen = f", {found['peak_memory'] / 1e9:,.3g} GB seen" if found["peak_memory"] is not None else ""
    cold, warm = found["compile_seconds"], found["warm_compile_seconds"]
    return rows | {
        "memory a device": f"{found['memory'] / 1e9:,.3g} GB by the compiler{seen}",
        "tracing and compiling": f"{cold:.3g} s; {warm:.3g} s ({warm / cold:.0%}) with a full compilation cache",
    }


def _breakdown(found: dict[str, Any]) -> list[str]:
    seconds, floors = found["breakdown"], found["floors"]
    total = sum(seconds.values())
    return [
        f"| part of a step (profile of {STEPS}) | ms | share | least, ms |",
        "|---|---|---|---|",
        *(
            f"| {kind} | {1e3 * seconds[kind]:,.4g} | {seconds[kind] / total:.1%} | {_floor(floors[kind])} |"
            for kind in KINDS
        ),
        f"| all | {1e3 * total:,.4g} | 100% | {_floor(sum(floors.values()))} |",
    ]


def _floor(seconds: float) -> str:
    return f"{1e3 * seconds:,.3g}" if seconds else ""


def _peer(peer: dict[str, Any]) -> list[str]:
    versions = f"torch {peer['torch']}, transformers {peer['transformers']}"
    lines = [
        f"| beside {peer['peer']} in {peer['peer_dtype']} ({versions}) | |",
        "|---|---|",
        f"| our time to theirs | {peer['ratio']:.3f} ({peer['ratio_min']:.3f} to {peer['ratio_max']:.3f}, {peer['rounds']} rounds in turn) |",
        f"| a step, ours and theirs | {1e3 * peer['our_seconds']:,.4g} ms, {1e3 * peer['peer_seconds']:,.4g} ms |",
    ]
    if peer["loss"] is not None:
        lines.append(f"| loss of the same weights and inputs | {peer['loss']:.5f}, {peer['peer_loss']:.5f} |")
    return lines

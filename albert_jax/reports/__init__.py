"""Tables and figures of runs.  In a notebook: `load_runs("runs/sharing-tiny")` is a DataFrame."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from albert_jax.reports.comparison import load_runs as load_runs


def __getattr__(name: str) -> Any:
    if name != "load_runs":  # imported on use: pandas would make `albert-jax --help` slow
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from albert_jax.reports.comparison import load_runs

    return load_runs

"""Tables and figures of runs.  In a notebook: `load_runs("runs/sharing-tiny")` is a DataFrame."""

from albert_jax.reports.comparison import load_runs

__all__ = ["load_runs"]

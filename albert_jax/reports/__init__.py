"""Tables and figures of runs.  In a notebook: `load_runs("runs/sharing-tiny")` is a DataFrame."""

from typing import TYPE_CHECKING

from albert_jax.config import lazy_imports

if TYPE_CHECKING:  # imported on use: pandas would make `albert-jax --help` slow
    from albert_jax.reports.comparison import load_runs as load_runs
    from albert_jax.reports.paired import paired_differences as paired_differences

__getattr__ = lazy_imports(__name__)

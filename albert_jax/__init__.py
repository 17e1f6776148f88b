"""ALBERT (arXiv 1909.11942) in JAX: pretraining, ablations and experiments.

`albert_jax.load(source)` returns the model, parameters and tokenizer of any ALBERT.  Import other parts from their
modules; importing this package loads nothing heavy.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from albert_jax.exchange.load import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "load":
        raise AttributeError(f"module 'albert_jax' has no attribute {name!r}; import modules by their full names")
    from albert_jax.exchange.load import load

    return load

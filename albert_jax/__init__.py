"""ALBERT (arXiv 1909.11942) in JAX: pretraining, ablations and experiments.

`albert_jax.load(source)` gives model, parameters and tokenizer of any ALBERT.  Import the other parts by their names:
nothing heavy is loaded here.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from albert_jax.exchange.load import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name != "load":
        raise AttributeError(
            f"module 'albert_jax' has no attribute {name!r}; its parts are modules: import albert_jax.{name}"
        )
    from albert_jax.exchange.load import load

    return load

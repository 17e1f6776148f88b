"""ALBERT (arXiv 1909.11942) in JAX: pretraining, ablations and experiments.

`albert_jax.load(source)` returns the model, parameters and tokenizer of any ALBERT.  Import other parts from their
modules; importing this package loads nothing heavy.
"""

from typing import TYPE_CHECKING

from albert_jax.config import lazy_imports

if TYPE_CHECKING:
    from albert_jax.exchange.load import load as load

__version__ = "0.1.0"

__getattr__ = lazy_imports(__name__)

"""Paths of parameters as strings."""

from typing import Any

import jax

Path = tuple[str, ...]


def path_names(path: Any) -> Path:
    """Convert a JAX key path to strings."""
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/").split("/"))

"""Parameter trees as flat tables: path -> array, such as ("encoder", "ffn", "output", "kernel")."""

from collections.abc import Mapping
from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

Path = tuple[str, ...]


def leaves(tree: Mapping[str, Any]) -> dict[Path, Any]:
    """The leaves of nested dicts by their paths, sorted by path."""
    return dict(sorted(flatten_dict(tree).items(), key=lambda item: item[0]))


def nested(flat: Mapping[Path, Any]) -> dict[str, Any]:
    """The nested dict of a table of paths: the inverse of `leaves`."""
    return unflatten_dict(flat)

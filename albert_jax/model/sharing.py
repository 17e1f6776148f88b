"""Which layers read which parameter set: one tuple of set ids per part of a layer.

A new strategy is a new entry of `STRATEGIES`.  How the sets are stored and looped over is `albert.Encoder`'s business.
"""

from collections.abc import Callable

PARTS = ("attention", "ffn")
"""The parts of a layer that share separately: attention with its LayerNorm, feed-forward with its LayerNorm."""

Sets = tuple[int, ...]


def _groups(num_layers: int, num_groups: int) -> Sets:
    # In integers: the released float formula int(i / L * G) is wrong for some (L, G), such as (18, 14).
    return tuple(i * num_groups // num_layers for i in range(num_layers))


def _shared(num_layers: int, _: int) -> Sets:
    return (0,) * num_layers


def _own(num_layers: int, _: int) -> Sets:
    return tuple(range(num_layers))


STRATEGIES: dict[str, tuple[Callable[[int, int], Sets], Callable[[int, int], Sets]]] = {
    "all": (_shared, _shared),  # ALBERT
    "attention": (_shared, _own),  # paper, Table 4 "shared-attention"
    "ffn": (_own, _shared),  # paper, Table 4 "shared-FFN"
    "none": (_own, _own),  # BERT
    "groups": (_groups, _groups),  # consecutive layers, num_hidden_groups sets (paper, section 3.1)
}
"""Name -> the rules (num_layers, num_groups) -> set ids for attention and for ffn."""


def layer_sets(strategy: str, num_hidden_layers: int, num_hidden_groups: int, inner_group_num: int) -> dict[str, Sets]:
    """The parameter set that each block reads, for each part.

    A layer is `inner_group_num` blocks in a row, each with parameters of its own, so the tuples are
    L * inner_group_num long (google-research/albert, modeling.py: every layer runs all inner groups of its group).
    """
    return {
        part: tuple(
            s * inner_group_num + j for s in rule(num_hidden_layers, num_hidden_groups) for j in range(inner_group_num)
        )
        for part, rule in zip(PARTS, STRATEGIES[strategy], strict=True)
    }


def is_stacked(path: tuple[str, ...]) -> bool:
    """Whether the parameter at `path` carries the leading axis G, one row a parameter set."""
    return path[0] == "encoder" and path[1] in PARTS

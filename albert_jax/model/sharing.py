"""Parameter sharing: which parameter set each layer reads, as one tuple of set numbers for each part of a layer.

A new strategy is an entry of `STRATEGIES`.  `albert.Encoder` stores the sets and loops over them.
"""

from collections.abc import Callable
from typing import NamedTuple

PARTS = ("attention", "ffn")
"""The parts of a layer that are shared separately: attention with its LayerNorm, feed-forward with its LayerNorm."""

Sets = tuple[int, ...]
Rule = Callable[[int, int], Sets]
"""(num_hidden_layers, num_hidden_groups) -> the parameter set that each layer reads."""


class Strategy(NamedTuple):
    """An entry of `STRATEGIES`: one rule for each part."""

    attention: Rule
    ffn: Rule
    takes_groups: bool = False
    """Whether the rules use num_hidden_groups."""


def shared(num_layers: int, num_groups: int) -> Sets:
    """All layers read set 0."""
    return (0,) * num_layers


def separate(num_layers: int, num_groups: int) -> Sets:
    """Layer i reads set i."""
    return tuple(range(num_layers))


def consecutive(num_layers: int, num_groups: int) -> Sets:
    """Each set is read by a run of consecutive layers."""
    # In integers, because the released float formula int(i / L * G) is wrong for some (L, G), such as (18, 14).
    return tuple(i * num_groups // num_layers for i in range(num_layers))


def cycle(num_layers: int, num_groups: int) -> Sets:
    """Layer i reads set i % G (Takase and Kiyono, arXiv 2104.06022)."""
    return tuple(i % num_groups for i in range(num_layers))


STRATEGIES: dict[str, Strategy] = {
    "all": Strategy(shared, shared),  # ALBERT
    "attention": Strategy(shared, separate),  # paper, Table 4, "shared-attention"
    "ffn": Strategy(separate, shared),  # paper, Table 4, "shared-FFN"
    "none": Strategy(separate, separate),  # BERT
    "groups": Strategy(consecutive, consecutive, takes_groups=True),  # paper, section 3.1
    "cycle": Strategy(cycle, cycle, takes_groups=True),
}
"""Name -> sharing strategy."""


def layer_sets(strategy: str, num_hidden_layers: int, num_hidden_groups: int, inner_group_num: int) -> dict[str, Sets]:
    """The parameter set that each block reads, for each part.

    A layer is `inner_group_num` consecutive blocks with separate parameters, so the tuples have length L * inner_group_num
    (google-research/albert modeling.py: every layer runs all inner groups of its group).
    """
    rules = STRATEGIES[strategy]
    return {
        part: tuple(
            layer_set * inner_group_num + block
            for layer_set in getattr(rules, part)(num_hidden_layers, num_hidden_groups)
            for block in range(inner_group_num)
        )
        for part in PARTS
    }


def is_stacked(path: tuple[str, ...]) -> bool:
    """Whether the parameter at `path` has the leading axis G of parameter sets."""
    return path[0] == "encoder" and path[1] in PARTS

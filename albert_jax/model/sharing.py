"""Parameter sharing: which parameter set each layer reads, as one tuple of set numbers for each part of a layer.

A new strategy is an entry of `STRATEGIES`.  A pattern without a name is given as a table, such as "0,1,2,1".
`encoder.Encoder` stores the sets and loops over them.
"""

from collections.abc import Callable
from typing import NamedTuple

from albert_jax.config import InputError, check_choice

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


def cycle_reversed(num_layers: int, num_groups: int) -> Sets:
    """As `cycle`, but the last cycle runs backwards: 0 1 2 2 1 0 (Takase and Kiyono, "cycle (rev)")."""
    last_cycle = max(-(-num_layers // num_groups) - 1, 1) * num_groups
    return tuple(i % num_groups if i < last_cycle else num_groups - 1 - i % num_groups for i in range(num_layers))


def middle(num_layers: int, num_groups: int) -> Sets:
    """The first and last layer read their own sets, those between cycle through G sets (arXiv 2507.10524, "middle-cycle")."""
    between = [1 + i % num_groups for i in range(num_layers - 2)]
    return (0, *between, max(between, default=0) + 1)[:num_layers]


STRATEGIES: dict[str, Strategy] = {
    "all": Strategy(shared, shared),  # ALBERT
    "attention": Strategy(shared, separate),  # paper, Table 4, "shared-attention"
    "ffn": Strategy(separate, shared),  # paper, Table 4, "shared-FFN"
    "none": Strategy(separate, separate),  # BERT
    "groups": Strategy(consecutive, consecutive, takes_groups=True),  # paper, section 3.1
    "cycle": Strategy(cycle, cycle, takes_groups=True),
    "cycle-reversed": Strategy(cycle_reversed, cycle_reversed, takes_groups=True),
    "middle": Strategy(middle, middle, takes_groups=True),
}
"""Name -> sharing strategy."""

TABLE_EXAMPLE = "a table of sets such as 0,1,2,1 or 'attention=0,0,0,0;ffn=0,1,2,3'"


def layer_sets(sharing: str, num_hidden_layers: int, num_hidden_groups: int, inner_group_num: int) -> dict[str, Sets]:
    """The parameter set that each block reads, for each part.

    A layer is `inner_group_num` consecutive blocks with separate parameters, so the tuples have length L * inner_group_num
    (google-research/albert modeling.py: every layer runs all inner groups of its group).

    Args:
      sharing: a key of `STRATEGIES`, or a table: the set of each layer, for both parts ("0,1,2,1") or for each
        ("attention=0,0,0,0;ffn=0,1,2,3").
      num_hidden_layers, num_hidden_groups, inner_group_num: see `AlbertConfig`.

    Raises:
      InputError: an unknown strategy, or a table that does not fit the number of layers or skips a set.
    """
    if any(character in sharing for character in "0123456789=,;"):
        sets = _read_table(sharing, num_hidden_layers)
    else:
        check_choice("sharing", sharing, STRATEGIES, TABLE_EXAMPLE)
        rules = STRATEGIES[sharing]
        sets = {part: getattr(rules, part)(num_hidden_layers, num_hidden_groups) for part in PARTS}
    return {
        part: tuple(layer_set * inner_group_num + block for layer_set in sets[part] for block in range(inner_group_num))
        for part in PARTS
    }


def _read_table(text: str, num_layers: int) -> dict[str, Sets]:
    """The sets of each layer that a table names, for each part."""
    tables: dict[str, str] = {}
    for entry in text.split(";") if "=" in text else (f"{part}={text}" for part in PARTS):
        part, equals, numbers = (word.strip() for word in entry.partition("="))
        if part not in PARTS or not equals or part in tables:
            raise InputError(
                f"sharing {text!r}: expected {' and '.join(f'{part}=SETS' for part in PARTS)}, got {entry!r}"
            )
        tables[part] = numbers
    if missing := [part for part in PARTS if part not in tables]:
        raise InputError(f"sharing {text!r}: the sets of {missing[0]} are missing; add ';{missing[0]}=...'")
    sets = {}
    for part, numbers in tables.items():
        words = [word.strip() for word in numbers.split(",")]
        if not all(word.isdecimal() and len(word) < 6 for word in words):
            raise InputError(f"sharing {text!r}: expected the numbers of sets, separated by commas, got {numbers!r}")
        sets[part] = tuple(map(int, words))
        if len(words) != num_layers:
            where = f" for {part}" if "=" in text else ""
            raise InputError(
                f"sharing {text!r}: expected one number per layer{where} (num_hidden_layers {num_layers}), got {len(words)}"
            )
        if unread := sorted(set(range(max(sets[part]))) - set(sets[part])):
            raise InputError(
                f"sharing {text!r}: no layer reads set {unread[0]} of {part}; number the sets 0, 1, 2, ..."
            )
    return sets


def table(layers: Sets) -> str:
    """The value of `sharing` by which each layer reads the given set."""
    return ",".join(map(str, layers))


PASSES = "per_pass"
"""Key of the encoder's per-pass parameters, see `per_pass.py`."""


def is_stacked(path: tuple[str, ...]) -> bool:
    """Whether the parameter at `path` has a leading axis: of parameter sets, or of passes."""
    return path[0] == "encoder" and path[1] in (*PARTS, PASSES)

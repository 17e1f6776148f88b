"""Which layers share parameters during a part of a run; `training/tying.py` ties them."""

from dataclasses import dataclass, replace
from typing import Any

from albert_jax.config import InputError, check_fields, choice
from albert_jax.model.heads import Albert, stacked_shapes
from albert_jax.model.sharing import STRATEGIES, TABLE_EXAMPLE
from albert_jax.training.tying import Ties


@dataclass(frozen=True)
class TyingConfig:
    """Layers that share parameters during a part of the run, though `model.sharing` says that they do not."""

    sharing: str = choice("none", STRATEGIES, or_else=TABLE_EXAMPLE)
    """Which layers share parameters, as `model.sharing`.  none: tying is off."""
    num_hidden_groups: int = 1
    """Number of parameter sets, for the sharing strategies that use it."""
    start: float = 0.0
    """The layers are separate until this fraction of the steps, and shared from then on."""
    end: float = 1.0
    """The layers are shared until this fraction of the steps, and separate from then on."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 <= self.start < self.end <= 1:
            raise InputError(
                f"start and end must be fractions with 0 <= start < end <= 1, got {self.start} and {self.end}"
            )
        if self.sharing == "none" and (self.num_hidden_groups, self.start, self.end) != (1, 0, 1):
            raise InputError("sharing is none, so the other fields have no effect; set it to all, for example")


def tied_sets(tying: TyingConfig, model: Albert, num_train_steps: int) -> Ties | None:
    """The parameter sets of `model` that `tying` ties; None if there are none.

    Raises:
      InputError: `AlbertConfig` refuses the sharing, or layers that share a set would be in different groups.
    """
    if tying.sharing == "none":
        return None
    config = model.config
    plain: dict[str, Any] = {"per_pass": "none", "inject": False, "layer_weights": False, "depth_sampling": "fixed"}
    try:
        wanted = replace(config, sharing=tying.sharing, num_hidden_groups=tying.num_hidden_groups, **plain).layer_sets
    except InputError as error:
        raise InputError(f"tying.{error}") from None
    groups: dict[str, tuple[int, ...]] = {}
    for part, sets in config.layer_sets.items():
        group_of_set = dict(zip(sets, wanted[part], strict=True))
        if any(group_of_set[number] != group for number, group in zip(sets, wanted[part], strict=True)):
            raise InputError(
                f"tying.sharing {tying.sharing!r}: layers that always share {part} by model.sharing {config.sharing!r} would "
                "be in different sets; set model.sharing to none"
            )
        groups[part] = tuple(group_of_set[number] for number in range(len(group_of_set)))
    ties = {path: groups[path[1]] for path in stacked_shapes(model) if path[1] in groups}
    return Ties(ties, round(tying.start * num_train_steps), round(tying.end * num_train_steps))

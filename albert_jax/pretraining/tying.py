"""Which layers share parameters during a part of a run; `training/tying.py` does it."""

from dataclasses import dataclass

from albert_jax.config import InputError, check_fields, choice
from albert_jax.model.heads import Albert, stacked_shapes
from albert_jax.model.sharing import STRATEGIES, TABLE_EXAMPLE, layer_sets
from albert_jax.training.tying import Ties


@dataclass(frozen=True)
class TyingConfig:
    """Layers that share parameters during a part of the run, though `model.sharing` says that they do not."""

    sharing: str = choice("none", STRATEGIES, or_else=TABLE_EXAMPLE)
    """Which layers share parameters, as `model.sharing`.  none: there is no such part."""
    num_hidden_groups: int = 1
    """Number of parameter sets, for the sharing strategies that use it."""
    start: int = 0
    """Share from this step on; before it, layers are separate."""
    end: int = 0
    """Share until this step; then layers are separate.  0: until the end of the run."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("start", "end"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must be >= 0, got {getattr(self, name)}")
        if 0 < self.end <= self.start:
            raise InputError(f"end {self.end} must be above start {self.start}")


def tied_sets(tying: TyingConfig, model: Albert, num_train_steps: int) -> Ties | None:
    """The parameter sets of `model` that `tying` ties; None if there are none.

    Raises:
      InputError: layers that share a set would be in different groups, or a step is beyond the end of the run.
    """
    config = model.config
    for name in ("start", "end"):
        if getattr(tying, name) >= num_train_steps:
            raise InputError(f"tying.{name} {getattr(tying, name)} must be < train.num_train_steps {num_train_steps}")
    if tying.sharing == "none":
        return None
    try:
        wanted = layer_sets(tying.sharing, config.num_hidden_layers, tying.num_hidden_groups, config.inner_group_num)
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
    paths = stacked_shapes(model)
    ties = {path: groups[path[1]] for path in paths if path[1] in groups}
    return Ties(ties, tying.start, tying.end or num_train_steps)

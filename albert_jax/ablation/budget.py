"""What is held equal over the rows of a table: tokens, FLOPs, time or parameters; a budget is an entry of `BUDGETS`."""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from albert_jax.config import InputError
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, flops_per_token, num_params
from albert_jax.pretraining.run import PretrainConfig, pretrain
from albert_jax.training.loop import Interrupted

WIDTH = ("model.hidden_size", "model.intermediate_size")
"""What the budget `params` changes."""

TIMED_STEPS = 20
"""Steps that the budget `time` measures a row by."""


def row_flops(config: PretrainConfig) -> float:
    """Matmul FLOPs of a training step for each token."""
    objective = config.objective
    return flops_per_token(config.model, objective.max_seq_length, objective.max_predictions_per_seq)


def positions(config: PretrainConfig) -> float:
    """Tokens of a step, padding counted."""
    return float(config.train.global_batch_size * config.objective.max_seq_length)


def step_flops(config: PretrainConfig) -> float:
    """Matmul FLOPs of a step."""
    return positions(config) * row_flops(config)


def step_seconds(config: PretrainConfig) -> float:
    """Seconds that a training step takes here: those of a short run in a folder that is gone afterwards."""
    steps = TIMED_STEPS + 1  # the first one is not timed
    train = replace(config.train, num_train_steps=steps, log_every=steps, eval_every=steps, checkpoint_every=steps)
    with tempfile.TemporaryDirectory() as folder:
        optim = replace(config.optim, num_warmup_steps=1)
        short = replace(config, run_dir=folder, train=train, optim=optim, max_eval_steps=1, init_from="")
        try:
            return pretrain(short)["seconds"] / TIMED_STEPS
        except Interrupted:
            raise KeyboardInterrupt from None  # nothing was saved
        except RuntimeError as error:  # no memory for it
            told = f"--budget time: a row of this table cannot be measured here: {str(error).splitlines()[0]}"
            raise InputError(told) from None


def widened(model: AlbertConfig, target: int) -> AlbertConfig:
    """The network with as many heads, of whatever size brings it nearest to `target` parameters; E = H stays so."""
    heads, ratio = model.num_attention_heads, model.intermediate_size / model.hidden_size

    def made(head: int) -> AlbertConfig:
        width = head * heads
        sizes: dict[str, Any] = {"hidden_size": width, "intermediate_size": max(1, round(ratio * width))}
        return replace(
            model, **sizes | ({"embedding_size": width} if model.embedding_size == model.hidden_size else {})
        )

    def gap(head: int) -> int:
        return num_params(Albert(made(head))) - target

    size = next(head for head in itertools.count(1) if gap(head) >= 0)
    return made(min((one for one in (size - 1, size) if one), key=lambda head: abs(gap(head))))


def lasting(config: PretrainConfig, base: PretrainConfig, steps: float) -> PretrainConfig:
    """With so many steps, and as many logs, evaluations and as large a share of warm-up as before."""
    count = max(1, round(steps))
    if count == base.train.num_train_steps:
        return config
    factor = count / base.train.num_train_steps

    def scale(number: int) -> int:
        return max(1, round(number * factor))

    train = config.train
    rhythm: dict[str, Any] = {
        name: scale(getattr(train, name)) for name in ("log_every", "eval_every", "checkpoint_every")
    }
    warmup = min(round(config.optim.num_warmup_steps * factor), count - 1)
    optim = replace(config.optim, num_warmup_steps=warmup)
    return replace(config, train=replace(train, num_train_steps=count, **rhythm), optim=optim)


class Budget(NamedTuple):
    """A way of comparing rows."""

    caption: str
    cost: Callable[[PretrainConfig], float]
    """What a step costs; a row gets as many steps as cost what the first row's do."""


BUDGETS = {
    "tokens": Budget("every row sees as many tokens", positions),
    "flops": Budget("every row spends as many FLOPs as the first: its steps are changed", step_flops),
    "time": Budget(
        "every row trains about as long as the first, by step times measured here: its steps are changed", step_seconds
    ),
    "params": Budget(
        "every row is as wide as brings it nearest to the first one's parameters, with as many heads; tokens are the same",
        positions,
    ),
}
"""What can be held equal over the rows of a table."""

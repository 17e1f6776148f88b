"""Budgets: what is held equal over the rows of a table.  A new budget is an entry of `BUDGETS`."""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from albert_jax.config import InputError, first_line
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, flops_per_token, num_params
from albert_jax.pretraining.run import PretrainConfig, pretrain
from albert_jax.training.loop import Interrupted

WIDTH = ("model.hidden_size", "model.intermediate_size")
"""Fields that the budget `params` changes."""

TIMED_STEPS = 20
"""Number of steps by which the budget `time` measures a row."""


def row_flops(config: PretrainConfig) -> float:
    """Matmul FLOPs of a training step per token."""
    objective = config.objective
    return flops_per_token(config.model, objective.max_seq_length, objective.max_predictions_per_seq)


def step_tokens(config: PretrainConfig) -> float:
    """Tokens of a training step, with padding."""
    return float(config.train.global_batch_size * config.objective.max_seq_length)


def step_flops(config: PretrainConfig) -> float:
    """Matmul FLOPs of a training step."""
    return step_tokens(config) * row_flops(config)


def step_seconds(config: PretrainConfig) -> float:
    """Measure the seconds of a training step with a short run in a temporary folder."""
    steps = TIMED_STEPS + 1  # the first step is not timed
    train = replace(config.train, num_train_steps=steps, log_every=steps, eval_every=steps, checkpoint_every=steps)
    optim = replace(config.optim, num_warmup_steps=TIMED_STEPS)  # a run that is warming up does not warn of a plateau
    with tempfile.TemporaryDirectory() as folder:
        short = replace(config, run_dir=folder, train=train, optim=optim, max_eval_steps=1, init_from="")
        try:
            return pretrain(short)["seconds"] / TIMED_STEPS
        except Interrupted:
            raise KeyboardInterrupt from None  # the short run has nothing worth saving
        except RuntimeError as error:  # out of memory
            raise InputError(f"--budget time: a row of this table cannot be timed here: {first_line(error)}") from None


def widened(model: AlbertConfig, target: int) -> AlbertConfig:
    """Choose the head size whose parameter count is nearest to `target`; the number of heads is unchanged, and so is E = H."""
    ratio = model.intermediate_size / model.hidden_size

    def with_head_size(size: int) -> AlbertConfig:
        width = size * model.num_attention_heads
        embedding = width if model.embedding_size == model.hidden_size else model.embedding_size
        intermediate = max(1, round(ratio * width))
        return replace(model, hidden_size=width, intermediate_size=intermediate, embedding_size=embedding)

    def excess(size: int) -> int:
        try:
            return num_params(Albert(with_head_size(size))) - target
        except InputError:  # too narrow for the rank of LoRA
            return -target

    above = next(size for size in itertools.count(1) if excess(size) >= 0)
    return with_head_size(min(range(max(1, above - 1), above + 1), key=lambda size: abs(excess(size))))


def with_steps(config: PretrainConfig, base: PretrainConfig, steps: float) -> PretrainConfig:
    """Change the number of steps; keep the number of logs, evaluations and checkpoints, and the share of warm-up, of `base`."""
    count = max(1, round(steps))
    if count == base.train.num_train_steps:
        return config
    factor = count / base.train.num_train_steps
    train = replace(
        config.train,
        num_train_steps=count,
        log_every=max(1, round(config.train.log_every * factor)),
        eval_every=max(1, round(config.train.eval_every * factor)),
        checkpoint_every=max(1, round(config.train.checkpoint_every * factor)),
    )
    warmup = min(round(config.optim.num_warmup_steps * factor), count - 1)
    return replace(config, train=train, optim=replace(config.optim, num_warmup_steps=warmup))


class Budget(NamedTuple):
    """A way to compare rows."""

    caption: str
    step_cost: Callable[[PretrainConfig], float]
    """The cost of a step; rows get steps of equal total cost."""


BUDGETS = {
    "tokens": Budget("every row sees the same number of tokens", step_tokens),
    "flops": Budget("every row spends the same FLOPs as the first; the steps are adjusted", step_flops),
    "time": Budget(
        "every row trains about as long as the first, by step times measured here; the steps are adjusted", step_seconds
    ),
    "params": Budget(
        "every row has about as many parameters as the first; widths are adjusted, the numbers of heads and tokens are not",
        step_tokens,
    ),
}
"""Name -> budget."""

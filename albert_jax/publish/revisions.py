"""The checkpoints of a run that are published beside the final model, step 0 included."""

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from albert_jax.config import InputError, from_dict, read_json
from albert_jax.exchange.load import Source, read_checkpoint
from albert_jax.finetuning.run import FinetuneConfig
from albert_jax.model.heads import init_params
from albert_jax.pretraining.run import PretrainConfig, training_parts
from albert_jax.pretraining.task import placeholder_vocabulary
from albert_jax.training.partition import make_mesh

log = logging.getLogger(__name__)

JOBS: dict[str, type] = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
"""The jobs whose runs can be published -> their configuration."""


def run_config(run_dir: Path) -> Any:
    """The configuration of a run.  Fields that were added after the run began have their defaults."""
    stored = read_json(run_dir / "config.json")
    return from_dict(JOBS[stored["job"]], stored["config"])


def chosen_steps(run_dir: Path, text: str) -> list[int]:
    """The steps that `--revisions` names.

    Args:
      run_dir: the run.
      text: "all" (0 and every stored checkpoint), or numbers separated by commas; "" is none.

    Raises:
      InputError: there is no such checkpoint, or the checkpoints are in a bucket.
    """
    if not text:
        return []
    config = run_config(run_dir)
    folder = config.train.checkpoint_dir or str(run_dir / "checkpoints")
    if "://" in folder:
        raise InputError(f"--revisions: the checkpoints are in {folder}; copy them to {run_dir / 'checkpoints'}")
    steps = sorted(int(path.name) for path in Path(folder).expanduser().glob("*") if path.name.isdigit())
    if not config.init_from:
        steps = [0, *steps]
    if text == "all":
        return steps
    chosen = [word.strip() for word in text.split(",")]
    for word in chosen:
        if word == "0" and config.init_from:
            raise InputError(
                f"--revisions 0: the run started from {config.init_from}, so it has no random step 0; leave out 0"
            )
        if not word.isdecimal() or int(word) not in steps:
            have = ", ".join(map(str, steps))
            raise InputError(f"--revisions: no checkpoint at step {word!r}; choose 'all' or some of {have}")
    return sorted({int(word) for word in chosen})


def read_revision(run_dir: Path, final: Source, step: int) -> Source:
    """The model at a step.  Step 0 is not stored; its parameters are drawn again, as the run drew them.

    Args:
      run_dir: the run.
      final: the run's final model.
      step: one of `chosen_steps`.
    """
    if step:
        return replace(read_checkpoint(run_dir, step), tokenizer=final.tokenizer)
    stored = read_json(run_dir / "config.json")
    config = run_config(run_dir)
    init: Callable[..., Any] = functools.partial(init_params, final.weights.model)
    if isinstance(config, PretrainConfig):  # its layers may share parameters for a part of the run
        vocabulary = placeholder_vocabulary(config.model.vocab_size)
        init = training_parts(config, vocabulary, make_mesh("any", 1))[0].init
    if (version := stored["versions"].get("jax")) != jax.__version__:
        log.warning("step 0 is drawn with jax %s, but the run used %s; they may differ", jax.__version__, version)
    params = jax.device_get(jax.jit(lambda seed: init(jax.random.key(seed)))(jax.numpy.uint32(config.train.seed)))
    return replace(final, weights=replace(final.weights, params=params))

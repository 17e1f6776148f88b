"""Run by test_processes.py and test_survival.py: the command line, with something going wrong in one process at a step.

python -m tests.fault_script FAULT PROCESS STEP WORDS...
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from albert_jax.cli import main
from albert_jax.data import loader


def fail(batch: Any) -> Any:
    raise RuntimeError("planted failure")


def stick(batch: Any) -> Any:
    time.sleep(3600)


def kill(batch: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def poison(batch: Any) -> Any:
    """Ids beyond the vocabulary: flax's embedding is NaN there."""
    return batch | {"tokens": np.full_like(batch["tokens"], 10**6)}


FAULTS: dict[str, Callable[[Any], Any]] = {"fail": fail, "stick": stick, "kill": kill, "poison": poison}


def plant(fault: str, process: int, step: int) -> None:
    """Has the batch of one step of one process go wrong."""
    sound = loader.train_batches

    def batches(*args: Any, **kwargs: Any) -> Iterator[Any]:
        start = args[-1]
        for number, batch in enumerate(sound(*args, **kwargs), start + 1):
            yield FAULTS[fault](batch) if (number, jax.process_index()) == (step, process) else batch

    loader.train_batches = batches


if __name__ == "__main__":
    plant(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))

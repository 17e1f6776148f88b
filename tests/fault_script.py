"""Run by tests in child processes: the command line, or the toy run, in which one process fails at a step.

python -m tests.fault_script FAULT PROCESS STEP (WORDS... | toy RUN_DIR WATCHDOG_SECONDS COORDINATOR NUMBER)
"""

import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from albert_jax.cli import main
from albert_jax.training import processes
from albert_jax.training.processes import DistributedConfig
from albert_jax.training.progress import Meter

from . import toy


def fail() -> None:
    raise RuntimeError("planted failure")


def stick() -> None:
    time.sleep(3600)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def kill_soon() -> None:
    """At a random moment of the next steps."""
    threading.Timer(random.random() / 10, kill).start()


def limit_file_size(size: int) -> None:
    """Writes beyond the limit fail as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


FAULTS: dict[str, Callable[[], None]] = {
    "fail": fail,
    "stick": stick,
    "kill": kill,
    "terminate": terminate,
    "interrupt": interrupt,
    "kill_soon": kill_soon,
    "full_disk": lambda: limit_file_size(resource.RLIM_INFINITY),
    "none": lambda: None,
}


def plant(fault: str, process: int, step: int) -> None:
    """Let one process fail when it has started a step; it is killed when all earlier checkpoints are on disk, and its
    disk is full from step 1 to the given step."""
    add = Meter.add

    def faulty(meter: Meter, number: int, *arguments: Any) -> None:
        if (number, jax.process_index()) == (step, process):
            while fault == "kill" and list(meter.run_dir.glob("checkpoints/*.orbax-checkpoint-tmp*")):
                time.sleep(0.05)
            FAULTS[fault]()
        if (fault, number) == ("full_disk", 1):
            limit_file_size(50_000)  # a checkpoint has more
        add(meter, number, *arguments)

    Meter.add = faulty  # type: ignore[assignment, method-assign]


def forbid_writing(folder: Path) -> None:
    """Let this process fail if Python opens a file in `folder` for writing."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith(str(folder)):
            flags = arguments[2] or 0
            by_orbax = {"checkpoints", "best"} & set(Path(arguments[0]).parts)  # every process writes its part
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not by_orbax:
                raise RuntimeError(f"a process other than 0 writes {arguments[0]}")

    sys.addaudithook(hook)


if __name__ == "__main__":
    plant(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    words = sys.argv[4:]
    if words[0] == "toy":
        run_dir, watchdog, coordinator, number = words[1:]
        processes.start(DistributedConfig(coordinator, 2, int(number), 60))
        with processes.ending_together():
            toy.train(Path(run_dir), devices=0, watchdog_seconds=int(watchdog))
        sys.exit()
    if "--distributed.process-id" in words and words[words.index("--distributed.process-id") + 1] != "0":
        forbid_writing(Path(words[words.index("--run-dir" if "--run-dir" in words else "--run_dir") + 1]))
    sys.exit(main(words))

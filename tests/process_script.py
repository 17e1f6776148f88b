"""Run by test_processes.py as one of two processes: what only real processes can show, each result under its name.

python -m tests.process_script OUT COORDINATOR NUMBER
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from albert_jax.config import InputError
from albert_jax.training import partition, processes
from albert_jax.training.processes import DistributedConfig

from . import toy
from .conftest import largest_file


def error(call: Callable[[], Any]) -> str:
    """The message of the `InputError` that `call` raises."""
    try:
        call()
    except InputError as error:
        return str(error)
    return ""


def state(run_dir: Path, sharding: str) -> list[float]:
    """The last state of a toy run on both processes' devices."""
    trained, _ = toy.train(run_dir, devices=0, sharding=sharding)
    everywhere = partition.replicated(partition.make_mesh("any"))
    return toy.flat(jax.jit(lambda tree: tree, out_shardings=everywhere)(trained)).tolist()


def main(out: Path, coordinator: str, number: int) -> None:
    """Write `out/NUMBER.json`: name -> result."""
    processes.start(DistributedConfig(coordinator, 2, number, 60))
    results: dict[str, Any] = {"is_main": processes.is_main()}
    results["agree"] = error(lambda: processes.agree({"--train.seed": 1, "the data": [2, 3]}))
    results["disagree"] = error(lambda: processes.agree({"--train.lr": 1, "--train.seed": number}))
    results["everywhere"] = [processes.everywhere(True), processes.everywhere(number == 0)]
    with processes.main_first():
        results["file_before"] = (out / "written").exists()
        (out / "written").touch()
    (out / "shared").touch()
    results["shared"] = error(lambda: processes.check_shared(out / "shared"))
    results["not_shared"] = error(lambda: processes.check_shared(out / ("shared" if number == 0 else "nowhere")))
    for sharding in ("none", "parameters"):
        results[sharding] = state(out / sharding, sharding)
    if number == 0:
        part = largest_file(out / "parameters/checkpoints/12/state/ocdbt.process_1/d")
        part.write_bytes(part.read_bytes()[:50])
    processes.meet("corrupted")
    results["resumed"] = state(out / "parameters", "parameters")
    (out / f"{number}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))

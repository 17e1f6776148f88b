"""Measure the memory of conversions: `python -m tests.convert_memory FOLDER [SIZE]`.

Converts random weights of a released size (default xxlarge) from Hugging Face to albert_jax and back, each in a separate
process, and prints its peak resident memory.  Writes three times the size of the weights into FOLDER.
"""

import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np

from albert_jax.exchange import huggingface
from albert_jax.exchange.weights import Weights
from albert_jax.model.albert import PRESETS
from albert_jax.model.heads import Albert, num_params, param_shapes

MEASURED = """
import resource, sys
from albert_jax.cli import main
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def main(folder: Path, size: str) -> None:
    """Print one row of a table per conversion."""
    model, random = Albert(PRESETS[size]), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.standard_normal(leaf.shape, np.float32) * 0.02, param_shapes(model))
    (folder / "source").mkdir(parents=True)
    huggingface.write(Weights(model, params), folder / "source")
    del params
    weights = 4 * num_params(model)
    for words in (["source", "ours", "--to", "albert_jax"], ["ours", "back"]):
        start = time.perf_counter()
        command = [sys.executable, "-c", MEASURED, "convert", *words]
        peak = int(subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.split()[-1])
        seconds = time.perf_counter() - start
        row = f"{weights / 1e9:.2f} GB | {peak / 1e9:.2f} GB | {(peak - weights) / 1e9:.2f} GB | {seconds:.0f} s |"
        print(f"| {size}, {words[0]} -> {words[1]} | {row}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(sys.argv[2:] or ["xxlarge"]))

"""What remains to be measured on a GPU, in items that take a few minutes each and continue where they stopped.

    python experiments/gpu.py ITEM FOLDER --source 'corpus/*.jsonl.gz' --vocab spiece.model --glue glue --minutes 9

An item runs commands of albert-jax in FOLDER, stops them in time with SIGTERM, and prints a table.  Run it again to continue.  The speed of
single steps is measured by performance.py.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import albert_jax
from albert_jax.config import first_line
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, init_params

ROOT = Path(__file__).parents[1]
SMALL_MODEL = (
    "--model.hidden-size 64 --model.num-attention-heads 4 --model.intermediate-size 128 --model.num-hidden-layers 6"
)
GPU = "--model.attention-implementation cudnn --model.remat none --model.scan-unroll 12"
TASKS = {
    "sst2": ("SST-2", 64, 2000),
    "cola": ("CoLA", 64, 800),
    "mrpc": ("MRPC", 128, 350),
    "rte": ("RTE", 128, 400),
}
"""Fine-tuning recipe -> folder of GLUE, sequence length, steps."""


MINUTE = 60.0
SPEED = ("speed/tokens_per_second", "speed/mfu")


class Session:
    """Runs commands until the time is over."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.folder = options, options.folder
        self.end = time.monotonic() + 60 * options.minutes

    def run(
        self,
        command: str,
        seconds: float = math.inf,
        started: Path | None = None,
        until: Callable[[], bool] | None = None,
        **environment: str,
    ) -> None:
        """Run `albert-jax COMMAND`, unless the time is over.

        SIGTERM ends it at the end of the session, or after `seconds`, counted from when the file `started` exists.  SIGKILL ends it as
        soon as `until` is true.
        """
        if time.monotonic() > self.end:
            return
        start, killed = time.monotonic(), False
        words = [sys.executable, "-m", "albert_jax", *shlex.split(command)]
        with (self.folder / "log.txt").open("a") as log:
            print(shlex.join(words), file=log, flush=True)
            cache = {"JAX_COMPILATION_CACHE_DIR": str(self.folder / "compilation_cache")}
            variables = os.environ | cache | environment
            process = subprocess.Popen(words, cwd=ROOT, env=variables, stdout=log, stderr=log)
            while process.poll() is None:
                if started and not started.exists():
                    start = time.monotonic()
                if until and until():
                    killed = True
                    process.kill()
                elif time.monotonic() > min(start + seconds, self.end):
                    process.send_signal(signal.SIGTERM)  # a run saves a checkpoint and ends
                    process.wait()
                time.sleep(0.1)
        if process.returncode and not killed:
            print(f"exit code {process.returncode}, see {self.folder}/log.txt: {shlex.join(words)}", flush=True)

    def pretrain(self, name: str, extra: str, **options: Any) -> bool:
        """Pretrain `small` in FOLDER/name, unless it is complete."""
        run_dir = self.folder / name
        if (run_dir / "summary.json").exists():
            return True
        sizes = f"{SMALL_MODEL} --train.global-batch-size 16 --model.dtype float32" if self.options.small else GPU
        data = f"--data.source {self.options.source} --data.vocab {self.options.vocab}"
        words = f"pretrain {ROOT}/experiments/pretrain/small.py {data} {sizes} {extra} --run-dir {run_dir}"
        self.run(words, **options)
        return (run_dir / "summary.json").exists()

    def steps(self, number: int) -> int:
        """`number`, or a hundredth of it on a CPU."""
        return max(number // 100, 20) if self.options.small else number


def read(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics of a run, in order of steps."""
    path = run_dir / "metrics.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]  # the last line may be incomplete


def curve(session: Session) -> None:
    """A training curve of `small`: 32 tokens, then 128; baselines, tokens/s and MFU of the whole loop; the model as FOLDER/exported."""
    small = session.folder / "small"
    short = "--model.max-position-embeddings 32 --objective.max-seq-length 32 --objective.max-predictions-per-seq 5"
    short += "" if session.options.small else " --train.global-batch-size 1024"
    warmup = f"--optim.num-warmup-steps {5 if session.options.small else 500}"
    first = f"{short} {warmup} --train.num-train-steps {session.steps(1000)} --optim.schedule constant"
    if not (small / "summary.json").exists() and session.pretrain("small-32", first):
        if (small / "config.json").exists():
            steps = json.loads((small / "config.json").read_text())["config"]["train"]["num_train_steps"]
        else:  # as many as the time allows, so that the learning rate falls to 0
            lines = [line["speed/tokens_per_second"] for line in read(session.folder / "small-32") if SPEED[0] in line]
            left = session.end - time.monotonic() - 2 * MINUTE  # compilation, baselines, the last evaluation, export
            steps = session.steps(max(1000, min(8000, int(0.8 * left * lines[-1] / (256 * 128)))))
        second = f"--init-from {session.folder}/small-32 --train.seed 1 {warmup} --train.num-train-steps {steps}"
        session.pretrain("small", second, seconds=session.end - time.monotonic() - MINUTE)
        shutil.rmtree(session.folder / "exported", ignore_errors=True)
    if (small / "checkpoints").exists() and not (session.folder / "exported").exists():
        session.run(f"convert {small} {session.folder}/exported --to albert_jax")
    print("| run | step | held-out loss | gain over unigram | SOP | tokens/s | MFU |\n|---|---|---|---|---|---|---|")
    for name in ("small-32", "small"):
        speed: dict[str, Any] = {}
        for line in read(session.folder / name):
            speed |= {key: line[key] for key in SPEED if key in line}
            if "eval/mlm_loss" in line:
                values = [line["eval/mlm_loss"], line["diagnostics/gain_over_unigram"], line["eval/sop_accuracy"]]
                cells = [*values, *(speed.get(key, float("nan")) for key in SPEED)]
                print(f"| {name} | {line['step']} | " + " | ".join(f"{cell:.4g}" for cell in cells) + " |")


def downstream(session: Session) -> None:
    """SST-2, CoLA, MRPC and RTE from FOLDER/exported, three seeds each."""
    for task, (name, length, count) in TASKS.items():
        steps = session.steps(count)
        words = f"finetune {ROOT}/experiments/finetune/{task}.py --init-from {session.folder}/exported --data.dir {session.options.glue}/{name}"
        words += (
            f" --data.max-seq-length {length} --train.global-batch-size 32 --train.num-train-steps {steps} --seeds 3"
        )
        words += "" if session.options.small else " --model.dtype bfloat16 --model.remat none"
        words += f" --optim.learning-rate 2e-4 --optim.num-warmup-steps {steps // 10} --run-dir {session.folder}/{task}"
        session.run(words)
        scores = [
            json.loads(path.read_text())["eval"] for path in sorted((session.folder / task).glob("*/summary.json"))
        ]
        print(f"{task}: {json.dumps(scores)}")


def _table(session: Session, table: str, extra: str) -> None:
    sizes = (
        f"{SMALL_MODEL} --train.global-batch-size 16 --train.num-train-steps 20 --optim.num-warmup-steps 4"
        if session.options.small
        else "--model.remat none"
    )
    run_dir = session.folder / table
    words = f"ablate {ROOT}/experiments/ablations/{table}.py --scale small --seeds 3 --parallel-seeds --run-dir {run_dir} {sizes} {extra}"
    session.run(f"{words} --data.source {session.options.source} --data.vocab {session.options.vocab}")
    print(
        (run_dir / "table.md").read_text()
        if (run_dir / "table.md").exists()
        else f"{table}: not complete; run it again"
    )


def sharing(session: Session) -> None:
    """Table 4 at the scale `small`: tuned rates, three seeds of a row in one program."""
    _table(
        session,
        "sharing",
        "--tune optim.learning-rate=2e-3,5e-3,1e-2 --rows all-shared --rows shared-attention --rows shared-FFN --rows not-shared",
    )


def sentence_objective(session: Session) -> None:
    """Table 5 at the scale `small`: SOP, NSP and neither, each evaluated on all."""
    _table(session, "sentence_objective", "")


def rates(session: Session) -> None:
    """Three optimizers at three rates on `small`, a minute each: which leave the unigram plateau, and when."""
    _prepare(session)
    print("| optimizer | rate | steps | first step 1 % below the unigram loss | last gain |\n|---|---|---|---|---|")
    for optimizer, values in {
        "muon": (2e-3, 5e-3, 1e-2),
        "adamw": (5e-4, 1e-3, 2e-3),
        "lamb": (2e-3, 5e-3, 1e-2),
    }.items():
        for rate in values:
            name = f"{optimizer}-{rate}"
            extra = f"--optim.optimizer {optimizer} --optim.learning-rate {rate} --optim.schedule constant --optim.num-warmup-steps 10"
            steps = f"--train.num-train-steps {session.steps(8000)} --train.eval-every {session.steps(50)}"
            if not (session.folder / name).exists():
                if session.end - time.monotonic() < 1.5 * MINUTE:
                    return
                started = session.folder / name / "metrics.jsonl"
                session.pretrain(name, f"{extra} {steps}", seconds=MINUTE, started=started)
            left, last, gain = "-", 0, math.nan
            for line in read(session.folder / name):
                if "eval/mlm_loss" in line:
                    last, gain = line["step"], line["diagnostics/gain_over_unigram"]
                    if left == "-" and gain > 0.01 * (line["eval/mlm_loss"] + gain):
                        left = str(last)
            print(f"| {optimizer} | {rate} | {last} | {left} | {gain:.3f} |", flush=True)


def _prepare(session: Session) -> None:
    """Prepare the data and its baselines, so that the runs that are timed do not."""
    session.pretrain("prepared", "--train.num-train-steps 1 --optim.num-warmup-steps 0")


def startup(session: Session) -> None:
    """Seconds from the command to step 10, with an empty and with a full compilation cache."""
    _prepare(session)
    cache = session.folder / "startup_cache"
    print("| cache | seconds to step 10 |\n|---|---|")
    for name in ("empty", "full"):
        run_dir, start = session.folder / f"startup-{name}", time.monotonic()
        if run_dir.exists():
            sys.exit(f"{run_dir} exists; use another folder, so that the cache is empty")

        def logged(run_dir: Path = run_dir) -> bool:
            return any(line["step"] == 10 for line in read(run_dir))

        extra = "--train.num-train-steps 1000 --train.log-every 10 --optim.num-warmup-steps 2"
        session.pretrain(run_dir.name, extra, until=logged, JAX_COMPILATION_CACHE_DIR=str(cache))
        print(f"| {name} | {time.monotonic() - start:.1f} |" if logged() else f"| {name} | not reached |")


def determinism(session: Session) -> None:
    """200 steps twice, and killed and resumed, with and without XLA's flag for deterministic operations; each compiles for itself."""
    print("| XLA_FLAGS | compared with a first run | equal parameters | largest difference |\n|---|---|---|---|")
    steps = session.steps(200)
    extra = f"--train.num-train-steps {steps} --train.checkpoint-every {steps // 2} --optim.num-warmup-steps 5"
    for name, flag in {"default": "", "deterministic": "--xla_gpu_deterministic_ops=true"}.items():
        flags = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        variables = {
            "XLA_FLAGS": flags,
            "JAX_ENABLE_COMPILATION_CACHE": "false",
        }  # no run reuses another's choice of kernels
        runs = [session.folder / f"{name}-{run}" for run in ("first", "second", "resumed")]
        for run in runs:
            if not (run / "summary.json").exists():
                shutil.rmtree(run, ignore_errors=True)  # a run that the end of a session stopped is no reference
        if not runs[2].exists():
            saved = runs[2] / "checkpoints" / str(steps // 2)
            session.pretrain(runs[2].name, extra, until=saved.exists, **variables)
            if not saved.exists() or (runs[2] / "summary.json").exists():
                print(f"| {flags} | {runs[2].name} | not killed after step {steps // 2} | |", flush=True)
                continue
        if all([session.pretrain(run.name, extra, **variables) for run in runs]):
            first, *others = (jax.tree.leaves(albert_jax.load(run)[1]) for run in runs)
            for run, other in zip(runs[1:], others, strict=True):
                largest = max(float(np.abs(a - b).max()) for a, b in zip(first, other, strict=True))
                print(f"| {flags} | {run.name} | {largest == 0} | {largest:.2g} |", flush=True)


def kernels(session: Session) -> None:
    """Whether `model.fused_kernels` gives the loss and gradients of XLA, and how long both take."""
    print(
        "| width | dtype | loss | fused | difference of gradients / gradients | seconds | fused |\n|---|---|---|---|---|---|---|"
    )
    batch, length = (2, 16) if session.options.small else (33, 509)
    for width in (96,) if session.options.small else (768, 1024, 4096):
        for dtype in ("float32", "bfloat16"):
            config = AlbertConfig(
                hidden_size=width,
                num_attention_heads=width // 64,
                intermediate_size=4 * width,
                num_hidden_layers=2,
                dtype=dtype,
            )
            params = init_params(Albert(config), jax.random.key(0))
            ids = jax.random.randint(jax.random.key(1), (batch, length), 0, config.vocab_size)

            def loss(params: Any, config: AlbertConfig, ids: Any = ids) -> Any:
                outputs: Any = Albert(config).apply(
                    {"params": params}, ids, masked_lm_positions=ids[:, :20] % ids.shape[1]
                )
                return jnp.mean(outputs["prediction_logits"] ** 2)

            results, seconds = [], []
            try:
                for fused_kernels in (False, True):
                    function = functools.partial(jax.jit(jax.value_and_grad(loss), static_argnums=1), params)
                    varied = dataclasses.replace(config, fused_kernels=fused_kernels)
                    results.append(jax.block_until_ready(function(varied)))
                    start = time.monotonic()
                    jax.block_until_ready([function(varied) for _ in range(10)])
                    seconds.append((time.monotonic() - start) / 10)
            except Exception as error:  # the kernels may not compile on this GPU
                print(f"| {width} | {dtype} | {type(error).__name__}: {first_line(error)[:300]} |", flush=True)
                continue
            (plain, gradients), (value, other) = results
            difference = optax.tree.norm(optax.tree.sub(gradients, other)) / optax.tree.norm(gradients)
            print(
                f"| {width} | {dtype} | {plain:.6g} | {value:.6g} | {difference:.2g} | {seconds[0]:.4f} | {seconds[1]:.4f} |",
                flush=True,
            )


ITEMS: dict[str, Callable[[Session], None]] = {
    item.__name__: item
    for item in (kernels, curve, downstream, sharing, sentence_objective, rates, startup, determinism)
}


def main() -> None:
    """Run one item."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "item", choices=ITEMS, help="; ".join(f"{name}: {item.__doc__}" for name, item in ITEMS.items())
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", default="python-docs", help="text, as data.source; absolute paths")
    parser.add_argument("--vocab", default="spiece.model", help="SentencePiece model, as data.vocab")
    parser.add_argument("--glue", type=Path, help="folder of GLUE, for downstream")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--small", action="store_true", help="a small model and a hundredth of the steps, for a CPU")
    options = parser.parse_args()
    if options.item == "downstream" and not (options.glue and (options.folder / "exported").exists()):
        parser.error("downstream needs --glue and FOLDER/exported, which 'curve' writes")
    options.folder, options.vocab = options.folder.resolve(), Path(options.vocab).resolve()
    options.glue = options.glue and options.glue.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.item != "kernels":
        jax.config.update("jax_platforms", "cpu")  # this process only compares parameters; the commands use the GPU
    ITEMS[options.item](Session(options))


if __name__ == "__main__":
    main()

"""Run a training job in its run folder; pretraining and fine-tuning use `run_job`."""

import contextlib
import json
import platform
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from albert_jax.config import flat, non_defaults, to_dict, without_passwords
from albert_jax.training import loggers, loop, partition, processes, run_folder
from albert_jax.training.optim import Optimizer
from albert_jax.training.partition import Layout
from albert_jax.training.step import Params, Workload


def open_mesh(config: Any) -> Mesh:
    """Make the mesh of a job, and check that its batches can be sharded over it and its loggers are installed.

    Args:
      config: has the sections `train` and `mesh`.

    Raises:
      InputError: as `make_mesh`, `check_batch_size` and `check_installed`.
    """
    train = config.train
    if processes.is_main():  # the others do not log
        loggers.check_installed(train.loggers)
    mesh = partition.make_mesh(train.platform, config.mesh.data)
    partition.check_batch_size(
        "train.global_batch_size", train.global_batch_size, train.gradient_accumulation, mesh.size
    )
    partition.check_batch_size("train.eval_batch_size", train.eval_batch_size, 1, mesh.size)
    return mesh


def check_agreement(config: Any, fingerprints: dict[str, str]) -> None:
    """Check that all processes have the same configuration and data.  Call it before checks that may fail in only one process.

    Raises:
      InputError: names the option that differs.
    """
    processes.agree({f"--{name}": value for name, value in flat(to_dict(config)).items()} | {"the data": fingerprints})


def run_job(
    job: str,
    config: Any,
    workload: Workload,
    optimizer: Optimizer,
    layout: Layout,
    *,
    initial: Callable[[], Params] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Call `run_jobs` for one run, and return the content of its `summary.json`."""
    run = loop.Run(config.train, workload, Path(config.run_dir).expanduser(), initial)
    return run_jobs(job, [config], [run], optimizer, layout, **options)[0]


def run_jobs(
    job: str,
    configs: Sequence[Any],
    runs: Sequence[loop.Run],
    optimizer: Optimizer,
    layout: Layout,
    *,
    fingerprints: dict[str, str],
    write_vocabulary: Callable[[Path], Any],
    model_facts: dict[str, Any] | None = None,
    conclude: Callable[[Path], dict[str, Any]] | None = None,
    report: Callable[[Path, dict[str, Any], bool], Sequence[Path]] = lambda run_dir, summary, writes: [],
    allow_data_change: bool = False,
) -> list[dict[str, Any]]:
    """Train runs as one program, or resume those that their folders hold, and write each `summary.json`.

    If there are several processes, all of them call this with the same arguments.

    Args:
      job: the subcommand.
      configs: the resolved configuration of each run, with the fields `run_dir` and `train`.
      runs, optimizer, layout: see `loop.train`.
      fingerprints: of the data and the vocabulary.
      write_vocabulary: writes the tokenizer files into a run folder.
      model_facts: entries of `config.json` that are needed to load the model, besides its configuration.
      conclude: called for each folder after training in every process; returns more entries of the summary.
      report: called with each folder, its summary and whether this process writes; returns the figures for the loggers.
      allow_data_change: resume although the fingerprints have changed.

    Returns:
      The content of each `summary.json`.

    Raises:
      InputError: a folder belongs to a different job or configuration, or the data has changed.
      loop.Interrupted: a signal arrived; the state is saved.
    """
    is_main = processes.is_main()
    with contextlib.ExitStack() as exits:
        run_loggers = []
        for config, run in zip(configs, runs, strict=True):
            exits.enter_context(run_folder.locked(run.run_dir, config.train.checkpoint_dir, is_main))
            if is_main:
                facts = {"non_defaults": non_defaults(config), "environment": environment(layout.mesh)}
                facts |= model_facts or {}
                run_folder.claim(run.run_dir, job, to_dict(config), fingerprints, facts, allow_data_change)
                write_vocabulary(run.run_dir)
            if run.workload.select or not config.train.checkpoint_dir:  # otherwise only process 0 uses the run folder
                processes.check_shared(run.run_dir / "config.json")
            names = config.train.loggers if is_main else ""
            public = json.loads(without_passwords(json.dumps(to_dict(config))))
            run_loggers.append(loggers.Loggers(names, run.run_dir, {"job": job} | public))
        exits.callback(loggers.close_all, run_loggers)  # while the folders are locked
        results = loop.train(
            runs,
            optimizer,
            layout,
            loggers=run_loggers,
            fingerprints=fingerprints,
            allow_data_change=allow_data_change,
        )
        summaries = []
        for run, (_, summary) in zip(runs, results, strict=True):
            if conclude is not None:
                summary |= conclude(run.run_dir)
            if is_main:
                run_folder.write_json(run.run_dir / "summary.json", summary)
            summaries.append(summary)
        for run, one, summary in zip(runs, run_loggers, summaries, strict=True):
            one.finish(summary, report(run.run_dir, summary, is_main))
    return summaries


def environment(mesh: Mesh) -> dict[str, Any]:
    """What a run is started with, for its report: command, devices, number of processes, operating system."""
    program = Path(sys.argv[0])
    is_command = program.name == "albert-jax" or program.parts[-2:] == ("albert_jax", "__main__.py")
    command = without_passwords(shlex.join(["albert-jax", *sys.argv[1:]]))
    return {
        "command": command if is_command else "called from Python",
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "processes": jax.process_count(),
        "platform": platform.platform(),
    }

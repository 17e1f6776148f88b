"""Run a training job in its run folder; pretraining and fine-tuning use `run_job`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from albert_jax.config import flat, to_dict
from albert_jax.training import loop, partition, processes, run_folder
from albert_jax.training.optim import Optimizer
from albert_jax.training.partition import Layout
from albert_jax.training.step import Params, Workload


def open_mesh(config: Any) -> Mesh:
    """Make the mesh of a job, and check that its batches can be sharded over it.

    Args:
      config: has the sections `train` and `mesh`.

    Raises:
      InputError: as `make_mesh` and `check_batch_size`.
    """
    train = config.train
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
    fingerprints: dict[str, str],
    write_vocabulary: Callable[[Path], Any],
    model_facts: dict[str, Sequence[str]] | None = None,
    initial: Callable[[], Params] | None = None,
    conclude: Callable[[Path], dict[str, Any]] | None = None,
    allow_data_change: bool = False,
) -> dict[str, Any]:
    """Train in the run folder, or resume the run that it holds, and write `summary.json`.

    If there are several processes, all of them call this with the same arguments.

    Args:
      job: the subcommand.
      config: the resolved configuration, with the fields `run_dir` and `train`.
      workload, optimizer, layout, initial: see `loop.run`.
      fingerprints: of the data and the vocabulary.
      write_vocabulary: writes the tokenizer files into the run folder.
      model_facts: entries of `config.json` that are needed to load the model, besides its configuration.
      conclude: called after training in every process; returns more entries of the summary.
      allow_data_change: resume although the fingerprints have changed.

    Returns:
      The content of `summary.json`.

    Raises:
      InputError: the folder belongs to a different job or configuration, or the data has changed.
      loop.Interrupted: a signal arrived; the state is saved.
    """
    run_dir = Path(config.run_dir).expanduser()
    values = to_dict(config)
    is_main = processes.is_main()
    with run_folder.locked(run_dir, config.train.checkpoint_dir, is_main):
        if is_main:
            run_folder.claim(run_dir, job, values, fingerprints, model_facts or {}, allow_data_change)
            write_vocabulary(run_dir)
        if workload.select or not config.train.checkpoint_dir:  # otherwise only process 0 uses the run folder
            processes.check_shared(run_dir / "config.json")
        _, summary = loop.run(
            config.train,
            workload,
            optimizer,
            layout,
            run_dir,
            initial=initial,
            fingerprints=fingerprints,
            allow_data_change=allow_data_change,
        )
        if conclude is not None:
            summary |= conclude(run_dir)
        if is_main:
            run_folder.write_json(run_dir / "summary.json", summary)
    return summary

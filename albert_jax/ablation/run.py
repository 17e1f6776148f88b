"""Run a plan: row by row and seed by seed here, or as jobs of a cluster.

Finished runs are skipped, and a failed run is recorded while the others continue.  A row's folder is locked with `flock`,
which the system releases when a process dies, so several launches can share a table and no lock is ever stale.
"""

import dataclasses
import logging
import os
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from albert_jax.ablation.manifest import Plan, PlannedRow, load_plan
from albert_jax.ablation.planning import finetune_config
from albert_jax.config import InputError, check_writable, first_line, from_dict, read_json
from albert_jax.data.prepare import prepare
from albert_jax.exchange.convert import convert
from albert_jax.finetuning import files
from albert_jax.finetuning.run import FinetuneConfig, finetune
from albert_jax.finetuning.tasks import TASKS
from albert_jax.model.albert import AlbertConfig
from albert_jax.pretraining import probes
from albert_jax.pretraining.run import PretrainConfig, pretrain
from albert_jax.reports import comparison, figures
from albert_jax.reports.comparison import FAILURE, MANIFEST, PROBES, Comparison
from albert_jax.reports.tables import duration
from albert_jax.training import checkpoint, run_folder
from albert_jax.training.loop import Interrupted

log = logging.getLogger(__name__)

LOCK = "ablate.lock"
"""File that locks a row or a table for a launch; each run has a separate lock."""

START_CHANGES = ("sharing", "num_hidden_groups", "num_hidden_layers")
"""Fields of the model in which a row can differ from the row that it starts from."""


def ablate(plan: Plan) -> Comparison:
    """Run what is unfinished, one run after another: all rows with one seed, then all rows with the next.

    A run that fails is recorded in its folder and tried again by the next launch.  A run that a different
    launch is running is skipped.

    Returns:
      The table of all rows, which is also written to the folder, with figures.

    Raises:
      InputError: the folder holds a different table or different configurations, or the text or a task's files cannot be read;
        raised before anything runs.
      Interrupted: a signal arrived; the state is saved.
    """
    first = plan.rows[0].config
    prepare(first.data, first.model.vocab_size)
    for words in plan.finetune.values():
        data = finetune_config(plan, plan.rows[0], 0, words).data
        files.find(data, TASKS[data.task].splits)
    plan = claim(plan)
    units = [(row, seed) for seed in range(plan.seeds) for row in plan.rows]
    begin, ran = time.monotonic(), 0
    for number, (row, seed) in enumerate(units):
        seconds = (time.monotonic() - begin) / max(1, ran) * (len(units) - number)
        left = f"; about {duration(seconds)} left" if ran else ""
        log.info("run %d of %d: %s, seed %d%s", number + 1, len(units), row.label, seed, left)
        before = time.monotonic()
        log.info("%s, seed %d: %s", row.label, seed, run_unit(plan.run_dir, row.label, seed))
        ran += time.monotonic() - before > 1  # skipped runs are not counted in the estimate
    result = comparison.read(plan.run_dir)
    figures.write(result, Path(plan.run_dir))
    return result


def claim(plan: Plan) -> Plan:
    """Write the plan's `ablation.json`, with the rows and seeds of earlier launches in the same folder.

    Returns:
      The plan; with the budget `time`, its rows as first planned.

    Raises:
      InputError: the folder holds a different table, or runs with different configurations.
    """
    folder = Path(plan.run_dir)
    check_writable(folder, "--run-dir")
    with run_folder.file_lock(folder, LOCK, wait=True):
        merged = plan.merged(load_plan(folder)) if (folder / MANIFEST).exists() else plan
        if plan.budget == "time":
            plan = dataclasses.replace(plan, rows=tuple(merged.row(row.label) for row in plan.rows))
        for row in plan.rows:
            for seed in range(plan.seeds):
                config = plan.run_config(row, seed)
                run_folder.check(Path(config.run_dir), "pretrain", config)
                for words in plan.finetune.values():
                    _check_tuned(finetune_config(plan, row, seed, words))
        merged.save()
    return plan


def _check_tuned(config: FinetuneConfig) -> None:
    """Check that a folder was not fine-tuned with different settings."""
    folder = Path(config.run_dir)
    if (folder / "config.json").exists():
        # The run stores the model that it starts from, which the row has checked already.
        model = read_json(folder / "config.json")["config"]["model"]
        run_folder.check(folder, "finetune", dataclasses.replace(config, model=from_dict(AlbertConfig, model)))


def run_unit(run_dir: str, label: str, seed: int) -> str:
    """Run one row with one seed, and its fine-tuning, unless it is finished or a different process is running it.

    Returns:
      What happened, for the log.

    Raises:
      Interrupted: a signal arrived; the state is saved.
    """
    plan = load_plan(run_dir)
    row = plan.row(label)
    config = plan.run_config(row, seed)
    folder = Path(config.run_dir)
    with run_folder.file_lock(folder, LOCK) as is_ours:
        if not is_ours:
            return "running in a different launch"
        if row.start and not _is_finished(parent := plan.run_config(plan.row(row.start), seed)):
            return f"not begun: '{row.start}', from which it starts, is not finished ({parent.run_dir})"
        tuned = [finetune_config(plan, row, seed, words) for words in plan.finetune.values()]
        was_finished = all(_is_finished(one) for one in (config, *tuned))
        (folder / FAILURE).unlink(missing_ok=True)
        try:
            if not _is_finished(config):
                _write_start(plan, row, seed)
                pretrain(config)
            for one in tuned:
                if not _is_finished(one):
                    finetune(one)
        except Interrupted:
            raise
        except Exception as error:  # the other rows continue, whatever went wrong here, such as a lack of memory
            message = _failure_message(error)
            run_folder.write_json(folder / FAILURE, {"error": message, "traceback": traceback.format_exc()})
            log.warning("%s, seed %d failed, the other runs continue: %s", label, seed, message)
            return "failed"
        if not Path(run_dir, PROBES).exists():
            run_folder.write_json(Path(run_dir, PROBES), probe(plan, config))
    return "already finished" if was_finished else "finished"


def _is_finished(config: Any) -> bool:
    return Path(config.run_dir, "summary.json").exists()


def _failure_message(error: Exception) -> str:
    return first_line(error) if isinstance(error, InputError) else f"{type(error).__name__}: {first_line(error)}"


def probe(plan: Plan, config: PretrainConfig) -> dict[str, Any]:
    """Run the shortcut probe on a run's text, with the sentence objective of the scale; a failure is returned as `error`."""
    kind = plan.base["objective"]["sentence_objective"]
    objective = dataclasses.replace(config.objective, sentence_objective=kind)
    try:
        return probes.probe(dataclasses.replace(config, objective=objective, eval_objective=None))
    except Exception as error:  # a failed probe must not lose the table
        return {"error": _failure_message(error)}


def _write_start(plan: Plan, row: PlannedRow, seed: int) -> None:
    """Write the parameters that a run starts from: those of row `row.start`, with this row's sharing and depth."""
    folder = Path(plan.run_config(row, seed).run_dir)
    if row.start and not (folder / "start").exists() and not checkpoint.has_checkpoint(str(folder / "checkpoints")):
        source = plan.run_config(plan.row(row.start), seed).run_dir
        changes = {name: getattr(row.config.model, name) for name in START_CHANGES}
        convert(source, folder / "start", to="albert_jax", **changes)


def submit(plan: Plan, options: Mapping[str, Any]) -> list[str]:
    """Send each unfinished run to Slurm as one job, through submitit.

    A job whose row starts from a different row waits for that one's job.  A job that finds its run finished or running ends at
    once, so a second launch does no harm.

    Args:
      plan: what to run.
      options: of the jobs, in submitit's names: `timeout_min` (default 5), `gpus_per_node`, `slurm_partition` and others.

    Returns:
      The ids of the jobs.

    Raises:
      InputError: see `claim`; submitit is not installed; an option is unknown.
    """
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")  # otherwise it closes the handlers of all other loggers
    try:
        import submitit
    except ModuleNotFoundError:
        raise InputError("--launcher slurm: pip install 'albert_jax[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder=Path(plan.run_dir, "slurm"), cluster="slurm")
        executor.update_parameters(**{"name": plan.name} | dict(options))
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise InputError(f"--launcher slurm: {first_line(error)}") from None
    plan = claim(plan)
    jobs: dict[tuple[str, int], str] = {}
    for seed in range(plan.seeds):
        for row in plan.rows:
            if plan.finetune or not _is_finished(plan.run_config(row, seed)):
                before = jobs.get((row.start, seed))
                waits = {"dependency": f"afterany:{before}"} if before else {}
                executor.update_parameters(slurm_additional_parameters=waits)
                jobs[row.label, seed] = executor.submit(run_job, plan.run_dir, row.label, seed).job_id
    return list(jobs.values())


def run_job(run_dir: str, label: str, seed: int) -> str:
    """Run `run_unit` in a Slurm job and log to the job's output."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("albert_jax").setLevel(logging.INFO)
    return run_unit(run_dir, label, seed)

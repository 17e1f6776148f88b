"""Run a plan: row by row and seed by seed here, or as jobs of a cluster.

Finished runs are skipped, and a failed run is recorded while the others continue.  Each run's folder is locked with `flock`,
which the system releases when a process dies, so several launches can share a table and no lock is ever stale.
"""

import contextlib
import dataclasses
import logging
import os
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from albert_jax.ablation import tuning
from albert_jax.ablation.manifest import LOCK, Number, Plan, PlannedRow, load_plan, run_name
from albert_jax.ablation.planning import finetune_config
from albert_jax.config import InputError, check_writable, first_line, from_dict, read_json
from albert_jax.data.prepare import prepare
from albert_jax.exchange.convert import convert
from albert_jax.finetuning import files
from albert_jax.finetuning.run import FinetuneConfig, finetune
from albert_jax.finetuning.tasks import TASKS
from albert_jax.model.albert import AlbertConfig
from albert_jax.pretraining import probes
from albert_jax.pretraining.run import PretrainConfig, cannot_be_parallel, pretrain, pretrain_seeds
from albert_jax.reports import comparison, figures
from albert_jax.reports.comparison import MANIFEST, PROBES, Comparison
from albert_jax.reports.tables import duration
from albert_jax.reports.tuning_runs import grid_points, values_text
from albert_jax.training import checkpoint, loggers, run_folder
from albert_jax.training.loop import Interrupted
from albert_jax.training.progress import Diverged
from albert_jax.training.run_folder import FAILURE

log = logging.getLogger(__name__)

START_CHANGES = ("sharing", "num_hidden_groups", "num_hidden_layers", "per_pass")
"""Fields of the model in which a row can differ from the row that it starts from."""


def ablate(plan: Plan, parallel_seeds: bool = False) -> Comparison:
    """Run what is unfinished, in the order of `units`.

    A run that fails is recorded in its folder and tried again by the next launch.  A run that a different
    launch is running is skipped.

    Returns:
      The table of all rows, which is also written to the folder, with figures.

    Raises:
      InputError: the folder holds a different table or different configurations, or the text or a task's files cannot be read;
        raised before anything runs.
      Interrupted: a signal arrived; the state is saved.
    """
    for names in {plan.base["train"]["loggers"], *(row.config.train.loggers for row in plan.rows)}:
        loggers.check_installed(names)
    first = plan.rows[0].config
    prepare(first.data, first.model.vocab_size, needs_pairs=any(row.config.needs_pairs for row in plan.rows))
    for words in plan.finetune.values():
        data = finetune_config(plan, plan.rows[0], 0, words).data
        files.find(data, TASKS[data.task].splits)
    plan = claim(plan)
    planned = units(plan, parallel_seeds)
    begin, ran = time.monotonic(), 0
    for place, (row, numbers) in enumerate(planned):
        seconds = (time.monotonic() - begin) / max(1, ran) * (len(planned) - place)
        left = f"; about {duration(seconds)} left" if ran else ""
        titles = ", ".join(map(run_title, numbers))
        log.info("run %d of %d: %s, %s%s", place + 1, len(planned), row.label, titles, left)
        before = time.monotonic()
        run_unit(plan.run_dir, row.label, numbers)
        ran += time.monotonic() - before > 1  # skipped runs are not counted in the estimate
    result = comparison.read(plan.run_dir)
    _log_table(plan, figures.write(result, Path(plan.run_dir)))
    return result


def _log_table(plan: Plan, paths: Sequence[Path]) -> None:
    """Send the tables and figures to the loggers, as a run of their own that each launch continues."""
    config = {"job": "ablate"} | plan.base | {"run_dir": plan.run_dir}
    names = plan.base["train"]["loggers"]
    with contextlib.closing(loggers.Loggers(names, Path(plan.run_dir), config)) as table_loggers:
        table_loggers.start(0)
        table_loggers.finish({}, paths)


def units(plan: Plan, parallel_seeds: bool) -> list[tuple[PlannedRow, Sequence[Number]]]:
    """Group all runs: each alone, or tuning runs alone and then all seeds of a row together."""
    if not parallel_seeds:
        return [(row, [number]) for row, number in plan.numbers()]
    tuning_runs = [(row, [number]) for row, number in plan.numbers() if not isinstance(number, int)]
    return [*tuning_runs, *((row, range(plan.seeds)) for row in plan.rows)]


def claim(plan: Plan) -> Plan:
    """Write the plan's `ablation.json`, with the rows and seeds of earlier launches in the same folder.

    Returns:
      The plan with the tuned values of its rows; with the budget `time`, its rows as first planned.

    Raises:
      InputError: the folder holds a different table, or runs with different configurations.
    """
    folder = Path(plan.run_dir)
    check_writable(folder, "--run-dir")
    with run_folder.file_lock(folder, LOCK, wait=True):
        merged = plan.merged(load_plan(folder)) if (folder / MANIFEST).exists() else plan
        plan = dataclasses.replace(plan, rows=tuple(merged.row(row.label) for row in plan.rows))
        for row, number in plan.numbers():
            config = plan.run_config(row, number)
            run_folder.check(Path(config.run_dir), "pretrain", config)
            if isinstance(number, int):
                for words in plan.finetune.values():
                    _check_finetuned(finetune_config(plan, row, number, words))
        merged.save()
    return plan


def _check_finetuned(config: FinetuneConfig) -> None:
    """Check that a folder was not fine-tuned with different settings."""
    folder = Path(config.run_dir)
    if (folder / "config.json").exists():
        # The run stores the model that it starts from, which the row has checked already.
        model = read_json(folder / "config.json")["config"]["model"]
        run_folder.check(folder, "finetune", dataclasses.replace(config, model=from_dict(AlbertConfig, model)))


def run_title(number: Number) -> str:
    """Name a run for the log."""
    return f"seed {number}" if isinstance(number, int) else f"tuning with {values_text(number)}"


def run_unit(run_dir: str, label: str, numbers: Sequence[Number]) -> None:
    """Run some runs of a row, several seeds in one program, and log what happened.

    Raises:
      Interrupted: a signal arrived; the state is saved.
    """
    if len(numbers) > 1:
        _train_together(run_dir, label, numbers)
    for number in numbers:
        log.info("%s, %s: %s", label, run_title(number), run_one(run_dir, label, number))


def _train_together(run_dir: str, label: str, numbers: Sequence[Number]) -> None:
    """Train the unfinished seeds of a row that are at the same step in one program; other runs are left to `run_one`.

    If the program fails, for instance because one seed diverges or the states do not fit into memory, `run_one` resumes each
    seed alone.
    """
    plan = tuning.select(run_dir, label)
    row = plan.row(label)
    own_teachers = "teachers: each seed has its own" if row.teacher else ""
    if reason := cannot_be_parallel(row.config) or own_teachers:
        log.info("%s: one seed after another, because of %s", label, reason)
        return
    try:
        with contextlib.ExitStack() as locks:
            groups: dict[int | None, list[Number]] = {}
            for number in numbers:
                folder = Path(plan.run_config(row, number).run_dir)
                is_ours = locks.enter_context(run_folder.file_lock(folder, LOCK))
                if is_ours and not _is_finished(plan.run_config(row, number)) and not _not_begun(plan, row, number):
                    groups.setdefault(checkpoint.newest_step(folder / "checkpoints"), []).append(number)
            for group in groups.values():
                if len(group) > 1:
                    log.info("%s: one program trains %s", label, ", ".join(map(run_title, group)))
                    for number in group:
                        _write_start(plan, row, number)
                    pretrain_seeds([plan.run_config(row, number) for number in group])
    except Interrupted:
        raise
    except Exception as error:
        log.warning(
            "%s: cannot train its seeds in one program, so one after another: %s", label, _failure_message(error)
        )


def run_one(run_dir: str, label: str, number: Number) -> str:
    """Run one row with one seed, and its fine-tuning, unless it is finished or a different process is running it.

    Args:
      run_dir: the table's folder.
      label: of the row.
      number: which of its runs; a tuning run is not fine-tuned.

    Returns:
      What happened, for the log.

    Raises:
      Interrupted: a signal arrived; the state is saved.
    """
    plan = tuning.select(run_dir, label)
    row, is_counted = plan.row(label), isinstance(number, int)
    if row.tuned and not is_counted:
        return "already tuned"
    for label_of_needed in row.needs if not is_counted else []:
        plan = tuning.select(run_dir, label_of_needed)
    config = plan.run_config(row, number)
    folder = Path(config.run_dir)
    with run_folder.file_lock(folder, LOCK) as is_ours:
        if not is_ours:
            return "running in a different launch"
        try:
            if reason := _not_begun(plan, row, number):
                return f"not begun: {reason}"
            finetuning = []
            if isinstance(number, int):
                finetuning = [finetune_config(plan, row, number, words) for words in plan.finetune.values()]
            was_finished = all(_is_finished(one) for one in (config, *finetuning))
            (folder / FAILURE).unlink(missing_ok=True)
            if not _is_finished(config):
                _write_start(plan, row, number)
                pretrain(config)
            for one in finetuning:
                if not _is_finished(one):
                    finetune(one)
        except Interrupted:
            raise
        except Exception as error:  # the other rows continue, whatever went wrong here, such as a lack of memory
            message = _failure_message(error)
            failure = {"error": message, "diverged": isinstance(error, Diverged), "traceback": traceback.format_exc()}
            run_folder.write_json(folder / FAILURE, failure)
            log.warning("%s, %s failed, the other runs continue: %s", label, run_title(number), message)
            return "failed"
        if is_counted and not Path(run_dir, PROBES).exists():
            run_folder.write_json(Path(run_dir, PROBES), probe(plan, config))
    return "already finished" if was_finished else "finished"


def _not_begun(plan: Plan, row: PlannedRow, number: Number) -> str:
    """Say which run or tuning a run waits for; empty if it can begin.

    Raises:
      InputError: all runs of that tuning failed.
    """
    if isinstance(number, int) and (reason := tuning.check_selected(plan, row)):
        return reason
    for label in row.needs:
        if not isinstance(number, int) and (reason := tuning.check_selected(plan, plan.row(label))):
            return reason
        if not _is_finished(needed := plan.needed_config(label, number)):
            verb = "starts" if label == row.start else "learns"
            return f"'{label}', from which it {verb}, is not finished ({needed.run_dir})"
    return ""


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


def _write_start(plan: Plan, row: PlannedRow, number: Number) -> None:
    """Write the parameters that a run starts from: those of row `row.start`, with this row's sharing and depth."""
    folder = Path(plan.run_config(row, number).run_dir)
    if row.start and not (folder / "start").exists() and not checkpoint.has_checkpoint(str(folder / "checkpoints")):
        source = plan.needed_config(row.start, number).run_dir
        changes = {name: getattr(row.config.model, name) for name in START_CHANGES}
        convert(source, folder / "start", to="albert_jax", **changes)


def submit(plan: Plan, options: Mapping[str, Any], parallel_seeds: bool = False) -> list[str]:
    """Send each unfinished unit of `units` to Slurm as one job, through submitit.

    A job waits for the jobs that tune its row and for those of the runs from which it starts or learns.  A job that finds its run finished or
    running ends at once, so a second launch does no harm.

    Args:
      plan: what to run.
      options: of the jobs, in submitit's names: `timeout_min` (default 5), `gpus_per_node`, `slurm_partition` and others.
      parallel_seeds: see `units`.

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
    jobs: dict[tuple[str, str], str] = {}
    for row, numbers in units(plan, parallel_seeds):
        is_counted = isinstance(numbers[0], int)
        if all(_is_finished(plan.run_config(row, number)) for number in numbers) and not (is_counted and plan.finetune):
            continue
        tuned = [row] if is_counted else [plan.row(label) for label in row.needs]
        needed = [(one.label, run_name(values)) for one in tuned for values in grid_points(one.grid)]
        needed += [(label, run_name(number)) for label in row.needs for number in numbers] if is_counted else []
        before = dict.fromkeys(jobs[key] for key in needed if key in jobs)
        waits = {"dependency": f"afterany:{':'.join(before)}"} if before else {}
        executor.update_parameters(slurm_additional_parameters=waits)
        job = executor.submit(run_job, plan.run_dir, row.label, numbers).job_id
        jobs |= {(row.label, run_name(number)): job for number in numbers}
    return list(dict.fromkeys(jobs.values()))


def run_job(run_dir: str, label: str, numbers: Sequence[Number]) -> None:
    """Run `run_unit` in a Slurm job and log to the job's output."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("albert_jax").setLevel(logging.INFO)
    run_unit(run_dir, label, numbers)

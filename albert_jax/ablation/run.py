"""Running a plan: row by row and seed by seed, here or as jobs of a cluster; finished rows are skipped, failed ones kept on record."""

import dataclasses
import logging
import os
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from albert_jax.ablation.planning import Plan, PlannedRow, finetune_config, load_plan
from albert_jax.config import InputError, check_writable, differences, read_json, require, to_dict
from albert_jax.data.prepare import prepare
from albert_jax.exchange.convert import convert
from albert_jax.finetuning import files
from albert_jax.finetuning.run import FinetuneConfig, finetune
from albert_jax.finetuning.tasks import TASKS
from albert_jax.pretraining import probes
from albert_jax.pretraining.run import PretrainConfig, pretrain
from albert_jax.reports import comparison, figures
from albert_jax.reports.comparison import FAILURE, MANIFEST, PROBES, Comparison
from albert_jax.reports.tables import duration
from albert_jax.training import checkpoint, run_folder
from albert_jax.training.loop import Interrupted

log = logging.getLogger(__name__)

LOCK = "ablate.lock"
"""Of a row, or of a table; a run has its own."""


def ablate(plan: Plan) -> Comparison:
    """Runs what of the plan is not finished, one run after another, all rows of a seed before the next seed.

    A row that fails is recorded in its folder and the others go on; it is tried again the next time.  A row that another
    launch on the same folder is running is left to that one.

    Returns:
      The table of all rows, which also stands in the folder, with figures.

    Raises:
      InputError: the folder holds another table or other configurations, or the first row's text or a task's files cannot be
        used; before anything runs.
      train.Interrupted: a signal came; the run's state is saved.
    """
    first = plan.rows[0].config
    prepare(first.data, first.model.vocab_size)
    for words in plan.finetune.values():
        data = finetune_config(plan.rows[0], 0, plan.scale, words).data
        files.find(data, TASKS[data.task].splits)
    plan = claim(plan)
    units = [(row, seed) for seed in range(plan.seeds) for row in plan.rows]
    begun, done = time.monotonic(), 0
    for number, (row, seed) in enumerate(units):
        left = f"; about {duration((time.monotonic() - begun) / done * (len(units) - number))} left" if done else ""
        log.info("run %d of %d: %s, seed %d%s", number + 1, len(units), row.label, seed, left)
        before = time.monotonic()
        log.info("%s, seed %d: %s", row.label, seed, run_unit(plan.run_dir, row.label, seed))
        done += time.monotonic() - before > 1  # what was finished before says nothing of what is left
    return figures.write(comparison.read([Path(plan.run_dir)]))


def claim(plan: Plan) -> Plan:
    """Writes the plan's `ablation.json`, together with what earlier launches on the folder began.

    Returns:
      The plan, with the rows that were begun as they were planned then.

    Raises:
      InputError: the folder holds another table, or runs of other configurations.
    """
    folder = Path(plan.run_dir)
    check_writable(folder, "--run-dir")
    with run_folder.file_lock(folder, LOCK, wait=True):
        if (folder / MANIFEST).exists():
            whole = plan.joined(load_plan(folder / MANIFEST))
            if plan.budget == "time":  # measured again, steps differ: those of the first time count
                plan = dataclasses.replace(plan, rows=tuple(whole.row(row.label) for row in plan.rows))
        else:
            whole = plan
        for row in plan.rows:
            for seed in range(plan.seeds):
                run_folder.check(Path(row.seed(seed).run_dir), "pretrain", row.seed(seed))
                for words in plan.finetune.values():
                    _check_tuned(finetune_config(row, seed, plan.scale, words))
        whole.save()
    return plan


def _check_tuned(config: FinetuneConfig) -> None:
    """Refuses a folder of fine-tuning with other settings; its network is the run's, and not in `config`."""
    path = Path(config.run_dir, "config.json")
    stored = read_json(path)["config"] if path.exists() else {}
    sections = [name for name in ("data", "optim", "train") if name in stored]
    changed = [
        d
        for name in sections
        for d in differences(stored[name], to_dict(config)[name], f"{name}.")
        if not d.startswith(run_folder.MAY_CHANGE_ON_RESUME)
    ]
    told = (
        f"{path.parent} was fine-tuned with other settings ({'; '.join(changed)}); give another --run-dir, or remove it"
    )
    require(not changed, told)


def run_unit(run_dir: str, label: str, seed: int) -> str:
    """Runs one row with one seed, and its fine-tuning, unless it is finished or another process has it; says what became of it.

    Raises:
      train.Interrupted: a signal came; the state is saved.
    """
    plan = load_plan(Path(run_dir) / MANIFEST)
    row = plan.row(label)
    config = row.seed(seed)
    folder = Path(config.run_dir)
    with run_folder.file_lock(folder, LOCK) as mine:
        if not mine:
            return "left to the launch that is running it"
        if row.start and not _finished(parent := Path(plan.row(row.start).seed(seed).run_dir)):
            return f"not begun: '{row.start}', which it starts from, is not finished ({parent})"
        try:
            (folder / FAILURE).unlink(missing_ok=True)
            ran = not _finished(folder)
            if ran:
                _start(plan, row, seed)
                pretrain(config)
            for words in plan.finetune.values():
                tuned = finetune_config(row, seed, plan.scale, words)
                if not _finished(Path(tuned.run_dir)):
                    ran = True
                    finetune(tuned)
        except Interrupted:
            raise
        except Exception as error:  # a row that does not fit into memory, or diverges, must not cost the others
            told = _reason(error)
            run_folder.write_json(folder / FAILURE, {"error": told, "traceback": traceback.format_exc()})
            log.warning("%s, seed %d failed, and the others go on: %s", label, seed, told)
            return "failed"
        path = Path(run_dir) / PROBES
        if not path.exists():
            run_folder.write_json(path, probed(config))
    return "finished" if ran else "was finished before"


def _reason(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    return first if isinstance(error, InputError) else f"{type(error).__name__}: {first}"


def probed(config: PretrainConfig) -> dict[str, Any]:
    """What `probes.probe` finds in the row's text for SOP, or as `error` why it found nothing: no reason to lose the table."""
    objective = dataclasses.replace(config.objective, sentence_objective="sop")
    try:
        return probes.probe(dataclasses.replace(config, objective=objective, eval_objective=None))
    except Exception as error:
        return {"error": _reason(error)}


def _start(plan: Plan, row: PlannedRow, seed: int) -> None:
    """The parameters that the row starts from, as a model folder of its own sharing and depth."""
    config = row.seed(seed)
    target = Path(config.run_dir) / "start"
    if not row.start or target.exists() or checkpoint.has_checkpoint(target.parent / "checkpoints"):
        return
    model = config.model
    changes: dict[str, Any] = {"sharing": model.sharing, "num_hidden_layers": model.num_hidden_layers}
    if model.sharing == "groups":
        changes["num_hidden_groups"] = model.num_hidden_groups
    convert(plan.row(row.start).seed(seed).run_dir, target, to="albert_jax", **changes)


def submit(plan: Plan, options: Mapping[str, Any]) -> list[str]:
    """Sends every run that is not finished to Slurm as a job of its own (submitit); returns the jobs' numbers.

    A job whose row starts from another waits for that one's job.  Jobs that find their run finished, or held by another job,
    end at once, so a second launch does no harm.

    Args:
      plan: what is to be run.
      options: of the jobs, in submitit's names: `timeout_min` (its default is 5), `gpus_per_node`, `slurm_partition` and others.

    Raises:
      InputError: as `claim`; submitit is not installed; an option that it does not know.
    """
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")  # it would close the handlers of all other loggers
    try:
        import submitit
    except ModuleNotFoundError:
        raise InputError("--launcher slurm: pip install 'albert_jax[slurm]'") from None
    try:
        executor = submitit.AutoExecutor(folder=Path(plan.run_dir, "slurm"), cluster="slurm")
        executor.update_parameters(**{"name": plan.name} | dict(options))
    except (RuntimeError, NameError, TypeError, ValueError) as error:
        raise InputError(f"--launcher slurm: {str(error).splitlines()[0]}") from None
    plan = claim(plan)
    jobs: dict[tuple[str, int], str] = {}
    for seed in range(plan.seeds):
        for row in plan.rows:
            if _finished(Path(row.seed(seed).run_dir)) and not plan.finetune:
                continue
            before = jobs.get((row.start, seed))
            waits = {"dependency": f"afterany:{before}"} if before else {}
            executor.update_parameters(slurm_additional_parameters=waits)
            jobs[row.label, seed] = executor.submit(run_job, plan.run_dir, row.label, seed).job_id
    return list(jobs.values())


def run_job(run_dir: str, label: str, seed: int) -> str:
    """`run_unit` in a process of its own, whose log is the job's."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("albert_jax").setLevel(logging.INFO)
    return run_unit(run_dir, label, seed)


def _finished(folder: Path) -> bool:
    return (folder / "summary.json").exists()

"""Where the metrics of a run go besides `metrics.jsonl`: TensorBoard, Weights & Biases, MLflow.  A logger is an entry of `LOGGERS`.

Each logger runs in a separate thread, so that training never waits for a service.  If a logger fails, one warning is logged, and
the run continues without it.
"""

import functools
import importlib.util
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, Protocol

from albert_jax.config import InputError, check_choice, first_line, flat
from albert_jax.training.run_folder import write_text

log = logging.getLogger(__name__)

PROJECT = "albert_jax"
"""The project in W&B and the experiment in MLflow, unless WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME names a different one."""

WAIT_SECONDS = 60
"""How long the end of a run waits for its loggers to send what is left."""


class Logger(Protocol):
    """Sends the metrics of a run somewhere; an entry of `LOGGERS`.  Any method may raise; then the logger is closed."""

    package: ClassVar[str]
    """The library that it needs."""

    def __init__(self, folder: Path, config: Mapping[str, Any], start: int) -> None:
        """Begin a run, or continue it.

        Args:
          folder: of the run, for files and the id under which the run continues.
          config: of the run, nested; with the key `job`.
          start: the step from which the run resumes.
        """

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the metrics of a step."""

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Send the summary, figures (.png) and tables (.csv, .md) of a completed run."""

    def close(self) -> None:
        """End the run, as failed if `finish` was not called."""


class TensorBoard:
    """Event files in `tensorboard/`; those of steps that a resumed run repeats are dropped."""

    package: ClassVar[str] = "tensorboardX"

    def __init__(self, folder: Path, config: Mapping[str, Any], start: int) -> None:
        self.folder, self.start = folder, start

    @functools.cached_property
    def writer(self) -> Any:
        """Created at the first metrics, so that an ablation table has no empty event file."""
        from tensorboardX import SummaryWriter

        return SummaryWriter(str(self.folder / "tensorboard"), purge_step=self.start + 1, flush_secs=30)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        pass

    def close(self) -> None:
        if "writer" in vars(self):
            self.writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases, with its local files in `wandb/`.  W&B's environment variables apply, such as WANDB_MODE,
    except those that say which run is continued and where its files are.

    A W&B run cannot go back to an earlier step.  A run that was killed repeats the steps after its last checkpoint; W&B keeps
    the values that it has of them, which are the same unless data or versions have changed.
    """

    package: ClassVar[str] = "wandb"

    def __init__(self, folder: Path, config: Mapping[str, Any], start: int) -> None:
        import wandb

        if wandb.setup().settings.mode == "online" and not wandb.login(prompt=False, verify=False):
            raise InputError("no API key; run 'wandb login', or set WANDB_MODE=offline")
        path = folder / "wandb.id"
        if not path.exists():
            write_text(path, uuid.uuid4().hex[:8])
        self.wandb, self.exit_code = wandb, 1
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=os.environ.get("WANDB_NAME", str(config["run_dir"])),
            job_type=config["job"],
            config=dict(config),
            dir=folder,
            id=path.read_text(),
            resume="allow",
            reinit="create_new",  # several runs of one process, and a run that the caller has open
            settings=wandb.Settings(
                console="off", silent=True, finish_timeout=WAIT_SECONDS, finish_timeout_raises=True
            ),
        )
        upload = f"offline; upload it with 'wandb sync {folder / 'wandb'}/offline-run-*-{self.run.id}'"
        log.info("wandb: %s", upload if self.run.offline else self.run.url)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self.run.starting_step:
            self.run.log(dict(values), step=step)

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        import pandas as pd

        self.run.summary.update(dict(summary))
        pictures = {path.stem: self.wandb.Image(str(path)) for path in files if path.suffix == ".png"}
        tables = {path.stem: pd.read_csv(path) for path in files if path.suffix == ".csv"}
        self.run.log(
            pictures | {f"{name} (table)": self.wandb.Table(dataframe=table) for name, table in tables.items()}
        )
        self.exit_code = 0

    def close(self) -> None:
        self.run.finish(exit_code=self.exit_code)


class MLflow:
    """A run of MLflow, at MLFLOW_TRACKING_URI.  Steps that a resumed run repeats have two points in a metric's history."""

    package: ClassVar[str] = "mlflow"
    max_params = 100
    """Maximum number of parameters in a request to MLflow's server."""

    def __init__(self, folder: Path, config: Mapping[str, Any], start: int) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it warns of every retry
        self.client, self.metric, self.status = MlflowClient(), Metric, "FAILED"
        path = folder / "mlflow.id"
        if path.exists() and self._is_active(path.read_text()):
            self.run_id = path.read_text()
            self.client.update_run(self.run_id, status="RUNNING")
        else:
            self.run_id = self.client.create_run(self._experiment(), run_name=str(config["run_dir"])).info.run_id
            params = [Param(key, str(value)) for key, value in flat(config).items()]
            try:
                for first in range(0, len(params), self.max_params):
                    self.client.log_batch(self.run_id, params=params[first : first + self.max_params])
            except Exception:
                self.close()  # the caller has no logger that it could close
                raise
            write_text(path, self.run_id)  # last, so that a run that continues has its parameters
        log.info("mlflow: run %s", self.run_id)

    def _is_active(self, run_id: str) -> bool:
        """Whether a run can continue: it was not deleted, and is not on another server."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run_id).info.lifecycle_stage == "active"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _experiment(self) -> str:
        """The id of the experiment.  Several runs may start at once, so only the server knows whether it exists."""
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        try:
            return self.client.create_experiment(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment: Any = self.client.get_experiment_by_name(name)
            return experiment.experiment_id

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self.client.log_batch(self.run_id, [self.metric(name, value, now, step) for name, value in values.items()])

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        if summary:
            self.client.log_dict(self.run_id, dict(summary), "summary.json")
        for path in files:
            self.client.log_artifact(self.run_id, str(path))
        self.status = "FINISHED"

    def close(self) -> None:
        self.client.set_terminated(self.run_id, self.status)


LOGGERS: dict[str, type[Logger]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}
"""Name in `train.loggers` -> the class.  The library that it needs is in the extra of this name."""


def logger_names(names: str) -> list[str]:
    """The loggers that a value of `train.loggers` names, such as "tensorboard,wandb".

    Raises:
      InputError: one of them is unknown.
    """
    result = list(dict.fromkeys(filter(None, names.split(","))))
    for name in result:
        check_choice("loggers", name, LOGGERS)
    return result


def check_installed(names: str) -> None:
    """Check that the libraries of the loggers are installed.

    Raises:
      InputError: names the extra that installs the missing one.
    """
    for name in logger_names(names):
        if importlib.util.find_spec(LOGGERS[name].package) is None:
            raise InputError(f"train.loggers {name}: pip install 'albert_jax[{name}]'")


class Loggers:
    """The loggers of a run; without arguments, none.

    Args:
      names: the value of `train.loggers`.
      folder, config: see `Logger`.
    """

    def __init__(self, names: str = "", folder: Path = Path(), config: Mapping[str, Any] | None = None) -> None:
        self._names, self._folder, self._config = logger_names(names), folder, config or {}
        self._threads: list[_LoggerThread] = []

    def start(self, step: int) -> None:
        """Begin the run, or continue it after `step`."""
        for name in self._names:
            make = functools.partial(LOGGERS[name], self._folder, self._config, step)
            self._threads.append(_LoggerThread(name, make))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Send the metrics of a step."""
        for thread in self._threads:
            thread.call(lambda logger: logger.log(step, values))

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Send the summary, figures and tables of a completed run."""
        for thread in self._threads:
            thread.call(lambda logger: logger.finish(summary, files))

    def close(self) -> None:
        """As `close_all`."""
        close_all([self])


def close_all(several: Iterable[Loggers]) -> None:
    """End some runs, and wait until everything is sent, at most `WAIT_SECONDS` for all together."""
    threads = [thread for one in several for thread in one._threads]
    for thread in threads:
        thread.calls.put(None)
    deadline = time.monotonic() + WAIT_SECONDS
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
        if thread.is_alive():
            message = "train.loggers %s: no answer for %g s; the rest was not sent"
            log.warning(message, thread.logger_name, WAIT_SECONDS)


class _LoggerThread(threading.Thread):
    """Makes a logger, calls it, and closes it."""

    def __init__(self, name: str, make: Callable[[], Logger]) -> None:
        super().__init__(name=f"logger {name}", daemon=True)
        self.logger_name, self.make = name, make
        self.calls: queue.SimpleQueue[Callable[[Logger], None] | None] = queue.SimpleQueue()
        self.start()

    def call(self, function: Callable[[Logger], None]) -> None:
        if self.is_alive():  # otherwise it has failed, and nobody empties the queue
            self.calls.put(function)

    def run(self) -> None:
        try:
            with closing(self.make()) as logger:
                while function := self.calls.get():
                    function(logger)
        except Exception as error:  # whatever a service or its library raises
            self.warn(f"{type(error).__name__}: {first_line(error)}")

    def warn(self, reason: str) -> None:
        log.warning("train.loggers %s: %s; the run continues without it", self.logger_name, reason)

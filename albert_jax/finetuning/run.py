"""Fine-tuning: the composition root that puts a task's data, a pretrained model and the optimiser into the train loop."""

import functools
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from albert_jax.config import InputError, check_fields, flat, from_dict, read_json, require, to_dict
from albert_jax.data import batches, tokenizer_json
from albert_jax.data.tokenizer import Tokenizer, train_vocabulary
from albert_jax.exchange import load as exchange
from albert_jax.finetuning import family, files
from albert_jax.finetuning.files import TaskDataConfig
from albert_jax.finetuning.tasks import TASKS
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import HEADS, Albert, flops_per_token, init_params, param_shapes, stacked_shapes
from albert_jax.model.sharing import is_stacked
from albert_jax.reports import run as report
from albert_jax.training import checkpoint, partition, processes, run_folder
from albert_jax.training import loop as train
from albert_jax.training.loop import TrainConfig
from albert_jax.training.optim import OptimConfig, make_optimizer
from albert_jax.training.partition import Layout, MeshConfig
from albert_jax.training.step import Workload

log = logging.getLogger(__name__)

RUN_FIELDS = (
    "dtype",
    "remat",
    "scan_unroll",
    "attention_implementation",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout_prob",
)
"""Fields of the model that stay the experiment's with --init-from; all others are the network's that it starts from."""

SCALES: dict[str, dict[str, Any]] = {
    "paper": {},
    # Clipping at 0.1 as gluon-nlp fine-tunes every v2 size up to xxlarge; rates above 2e-5 are reported to diverge.
    "large": {"optim.learning_rate": 1e-5, "optim.max_grad_norm": 0.1},
    "tiny": {
        "model.vocab_size": 1000,
        "model.embedding_size": 64,
        "model.hidden_size": 128,
        "model.num_hidden_layers": 4,
        "model.num_attention_heads": 4,
        "model.intermediate_size": 512,
        "model.max_position_embeddings": 128,
        "model.scan_unroll": 4,
        "data.max_seq_length": 128,
        "data.max_query_length": 32,
        "data.doc_stride": 48,
        "data.max_qa_length": 48,
        "data.max_eval_samples": 1000,
        "optim.learning_rate": 5e-4,
        "optim.num_warmup_steps": 30,
        "train.num_train_steps": 300,
        "train.global_batch_size": 16,
        "train.log_every": 50,
        "train.eval_every": 100,
        "train.checkpoint_every": 100,
        "train.eval_batch_size": 32,
    },
}
"""Sizes for --scale: fields that go before the experiment's; the command line goes before both."""

LARGE = 1024
"""H from which learning rates above `SAFE_RATE` are known to diverge for v2 checkpoints."""
SAFE_RATE = 2e-5


@dataclass(frozen=True)
class FinetuneConfig:
    """A fine-tuning run."""

    run_dir: str
    """The run folder; the same command again resumes from it."""
    model: AlbertConfig
    """With --init-from only dropout, dtype, remat, scan_unroll and attention_implementation count: the network is that one's.  With --data.vocab its size."""
    data: TaskDataConfig
    optim: OptimConfig
    train: TrainConfig
    mesh: MeshConfig = field(default_factory=MeshConfig)
    init_from: str = ""
    """What the run starts from: anything that `albert_jax.load` reads; empty: random weights."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.run_dir != "", "run_dir is empty: name the run folder")
        require(
            self.optim.num_warmup_steps < self.train.num_train_steps,
            f"optim.num_warmup_steps ({self.optim.num_warmup_steps}) must be < train.num_train_steps ({self.train.num_train_steps})",
        )
        known = ", ".join(TASKS)
        require(self.data.task in TASKS, f"data.task: one of {known}, got {self.data.task!r}")


def finetune(config: FinetuneConfig, allow_data_change: bool = False) -> dict[str, Any]:
    """Reads the task, trains, evaluates, writes predictions and the run folder; resumes what the folder already holds.

    Of several processes (`processes.start`), all call it, with the same configuration and a run folder that all see.

    Args:
      config: what is run.
      allow_data_change: resume with other data than before.

    Returns:
      The content of `summary.json`: `eval`, the dev metrics of the last parameters; `best`, those of the best by the metric
      `select`, with `step`; `baseline`, without a model; `test`, where the test files have labels; `degenerate`, whether the best
      predicts always the same; `predictions`, files; `steps`, `tokens`, `seconds`, `tokens_per_second`.

    Raises:
      InputError: whatever in the configuration, the data or the folder cannot be used.
      train.Interrupted: a signal came; the state is saved.
    """
    run_dir = Path(config.run_dir).expanduser()
    mesh = partition.make_mesh(config.train.platform, config.mesh.data)
    accumulation = config.train.gradient_accumulation
    partition.check_batch_size("train.global_batch_size", config.train.global_batch_size, accumulation, mesh.size)
    partition.check_batch_size("train.eval_batch_size", config.train.eval_batch_size, 1, mesh.size)
    task = TASKS[config.data.task]
    sources = files.find(config.data, task.splits)
    source = _source(config, run_dir)
    config = _resolved(config, source)
    config.mesh.check_remat(config.model.remat)
    several = next(run_dir.glob("seed-*/config.json"), None)
    told = f"--run-dir {run_dir} holds the runs of several seeds; give another, or their --seeds"
    require(several is None, told)
    run_folder.check(run_dir, "finetune", config)
    for split, found in sources.items():
        log.info("%s: %s", split, found.name)
    examples, labels = task.read(sources, config.data)
    tokenizer = _tokenizer(config, run_dir, source, task.texts(examples["train"]))
    rows = {split: task.rows(found, tokenizer, config.data, labels, split) for split, found in examples.items()}
    batches.check_enough_rows(rows["train"], config.train.global_batch_size)
    fingerprints = {"data": files.fingerprint(sources), "vocab": tokenizer.sha256}
    processes.agree({f"--{name}": value for name, value in flat(to_dict(config)).items()} | {"the data": fingerprints})
    model = Albert(config.model, tuple(head for head in HEADS if head in task.heads(config.data)), labels)
    layout = Layout(mesh, config.mesh.sharding, stacked_shapes(model))
    with run_folder.locked(run_dir, config.train.checkpoint_dir, processes.is_main()):
        if processes.is_main():
            model_facts = {"heads": model.heads, "labels": labels}
            claimed = to_dict(config), fingerprints, model_facts, allow_data_change
            run_folder.claim(run_dir, "finetune", *claimed)
            tokenizer_json.write_vocabulary(tokenizer, config.model.max_position_embeddings, run_dir)
        processes.check_shared(run_dir / "config.json")
        _tell(config, rows, mesh)

        evaluation = _Evaluation(config, task, examples, rows, labels, model, mesh)
        trained = Workload(
            init=functools.partial(init_params, model),
            draw=family.draw,
            loss=functools.partial(task.loss, functools.partial(model.apply, gather_set=layout.gather_set), train=True),
            batches=functools.partial(
                batches.train_batches,
                rows["train"],
                config.train.global_batch_size,
                config.data.max_seq_length,
                config.train.seed,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
            evaluate=evaluation.evaluate,
            flops_per_token=flops_per_token(config.model, int(rows["train"].lengths.mean()), 0),
            select=evaluation.select,
        )
        initial = functools.partial(_initial, config, source, model) if config.init_from else None
        optimizer = make_optimizer(config.optim, config.train.num_train_steps, is_stacked)
        _, summary = train.run(
            config.train,
            trained,
            optimizer,
            layout,
            run_dir,
            initial=initial,
            fingerprints=fingerprints,
            allow_data_change=allow_data_change,
        )
        summary |= evaluation.conclude(run_dir)
        if processes.is_main():
            run_folder.write_json(run_dir / "summary.json", summary)
            report.plot_curves(run_dir)
        log.info("%s", report.table(summary))
        log.info("curves, log, checkpoints, predictions and summary: %s", run_dir)
    return summary


class _Evaluation:
    """What the model says of every split but the training one."""

    def __init__(
        self,
        config: FinetuneConfig,
        task: family.Family,
        examples: dict[str, list[Any]],
        rows: dict[str, batches.Rows],
        labels: tuple[str, ...],
        model: Albert,
        mesh: Mesh,
    ) -> None:
        self.config, self.task, self.examples, self.rows, self.labels = config, task, examples, rows, labels
        self.model, self.mesh = model, mesh
        self.dev = [split for split in examples if split.startswith("dev")]
        self.step = jax.jit(
            lambda params, batch: task.outputs(model.apply, partition.gathered(params, mesh), batch, config.data),
            out_shardings=partition.replicated(mesh),
        )
        commonest = {split: task.baseline(examples["train"], examples[split], labels) for split in self.dev}
        self.baseline = self.together(commonest)
        # Of several dev splits the metrics bear their names, and the first one selects.
        self.select = task.select if len(self.dev) == 1 else f"{task.select}_{self.dev[0].removeprefix('dev_')}"

    def score(self, params: Any, split: str, dev: dict[str, float] | None = None) -> family.Scored:
        """Every example of a split once; `dev` as `Family.score`."""
        size, length = self.config.train.eval_batch_size, self.config.data.max_seq_length
        found = family.infer(self.step, params, self.rows[split], size, length, self.put)
        return self.task.score(self.examples[split], self.rows[split], found, self.labels, dev)

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """The whole batch, which every process has, cut by rows."""
        return {name: jax.device_put(value, partition.by_rows(self.mesh)) for name, value in batch.items()}

    def together(self, of_splits: dict[str, dict[str, float]]) -> dict[str, float]:
        """The metrics of all dev splits in one table; of several, each by the end of its split's name."""
        if len(self.dev) == 1:
            return of_splits[self.dev[0]]
        return {
            f"{name}_{split.removeprefix('dev_')}": value
            for split, metrics in of_splits.items()
            for name, value in metrics.items()
        }

    def evaluate(self, params: Any) -> dict[str, dict[str, float]]:
        """As `Workload.evaluate`."""
        metrics = {split: self.score(params, split).metrics for split in self.dev}
        return {"eval": self.together(metrics), "baseline": self.baseline}

    def conclude(self, run_dir: Path) -> dict[str, Any]:
        """Writes what the best parameters say of all splits; returns their part of the summary."""
        here = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=partition.replicated(self.mesh)),
            param_shapes(self.model),
        )
        params = checkpoint.restore_params(run_dir / "best", here)
        scored = {split: self.score(params, split) for split in self.dev}
        tuned = scored[self.dev[0]].metrics
        rest = [split for split in self.examples if split not in ("train", *self.dev)]
        scored |= {split: self.score(params, split, tuned) for split in rest}
        folder = run_dir / "predictions"
        written: list[str] = []
        if processes.is_main():
            folder.mkdir(exist_ok=True)
            written = [
                str(self.task.write(folder, split, self.examples[split], found.predictions))
                for split, found in scored.items()
            ]
        tested = {split: scored[split].metrics for split in rest if scored[split].metrics}
        same = all(scored[split].degenerate for split in self.dev)
        found = {"select": self.select, "degenerate": same, "predictions": written}
        return found | ({"test": tested} if tested else {})


def _source(config: FinetuneConfig, run_dir: Path) -> exchange.Source | None:
    """The model that the run starts from; None for random weights, and where the run has checkpoints of its own."""
    if not config.init_from or checkpoint.has_checkpoint(train.checkpoint_folder(config.train, run_dir)):
        return None
    source = exchange.read(config.init_from)
    for note in source.weights.notes:
        log.info("%s: %s", config.init_from, note)
    return source


def _resolved(config: FinetuneConfig, source: exchange.Source | None) -> FinetuneConfig:
    """With the network that the run starts from, or goes on with, in the place of the experiment's.

    Raises:
      InputError: inputs longer than it takes.
    """
    model = config.model
    if config.init_from:
        if source is not None:
            network = source.weights.model.config
        else:
            stored = read_json(Path(config.run_dir).expanduser() / "config.json")
            network = from_dict(AlbertConfig, stored["config"]["model"], "config.model")
        model = replace(network, **{name: getattr(model, name) for name in RUN_FIELDS})
    elif config.data.vocab:
        model = replace(model, vocab_size=Tokenizer(config.data.vocab).vocab_size)
    most, length = model.max_position_embeddings, config.data.max_seq_length
    told = f"data.max_seq_length {length} > model.max_position_embeddings {most}"
    require(length <= most, f"{told}; --data.max-seq-length {most} is the longest that it takes")
    if model.hidden_size >= LARGE and config.optim.learning_rate > SAFE_RATE:
        told = (
            "optim.learning_rate %g: v2 checkpoints of this size are known to diverge above %g; --scale large is lower"
        )
        log.warning(told, config.optim.learning_rate, SAFE_RATE)
    return replace(config, model=model)


def _tokenizer(
    config: FinetuneConfig, run_dir: Path, source: exchange.Source | None, texts: Sequence[str]
) -> Tokenizer:
    """The one that is named, that of --init-from, the run's own, or one trained on the task's text."""
    data, size = config.data, config.model.vocab_size
    if data.vocab:
        tokenizer = Tokenizer(data.vocab, map_punctuation=data.map_punctuation)
        pieces = tokenizer.vocab_size
        require(pieces == size, f"data.vocab {data.vocab} has {pieces} pieces, --init-from {config.init_from} {size}")
        return tokenizer
    if source is not None:
        told = f"--init-from {config.init_from}: no vocabulary in it; name its SentencePiece model with --data.vocab"
        require(source.tokenizer is not None, told)
    own = tokenizer_json.read(run_dir, "") if source is None and (run_dir / "config.json").exists() else None
    if found := source.tokenizer if source is not None else own:
        return found
    log.info("no --data.vocab: training one of %d pieces on %d texts", size, len(texts))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spiece.model"
        try:
            train_vocabulary(texts, path, size, map_punctuation=data.map_punctuation)
        except InputError as error:
            told = str(error).removeprefix(f"{path}: ")
            raise InputError(f"{told}; --model.vocab-size makes it smaller, --data.vocab names one") from None
        return Tokenizer(path, map_punctuation=data.map_punctuation)


def _initial(config: FinetuneConfig, source: exchange.Source | None, model: Albert) -> Any:
    """Fresh parameters with everything that the source has in their place; a head only where its classes are the same."""
    source = source or exchange.read(config.init_from)  # there seemed to be a checkpoint, and there was none
    before = source.weights.model
    fresh = jax.jit(functools.partial(init_params, model))(jax.random.key(config.train.seed))
    params, new = {}, []
    for name, value in fresh.items():
        head = name in HEADS and name != "pooler"
        kept = name in source.weights.params and (not head or before.labels == model.labels)
        params[name] = source.weights.params[name] if kept else value
        new += [] if kept else [name]
    left = [head for head in before.heads if head not in params or head in new]
    told = f"; of it {', '.join(left)} left out" if left else ""
    log.info("started from %s%s%s", config.init_from, f"; {', '.join(new)} from random numbers" if new else "", told)
    return jax.device_get(params)


def _tell(config: FinetuneConfig, rows: dict[str, batches.Rows], mesh: Mesh) -> None:
    size = len(rows["train"])
    epochs = config.train.num_train_steps * config.train.global_batch_size / size
    log.info(
        "%d training rows of %.0f tokens (mean), %s; %d steps are %.1f epochs; on %d %s",
        size,
        rows["train"].lengths.mean(),
        ", ".join(f"{len(found)} {split}" for split, found in rows.items() if split != "train"),
        config.train.num_train_steps,
        epochs,
        mesh.size,
        jax.default_backend(),
    )
    if most := config.data.max_eval_samples:
        log.info("of every split but train at most %d examples are taken (data.max_eval_samples)", most)

"""Fine-tuning: puts a task's data, a pretrained model and an optimizer into the train loop.

A fine-tuned run keeps its best parameters in `best/`, apart from its checkpoints and without the optimizer's state; `load` and
`predict` use them.  They are written before the checkpoint of their step, because a run that resumes from it does not
repeat the evaluation.
"""

import functools
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import jax

from albert_jax.config import (
    InputError,
    check_choice,
    check_fields,
    from_dict,
    load,
    read_json,
    variant,
    variant_name,
)
from albert_jax.data import batches, tokenizer_files
from albert_jax.data.sentencepiece_tokenizer import train_vocabulary
from albert_jax.data.tokenizer import TEXT_OPTIONS, Tokenizer, letters_and_marks, text_options, warn_of_lost_marks
from albert_jax.data.tokenizer_files import open_tokenizer, with_options
from albert_jax.exchange.load import Source, check_vocabulary, read
from albert_jax.finetuning import family, files
from albert_jax.finetuning.evaluation import Evaluation
from albert_jax.finetuning.files import TaskDataConfig
from albert_jax.finetuning.multi_label import MultiLabel
from albert_jax.finetuning.tasks import FAMILIES, TASKS
from albert_jax.finetuning.teacher import with_teacher
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import HEADS, Albert, flops_per_token, init_params, stacked_shapes
from albert_jax.model.sharing import is_stacked
from albert_jax.pretraining.distillation import DistillationConfig, digest, read_teacher
from albert_jax.reports.run import finish
from albert_jax.training import checkpoint, loop, run_folder
from albert_jax.training.job import check_agreement, open_mesh, run_job
from albert_jax.training.loop import TrainConfig
from albert_jax.training.optim import OptimConfig, make_optimizer
from albert_jax.training.partition import Layout, MeshConfig
from albert_jax.training.step import Workload

log = logging.getLogger(__name__)

OWN_MODEL_FIELDS = (
    "dtype",
    "remat",
    "scan_unroll",
    "attention_implementation",
    "fused_kernels",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout_prob",
    "depth_sampling",
)
"""Model fields that the experiment sets also with --init-from; the others, the architecture, come from the checkpoint."""

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
"""Overrides of the experiment for --scale; the command line overrides both.  Data fields of other families are skipped."""

LARGE_HIDDEN_SIZE = 1024
"""Hidden size from which v2 checkpoints are known to diverge at learning rates above `SAFE_LEARNING_RATE`."""
SAFE_LEARNING_RATE = 2e-5


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A fine-tuning run."""

    run_dir: str
    """The run folder; rerunning the same command resumes from it."""
    model: AlbertConfig
    """With --init-from, only dropout, dtype, remat, scan_unroll, attention_implementation, fused_kernels and depth_sampling are used: the architecture comes from the checkpoint."""
    data: TaskDataConfig = variant(MISSING, FAMILIES)
    """The data of the task; its fields depend on the task's family."""
    optim: OptimConfig
    train: TrainConfig
    mesh: MeshConfig = field(default_factory=MeshConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """A teacher that was fine-tuned on the same task."""
    init_from: str = ""
    """Model to start from: any source that `albert_jax.load` reads; empty: random weights."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.run_dir:
            raise InputError("run_dir is empty: name the run folder")
        warmup, steps = self.optim.num_warmup_steps, self.train.num_train_steps
        if warmup >= steps:
            raise InputError(f"optim.num_warmup_steps ({warmup}) must be < train.num_train_steps ({steps})")
        tasks = [name for name, task in TASKS.items() if task.data_config is type(self.data)]
        if self.data.task not in tasks:
            kind = type(self.data).__name__
            raise InputError(
                f"data.task: unknown value {self.data.task!r} for {kind}; choose one of {', '.join(tasks)}"
            )
        self.distillation.check_depth(self.model)


def load_config(experiment: str, overrides: Mapping[str, Any] | None = None, scale: str = "paper") -> FinetuneConfig:
    """Load an experiment.  The scale overrides its fields, and `overrides` override both.

    Raises:
      InputError: as `config.load`; architecture overrides with --init-from.
    """
    check_choice("--scale", scale, SCALES)
    base, overrides = load(FinetuneConfig, experiment), overrides or {}
    architecture = [
        f"--{name.replace('_', '-')}"
        for name in overrides
        if name.startswith("model.") and name.removeprefix("model.") not in OWN_MODEL_FIELDS
    ]
    if overrides.get("init_from", base.init_from) and architecture:
        raise InputError(
            f"{', '.join(architecture)} cannot be combined with --init-from: the architecture comes from the checkpoint. "
            f"You can set: {', '.join(OWN_MODEL_FIELDS)}"
        )
    known = _data_fields(type(base.data))
    for family_name, data_config in FAMILIES.items():
        if foreign := sorted((_data_fields(data_config) - known).intersection(overrides)):
            kind = variant_name(base, "data")
            raise InputError(f"{foreign[0]} is a field of {family_name}, but the task {base.data.task!r} is {kind}")
    scaled = {name: value for name, value in SCALES[scale].items() if name in known or not name.startswith("data.")}
    return load(FinetuneConfig, experiment, {**scaled, **overrides})


def _data_fields(data_config: type[TaskDataConfig]) -> set[str]:
    return {f"data.{data_field.name}" for data_field in fields(data_config)}


def finetune(config: FinetuneConfig, allow_data_change: bool = False) -> dict[str, Any]:
    """Fine-tune a model: read the task, train, evaluate, and write predictions; or resume the run in the run folder.

    If there are several processes (`processes.start`), all of them call this with the same configuration and a shared run
    folder.

    Args:
      config: the experiment.
      allow_data_change: resume although the data has changed.

    Returns:
      The content of `summary.json`: `eval`, the dev metrics of the last parameters; `best`, those of the best parameters by
      the metric `select`, with their `step`; `baselines`, those of a trivial baseline; `test`, if test files have labels;
      `degenerate`, whether the predictions are constant; `predictions`, files; `steps`, `tokens`, `seconds`, `tokens_per_second`.

    Raises:
      InputError: the configuration, the data or the folder cannot be used.
      loop.Interrupted: a signal arrived; the state is saved.
    """
    run_dir = Path(config.run_dir).expanduser()
    mesh = open_mesh(config)
    if any(run_dir.glob("seed-*/config.json")):
        raise InputError(
            f"--run-dir {run_dir} has the runs of several seeds; use another folder, or pass their --seeds"
        )
    config.distillation.check_teacher_given()
    task = TASKS[config.data.task]
    sources = files.find(config.data, task.splits)
    source = _open_source(config, run_dir)
    config = _with_architecture(config, source)
    run_folder.check(run_dir, "finetune", config)
    for split, split_source in sources.items():
        log.info("%s: %s", split, split_source.name)
    splits = family.read_splits(task, sources, config.data)
    tokenizer = _tokenizer(config, run_dir, source, task.texts(splits["train"].examples))
    rows = {name: task.rows(split, tokenizer, config.data) for name, split in splits.items()}
    labels = splits["train"].labels
    heads = tuple(head for head in HEADS if head in task.heads(config.data))
    model = Albert(config.model, heads, labels, multi_label=isinstance(task, MultiLabel))
    fingerprints = {"data": files.fingerprint(sources), "vocab": tokenizer.sha256}
    teacher = None
    if config.distillation.teacher:
        teacher = read_teacher(config.distillation, model, tokenizer, config.data.max_seq_length, heads)
        fingerprints["teacher"] = digest(teacher)
    check_agreement(config, fingerprints)
    batches.check_enough_rows(rows["train"], config.train.global_batch_size)
    _log_sizes(config, rows, mesh.size)

    layout = Layout(mesh, config.mesh.sharding, stacked_shapes(model))
    evaluation = Evaluation(config, task, splits, rows, model, mesh)
    apply = functools.partial(model.apply, gather_set=layout.gather_set)
    workload = Workload(
        init=functools.partial(init_params, model),
        draw=functools.partial(family.draw, config.model),
        loss=functools.partial(family.train_loss, task, apply),
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
    if teacher is not None:
        workload = with_teacher(workload, config.distillation, task, apply, teacher, config.data)
    return run_job(
        "finetune",
        config,
        workload,
        make_optimizer(config.optim, config.train.num_train_steps, is_stacked),
        layout,
        fingerprints=fingerprints,
        write_vocabulary=functools.partial(
            tokenizer_files.write_vocabulary, tokenizer, config.model.max_position_embeddings
        ),
        model_facts={"heads": model.heads, "labels": labels, "multi_label": model.multi_label},
        initial=functools.partial(_initial_params, config, source, model) if config.init_from else None,
        conclude=evaluation.conclude,
        report=finish,
        allow_data_change=allow_data_change,
    )


def _open_source(config: FinetuneConfig, run_dir: Path) -> Source | None:
    """The model of --init-from; None without it, and if the run has checkpoints to resume from."""
    if not config.init_from or checkpoint.has_checkpoint(loop.checkpoint_folder(config.train, run_dir)):
        return None
    source = read(config.init_from)
    for note in source.weights.notes:
        log.info("%s: %s", config.init_from, note)
    return source


def _with_architecture(config: FinetuneConfig, source: Source | None) -> FinetuneConfig:
    """The configuration with the architecture of --init-from, or of the run folder if the run is resumed.

    Raises:
      InputError: the inputs are longer than the model's position embeddings.
    """
    model = config.model
    if config.init_from:
        if source is not None:
            architecture = source.weights.model.config
        else:
            stored = read_json(Path(config.run_dir).expanduser() / "config.json")
            architecture = from_dict(AlbertConfig, stored["config"]["model"], "config.model")
        model = replace(architecture, **{name: getattr(model, name) for name in OWN_MODEL_FIELDS})
    elif config.data.vocab:
        model = replace(model, vocab_size=open_tokenizer(config.data.vocab).vocab_size)
    longest, length = model.max_position_embeddings, config.data.max_seq_length
    if length > longest:
        raise InputError(
            f"data.max_seq_length {length} > model.max_position_embeddings {longest}; use --data.max-seq-length {longest}"
        )
    if model.hidden_size >= LARGE_HIDDEN_SIZE and config.optim.learning_rate > SAFE_LEARNING_RATE:
        log.warning(
            "optim.learning_rate %g: v2 checkpoints of this size often diverge above %g; use --scale large",
            config.optim.learning_rate,
            SAFE_LEARNING_RATE,
        )
    config.mesh.check_remat(model.remat)
    return replace(config, model=model)


def _tokenizer(config: FinetuneConfig, run_dir: Path, source: Source | None, texts: Sequence[str]) -> Tokenizer:
    """The tokenizer of data.vocab, of --init-from, or of the run folder; otherwise trains one on the task's text.

    Its text options are those of the configuration, else those of --init-from or of the run folder.
    """
    data, size = config.data, config.model.vocab_size
    stored = source.tokenizer if source else None
    if source is None and (run_dir / "config.json").exists():
        stored = tokenizer_files.read(run_dir, "")
    options = text_options(stored) if stored else TEXT_OPTIONS
    options = options | {name: value for name, value in text_options(data).items() if value is not None}
    if data.vocab:
        tokenizer = open_tokenizer(data.vocab, **options)
        if source is not None and source.tokenizer is not None:
            check_vocabulary(f"--init-from {config.init_from}", source, tokenizer)
        elif tokenizer.vocab_size < size:
            log.warning("data.vocab %s has %d pieces, the model %d rows", data.vocab, tokenizer.vocab_size, size)
        if tokenizer.vocab_size > size:
            pieces = f"data.vocab {data.vocab} has {tokenizer.vocab_size} pieces"
            raise InputError(
                f"{pieces}, but --init-from {config.init_from} has {size}; use the checkpoint's vocabulary"
            )
        return tokenizer
    if stored is not None:
        return with_options(stored, options)
    if source is not None:
        raise InputError(
            f"--init-from {config.init_from} has no vocabulary; name its file (spiece.model, vocab.txt or tokenizer.json) with "
            "--data.vocab"
        )
    log.info("no --data.vocab: training a vocabulary of %d pieces on %d texts", size, len(texts))
    if not options["keep_accents"]:
        warn_of_lost_marks(*map(sum, zip(*map(letters_and_marks, texts), strict=True)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "spiece.model"
        try:
            train_vocabulary(texts, path, size, **options)
        except InputError as error:
            message = str(error).removeprefix(f"{path}: ")
            raise InputError(f"{message}; reduce --model.vocab-size, or name a vocabulary with --data.vocab") from None
        return open_tokenizer(path, **options)


def _initial_params(config: FinetuneConfig, source: Source | None, model: Albert) -> Any:
    """The parameters of --init-from, random where it has none; a head is used only if its classes are the same."""
    source = source or read(config.init_from)  # a checkpoint was detected, but none could be restored
    pretrained, labels = source.weights.params, source.weights.model.labels
    params = dict(jax.jit(functools.partial(init_params, model))(jax.random.key(config.train.seed)))
    usable = {
        name
        for name in pretrained
        if name in params and (name not in HEADS or name == "pooler" or labels == model.labels)
    }
    params |= {name: pretrained[name] for name in usable}
    random = ", ".join(name for name in params if name not in usable)
    unused = ", ".join(head for head in source.weights.model.heads if head not in usable)
    log.info("initialized from %s; random: %s; not used: %s", config.init_from, random or "none", unused or "none")
    return jax.device_get(params)


def _log_sizes(config: FinetuneConfig, rows: Mapping[str, batches.Rows], devices: int) -> None:
    lengths, steps = rows["train"].lengths, config.train.num_train_steps
    log.info(
        "%d training rows of %.0f tokens on average, %s; %d steps are %.1f epochs; on %d %s",
        len(lengths),
        lengths.mean(),
        ", ".join(f"{len(split_rows)} {split}" for split, split_rows in rows.items() if split != "train"),
        steps,
        steps * config.train.global_batch_size / len(lengths),
        devices,
        jax.default_backend(),
    )
    if limit := config.data.max_eval_samples:
        log.info("every split except train is limited to %d examples (data.max_eval_samples)", limit)

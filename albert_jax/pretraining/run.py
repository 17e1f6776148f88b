"""The pretraining job: runs the train loop with data, model, objective and optimizer."""

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from albert_jax.config import InputError, check_fields
from albert_jax.data import loader, tokenizer_files
from albert_jax.data.batches import check_enough_rows
from albert_jax.data.prepare import Prepared, prepare
from albert_jax.data.sources import DataConfig
from albert_jax.exchange.load import check_vocabulary, read
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, init_params, param_shapes, stacked_shapes
from albert_jax.model.sharing import is_stacked
from albert_jax.model.tree import leaves
from albert_jax.pretraining.baselines import baselines
from albert_jax.pretraining.diagnostics import plateau_warning
from albert_jax.pretraining.distillation import HEADS_TAUGHT, DistillationConfig, digest, read_teacher, with_teacher
from albert_jax.pretraining.evaluation import evaluated_depths, make_evaluate
from albert_jax.pretraining.examples import make_examples
from albert_jax.pretraining.minimal_pairs import PairsConfig, read_pairs, with_pairs
from albert_jax.pretraining.minimal_pairs import digest as digest_of_pairs
from albert_jax.pretraining.objective import ObjectiveConfig, Vocabulary, vocabulary_of
from albert_jax.pretraining.pseudo_likelihood import make_scorer
from albert_jax.pretraining.segment_pairs import SENTENCE_OBJECTIVES
from albert_jax.pretraining.task import pretraining_model, pretraining_workload
from albert_jax.pretraining.tied_layers import TyingConfig, tied_sets
from albert_jax.reports.run import finish
from albert_jax.training import checkpoint, job, loop, processes, run_folder
from albert_jax.training.loop import TrainConfig
from albert_jax.training.optim import OptimConfig, Optimizer, make_optimizer
from albert_jax.training.partition import Layout, MeshConfig
from albert_jax.training.step import Workload
from albert_jax.training.tying import tie_fresh, tie_trained

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PretrainConfig:
    """A pretraining run."""

    run_dir: str
    """The run folder.  Rerunning the command resumes from it."""
    model: AlbertConfig
    data: DataConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    train: TrainConfig
    mesh: MeshConfig = field(default_factory=MeshConfig)
    eval_objective: ObjectiveConfig | None = None
    """How held-out inputs are drawn, to compare runs with different objectives.  Default: as in training."""
    max_eval_steps: int = 100
    """Maximum number of batches of held-out rows in an evaluation."""
    eval_draws: int = 1
    """Number of times that an evaluation draws pairs and masks for each held-out row.  More draws give smaller standard errors."""
    tying: TyingConfig = field(default_factory=TyingConfig)
    """Layers that share parameters during a part of the run."""
    distillation: DistillationConfig = field(default_factory=DistillationConfig)
    """A teacher."""
    eval_depths: str = ""
    """Evaluate the final parameters also with other numbers of layers: multiples of num_hidden_layers, such as 0.5,1,2,4.
    For layers that repeat (sharing all or cycle)."""
    pairs: PairsConfig = field(default_factory=PairsConfig)
    """Minimal pairs, such as BLiMP; each evaluation scores them."""
    length_buckets: bool = False
    """For short documents: batches of rows of similar length, padded to one of at most 12 widths.  Each width is compiled
    once.  MFU, `plan` and the budgets of `ablate` still assume max_seq_length."""
    init_from: str = ""
    """Start from these parameters: anything that `albert_jax.load` reads, such as a run folder.  If the source has fewer
    positions, its position embeddings are repeated."""

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.run_dir:
            raise InputError("run_dir is empty; name the run folder")
        for name in ("max_eval_steps", "eval_draws"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        length, max_length = self.objective.max_seq_length, self.model.max_position_embeddings
        if self.eval_objective is not None and self.eval_objective.max_seq_length != length:
            raise InputError(
                f"eval_objective.max_seq_length {self.eval_objective.max_seq_length} differs from "
                f"objective.max_seq_length {length}"
            )
        if length > max_length:
            raise InputError(f"objective.max_seq_length {length} > model.max_position_embeddings {max_length}")
        warmup, steps = self.optim.num_warmup_steps, self.train.num_train_steps
        if warmup >= steps:
            raise InputError(f"optim.num_warmup_steps ({warmup}) must be < train.num_train_steps ({steps})")
        self.mesh.check_remat(self.model.remat)
        tied_sets(self.tying, pretraining_model(self.model, self.objective), steps)  # checks `tying`
        evaluated_depths(self.model, self.eval_depths)  # checks `eval_depths`
        self.distillation.check_depth(self.model)

    @property
    def needs_pairs(self) -> bool:
        """Whether training or evaluation needs documents of at least two sentences."""
        objectives = (self.objective, self.eval_objective or self.objective)
        return any(SENTENCE_OBJECTIVES[one.sentence_objective].needs_pairs for one in objectives)


def pretrain(config: PretrainConfig, allow_data_change: bool = False) -> dict[str, Any]:
    """Prepare the data, train, evaluate, and write the run folder; resume the run if the folder holds one.

    If there are several processes (`processes.start`), all of them call this with the same configuration and a run folder on
    a shared file system.

    Args:
      config: the run.
      allow_data_change: resume although the data has changed.

    Returns:
      The content of `summary.json`: `eval`, with `mlm_loss` (nats per predicted piece), `mlm_accuracy` and the accuracy of
      each sentence objective; `baselines`, with the metrics of each of the `baselines`; `diagnostics`; `steps`, `tokens`,
      `seconds`, `tokens_per_second`.

    Raises:
      InputError: the configuration, the data or the folder cannot be used.
      loop.Interrupted: a signal arrived; the state is saved.
    """
    return pretrain_seeds([config], allow_data_change)[0]


def pretrain_seeds(configs: Sequence[PretrainConfig], allow_data_change: bool = False) -> list[dict[str, Any]]:
    """Like `pretrain`, for runs that one program trains at the same time (`jax.vmap`), each in its folder.

    Up to rounding, each run is the one that `pretrain` trains alone, and either can resume it.

    Args:
      configs: they differ only in `run_dir`, `train.seed` and `init_from`.  The states of all runs are in memory at once.
      allow_data_change: resume although the data has changed.

    Returns:
      The content of each `summary.json`.

    Raises:
      InputError: also if the newest checkpoints of the runs are of different steps.
      loop.Interrupted: a signal arrived; all states are saved.
    """
    config, *others = configs
    config.distillation.check_teacher_given()
    for other in others:
        train = replace(other.train, seed=config.train.seed)
        if replace(other, run_dir=config.run_dir, init_from=config.init_from, train=train) != config:
            raise InputError(
                f"{other.run_dir} differs from {config.run_dir} in more than the seed; train it separately"
            )
        if reason := cannot_be_parallel(config):
            raise InputError(f"{config.run_dir}: {reason}")
    run_dirs = [Path(one.run_dir).expanduser() for one in configs]
    pairs = read_pairs(config.pairs) if config.pairs.source else []
    mesh = job.open_mesh(config)
    for run_dir, one in zip(run_dirs, configs, strict=True):
        run_folder.check(run_dir, "pretrain", one)
    with processes.main_first():  # the other processes find the prepared data on the shared file system
        prepared = prepare(config.data, config.model.vocab_size, needs_pairs=config.needs_pairs)
        length = config.objective.max_seq_length
        eval_objective = config.eval_objective or config.objective
        single, eval_single = (
            not SENTENCE_OBJECTIVES[one.sentence_objective].needs_pairs for one in (config.objective, eval_objective)
        )
        rows = loader.open_split(prepared, "train", length, single)
        heldout = loader.open_split(prepared, "heldout", length, eval_single)
    if (
        pieces := prepared.tokenizer.vocab_size
    ) < config.model.vocab_size:  # such as a table padded to a multiple of 64
        problem = (
            "model.vocab_size is %d, but the vocabulary has %d pieces; set --model.vocab-size %d to avoid unused rows"
        )
        log.warning(problem, config.model.vocab_size, pieces, pieces)
    fingerprints = {"data": prepared.fingerprint, "vocab": prepared.tokenizer.sha256}
    if pairs:
        fingerprints["pairs"] = digest_of_pairs(pairs)
    if single:  # not in runs of earlier versions, which read other sequences
        fingerprints["documents"] = "also of one sentence"
    model = pretraining_model(config.model, config.objective)
    teacher = None
    if config.distillation.teacher:
        teacher = read_teacher(config.distillation, model, prepared.tokenizer, length, HEADS_TAUGHT)
        fingerprints["teacher"] = digest(teacher)
    for one in configs:
        job.check_agreement(one, fingerprints)
    check_enough_rows(rows, config.train.global_batch_size)
    initials = [functools.partial(_initial_params, one, prepared) if one.init_from else None for one in configs]
    for run_dir, initial in zip(run_dirs, initials, strict=True):
        if initial is not None and not checkpoint.has_checkpoint(loop.checkpoint_folder(config.train, run_dir)):
            initial()  # report an unsuitable source before the run folder is written
    log.info(
        "%d sequences of up to %d tokens, %d held out; %s on %d %s",
        len(rows),
        length,
        len(heldout),
        ", ".join(map(str, run_dirs)),
        mesh.size,
        jax.default_backend(),
    )
    vocabulary = vocabulary_of(prepared.tokenizer)
    sizes = config.train.eval_batch_size, config.max_eval_steps, config.eval_draws
    with processes.main_first():  # the other processes find the stored baselines
        metrics_of_baselines = baselines(prepared, eval_objective, len(model.sentence_classes), *sizes)
    evaluate = make_evaluate(model, eval_objective, vocabulary, heldout, metrics_of_baselines, mesh, *sizes)
    if pairs:
        evaluate = with_pairs(evaluate, make_scorer(model, prepared.tokenizer, mesh, config.pairs.masking), pairs)
    workload, optimizer, layout = training_parts(config, vocabulary, mesh, evaluate)

    evaluate_depths = {}
    for num_layers in evaluated_depths(config.model, config.eval_depths):
        changed = model.clone(config=replace(model.config, num_hidden_layers=num_layers))
        evaluate_depths[str(num_layers)] = make_evaluate(changed, eval_objective, vocabulary, heldout, {}, mesh, *sizes)

    show_examples = make_examples(model, eval_objective, prepared.tokenizer, heldout, mesh)

    def final(run_dir: Path, params: Any) -> dict[str, Any]:
        examples = show_examples(params)
        if processes.is_main():
            run_folder.write_json(run_dir / run_folder.EXAMPLES_FILE, examples)
        depths = {layers: evaluate_depth(params)["eval"] for layers, evaluate_depth in evaluate_depths.items()}
        return {"depths": depths} if depths else {}

    if teacher is not None:
        apply = functools.partial(model.apply, gather_set=layout.gather_set)
        workload = with_teacher(workload, config.distillation, config.objective, apply, teacher)
    runs = []
    for run_dir, one, initial in zip(run_dirs, configs, initials, strict=True):
        start_batches = functools.partial(
            loader.bucketed_batches if config.length_buckets else loader.train_batches,
            rows,
            config.train.global_batch_size,
            one.train.seed,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        run_workload = replace(workload, batches=start_batches, final=functools.partial(final, run_dir))
        runs.append(loop.Run(one.train, run_workload, run_dir, initial))
    return job.run_jobs(
        "pretrain",
        configs,
        runs,
        optimizer,
        layout,
        fingerprints=fingerprints,
        write_vocabulary=functools.partial(
            tokenizer_files.write_vocabulary, prepared.tokenizer, config.model.max_position_embeddings
        ),
        model_facts={"sentence_classes": model.sentence_classes},
        report=finish,
        allow_data_change=allow_data_change,
    )


def cannot_be_parallel(config: PretrainConfig) -> str:
    """Why one program cannot train several seeds of this run; empty if it can."""
    if config.length_buckets:
        return "length_buckets: the batches of different seeds have different widths; train the seeds separately"
    if config.model.depth_sampling != "fixed":
        return "model.depth_sampling: a program of several seeds would run the largest number of layers in every step"
    if config.train.checkpoint_dir:
        return "train.checkpoint_dir: several seeds cannot share one folder of checkpoints"
    return ""


def training_parts(
    config: PretrainConfig, vocabulary: Vocabulary, mesh: Mesh, evaluate: Any = None
) -> tuple[Workload, Optimizer, Layout]:
    """The workload, optimizer and layout of a run.  Only `loop.train` needs `evaluate`, and batches (see `Workload`)."""
    model = pretraining_model(config.model, config.objective)
    layout = Layout(mesh, config.mesh.sharding, stacked_shapes(model))
    workload = pretraining_workload(model, config.objective, vocabulary, layout, evaluate=evaluate)
    workload = replace(workload, warning=functools.partial(plateau_warning, config))
    ties = tied_sets(config.tying, model, config.train.num_train_steps)
    if ties:
        workload = replace(workload, init=lambda key: tie_fresh(ties, init_params(model, key)))
    return workload, make_optimizer(config.optim, config.train.num_train_steps, is_stacked, ties), layout


NETWORK_FIELDS = ("inner_group_num", "num_attention_heads", "hidden_act", "layer_norm_eps")
"""Fields of the model that change the computation but not the shapes of the parameters."""


def _initial_params(config: PretrainConfig, prepared: Prepared) -> Any:
    """The parameters of `config.init_from`, after checks that they belong to the same network and vocabulary."""
    field = f"--init-from {config.init_from}"
    source = read(config.init_from)
    for note in source.weights.notes:
        log.info("%s: %s", config.init_from, note)
    stored, model = source.weights.model, pretraining_model(config.model, config.objective)
    if missing_heads := [head for head in model.heads if head not in stored.heads]:
        raise InputError(
            f"{field}: missing {', '.join(missing_heads)}; "
            f"'albert-jax convert {config.init_from} TARGET --to albert_jax --init-missing' initializes them"
        )
    unused_heads = [head for head in stored.heads if head not in model.heads]
    if unused_heads:
        log.info("%s: not used: %s", config.init_from, ", ".join(unused_heads))
    params = {name: value for name, value in source.weights.params.items() if name not in unused_heads}
    stored_positions, positions = stored.config.max_position_embeddings, config.model.max_position_embeddings
    if stored_positions < positions:
        log.info("%s: its %d position embeddings are repeated to %d", config.init_from, stored_positions, positions)
        params["embeddings"] = _repeat_positions(params["embeddings"], positions)
    _check_network(field, stored, model, params)
    check_vocabulary(field, source, prepared.tokenizer)
    ties = tied_sets(config.tying, model, config.train.num_train_steps)
    return tie_trained(ties, params) if ties else params


def _repeat_positions(embeddings: dict[str, Any], positions: int) -> dict[str, Any]:
    """Position embeddings for longer sequences: position p starts as a copy of p modulo the number of positions of the source.

    Attention to the neighbors then works from the first step, except where two copies meet (Longformer, arXiv 2004.05150,
    section 5).  From random values it would have to be learned again at each new position.
    """
    table = embeddings["position_embeddings"]["embedding"]
    return embeddings | {"position_embeddings": {"embedding": np.resize(table, (positions, table.shape[1]))}}


def _check_network(field: str, stored: Albert, model: Albert, params: dict[str, Any]) -> None:
    model_shapes = {path: leaf.shape for path, leaf in leaves(param_shapes(model)).items()}
    source_shapes = {path: leaf.shape for path, leaf in leaves(params).items()}
    for path in sorted(model_shapes.keys() | source_shapes.keys()):
        source_shape, model_shape = source_shapes.get(path), model_shapes.get(path)
        if source_shape != model_shape:
            raise InputError(
                f"{field}: {'/'.join(path)} has shape {source_shape}, but the model expects {model_shape}; use the model "
                "settings of the source, or 'albert-jax convert'"
            )
    names = list(NETWORK_FIELDS)
    # Different strategies are the same network if their sets are equal, such as with one layer.
    if stored.config.layer_sets != model.config.layer_sets:
        names += ["sharing", "num_hidden_groups"]
    for name in names:
        source_value, model_value = getattr(stored.config, name), getattr(model.config, name)
        if source_value != model_value:
            raise InputError(
                f"{field}: model.{name} is {source_value!r} in the source, but set to {model_value!r}; use the same value"
            )

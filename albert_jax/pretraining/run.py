"""Pretraining: the composition root that puts model, data, objective and optimiser into the train loop."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from albert_jax.config import InputError, check_fields, flat, require, to_dict
from albert_jax.data import loader, tokenizer_json
from albert_jax.data.batches import check_enough_rows
from albert_jax.data.prepare import Prepared, prepare, token_counts
from albert_jax.data.sources import DataConfig
from albert_jax.exchange import load as exchange
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import Albert, param_shapes, stacked_shapes
from albert_jax.model.sharing import is_stacked, layer_sets
from albert_jax.model.tree import leaves
from albert_jax.pretraining import objective as pretraining
from albert_jax.pretraining import task as pretrain_task
from albert_jax.pretraining.objective import ObjectiveConfig, Vocabulary
from albert_jax.reports import run as report
from albert_jax.training import checkpoint, partition, processes, run_folder
from albert_jax.training import loop as train
from albert_jax.training.loop import TrainConfig
from albert_jax.training.optim import OptimConfig, Optimizer, make_optimizer
from albert_jax.training.partition import Layout, MeshConfig
from albert_jax.training.step import Workload

log = logging.getLogger(__name__)


EVAL_SEED = 0xA1BE27
"""Held-out pairs and masks are the same in every run, whatever its seed."""


@dataclass(frozen=True)
class PretrainConfig:
    """A pretraining run."""

    run_dir: str
    """The run folder; the same command again resumes from it."""
    model: AlbertConfig
    data: DataConfig
    objective: ObjectiveConfig
    optim: OptimConfig
    train: TrainConfig
    mesh: MeshConfig = field(default_factory=MeshConfig)
    eval_objective: ObjectiveConfig | None = None
    """What the held-out metrics are asked of, where runs of several objectives are to be compared; by default the objective."""
    max_eval_steps: int = 100
    """Most batches an evaluation takes."""
    length_buckets: bool = False
    """For short documents: batches of nearly equal length, padded to the longest; as many compilations as widths, 12 at most.
    MFU, `plan` and the budgets of `ablate` count rows of max_seq_length all the same."""
    init_from: str = ""
    """What this run's parameters start from: anything that `albert_jax.load` reads, such as a run folder."""

    def __post_init__(self) -> None:
        check_fields(self)
        require(self.run_dir != "", "run_dir is empty: name the run folder")
        asked, trained = (self.eval_objective or self.objective).max_seq_length, self.objective.max_seq_length
        require(asked == trained, f"eval_objective.max_seq_length {asked} is not objective.max_seq_length {trained}")
        require(self.max_eval_steps >= 1, f"max_eval_steps must be at least 1, got {self.max_eval_steps}")
        require(
            self.objective.max_seq_length <= self.model.max_position_embeddings,
            f"objective.max_seq_length {self.objective.max_seq_length} > model.max_position_embeddings {self.model.max_position_embeddings}",
        )
        require(
            self.optim.num_warmup_steps < self.train.num_train_steps,
            f"optim.num_warmup_steps ({self.optim.num_warmup_steps}) must be < train.num_train_steps ({self.train.num_train_steps})",
        )
        self.mesh.check_remat(self.model.remat)


SHARED = ("sharing", "num_hidden_groups")
NETWORK = ("inner_group_num", "num_attention_heads", "hidden_act", "layer_norm_eps")
"""Fields of the model that leave all shapes as they are, and make another network of the same parameters."""


def pretrain(config: PretrainConfig, allow_data_change: bool = False) -> dict[str, Any]:
    """Prepares the data, trains, evaluates, and writes the run folder; resumes what the folder already holds.

    Of several processes (`processes.start`), all call it, with the same configuration and a run folder that all see.

    Args:
      config: what is run.
      allow_data_change: resume with other data than before.

    Returns:
      The content of `summary.json`: `eval` and `baseline`, each with `mlm_loss` (nats a predicted piece), `mlm_accuracy`,
      `sop_accuracy` and `nsp_accuracy`; `steps`, `tokens`, `seconds`, `tokens_per_second`.

    Raises:
      InputError: whatever in the configuration, the data or the folder cannot be used.
      train.Interrupted: a signal came; the state is saved.
    """
    run_dir = Path(config.run_dir).expanduser()
    mesh = partition.make_mesh(config.train.platform, config.mesh.data)
    partition.check_batch_size(
        "train.global_batch_size", config.train.global_batch_size, config.train.gradient_accumulation, mesh.size
    )
    partition.check_batch_size("train.eval_batch_size", config.train.eval_batch_size, 1, mesh.size)
    run_folder.check(run_dir, "pretrain", config)
    with processes.main_first():  # on a disk that they share, the others find what it prepares
        prepared = prepare(config.data, config.model.vocab_size)
        length = config.objective.max_seq_length
        sequences = loader.open_split(prepared, "train", length)
        heldout = loader.open_split(prepared, "heldout", length)
        counts = token_counts(prepared)
    fingerprints = {"data": prepared.fingerprint, "vocab": prepared.tokenizer.sha256}
    processes.agree({f"--{name}": value for name, value in flat(to_dict(config)).items()} | {"the data": fingerprints})
    start_batches = functools.partial(
        loader.bucketed_batches if config.length_buckets else loader.train_batches,
        sequences,
        config.train.global_batch_size,
        config.train.seed,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    check_enough_rows(sequences, config.train.global_batch_size)
    initial = functools.partial(_initial, config, prepared) if config.init_from else None
    if initial is not None and not checkpoint.has_checkpoint(train.checkpoint_folder(config.train, run_dir)):
        initial()  # refuses what does not fit before the folder is claimed
    with run_folder.locked(run_dir, config.train.checkpoint_dir, processes.is_main()):
        if processes.is_main():
            run_folder.claim(run_dir, "pretrain", to_dict(config), fingerprints, allow_data_change=allow_data_change)
            tokenizer_json.write_vocabulary(prepared.tokenizer, config.model.max_position_embeddings, run_dir)
        if not config.train.checkpoint_dir:  # else the folder is of process 0 alone, which nobody else reads
            processes.check_shared(run_dir / "config.json")
        log.info(
            "%d sequences of up to %d tokens, %d held out; %s on %d %s",
            len(sequences),
            length,
            len(heldout),
            run_dir,
            mesh.size,
            jax.default_backend(),
        )
        evaluate = make_evaluate(config, Albert(config.model).apply, describe(prepared), heldout, counts, mesh)
        task, optimizer, layout = make_task(config, describe(prepared), mesh, start_batches, evaluate)
        _, summary = train.run(
            config.train,
            task,
            optimizer,
            layout,
            run_dir,
            initial=initial,
            fingerprints=fingerprints,
            allow_data_change=allow_data_change,
        )
        if processes.is_main():
            run_folder.write_json(run_dir / "summary.json", summary)
            report.plot_curves(run_dir)
        log.info("%s", report.table(summary))
        log.info("curves, log, checkpoints and summary: %s", run_dir)
    return summary


def make_task(
    config: PretrainConfig, vocabulary: Vocabulary, mesh: Mesh, batches: Any, evaluate: Any
) -> tuple[Workload, Optimizer, Layout]:
    """What the train loop is given: `batches` and `evaluate` as `Workload` says."""
    layout = Layout(mesh, config.mesh.sharding, stacked_shapes(Albert(config.model)))
    task = pretrain_task.make_task(config.model, config.objective, vocabulary, layout, batches, evaluate)
    return task, make_optimizer(config.optim, config.train.num_train_steps, is_stacked), layout


def describe(prepared: Prepared) -> Vocabulary:
    """The facts on the prepared data's vocabulary that the device needs."""
    t = prepared.tokenizer
    return Vocabulary(t.vocab_size, t.pad_id, t.cls_id, t.sep_id, t.mask_id, t.starts_word)


def make_evaluate(
    config: PretrainConfig,
    apply: Callable[..., Any],
    vocabulary: Vocabulary,
    heldout: loader.Sequences,
    counts: np.ndarray,
    mesh: Mesh,
) -> Callable[[Any], dict[str, dict[str, float]]]:
    """`params -> {"eval": metrics, "baseline": the same without a model}` on the held-out split.

    The masked-LM metrics are of inputs as the run trains on, or as `eval_objective` says; sentence order and next sentence
    are both asked of the one sentence head, whatever it was trained on (paper, Table 5).  Inputs are the same at every
    evaluation.
    """
    asked = config.eval_objective or config.objective
    own = asked.sentence_objective

    def step(params: Any, batch: dict[str, Array], number: Array) -> dict[str, Any]:
        params = partition.gathered(params, mesh)
        key = jax.random.fold_in(jax.random.key(EVAL_SEED), number)
        found: dict[str, Array] = {}
        base: dict[str, Array] = {}
        for kind in sorted({own, "sop", "nsp"}):
            objective = replace(asked, sentence_objective=kind)
            examples = pretraining.draw(objective, vocabulary, batch, key)
            _, metrics = pretraining.loss(objective, apply, params, examples, train=False)
            found |= {name: value for name, value in metrics.items() if name.startswith(f"{kind}_")}
            if kind == own:
                found |= {name: value for name, value in metrics.items() if name.startswith("mlm_")}
                base = pretraining.baseline(counts, examples)
        return {"eval": found, "baseline": base}

    jitted = jax.jit(step, out_shardings=partition.replicated(mesh))

    def evaluate(params: Any) -> dict[str, dict[str, float]]:
        total: Any = None
        batches = loader.eval_batches(heldout, config.train.eval_batch_size, config.max_eval_steps)
        for number, batch in enumerate(batches):
            rows = {name: jax.device_put(value, partition.by_rows(mesh)) for name, value in batch.items()}
            sums = jax.device_get(jitted(params, rows, jax.device_put(np.uint32(number), partition.replicated(mesh))))
            total = sums if total is None else jax.tree.map(np.add, total, sums)
        # Weight 0: no negative for NSP, as where all held-out sequences are of one document.
        means = {
            part: {name: float(pair[0] / pair[1]) for name, pair in sorted(values.items()) if pair[1] > 0}
            for part, values in total.items()
        }
        means["baseline"] |= {"sop_accuracy": 0.5, "nsp_accuracy": 0.5}
        return means

    return evaluate


def _initial(config: PretrainConfig, prepared: Prepared) -> Any:
    """The parameters of `config.init_from`, checked to be of this network and this vocabulary."""
    told = f"--init-from {config.init_from}"
    source = exchange.read(config.init_from)
    weights = source.weights
    for note in weights.notes:
        log.info("%s: %s", config.init_from, note)
    before, model = weights.model, Albert(config.model)
    missing = [head for head in model.heads if head not in before.heads]
    way = f"'albert-jax convert {config.init_from} TARGET --to albert_jax --init-missing' starts it from random numbers"
    require(not missing, f"{told}: it has no {', '.join(missing)}; {way}")
    params = {name: value for name, value in weights.params.items() if name in model.heads or name not in before.heads}
    if dropped := [head for head in before.heads if head not in model.heads]:
        log.info("%s: %s left out, which pretraining has no use for", config.init_from, ", ".join(dropped))
    wanted = {path: leaf.shape for path, leaf in leaves(param_shapes(model)).items()}
    found = {path: leaf.shape for path, leaf in leaves(params).items()}
    for path in sorted(wanted.keys() | found.keys()):
        shapes = f"{'/'.join(path)} has shape {found.get(path)}, the model {wanted.get(path)}"
        same = found.get(path) == wanted.get(path)
        require(same, f"{told}: {shapes}; use its own model settings, or 'albert-jax convert'")
    # One layer, or as many groups as layers, has several names; at the same depth it is the same network.
    tables = [
        (c.num_hidden_layers, layer_sets(c.sharing, c.num_hidden_layers, c.num_hidden_groups, c.inner_group_num))
        for c in (before.config, config.model)
    ]
    for name in NETWORK + (() if tables[0] == tables[1] else SHARED):
        theirs, ours = getattr(before.config, name), getattr(config.model, name)
        require(theirs == ours, f"{told}: model.{name} is {theirs!r} there, {ours!r} here; use its own")
    if source.tokenizer is not None:
        theirs, ours = (t.pieces(range(t.vocab_size)) for t in (source.tokenizer, prepared.tokenizer))
        number = next((i for i, (a, b) in enumerate(zip(theirs, ours, strict=True)) if a != b), None)
        if number is not None:
            differ = f"piece {number} of its vocabulary is {theirs[number]!r}, of the data's {ours[number]!r}"
            raise InputError(f"{told}: {differ}; prepare the data with its vocabulary (--data.vocab)")
        for name in ("lower_case", "keep_accents", "map_punctuation"):
            theirs, ours = (getattr(t, name) for t in (source.tokenizer, prepared.tokenizer))
            if theirs != ours:
                log.warning("%s: its tokenizer has %s %s, the data's %s", told, name, theirs, ours)
    return params

"""Evaluation of any ALBERT without fine-tuning: held-out metrics, minimal pairs and pseudo-perplexity."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from albert_jax.config import InputError, check_fields, from_dict, override, to_dict
from albert_jax.data import loader, sources
from albert_jax.data.prepare import prepare
from albert_jax.data.sources import DataConfig
from albert_jax.exchange.load import Source, check_vocabulary, find_run
from albert_jax.pretraining import minimal_pairs
from albert_jax.pretraining.baselines import baselines
from albert_jax.pretraining.evaluation import make_evaluate
from albert_jax.pretraining.objective import ObjectiveConfig, vocabulary_of
from albert_jax.pretraining.pseudo_likelihood import make_scorer
from albert_jax.pretraining.segment_pairs import SENTENCE_OBJECTIVES
from albert_jax.reports.tables import markdown_table, number
from albert_jax.training import partition

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldoutConfig:
    """The held-out text of an evaluation, and how its inputs are drawn."""

    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(
        default_factory=lambda: ObjectiveConfig(max_seq_length=128, max_predictions_per_seq=20)
    )
    eval_batch_size: int = 32
    """Rows in a batch."""
    max_eval_steps: int = 50
    """Maximum number of batches of held-out rows."""
    eval_draws: int = 1
    """Number of times that pairs and masks are drawn for each row."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("eval_batch_size", "max_eval_steps", "eval_draws"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")


def heldout_config(source: str, overrides: Mapping[str, Any]) -> HeldoutConfig:
    """The configuration of `heldout`: that of the run if `source` is a pretraining run, else the defaults.

    Args:
      source: as `albert_jax.load` takes it.
      overrides: dotted field -> value.
    """
    values = to_dict(HeldoutConfig())
    if config := run_config(source):
        values |= {name: config[name] for name in ("max_eval_steps", "eval_draws") if name in config}
        values["data"] = config["data"] | {"vocab": ""}  # the vocabulary in the run folder
        values["objective"] = config.get("eval_objective") or config["objective"]
        values["eval_batch_size"] = config["train"]["eval_batch_size"]
    return from_dict(HeldoutConfig, override(values, overrides))


def run_config(source: str) -> dict[str, Any]:
    """The configuration of a pretraining run, given its folder or one of its checkpoints; empty for other sources."""
    run = find_run(Path(source).expanduser())
    return run.stored["config"] if run and run.stored["job"] == "pretrain" else {}


def heldout(source: Source, config: HeldoutConfig, mesh: Mesh, name: str = "the model") -> dict[str, Any]:
    """The masked-LM and sentence-order metrics of a model on the held-out split of a text, next to the pretraining baselines.

    The baselines are fitted to the train split of the same text.

    Args:
      source: a model with a masked-LM head.  Without a sentence head, only masked LM is evaluated.
      config: the text and how inputs are drawn; an empty `data.vocab` stands for the model's vocabulary.
      mesh: the devices.
      name: of the model, for messages.

    Returns:
      `eval`, `examples`, `baselines` and `diagnostics`, as in the summary of a pretraining run.

    Raises:
      InputError: the text cannot be read, or the model has no masked-LM head, no vocabulary or too few positions.
    """
    model, tokenizer = _model(source, name), _tokenizer(source, name)
    objective = config.objective
    if "sop_classifier" not in model.heads:
        objective, model = replace(objective, sentence_objective="none"), model.clone(sentence_classes=())
    positions = model.config.max_position_embeddings
    if config.objective == HeldoutConfig().objective and positions < objective.max_seq_length:
        log.info("%s has %d positions, so sequences have %d tokens", name, positions, positions)
        predictions = min(objective.max_predictions_per_seq, positions)
        objective = replace(objective, max_seq_length=positions, max_predictions_per_seq=predictions)
    if objective.max_seq_length > positions:
        raise InputError(
            f"objective.max_seq_length is {objective.max_seq_length}, but {name} has {positions} positions; "
            f"set --objective.max-seq-length {positions}"
        )
    data = config.data
    if not data.vocab:
        if not tokenizer.path.is_file():
            raise InputError(f"{name}: its vocabulary is not a file; name it with --data.vocab")
        options = {option: value for option, value in tokenizer.options.items() if tokenizer.path.suffix != ".json"}
        data = replace(data, vocab=str(tokenizer.path), **options)
    needs_pairs = SENTENCE_OBJECTIVES[objective.sentence_objective].needs_pairs
    prepared = prepare(data, model.config.vocab_size, needs_pairs=needs_pairs)
    check_vocabulary(name, source, prepared.tokenizer)
    rows = loader.open_split(prepared, "heldout", objective.max_seq_length, not needs_pairs)
    sizes = -(-config.eval_batch_size // mesh.size) * mesh.size, config.max_eval_steps, config.eval_draws
    baseline_metrics = baselines(prepared, objective, len(model.sentence_classes), *sizes)
    evaluate = make_evaluate(model, objective, vocabulary_of(prepared.tokenizer), rows, baseline_metrics, mesh, *sizes)
    return evaluate(_params(source, mesh))


def pairs_accuracies(
    source: Source, pairs: Sequence[minimal_pairs.Pair], masking: str, mesh: Mesh, name: str = "the model"
) -> list[dict[str, Any]]:
    """The accuracy of a model on each kind of minimal pairs; see `minimal_pairs.accuracies`."""
    score = make_scorer(_model(source, name), _tokenizer(source, name), mesh, masking, show_progress=True)
    return minimal_pairs.accuracies(score, _params(source, mesh), pairs)


def perplexity(
    source: Source, data: DataConfig, share: float, masking: str, mesh: Mesh, name: str = "the model"
) -> dict[str, float]:
    """Pseudo-perplexity of the sentences of a text (Salazar et al., arXiv 1910.14659, section 3.4).

    Returns:
      `pseudo_perplexity`: the exponential of the mean negative log-probability of a token.  It depends on the vocabulary, so compare
      models with different ones by `nats_per_character`.  Also the numbers of `sentences`, `tokens` and `characters`.

    Raises:
      InputError: the text cannot be read, or holds no sentence.
    """
    texts = [
        text.strip() for document in sources.documents(data) for text in sources.sentences(document, data.language)
    ]
    texts = [text for number, text in enumerate(texts) if minimal_pairs.is_in_share(number, share)]
    score = make_scorer(_model(source, name), _tokenizer(source, name), mesh, masking, show_progress=True)
    scores = score(_params(source, mesh), texts)
    tokens, nats = int(scores.num_tokens.sum()), -float(scores.log_likelihoods.sum())
    if not tokens:
        raise InputError(f"data.source {data.source}: no sentence at --share {share:g}")
    characters = sum(map(len, texts))
    return {
        "pseudo_perplexity": math.exp(nats / tokens),
        "nats_per_character": nats / characters,
        "sentences": len(texts),
        "tokens": tokens,
        "characters": characters,
    }


def _params(source: Source, mesh: Mesh) -> Any:
    return jax.device_put(source.weights.params, partition.replicated(mesh))


def _model(source: Source, name: str) -> Any:
    model = source.weights.model
    if "predictions" not in model.heads:
        raise InputError(
            f"{name} has no masked-LM head (its heads: {', '.join(model.heads) or 'none'}); evaluate a pretrained model"
        )
    return model


def _tokenizer(source: Source, name: str) -> Any:
    if source.tokenizer is None:
        raise InputError(f"{name} has no vocabulary; name one with --vocab")
    return source.tokenizer


def pairs_table(table: Sequence[Mapping[str, Any]], by_kind: bool) -> str:
    """Accuracies of minimal pairs as Markdown: by phenomenon, or by kind; and the mean over kinds."""
    phenomena = list(dict.fromkeys(row["phenomenon"] for row in table))
    groups = {name: [row for row in table if row["phenomenon"] == name] for name in phenomena}
    if by_kind:
        groups = {row["kind"]: [row] for row in table}
    rows = []
    for name, kinds in (*sorted(groups.items()), ("mean over kinds", list(table))):
        total = sum(row["pairs"] for row in kinds)
        values = (minimal_pairs.mean_accuracy(kinds, column) for column in ("accuracy", "fewer_tokens"))
        rows.append([name, len(kinds), f"{total:,}", *(f"{100 * value:.1f}" for value in values)])
    header = ["kind" if by_kind else "phenomenon", "kinds", "pairs", "accuracy (%)", "fewer tokens (%)"]
    return markdown_table(header, rows)


def perplexity_table(result: Mapping[str, float]) -> str:
    """The result of `perplexity` as Markdown."""
    cells = [f"{value:,}" if isinstance(value, int) else number(value) for value in result.values()]
    return markdown_table([name.replace("_", " ") for name in result], [cells])

"""Held-out inputs with what a model predicts at their masks, for reports."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from albert_jax.data import loader
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.model.heads import Albert
from albert_jax.pretraining import objective as objectives
from albert_jax.pretraining.evaluation import drawer
from albert_jax.pretraining.objective import ObjectiveConfig, vocabulary_of
from albert_jax.training import partition

COUNT = 4
"""Number of inputs."""
MASKS = 8
"""Number of masks shown of an input; its text ends before the next one."""
TOP = 3
"""Number of predictions at each mask."""


def make_examples(
    model: Albert, objective: ObjectiveConfig, tokenizer: Tokenizer, heldout: loader.Sequences, mesh: Mesh
) -> Callable[[Any], dict[str, Any]]:
    """Return `params -> content of `run_folder.EXAMPLES_FILE``.  The inputs are the same in every run with this data and objective.

    Args:
      model: has a masked-LM head.
      objective: how the inputs are drawn.
      tokenizer: of the run.
      heldout: held-out rows.
      mesh: the devices.
    """

    @functools.partial(jax.jit, out_shardings=partition.replicated(mesh))
    def top_pieces(params: Any, inputs: dict[str, Array]) -> tuple[Array, Array]:
        outputs = objectives.outputs(model.apply, partition.gathered(params, mesh), inputs, train=False)
        probabilities = jax.nn.softmax(outputs["prediction_logits"].astype(np.float32))
        return jax.lax.top_k(
            probabilities[..., : tokenizer.vocab_size], TOP
        )  # a padded table has more rows than pieces

    def examples(params: Any) -> dict[str, Any]:
        inputs = next(drawer(objective, vocabulary_of(tokenizer))(heldout, COUNT, 1))
        on_devices = {name: jax.device_put(value, partition.replicated(mesh)) for name, value in inputs.items()}
        probabilities, ids = jax.device_get(top_pieces(params, on_devices))
        rows = []
        for row in range(min(COUNT, len(heldout))):
            masks = np.flatnonzero(inputs["masked_lm_weights"][row])
            positions = inputs["masked_lm_positions"][row]
            masks = masks[np.argsort(positions[masks])]  # in the order of the text
            length = int(inputs["attention_mask"][row].sum())
            if len(masks) > MASKS:
                length = positions[masks[MASKS]]
            masks = masks[:MASKS]
            lines = []
            for number, mask in enumerate(masks, 1):
                names = (piece_text(tokenizer, piece) for piece in ids[row, mask])
                best = " · ".join(f"{name} {p:.2f}" for name, p in zip(names, probabilities[row, mask], strict=True))
                lines.append(f"[{number}] {piece_text(tokenizer, inputs['masked_lm_labels'][row, mask])} → {best}")
            text = numbered(tokenizer, inputs["input_ids"][row, :length], positions[masks])
            rows.append({"held-out text": text, "right piece → predictions": "\n".join(lines)})
        caption = (
            f"Each number stands for a piece to predict, | for the end of a segment. Beside the text: the right piece, and the {TOP} "
            "that the model considers most probable. It sees most of these pieces as [MASK], some as a random piece or unchanged."
        )
        return {"caption": caption, "rows": rows}

    return examples


def numbered(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray, positions: Sequence[int] | np.ndarray) -> str:
    """The text of `[CLS] A [SEP] B [SEP]`, or its beginning, with [1], [2] ... at the positions to predict and | after A."""
    parts, start = [], 1
    marks = {int(position): f"[{number}]" for number, position in enumerate(positions, 1)}
    marks |= {int(position): "|" for position in np.flatnonzero(np.asarray(ids) == tokenizer.sep_id)}
    for position, mark in sorted(marks.items()):
        parts += [tokenizer.decode(ids[start:position]), mark]
        start = position + 1
    return " ".join(filter(None, [*parts, tokenizer.decode(ids[start:])])).removesuffix(" |")


def piece_text(tokenizer: Tokenizer, piece: int) -> str:
    """A piece as text; pieces without text, such as special ones, as spelled in the vocabulary."""
    return tokenizer.decode([piece]) or tokenizer.pieces([piece])[0]

"""The prediction after each pass: the head of the model reads the hidden states after layer 1, 2, ..., L.

This is the logit lens (nostalgebraist 2020, "interpreting GPT").  The head was trained on the last pass only; with shared layers,
every pass writes its output for the same next layer, so earlier passes can be read with it too.
"""

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax import Array

from albert_jax.config import InputError, check_choice
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference.explanation import task_contexts
from albert_jax.inference.pretrained import apply, check_head, mask_names, order_names
from albert_jax.model.heads import Albert

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

HEADS = {
    "fill-mask": ("predictions", "prediction_logits"),
    "classify": ("classifier", "logits"),
    "sentence-order": ("sop_classifier", "sop_logits"),
}
"""Task of `predict` -> its head, and the output of this head."""


@dataclass(frozen=True)
class Passes:
    """What is predicted after each pass."""

    place: str
    """[MASK], [MASK] 1, [MASK] 2, ..., or the task."""
    best: tuple[str, ...]
    """[L]: the most probable class or piece after each pass."""
    names: tuple[str, ...]
    """[K]: those that are most probable after the last pass, the best first; pieces as spelled in the vocabulary."""
    probabilities: np.ndarray
    """[L, K]: their probabilities; for a regression, the score."""

    def record(self) -> dict[str, Any]:
        """A dict for JSON."""
        after = [dict(zip(self.names, row.tolist(), strict=True)) for row in self.probabilities]
        passes = [{"best": best, "probabilities": row} for best, row in zip(self.best, after, strict=True)]
        return {"place": self.place, "passes": passes}

    def table(self) -> "pd.DataFrame":
        """One row per pass: the best class or piece, and the probabilities of `names`."""
        import pandas as pd

        table = pd.DataFrame(self.probabilities, columns=list(self.names))
        table.insert(0, "best", list(self.best), allow_duplicates=True)
        table.index = pd.RangeIndex(1, len(table) + 1, name="pass")
        return table

    def _repr_html_(self) -> str:
        return self.table().to_html(float_format="{:.4f}".format)


def after_each_pass(
    model: Albert,
    params: Any,
    tokenizer: Tokenizer,
    text: str,
    text_pair: str | None = None,
    *,
    task: str = "fill-mask",
    top_k: int = 5,
) -> list[Passes]:
    """Predict after each pass; fill-mask gives one result for each [MASK], classify and sentence-order one.

    Raises:
      InputError: the model lacks the head; the text has no [MASK] for fill-mask, or no second text for sentence-order.
    """
    check_choice("task", task, HEADS)
    head, output = HEADS[task]
    check_head(model, head)
    texts = (text,) if text_pair is None else (text, text_pair)
    row = tokenizer.join(*(context.ids for context in task_contexts(model, tokenizer, texts, task)))
    inputs = {name: value[None] for name, value in row.items()}
    names: tuple[str, ...]
    if task == "fill-mask":
        positions = np.flatnonzero(inputs["input_ids"][0] == tokenizer.mask_id)
        if len(positions) == 0:
            raise InputError(f"the text has no [MASK] to predict: {text[:60]!r}")
        inputs["masked_lm_positions"] = positions[None]
        names, places = tuple(tokenizer.pieces(range(tokenizer.vocab_size))), mask_names(len(positions))
    else:
        names, places = model.labels if task == "classify" else order_names(model), [task]
    logits = _logits(model, output, params, inputs)
    logits = logits.reshape(len(logits), len(places), -1)[..., : len(names)]
    if model.multi_label and task == "classify":
        values = jax.nn.sigmoid(logits)
    else:
        values = jax.nn.softmax(logits) if len(names) > 1 else logits
    passes = []
    for number, place in enumerate(places):
        of_place = np.asarray(values[:, number])
        top = np.argsort(-of_place[-1], kind="stable")[:top_k]
        best = tuple(names[i] for i in of_place.argmax(axis=1))
        passes.append(Passes(place, best, tuple(names[i] for i in top), of_place[:, top]))
    return passes


@functools.partial(jax.jit, static_argnames=("model", "output"))
def _logits(model: Albert, output: str, params: Any, inputs: dict[str, Array]) -> Array:
    """The logits after each pass, [L, ...]."""
    states = apply(model, params, inputs, output_hidden_states=True)["hidden_states"][1:]
    return jax.lax.map(lambda state: apply(model, params, inputs, last_hidden_state=state)[output][0], states)


def draw_passes(passes: Passes) -> "Figure":
    """Plot the probabilities of the final predictions after each pass."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, values in zip(passes.names, passes.probabilities.T, strict=True):
        axes.plot(range(1, len(values) + 1), values, "o-", ms=3, lw=1.2, label=name.replace("$", r"\$"))
    axes.set(xlabel="pass", ylabel="probability", title=passes.place)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return figure

"""How much each token of an input contributes to a logit: integrated gradients, and gradient x input.

Contributions are measured from a baseline: the same input with [MASK] in place of every piece, while [CLS], [SEP], segments and
positions stay.  [MASK] is what pretraining shows where a word is unknown, so the baseline is an input that the network knows,
and its logit is the prediction from the length of the text alone.  A zero vector is no such input.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from albert_jax.config import check_choice
from albert_jax.data.batches import Row, collate, padded_width
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.inference.pretrained import apply
from albert_jax.model.heads import Albert

log = logging.getLogger(__name__)

Gradients = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Inputs [N, S, E] -> values [N] of a scalar function and its gradients [N, S, E].  Each N is compiled once."""

CHUNK = 16
"""Number of points between baseline and input that are computed at once."""

MAX_STEPS = 1024
"""Largest number of points of the integral."""

TOLERANCE = 0.01
"""Relative error of the sum of the contributions at which the number of points is no longer doubled."""

SMALLEST_DIFFERENCE = 1e-3
"""Lower bound of the denominator of `error`; below it, rounding in float32 exceeds `TOLERANCE`."""


class Attribution(NamedTuple):
    """Contributions of the tokens of one input."""

    contributions: np.ndarray
    """[S]."""
    value: float
    """The logit."""
    baseline_value: float
    """The logit of the baseline."""
    steps: int
    """Number of gradients that were computed."""

    @property
    def error(self) -> float:
        """The sum of the contributions minus the difference of the logits, relative to this difference."""
        difference = self.value - self.baseline_value
        return (float(self.contributions.sum()) - difference) / max(abs(difference), SMALLEST_DIFFERENCE)


def integrated_gradients(gradients: Gradients, x: np.ndarray, baseline: np.ndarray) -> Attribution:
    """Integrated gradients (Sundararajan et al., arXiv 1703.01365, equation 1) of an input `x` [S, E].

    The integral over the straight line from `baseline` to `x` is a Gauss-Legendre sum of `CHUNK` points in each of 1, 2, 4, ...
    equal intervals, until the contributions sum to the difference of the values within `TOLERANCE`.
    """
    value, baseline_value, *_ = gradients(np.stack([x, *[baseline] * (CHUNK - 1)]))[0].tolist()
    nodes, weights = np.polynomial.legendre.leggauss(CHUNK)
    intervals = 1
    while True:
        total = np.zeros(x.shape)
        for interval in range(intervals):
            at = (interval + (nodes + 1) / 2) / intervals
            points = baseline + at[:, None, None] * (x - baseline)
            total += np.einsum("n,nse->se", weights / 2 / intervals, gradients(points.astype(np.float32))[1])
        attribution = Attribution(((x - baseline) * total).sum(-1), value, baseline_value, CHUNK * intervals)
        if abs(attribution.error) <= TOLERANCE:
            return attribution
        if 2 * attribution.steps > MAX_STEPS:
            message = "contributions sum to %.4f instead of the difference of the logits, %.4f, after %d steps"
            log.warning(message, attribution.contributions.sum(), value - baseline_value, attribution.steps)
            return attribution
        intervals *= 2


def gradient_x_input(gradients: Gradients, x: np.ndarray, baseline: np.ndarray) -> Attribution:
    """The gradient at `x` times `x - baseline`: a linear approximation, from one gradient instead of an integral."""
    values, (gradient, _) = gradients(np.stack([x, baseline]))
    return Attribution(((x - baseline) * gradient).sum(-1), float(values[0]), float(values[1]), 1)


METHODS: dict[str, Callable[[Gradients, np.ndarray, np.ndarray], Attribution]] = {
    "integrated-gradients": integrated_gradients,
    "gradient-x-input": gradient_x_input,
}
"""Name -> function (gradients, input, baseline) -> contributions."""


class Target(NamedTuple):
    """The logit of a prediction: log(p / (1 - p)) of the probability p of some classes of an output of the model.

    A raw logit alone has no meaning, because softmax ignores a constant that is added to all logits.
    """

    output: str
    """Name of the output, [B, C] or [B, S, C]."""
    classes: np.ndarray
    """[T, C] bool: the classes over which p is summed, at each of T positions.  The logits of all T are summed."""
    positions: np.ndarray | None = None
    """[T]: positions in an output [B, S, C]."""
    is_raw: bool = False
    """The output is already a log odds, or a score."""


def attribute(
    model: Albert,
    params: Any,
    tokenizer: Tokenizer,
    row: Row,
    targets: Sequence[Target],
    method: str,
    head_inputs: Mapping[str, np.ndarray] | None = None,
) -> Attribution:
    """The contributions of the tokens of an input to the sum of the targets.

    Args:
      model, params, tokenizer: as returned by `albert_jax.load`.  The computation is in float32 for any dtype of the model.
      row: `input_ids`, `token_type_ids` and other inputs for each token, [S], without padding.
      targets: the logits to explain.
      method: a key of `METHODS`.
      head_inputs: inputs of the heads that are not for each token, such as `masked_lm_positions`, each with B = 1.
    """
    check_choice("method", method, METHODS)
    config = replace(model.config, dtype="float32", attention_implementation="xla", fused_kernels=False, scan_unroll=1)
    model = model.clone(config=config)
    size = len(row["input_ids"])
    # One of a few widths, so that texts of similar length share a compiled function.
    inputs = collate([row], 1, padded_width(size, config.max_position_embeddings))
    ids = inputs.pop("input_ids")[0]
    table = np.asarray(params["embeddings"]["word_embeddings"]["embedding"], np.float32)
    is_kept = np.isin(ids, (tokenizer.cls_id, tokenizer.sep_id)) | (inputs["attention_mask"][0] == 0)
    x = table[ids]
    baseline = np.where(is_kept[:, None], x, table[tokenizer.mask_id])
    kinds = tuple((target.output, target.is_raw) for target in targets)
    arrays = [(target.classes, target.positions) for target in targets]

    def gradients(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return jax.device_get(_gradients(model, kinds, params, inputs | dict(head_inputs or {}), arrays, points))

    attribution = METHODS[method](gradients, x, baseline)
    return attribution._replace(contributions=attribution.contributions[:size])


@functools.partial(jax.jit, static_argnames=("model", "kinds"))
def _gradients(
    model: Albert,
    kinds: tuple[tuple[str, bool], ...],
    params: Any,
    inputs: dict[str, Array],
    targets: list[tuple[Array, Array | None]],
    points: Array,
) -> tuple[Array, Array]:
    """The sums of the targets [N] for word embeddings [N, S, E], and their gradients [N, S, E]."""
    inputs = {name: jnp.broadcast_to(value, (len(points), *value.shape[1:])) for name, value in inputs.items()}

    def total(points: Array) -> tuple[Array, Array]:
        outputs = apply(model, params, inputs, inputs_embeds=points)
        values = jnp.zeros(len(points))
        for (name, is_raw), (classes, positions) in zip(kinds, targets, strict=True):
            logits = outputs[name] if positions is None else outputs[name][:, positions]
            logits = logits.reshape(len(points), *classes.shape[:1], -1)[..., : classes.shape[1]]
            if is_raw:
                values += jnp.sum(logits, where=classes, axis=(1, 2))
            else:
                odds = jax.nn.logsumexp(logits, where=classes, axis=-1) - jax.nn.logsumexp(
                    logits, where=~classes, axis=-1
                )
                values += odds.sum(1)
        return values.sum(), values

    (_, values), gradients = jax.value_and_grad(total, has_aux=True)(points)
    return values, gradients

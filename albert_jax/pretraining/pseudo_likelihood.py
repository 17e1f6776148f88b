"""How probable a masked language model finds a text: each token is masked in turn and predicted from the others.

The sum of the log-probabilities is the pseudo-log-likelihood of the text (Salazar et al., arXiv 1910.14659).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh
from tqdm import tqdm

from albert_jax.data.batches import padded_width
from albert_jax.data.tokenizer import Tokenizer
from albert_jax.model.heads import Albert
from albert_jax.training import partition

MASKINGS = ("token", "word")
"""token: mask only the token (Salazar et al.).  word: also mask the later tokens of the same word, because they reveal it (PLL-word-l2r of
Kauf and Ivanova, arXiv 2305.10588)."""

TOKENS_PER_BATCH = 8192
BATCHES_PER_CHUNK = 512
SHORT = 32
"""Up to this length, texts are padded to a multiple of 4, because most sentences are shorter and each has many copies."""


class Scores(NamedTuple):
    """The scores of several texts."""

    log_likelihoods: np.ndarray
    """[texts] float64: pseudo-log-likelihoods in nats."""
    num_tokens: np.ndarray
    """[texts] int64: without [CLS] and [SEP]."""


Scorer = Callable[[Any, Sequence[str]], Scores]


def make_scorer(
    model: Albert, tokenizer: Tokenizer, mesh: Mesh, masking: str = "token", show_progress: bool = False
) -> Scorer:
    """Return `(params, texts) -> Scores`.

    A text of n tokens is n rows of a batch, each with a different token masked.  Rows of similar length share a batch, and each of a few
    widths is compiled once.  A text beyond the longest input is scored in parts of equal length.

    Args:
      model: has the masked-LM head.
      tokenizer: of the model.
      mesh: the devices; the rows are sharded over them.
      masking: one of `MASKINGS`.
      show_progress: draw a progress bar.
    """
    longest = model.config.max_position_embeddings

    def step(params: Any, inputs: dict[str, Array]) -> Array:
        """[B]: the log-probability of the token at `position`, with the tokens in [position, end) masked."""
        ids, position = inputs["input_ids"], inputs["position"][:, None]
        places = jnp.arange(ids.shape[1])
        is_masked = (places >= position) & (places < inputs["end"][:, None])
        outputs: Any = model.apply(
            {"params": partition.gathered(params, mesh)},
            jnp.where(is_masked, tokenizer.mask_id, ids),
            attention_mask=(places < inputs["length"][:, None]).astype(jnp.int32),
            masked_lm_positions=position,
        )
        log_probabilities = jax.nn.log_softmax(outputs["prediction_logits"].astype(jnp.float32))[:, 0]
        tokens = jnp.take_along_axis(ids, position, axis=1)
        return jnp.take_along_axis(log_probabilities, tokens, axis=1)[:, 0]

    jitted_step = jax.jit(step, out_shardings=partition.replicated(mesh))

    def score(params: Any, texts: Sequence[str]) -> Scores:
        encoded = tokenizer.encode_batch(list(texts))
        # Equal texts are scored once, so their scores are equal.
        distinct: dict[tuple[int, ...], int] = {}
        inverse = np.array([distinct.setdefault(tuple(row), len(distinct)) for row in encoded], int)
        ids = [np.array(row, np.int32) for row in distinct]
        parts, owners = [], []
        for number, row in enumerate(ids):
            for part in np.array_split(row, -(-len(row) // (longest - 2)) or 1):
                if len(part):
                    parts.append(part)
                    owners.append(number)
        sums = np.zeros(len(ids))
        widths = np.array([_width(len(part) + 2, longest) for part in parts], int)
        with tqdm(total=sum(map(len, parts)), unit=" masks", disable=None if show_progress else True) as bar:
            for numbers, width in _chunks(widths, np.array([len(part) for part in parts], int)):
                rows = [_masked_rows(parts[number], tokenizer, masking, width) for number in numbers]
                row_owners = np.repeat(
                    [owners[number] for number in numbers], [len(parts[number]) for number in numbers]
                )
                table = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
                np.add.at(sums, row_owners, _in_batches(jitted_step, params, table, width, mesh, bar))
        return Scores(sums[inverse], np.array([len(row) for row in encoded], int))

    return score


def _width(length: int, longest: int) -> int:
    return min(longest, -(-length // 4) * 4) if length <= SHORT else padded_width(length, longest)


def _chunks(widths: np.ndarray, counts: np.ndarray) -> Iterator[tuple[list[int], int]]:
    """Numbers of texts of one width, and that width.  The rows of a chunk are in memory at once."""
    for width in np.unique(widths).tolist():
        numbers = np.flatnonzero(widths == width)
        chunks = -(-int(counts[numbers].sum()) * width // (BATCHES_PER_CHUNK * TOKENS_PER_BATCH))
        for chunk in np.array_split(numbers, min(chunks, len(numbers))):
            yield chunk.tolist(), width


def _masked_rows(part: np.ndarray, tokenizer: Tokenizer, masking: str, width: int) -> dict[str, np.ndarray]:
    """The rows of a text of n tokens: `input_ids` [n, width], and `position`, `end` and `length`, all [n]."""
    count = len(part)
    joined = np.pad(tokenizer.join(part)["input_ids"], (0, width - count - 2), constant_values=tokenizer.pad_id)
    position = np.arange(1, count + 1, dtype=np.int32)
    end = position + 1
    if masking == "word":
        next_words = np.where(tokenizer.starts_word[part], position, count + 1)
        end = np.append(np.minimum.accumulate(next_words[::-1])[::-1][1:], count + 1).astype(np.int32)
    return {
        "input_ids": np.broadcast_to(joined, (count, width)),
        "position": position,
        "end": end,
        "length": np.full(count, count + 2, np.int32),
    }


def _in_batches(
    step: Callable[..., Array], params: Any, table: dict[str, np.ndarray], width: int, mesh: Mesh, bar: Any
) -> np.ndarray:
    """The results [rows] of `step`.  A small table is one batch; its size is a power of two, so that few sizes are compiled."""
    count = len(table["position"])
    size = min(max(TOKENS_PER_BATCH // width, 1), 2 ** (count - 1).bit_length())
    size = -(-size // mesh.size) * mesh.size
    results: list[np.ndarray] = []
    pending: Array | None = None
    for start in range(0, count, size):
        numbers = np.arange(start, start + size).clip(max=count - 1)  # the last row fills the last batch
        batch = {name: jax.device_put(value[numbers], partition.by_rows(mesh)) for name, value in table.items()}
        following = step(params, batch)
        if pending is not None:  # the device computes a batch while the host reads the one before
            results.append(jax.device_get(pending))
            bar.update(size)
        pending = following
    assert pending is not None
    results.append(jax.device_get(pending))
    bar.update(count - (len(results) - 1) * size)
    return np.concatenate(results)[:count].astype(np.float64)

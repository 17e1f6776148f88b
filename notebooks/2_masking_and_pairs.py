# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The inputs of pretraining: segment pairs and masked spans
#
# You see how real text becomes the inputs of pretraining: pairs of segments in order, swapped, or from two documents, with masked
# spans of whole words. Then you count them and compare the shares with the paper's.

# %%
# %matplotlib inline
import dataclasses
import functools
import html

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML

from albert_jax.config import load
from albert_jax.data import loader
from albert_jax.data.prepare import prepare
from albert_jax.pretraining import PretrainConfig
from albert_jax.pretraining.objective import draw, vocabulary_of
from albert_jax.pretraining.segment_pairs import SENTENCE_OBJECTIVES

# %% [markdown]
# The text is the documentation that ships with Python, prepared as for `experiments/pretrain/tiny.py`. Prepared data contains only the
# tokens of each document and the lengths of its sentences. Every step draws new pairs and masks on the device.

# %%
config = load(PretrainConfig, "../experiments/pretrain/tiny.py")
prepared = prepare(config.data, config.model.vocab_size)
tokenizer = prepared.tokenizer
sequences = loader.open_split(prepared, "train", config.objective.max_seq_length)
batch = next(loader.train_batches(sequences, 256, 0, 0))
batch["tokens"].shape, len(sequences)


# %%
def draw_examples(sentence_objective: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Examples of one sentence objective, drawn from the batch."""
    objective = dataclasses.replace(config.objective, sentence_objective=sentence_objective)
    draw_batch = jax.jit(functools.partial(draw, objective, vocabulary_of(prepared.tokenizer)))
    return jax.device_get(draw_batch(batch, jax.random.key(seed)))


def to_html(examples: dict[str, np.ndarray], row: int, sentence_objective: str) -> str:
    """One example. Masked pieces are bold, each followed by the piece to predict as a subscript."""
    length = examples["attention_mask"][row].sum()
    pieces = tokenizer.pieces(examples["input_ids"][row][:length])
    num_masked = int(examples["masked_lm_weights"][row].sum())
    positions = examples["masked_lm_positions"][row][:num_masked]
    targets = dict(zip(positions, tokenizer.pieces(examples["masked_lm_labels"][row][:num_masked]), strict=True))
    spans = []
    for position, piece in enumerate(pieces):
        color = "#dbe9f6" if examples["token_type_ids"][row][position] else "#fde9d0"
        text = html.escape(piece.replace("▁", " "))
        if position in targets:
            text = f"<b>{text}</b><sub>{html.escape(targets[position].replace('▁', ' '))}</sub>"
        spans.append(f"<span style='background:{color}'>{text}</span>")
    label = SENTENCE_OBJECTIVES[sentence_objective].classes[examples["sentence_labels"][row]]
    return f"<p><i>{label}</i>: {''.join(spans)}</p>"


# %% [markdown]
# ## Sentence order
#
# Both segments (orange, then blue) come from one document. In half of the examples they are swapped, and the model predicts which.
# A bold piece is what the model reads at a masked position. The subscript is the piece it has to predict.

# %%
sop = draw_examples("sop")
HTML("".join(to_html(sop, row, "sop") for row in range(4)))

# %% [markdown]
# ## Next sentence, BERT's objective
#
# In half of the examples the second segment is from a different document. The topic often reveals this.

# %%
nsp = draw_examples("nsp")
HTML("".join(to_html(nsp, row, "nsp") for row in range(4)))

# %% [markdown]
# ## The same sequences at the next step
#
# A different key gives different pairs and masks. The same key gives the same ones, on any number of devices.

# %%
HTML("".join(to_html(draw_examples("sop", seed), 0, "sop") for seed in (1, 2)))

# %% [markdown]
# ## Count them
#
# A span has n words with p(n) proportional to 1 / n: 55, 27 and 18 % for n = 1, 2, 3. The counts below differ a little, because the last
# spans of a sequence are shortened to its number of predictions, and neighboring spans merge. Of the masked pieces, 80 % become [MASK],
# 10 % become a random piece, and 10 % stay as they are.

# %%
starts_word, lengths, outcomes = tokenizer.starts_word, [], np.zeros(3)
for row in range(len(sop["input_ids"])):
    num_masked = int(sop["masked_lm_weights"][row].sum())
    positions, labels = sop["masked_lm_positions"][row][:num_masked], sop["masked_lm_labels"][row][:num_masked]
    inputs = sop["input_ids"][row][positions]
    is_mask, unchanged = inputs == tokenizer.mask_id, inputs == labels
    outcomes += [is_mask.sum(), (~is_mask & ~unchanged).sum(), unchanged.sum()]
    starts_run = np.diff(positions, prepend=-2) > 1
    lengths += [int(starts_word[run].sum()) for run in np.split(labels, np.flatnonzero(starts_run)[1:]) if len(run)]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
left.hist(lengths, bins=np.arange(0.5, 8.5), density=True, rwidth=0.8)
left.set(xlabel="words in a run of masked pieces", ylabel="share")
right.bar(["[MASK]", "random piece", "unchanged"], outcomes / outcomes.sum())
right.set(ylabel="share of masked pieces")
plt.show()

# %%
num_tokens = sop["attention_mask"].sum()
{
    "masked, of all tokens": round(float(sop["masked_lm_weights"].sum() / num_tokens), 3),
    "swapped (SOP)": round(float(sop["sentence_labels"].mean()), 3),
    "different document (NSP)": round(float(nsp["sentence_labels"].mean()), 3),
}

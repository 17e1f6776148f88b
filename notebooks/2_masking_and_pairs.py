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
# # What the model reads: segment pairs and masked spans
#
# You see real text turned into the inputs of pretraining: two segments in order, swapped, or from elsewhere, with spans of
# whole words hidden; and check by counting that the shares are what the paper says.

# %%
# %matplotlib inline
import dataclasses
import html

import jax
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import HTML

from albert_jax.config import load
from albert_jax.data import loader
from albert_jax.data.prepare import prepare
from albert_jax.pretraining import objective as pretraining
from albert_jax.pretraining.run import PretrainConfig, describe

# %% [markdown]
# The text is the documentation that ships with Python, prepared as for `experiments/pretrain/tiny.py`: documents as tokens and
# sentence lengths, nothing else. Pairs and masks are drawn anew at every step, on the device.

# %%
config = load(PretrainConfig, "../experiments/pretrain/tiny.py")
prepared = prepare(config.data, config.model.vocab_size)
tokenizer = prepared.tokenizer
sequences = loader.open_split(prepared, "train", config.objective.max_seq_length)
batch = next(loader.train_batches(sequences, 256, 0, 0))
batch["tokens"].shape, len(sequences)


# %%
def drawn(kind: str, key: int = 0) -> dict[str, np.ndarray]:
    """A batch of examples of one sentence objective."""
    objective = dataclasses.replace(config.objective, sentence_objective=kind)
    draw = jax.jit(lambda batch, key: pretraining.draw(objective, describe(prepared), batch, key))
    return jax.device_get(draw(batch, jax.random.key(key)))


def shown(examples: dict[str, np.ndarray], row: int, names: tuple[str, str]) -> str:
    """One example; what is to be predicted stands in brackets behind what is read in its place."""
    length = examples["attention_mask"][row].sum()
    pieces = tokenizer.pieces(examples["input_ids"][row][:length])
    hidden = dict(zip(examples["masked_lm_positions"][row], examples["masked_lm_labels"][row], strict=True))
    used = int(examples["masked_lm_weights"][row].sum())
    targets = {int(place): tokenizer.pieces([label])[0] for place, label in list(hidden.items())[:used]}
    words = []
    for place, piece in enumerate(pieces):
        color = "#dbe9f6" if examples["token_type_ids"][row][place] else "#fde9d0"
        text = html.escape(piece.replace("▁", " "))
        if place in targets:
            text = f"<b>{text}</b><sub>{html.escape(targets[place].replace('▁', ' '))}</sub>"
        words.append(f"<span style='background:{color}'>{text}</span>")
    return f"<p><i>{names[examples['sentence_labels'][row]]}</i>: {''.join(words)}</p>"


# %% [markdown]
# ## Sentence order
#
# Both segments (orange, blue) come from one document. Half of the time they are swapped, and the model is to say so. Bold
# is what it reads in the place of a hidden piece, which stands behind it.

# %%
sop = drawn("sop")
HTML("".join(shown(sop, row, ("in order", "swapped")) for row in range(4)))

# %% [markdown]
# ## Next sentence, BERT's objective
#
# Half of the time the second segment is from another document: the topic gives it away.

# %%
nsp = drawn("nsp")
HTML("".join(shown(nsp, row, ("next", "from elsewhere")) for row in range(4)))

# %% [markdown]
# ## The same sequences at the next step
#
# Another key, other pairs and masks; the same key gives the same ones, on any number of devices.

# %%
HTML("".join(shown(drawn("sop", key), 0, ("in order", "swapped")) for key in (1, 2)))

# %% [markdown]
# ## Counting
#
# A span has n words with p(n) proportional to 1 / n: 55, 27 and 18 % for n = 1, 2, 3, before the budget of a sequence shortens the
# last ones and neighbours run together. Of the hidden pieces 80 % read [MASK], 10 % any piece, 10 % themselves.

# %%
starts, lengths, fates = tokenizer.starts_word, [], np.zeros(3)
for row in range(len(sop["input_ids"])):
    used = int(sop["masked_lm_weights"][row].sum())
    places, labels = sop["masked_lm_positions"][row][:used], sop["masked_lm_labels"][row][:used]
    read = sop["input_ids"][row][places]
    same = read == labels
    fates += [(read == tokenizer.mask_id).sum(), ((read != tokenizer.mask_id) & ~same).sum(), same.sum()]
    new_run = np.diff(places, prepend=-2) > 1
    lengths += [int(starts[run].sum()) for run in np.split(labels, np.flatnonzero(new_run)[1:]) if len(run)]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
left.hist(lengths, bins=np.arange(0.5, 8.5), density=True, rwidth=0.8)
left.set(xlabel="words in a run of hidden pieces", ylabel="share")
right.bar(["[MASK]", "any piece", "itself"], fates / fates.sum())
right.set(ylabel="share of hidden pieces")
plt.show()

# %%
real = sop["attention_mask"].sum()
{
    "hidden, of all tokens": round(float(sop["masked_lm_weights"].sum() / real), 3),
    "swapped": round(float(sop["sentence_labels"].mean()), 3),
    "from elsewhere (NSP)": round(float(nsp["sentence_labels"].mean()), 3),
}

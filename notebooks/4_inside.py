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
# # Inside a trained model
#
# You look at attention maps, and at how far each layer moves its input (the paper's Figure 1). You compare a network with
# shared layers and one with separate layers, before and after training.

# %%
# %matplotlib inline
from pathlib import Path

import jax

import albert_jax
from albert_jax.inference import inspection
from albert_jax.inference.pretrained import fill_mask
from albert_jax.model.heads import init_params

# %% [markdown]
# These two networks are trained by the notebook on the sharing ablation.

# %%
folders = {
    "all shared": Path("runs/notebook/all-shared/seed-0"),
    "nothing shared": Path("runs/notebook/not-shared/seed-0"),
}
assert all(folder.exists() for folder in folders.values()), "run 3_sharing_ablation first: it trains them"

# %%
models = {label: albert_jax.load(folder) for label, folder in folders.items()}
_, _, tokenizer = next(iter(models.values()))

# %% [markdown]
# ## Attention
#
# Each row of a map is a piece that attends, each column a piece that is attended to; dark means 1. The first plot has one
# row of maps per layer and one column per head.

# %%
sentence = "If the file does not exist, an exception is raised."
model, params, _ = models["all shared"]
maps, pieces = inspection.attention_maps(model, params, tokenizer, sentence)
inspection.draw_attention(maps, pieces)

# %%
inspection.draw_attention(maps, pieces, layers=[0, 3], heads=[0, 1])

# %% [markdown]
# ## How far each layer moves its input
#
# In Figure 1 of the paper, the distance between the input and the output of a layer changes smoothly from layer to layer and
# does not fall to zero: the layers do not reach a fixed point. Compare that with this small network after minutes of training.

# %%
texts = [
    sentence,
    "A list is a mutable sequence, and a tuple is not.",
    "The function returns a new object whose attributes are those of the old one.",
    "Raises an error where the argument is neither a string nor a number.",
]
distances = {}
for label, (model, params, _) in models.items():
    fresh = init_params(model, jax.random.key(0))
    distances[label] = inspection.layer_distances(model, params, tokenizer(texts))
    distances[f"{label}, untrained"] = inspection.layer_distances(model, fresh, tokenizer(texts))
inspection.draw_layer_distances(distances)

# %% [markdown]
# ## Predictions
#
# The most probable pieces for a mask.

# %%
for label, (model, params, tokenizer) in models.items():
    predictions = fill_mask(model, params, tokenizer, ["The function [MASK] a list."], top_k=5)
    print(label, predictions[0])

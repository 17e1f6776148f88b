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
# # Why this word?
#
# You see which words of a text decide a prediction, how sure you can be of such an explanation, and after which pass of the
# shared layer the network decides.

# %%
# %matplotlib inline
from pathlib import Path

import jax

import albert_jax
from albert_jax.inference import inspection
from albert_jax.inference.explanation import explain
from albert_jax.inference.highlight import draw_explanation
from albert_jax.inference.logit_lens import after_each_pass, draw_passes
from albert_jax.model.heads import init_params

# %% [markdown]
# The notebook on the sharing ablation trains this network. You can use any other run folder; with one that was fine-tuned,
# use `task="classify"` and a text without [MASK].

# %%
source = Path("runs/notebook/all-shared/seed-0")
assert source.exists(), "run 3_sharing_ablation first: it trains this network; or name another run folder"
loaded = albert_jax.load(source)
text = "The function [MASK] a list of strings."

# %% [markdown]
# ## Contributions
#
# Integrated gradients divide the logit of a prediction among the words: what each word adds to it, compared with the same text
# in which every piece is masked. Blue words support the prediction, orange words oppose it.

# %%
explanation = explain(*loaded, text, task="fill-mask")[0]
explanation

# %%
draw_explanation(explanation)

# %% [markdown]
# The contributions sum to the difference of the two logits, within 1 %.

# %%
sum(word.contribution for word in explanation.words), explanation.logit - explanation.baseline_logit

# %% [markdown]
# Why not a different word? `target` names it.

# %%
explain(*loaded, text, task="fill-mask", target="the")[0]

# %% [markdown]
# ## A check
#
# An explanation should depend on what the network has learned. If it looks the same for random parameters, it shows the text and
# not the network.

# %%
model, _, tokenizer = loaded
fresh = init_params(model, jax.random.key(0))
explain(model, fresh, tokenizer, text, task="fill-mask", target="the")[0]

# %% [markdown]
# ## The prediction after each pass
#
# All passes share one layer, so the masked-LM head can read the output of each of them.

# %%
(passes,) = after_each_pass(*loaded, text)
passes

# %%
draw_passes(passes)

# %% [markdown]
# ## Attention rollout
#
# How much each piece enters each position after the last layer, if only attention moved information.

# %%
maps, pieces = inspection.attention_maps(*loaded, text)
rollout = inspection.attention_rollout(maps)
inspection.draw_attention(rollout[:, None], pieces, layers=[len(rollout) - 1])

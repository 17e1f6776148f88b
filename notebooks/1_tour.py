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
# # A tour of the model
#
# You learn what an ALBERT is made of, see that one layer is run twelve times by a scan, look at what comes out
# in between, and count parameters: what sharing saves, and what it does not.

# %%
# %matplotlib inline
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from albert_jax.model.albert import PRESETS
from albert_jax.model.heads import Albert, flops_per_token, init_params, num_params, param_shapes
from albert_jax.model.sharing import layer_sets

# %% [markdown]
# A model is a frozen configuration and the names of its heads. `PRESETS` holds the released ones.

# %%
config = PRESETS["base"]
model = Albert(config)
config

# %% [markdown]
# Parameters are a nested dict. Those of the encoder's two parts, attention and feed-forward, carry a leading axis of
# parameter sets: 1 here, since all layers share.

# %%
for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(model)):
    print(f"{jax.tree_util.keystr(path, simple=True, separator='/'):55} {leaf.shape}")

# %% [markdown]
# ## One layer, scanned
#
# The program that JAX traces holds the layer once, inside a `scan` of length 12. How large it is does not depend on the
# depth; how long it runs does.

# %%
inputs = jnp.ones((1, 16), int)


def program(layers: int) -> str:
    deep = Albert(dataclasses.replace(config, num_hidden_layers=layers))
    return str(jax.make_jaxpr(lambda params: deep.apply({"params": params}, inputs))(param_shapes(deep)))


{layers: (len(program(layers).splitlines()), program(layers).count("scan[")) for layers in (3, 12, 48)}  # lines, scans

# %% [markdown]
# ## What comes out in between
#
# `apply` returns a dict in Hugging Face's names; hidden states and attention of every layer if one asks for them.

# %%
params = init_params(model, jax.random.key(0))
outputs = jax.jit(
    lambda params, ids: model.apply({"params": params}, ids, output_hidden_states=True, output_attentions=True)
)(params, inputs)
{name: value.shape for name, value in outputs.items()}

# %% [markdown]
# ## Which layer reads which set
#
# Sharing is data: for each part a tuple that says which parameter set each layer reads.

# %%
for sharing, groups in (("all", 1), ("attention", 1), ("ffn", 1), ("none", 1), ("groups", 4)):
    print(f"{sharing:10}", layer_sets(sharing, 12, groups, 1))

# %% [markdown]
# ## What sharing saves
#
# Parameters, by far most of them in the feed-forward part; and, with E = 128 instead of 768, the embeddings of a
# vocabulary of 30,000 (the paper's Table 4). Not FLOPs: the layer runs twelve times either way.

# %%
sharings = ("all", "ffn", "attention", "none")
counts = {
    size: [num_params(Albert(dataclasses.replace(config, sharing=how, embedding_size=size))) / 1e6 for how in sharings]
    for size in (128, 768)
}
figure, axes = plt.subplots(figsize=(7, 3))
for offset, (size, values) in zip((-0.2, 0.2), counts.items(), strict=True):
    axes.bar_label(axes.bar([i + offset for i in range(4)], values, width=0.38, label=f"E = {size}"), fmt="%.0f")
axes.set_xticks(range(4), ["all shared", "FFN shared", "attention shared", "nothing shared"])
axes.set_ylabel("parameters (M), base with heads")
axes.margins(y=0.12)
axes.legend()
plt.show()

# %%
{
    how: f"{flops_per_token(dataclasses.replace(config, sharing=how), 512, 77) / 1e6:.0f} MFLOP a token"
    for how in sharings
}

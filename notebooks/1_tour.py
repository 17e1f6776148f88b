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
# You see the parts of an ALBERT, how a scan runs one layer twelve times, which outputs each layer gives, and how many
# parameters sharing saves.

# %%
# %matplotlib inline
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt

from albert_jax.model.albert import PRESETS
from albert_jax.model.heads import Albert, flops_per_token, init_params, num_params, param_shapes
from albert_jax.model.sharing import STRATEGIES, layer_sets

# %% [markdown]
# A model consists of a frozen configuration and the names of its heads. `PRESETS` has the released configurations.

# %%
config = PRESETS["base"]
model = Albert(config)
config

# %% [markdown]
# Parameters are a nested dict. In the encoder, the parameters of attention and feed-forward have a leading axis: the number of
# parameter sets. It is 1 here, because all layers share one set.

# %%
for path, leaf in jax.tree_util.tree_leaves_with_path(param_shapes(model)):
    print(f"{jax.tree_util.keystr(path, simple=True, separator='/'):55} {leaf.shape}")

# %% [markdown]
# ## One layer, scanned
#
# The program that JAX traces contains the layer once, inside a `scan` of length 12. So its size does not depend on the depth, only
# its running time does. The next cell prints the number of lines and of scans for 3, 12 and 48 layers.

# %%
inputs = jnp.ones((1, 16), int)


def program(layers: int) -> str:
    """The traced program of a model with this number of layers."""
    deep = Albert(dataclasses.replace(config, num_hidden_layers=layers))
    return str(jax.make_jaxpr(lambda params: deep.apply({"params": params}, inputs))(param_shapes(deep)))


{layers: (len(program(layers).splitlines()), program(layers).count("scan[")) for layers in (3, 12, 48)}

# %% [markdown]
# ## Outputs of every layer
#
# `apply` returns a dict with Hugging Face's names. On request it includes the hidden states and attention weights of every layer.

# %%
params = init_params(model, jax.random.key(0))
outputs = jax.jit(
    lambda params, ids: model.apply({"params": params}, ids, output_hidden_states=True, output_attentions=True)
)(params, inputs)
{name: value.shape for name, value in outputs.items()}

# %% [markdown]
# ## Which layer reads which parameter set
#
# Sharing is data: for each part of a layer, a tuple gives the parameter set that each layer reads. Here are all strategies for twelve
# layers, with four sets where a strategy takes their number.

# %%
for name, strategy in STRATEGIES.items():
    print(f"{name:10}", layer_sets(name, 12, 4 if strategy.takes_groups else 1, 1))

# %% [markdown]
# ## What sharing saves
#
# Sharing saves parameters, most of them in the feed-forward part. A smaller embedding (E = 128 instead of 768) saves those of a
# vocabulary of 30,000 pieces. These are the counts of the paper's Table 4, with the pretraining heads.

# %%
sharings = ("all", "ffn", "attention", "none")
counts = {
    size: [
        num_params(Albert(dataclasses.replace(config, sharing=name, embedding_size=size))) / 1e6 for name in sharings
    ]
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

# %% [markdown]
# Sharing does not save FLOPs: the layer runs twelve times in every case.

# %%
{
    name: f"{flops_per_token(dataclasses.replace(config, sharing=name), 512, 77) / 1e6:.0f} MFLOP per token"
    for name in sharings
}

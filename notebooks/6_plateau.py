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
# # Leaving the unigram plateau
#
# You train one network twice: with a learning rate that is too high for shared layers, and with Muon. The first run stays at the
# unigram loss, the second one leaves it. You follow the loss, the similarity of hidden states and the entropy of attention during
# training, and compare attention maps before and after. On two CPU cores this takes some minutes.

# %%
# %matplotlib inline
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import albert_jax
from albert_jax.config import load
from albert_jax.inference import inspection
from albert_jax.pretraining import PretrainConfig, pretrain
from albert_jax.training.run_folder import read_metrics

STEPS = 1000

# %% [markdown]
# ## Two runs
#
# They differ only in the optimizer. Both keep their first and last checkpoints.

# %%
every = max(1, STEPS // 20)
common = {
    "model.num_hidden_layers": 4,
    "model.scan_unroll": 1,  # compiles faster, runs slower
    "train.num_train_steps": STEPS,
    "train.eval_every": every,
    "train.checkpoint_every": every,
    "train.keep_checkpoints": 20,
    "optim.num_warmup_steps": STEPS // 20,
    "eval_draws": 1,
}
optimizers = {
    "AdamW, rate 0.004": {"optim.optimizer": "adamw", "optim.learning_rate": 0.004},
    "Muon, rate 0.005": {"optim.optimizer": "muon", "optim.learning_rate": 0.005},
}
summaries = {}
for label, fields in optimizers.items():
    run_dir = f"runs/plateau/{fields['optim.optimizer']}"
    config = load(PretrainConfig, "../experiments/pretrain/tiny.py", {**common, **fields, "run_dir": run_dir})
    summaries[label] = pretrain(config) | {"run_dir": run_dir}

# %% [markdown]
# ## The transition
#
# On the plateau the model predicts each piece with the frequency that it has in the text: its loss is the unigram loss. All
# positions have nearly the same hidden state (similarity near 1), because attention is uniform (relative entropy near 1) and
# mixes all tokens equally. When attention becomes selective, the loss falls below the unigram loss.

# %%
panels = {
    "eval/mlm_loss": "MLM loss (nats), held out",
    "diagnostics/hidden_similarity": "similarity of hidden states",
    "diagnostics/attention_entropy_layer_1": "relative entropy of attention, layer 1",
}
figure, grid = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
for label, summary in summaries.items():
    log = pd.DataFrame(read_metrics(Path(summary["run_dir"]))).dropna(subset="eval/mlm_loss")
    for axes, name in zip(grid, panels, strict=True):
        axes.plot(log["step"], log[name], "o-", ms=3, label=label)
for axes, title in zip(grid, panels.values(), strict=True):
    axes.set(xlabel="step", ylabel=title)
    axes.grid(alpha=0.3)
for name in ("unigram", "neighbors"):
    loss = summaries[label]["baselines"][name]["mlm_loss"]
    grid[0].axhline(loss, color="black", ls=":" if name == "unigram" else "--", lw=1, label=f"baseline: {name}")
grid[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Attention before and after
#
# The maps of the first layer at the first and the last checkpoint of the run with Muon. Each row of a map is a piece that attends,
# each column a piece that is attended to; dark means 1.

# %%
sentence = "If the file does not exist, an exception is raised."
for step in (every, STEPS):
    model, params, tokenizer = albert_jax.load(f"runs/plateau/muon/checkpoints/{step}")
    maps, pieces = inspection.attention_maps(model, params, tokenizer, sentence)
    display(inspection.draw_attention(maps, pieces, layers=[0]))  # noqa: F821

# %% [markdown]
# What to do if a run of yours is stuck: [When ALBERT does not learn](../docs/when-albert-does-not-learn.md).

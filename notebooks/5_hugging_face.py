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
# # To Hugging Face and back
#
# You write a trained model as a folder that `transformers` loads, look at the name of each tensor, read the folder back, and check
# that nothing was lost. Google's checkpoints and hub ids such as `albert/albert-base-v2` can be converted in the same way.

# %%
# %matplotlib inline
import importlib.util
import shutil
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import albert_jax
from albert_jax.exchange.convert import convert
from albert_jax.inference.pretrained import fill_mask

# %% [markdown]
# The notebook on the sharing ablation trains this network. You can use any other run folder.

# %%
source = Path("runs/notebook/all-shared/seed-0")
assert source.exists(), "run 3_sharing_ablation first: it trains this network; or name another run folder"
target = Path("runs/notebook-exported")
shutil.rmtree(target, ignore_errors=True)
report = convert(source, target)
sorted(path.name for path in target.iterdir())

# %% [markdown]
# For each tensor: its name in Hugging Face's format, its shape, and its name in albert_jax. Kernels are transposed for torch.
# The leading axis of parameter sets is gone, because all layers share one set.

# %%
for tensor in report["written"]:
    print(f"{tensor['tensor']:75} {tensor['shape']!s:12} {tensor['parameter']}")

# %% [markdown]
# ## Read it back
#
# The new folder is read like any Hugging Face folder. All parameters are bitwise equal.

# %%
model, params, tokenizer = albert_jax.load(source)
again, params_again, tokenizer_again = albert_jax.load(target)
assert jax.tree.all(jax.tree.map(np.array_equal, params, params_again))
text = "The function returns a list of strings."
assert np.array_equal(tokenizer(text)["input_ids"], tokenizer_again(text)["input_ids"])

# %% [markdown]
# The report contains the largest differences of the outputs on random inputs. If torch and `transformers` are installed, they
# compute the outputs of the new folder; otherwise albert_jax does.

# %%
report["parity"]

# %% [markdown]
# ## Compare the logits
#
# One axis shows the logits of the original model. The other shows the logits of the new folder, computed by `transformers` if it
# is installed, and otherwise by albert_jax.

# %%
inputs = tokenizer(text)
ours = np.asarray(model.apply({"params": params}, **inputs)["prediction_logits"][0])
if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
    import torch
    from transformers import AlbertForPreTraining

    tensors = {name: torch.tensor(np.asarray(value, np.int64)) for name, value in inputs.items()}
    with torch.no_grad():
        theirs = AlbertForPreTraining.from_pretrained(target).eval()(**tensors).prediction_logits[0].numpy()
    by = "transformers"
else:
    theirs = np.asarray(again.apply({"params": params_again}, **inputs)["prediction_logits"][0])
    by = "albert_jax, read back"
figure, axes = plt.subplots(figsize=(4, 4))
axes.plot(ours.ravel(), theirs.ravel(), ".", ms=2)
axes.set(
    xlabel="logits, albert_jax", ylabel=f"logits, {by}", title=f"largest difference {np.abs(ours - theirs).max():.1e}"
)
plt.show()

# %% [markdown]
# ## Change the sharing
#
# A conversion can also change the sharing or the depth. Without sharing, the layers have twelve times the parameters and the
# predictions are the same.

# %%
unshared = Path("runs/notebook-unshared")
shutil.rmtree(unshared, ignore_errors=True)
unshared_report = convert(source, unshared, to="albert_jax", sharing="none")
print(f"{report['parameters']:,} -> {unshared_report['parameters']:,} parameters")
for folder in (source, unshared):
    print(fill_mask(*albert_jax.load(folder), ["The function returns a [MASK]."], top_k=3)[0])

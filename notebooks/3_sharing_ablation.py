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
# # The sharing ablation, from launch to figure
#
# You run two rows of the paper's Table 4 at the scale `tiny`, everything shared and nothing shared, with two seeds each, and get the
# table and figures of them; then you write a table of your own. On two CPU cores this takes some minutes.

# %%
# %matplotlib inline
import logging
import os

from IPython.display import Markdown

from albert_jax.ablation import run as ablate
from albert_jax.ablation.planning import describe, resolve
from albert_jax.ablation.table import read_table
from albert_jax.reports import comparison, figures

logging.basicConfig(level=logging.ERROR, format="%(message)s")
logging.getLogger("albert_jax").setLevel(logging.INFO)  # how far it is

STEPS = int(os.environ.get("NOTEBOOK_STEPS", "300"))

# %% [markdown]
# A table is a small file: labels, and what each row overrides.

# %%
question, table = read_table("../experiments/ablations/sharing.py")
print(question)
for label, row in table.rows.items():
    print(f"  {label:25} {dict(row.overrides)}")

# %% [markdown]
# `resolve` decides every row at a scale and a budget, and runs nothing: what each will cost can be seen first. On the
# command line this is `albert-jax ablate experiments/ablations/sharing.py --dry-run`.

# %%
plan = resolve(
    "../experiments/ablations/sharing.py",
    scale="tiny",
    seeds=2,
    rows=["all-shared (1 group)", "not-shared (12 groups)"],
    overrides=[
        "--model.scan-unroll=1",  # compiles sooner, runs slower
        f"--train.num-train-steps={STEPS}",
        f"--train.eval-every={max(1, STEPS // 4)}",
        f"--optim.num-warmup-steps={STEPS // 10}",
    ],
    run_dir="runs/notebook",
)
Markdown(describe(plan))

# %% [markdown]
# Now for the runs. Executed again, this cell finds them finished; interrupted, it goes on where it was.

# %%
found = ablate.ablate(plan)
Markdown(comparison.markdown(found))

# %% [markdown]
# The mean of the seeds, and a band of one standard deviation. Two seeds say little: a difference within the bands is none.

# %%
figures.draw_curves(found)

# %% [markdown]
# Against parameters the rows are far apart, against FLOPs they are not: sharing saves memory, not work.

# %%
figures.draw_scores(found)

# %% [markdown]
# ## A question of your own
#
# Rows are overrides of any field. A file like this one beside a folder `scales` is a table; `albert-jax ablate` takes it.
#
# ```python
# """Does the pooled vector need a tanh network below it, or would relu do?"""
#
# from albert_jax.ablation import Ablation, Row
#
# ablation = Ablation(
#     rows={act: Row({"model.hidden_act": act}) for act in ("gelu_new", "relu", "tanh")},
# )
# ```
#
# All values, a line a run, are in `runs.csv`:

# %%
print(comparison.runs_csv(found))

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
# You train two rows of the paper's Table 4 at the scale `tiny`, with all layers shared and with none shared, and get their table
# and figures. Then you write a table of your own. On two CPU cores this takes some minutes.

# %%
# %matplotlib inline
import logging

from IPython.display import Markdown

from albert_jax.ablation.cost import cost_table
from albert_jax.ablation.planning import resolve
from albert_jax.ablation.run import ablate
from albert_jax.ablation.table import read_table
from albert_jax.reports import load_runs
from albert_jax.reports.comparison import comparison_table
from albert_jax.reports.figures import draw_curves, draw_scores

logging.basicConfig(level=logging.ERROR, format="%(message)s")
logging.getLogger("albert_jax").setLevel(logging.INFO)  # show progress

STEPS = 300
SEEDS = 2

# %% [markdown]
# A table is a small file: the label of each row, and the fields that it overrides.

# %%
question, table = read_table("../experiments/ablations/sharing.py")
print(question)
for label, row in table.rows.items():
    print(f"  {label:25} {row}")

# %% [markdown]
# `resolve` plans every row at a scale and with a budget, without running it, so that you see the cost first. On the command
# line this is `albert-jax ablate experiments/ablations/sharing.py --dry-run`.

# %%
plan = resolve(
    "../experiments/ablations/sharing.py",
    scale="tiny",
    seeds=SEEDS,
    rows=["all-shared", "not-shared"],
    overrides={
        "model.scan_unroll": 1,  # compiles faster, runs slower
        "train.num_train_steps": STEPS,
        "train.eval_every": max(1, STEPS // 4),
        "optim.num_warmup_steps": STEPS // 10,
    },
    run_dir="runs/notebook",
)
Markdown(cost_table(plan))

# %% [markdown]
# The next cell trains. If it is interrupted, executing it again resumes; finished runs are skipped.

# %%
result = ablate(plan)
Markdown(comparison_table(result))

# %% [markdown]
# The mean over the seeds, with a band of one standard deviation. Two seeds are few: do not trust a difference within the bands.

# %%
draw_curves(result.curves, result.baselines)

# %% [markdown]
# The rows differ in parameters but not in FLOPs: sharing saves memory, not work.

# %%
draw_scores(result.runs, result.baselines)

# %% [markdown]
# ## The results as a DataFrame
#
# `load_runs` reads any run folders. It returns one line per run, with the fields in which the runs differ and every number of
# their summaries.

# %%
runs = load_runs("runs/notebook")
runs.groupby("row", sort=False)[["parameters", "tokens_per_second", "mlm_loss", "mlm_accuracy"]].agg(["mean", "std"])

# %% [markdown]
# ## A question of your own
#
# A row can override any field. A file like this one, beside a folder `scales`, is a table that `albert-jax ablate` runs.
#
# ```python
# """Which activation should the feed-forward network have?"""
#
# from albert_jax.ablation import Ablation, Row
#
# ablation = Ablation(
#     rows={act: Row({"model.hidden_act": act}) for act in ("gelu_new", "relu", "tanh")},
# )
# ```

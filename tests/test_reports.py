"""Tables of runs from synthetic run folders: one line per run, mean and standard deviation, Markdown, figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from albert_jax.cli import main
from albert_jax.reports import comparison, figures, load_runs, paired_differences
from albert_jax.reports.run import panels, plot_curves, summary_table
from albert_jax.reports.tables import duration, markdown_table, number, title, value_text

from .conftest import refused


def write_run(folder: Path, seed: int = 0, metrics: dict[str, float] | None = None, **model: Any) -> Path:
    """A finished run; `metrics` are its held-out metrics."""
    folder.mkdir(parents=True)
    train = {"seed": seed, "global_batch_size": 4, "num_train_steps": 10}
    config = {
        "run_dir": str(folder),
        "init_from": "",
        "model": model,
        "objective": {"max_seq_length": 8},
        "train": train,
    }
    (folder / "config.json").write_text(json.dumps({"job": "pretrain", "config": config}))
    values = metrics or {"mlm_loss": 5.0 + seed, "mlm_accuracy": 0.25}
    records = [{"step": 5, "train/loss": 7.0}, {"step": 10} | {f"eval/{name}": value for name, value in values.items()}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    facts = {"steps": 10, "tokens": 300.0, "seconds": 2.0, "parameters": 1000, "flops_per_token": 2e6}
    summary = facts | {"eval": values, "baselines": {"unigram": {"mlm_accuracy": 0.1}}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_runs_that_differ_only_in_the_seed_are_one_row(tmp_path: Path) -> None:
    """Rows are labeled with the fields in which the runs differ.  Fails if the standard deviation is over n."""
    for sharing in ("all", "none"):
        for seed in (0, 1):
            write_run(tmp_path / f"{sharing}-{seed}", seed, sharing=sharing, dtype="float32")
    runs = load_runs(tmp_path)
    assert runs["row"].tolist() == ["sharing all"] * 2 + ["sharing none"] * 2
    assert runs["config: model.sharing"].tolist() == ["all", "all", "none", "none"]
    assert "config: model.dtype" not in runs
    assert runs["mlm_loss"].tolist() == [5.0, 6.0, 5.0, 6.0]
    rows = comparison.mean_and_std(runs)
    assert rows.loc["sharing all", "mlm_loss"] == 5.5
    assert rows.loc["sharing all", "mlm_loss std"] == pytest.approx(np.std([5, 6], ddof=1))
    parts = comparison.comparison_table(comparison.read(tmp_path)).split("\n\n")
    means, costs = parts[0].splitlines(), parts[-1].splitlines()
    assert means[0] == "|  | runs | parameters | MLM loss | MLM (%) |"
    assert means[2] == "| sharing all | 2 | 1,000 | 5.500 ± 0.707 | 25.0 ± 0.0 |"
    assert means[-1] == "| baseline: unigram |  |  |  | 10.0 |"
    assert costs[0] == "| cost | MFLOP/token | tokens (M) | PFLOP | training (s) |"
    assert costs[2] == "| sharing all | 2.0 | 0.00 | 6e-07 | 2 ± 0 |"


def test_paired_differences(tmp_path: Path) -> None:
    """Mean and interval are scipy's for a paired t test over the seeds that both rows have finished.

    Fails if seeds are paired by position, or the interval is that of two independent samples.
    """
    losses = {"all": [5.0, 5.3, 4.6, 5.1, 5.2], "none": [4.8, 5.25, 4.5, 4.85, 5.0], "ffn": [5.1, 5.2, 4.7, 5.0, 5.3]}
    for sharing, values in losses.items():
        for seed, loss in enumerate(values):
            if (sharing, seed) != ("none", 1):
                metrics = {"mlm_loss": loss, "mlm_accuracy": 0.2, "sop_loss": loss}
                write_run(tmp_path / f"{sharing}-{seed}", seed, metrics, sharing=sharing)
    runs = load_runs(tmp_path)
    reference, row = ([values[seed] for seed in (0, 2, 3, 4)] for values in (losses["all"], losses["none"]))
    expected = stats.ttest_rel(row, reference)
    found = paired_differences(runs, "sharing all").set_index(["row", "metric"])
    line = found.loc[("sharing none", "mlm_loss")]
    assert line["seeds"] == 4
    assert line["difference"] == pytest.approx(np.mean(row) - np.mean(reference))
    assert (line["low"], line["high"]) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert line["distinct"] == (expected.pvalue < 0.05) == True  # noqa: E712
    assert not found.loc[("sharing ffn", "mlm_loss"), "distinct"]
    assert found.loc[("sharing ffn", "mlm_accuracy"), ["difference", "low", "high", "distinct"]].tolist() == [
        0,
        0,
        0,
        0,
    ]
    assert set(found.index.get_level_values("metric")) == {"mlm_loss", "mlm_accuracy"}
    text = comparison.comparison_table(comparison.read(tmp_path, "all"))
    assert "Difference from 'sharing all': mean over the common seeds" in text
    assert "makes no claim, because it has fewer than 5 common seeds" in text
    assert "| sharing ffn | 5 | ≈ +0.020 [" in text
    assert (
        f"| sharing none | 4 | {line['difference']:.3f} [{line['low']:.3f}, {line['high']:.3f}] | ≈ 0.0 [0.0, 0.0] |"
        in text
    )
    only = comparison.comparison_table(comparison.read([tmp_path / "all-0", tmp_path / "ffn-0"]))
    assert "| sharing ffn | 1 | +0.100 | 0.0 |" in only
    assert "Difference" not in comparison.comparison_table(comparison.read([tmp_path / "all-0", tmp_path / "ffn-1"]))


def test_a_new_metric_needs_no_entry(tmp_path: Path) -> None:
    """A sentence objective that the reports do not know has columns and panels."""
    metrics = {"mlm_loss": 5.0, "sso_accuracy": 0.4, "sso_loss": 1.1}
    write_run(tmp_path / "a", metrics=metrics)
    table = comparison.comparison_table(comparison.read(tmp_path / "a"))
    assert "| MLM loss | SSO (%) |" in table
    assert "| 5.000 | 40.0 |" in table
    assert list(panels({f"eval/{name}" for name in metrics})) == ["mlm_loss", "sso_accuracy", "sso_loss", "loss"]
    assert list(panels({"eval/f1", "eval/f1_PER", "eval/best_f1_threshold"})) == ["f1", "loss"]
    layers = [f"attention_entropy_layer_{layer}" for layer in (2, 10)]
    diagnostics = {f"diagnostics/{name}" for name in (*layers, "hidden_similarity", "gain_over_unigram")}
    expected = {"attention_entropy": layers, "hidden_similarity": ["hidden_similarity"], "loss": ["loss"]}
    assert panels(diagnostics) == expected


def test_an_unfinished_run_reports_its_step(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "summary.json").unlink()
    runs = load_runs([folder])
    assert runs["state"].tolist() == ["at step 10 of 10"]
    assert "0 of 1; 1 at step 10 of 10" in comparison.comparison_table(comparison.read(folder))


def test_report_writes_tables_and_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write_run(tmp_path / f"{act}-{seed}", seed, act=act)) for act in ("relu", "tanh") for seed in (0, 1)]
    output = tmp_path / "compared"
    assert main(["report", *runs, "--output", str(output)]) == 0
    assert capsys.readouterr().out == (output / "table.md").read_text()
    names = {f"{name}.{suffix}" for name in ("curves", "differences", "scores") for suffix in ("png", "svg")}
    assert {path.name for path in output.iterdir()} == names | {
        "table.md",
        "table.csv",
        "differences.csv",
        "runs.csv",
        "report.html",
    }
    assert len((output / "runs.csv").read_text().splitlines()) == 5
    assert len((output / "table.csv").read_text().splitlines()) == 3
    assert main(["report", *runs, "--output", str(output), "--rows", "tanh", "--reference", "tanh"]) == 0
    assert len((output / "runs.csv").read_text().splitlines()) == 3
    message = refused(["report", *runs, "--rows", "gelu"], capsys)
    assert message == "--rows: no label contains 'gelu'; the labels are act relu; act tanh"
    message = refused(["report", *runs, "--reference", "act"], capsys)
    assert message == "--reference: several labels contain 'act': act relu; act tanh"
    message = refused(["report", str(output), runs[0], "--output", str(tmp_path)], capsys)
    assert f"{output}: contains no run and no table of runs" in message


@pytest.mark.parametrize(("examples", "beaten"), [(320.0, "-"), (32_000.0, "chance")])
def test_table_says_which_baselines_the_model_beats(examples: float, beaten: str) -> None:
    """An accuracy within two standard errors of a baseline does not beat it."""
    summary = {
        "eval": {"mlm_loss": 5.0, "sop_accuracy": 0.53, "sop_loss": 0.69},
        "examples": {"sop_accuracy": examples},
        "baselines": {
            "unigram": {"mlm_loss": 6.0},
            "neighbors": {"mlm_loss": 4.5},
            "chance": {"sop_accuracy": 0.5},
            "bag of pieces": {"sop_accuracy": 0.6},
        },
        "diagnostics": {"hidden_similarity": 0.25, "attention_entropy_layer_1": 0.5, "attention_entropy_layer_2": 0.75},
        "steps": 10,
        "tokens": 300.0,
        "seconds": 2.0,
        "tokens_per_second": 150.0,
    }
    lines = summary_table(summary).splitlines()
    assert lines[3:6] == [
        "| mlm_loss | 5.0000 | unigram 6.0000, neighbors 4.5000 | unigram |",
        f"| sop_accuracy | 0.5300 | chance 0.5000, bag of pieces 0.6000 | {beaten} |",
        "| sop_loss | 0.6900 | - | - |",
    ]
    assert "cosine similarity of hidden states 0.25" in lines[7]
    assert "attention entropy / uniform 0.50 to 0.75" in lines[7]


def test_curves_have_a_band_and_a_baseline(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / str(seed), seed)
    found = comparison.read(tmp_path)
    figure = figures.draw_curves(found.curves, found.baselines)
    assert figure is not None
    panel = {axes.get_ylabel(): axes for axes in figure.axes}
    assert list(panel) == ["MLM loss (nats), held out", "MLM accuracy, held out"]
    line = panel["MLM loss (nats), held out"].lines[0]
    np.testing.assert_allclose(line.get_data(), [[10 * 4 * 8e-6], [5.5]])
    low, high = (
        panel["MLM loss (nats), held out"]
        .collections[0]
        .get_datalim(panel["MLM loss (nats), held out"].transData)
        .intervaly
    )
    assert (low, high) == pytest.approx((5.5 - 2**-0.5, 5.5 + 2**-0.5))
    assert np.array(panel["MLM accuracy, held out"].lines[-1].get_data())[1, 0] == 0.1
    assert plot_curves(tmp_path / "0").stat().st_size > 10_000


def test_text_of_tables() -> None:
    assert markdown_table(["a", "b"], [[1, None], ["x|y", 2.5]]) == "| a | b |\n|---|---|\n| 1 |  |\n| x\\|y | 2.5 |"
    assert [title(name) for name in ("memory", "sop_accuracy", "mlm_loss", "accuracy", "cola matthews")] == [
        "memory (MB)",
        "SOP (%)",
        "MLM loss",
        "accuracy",
        "cola matthews",
    ]
    assert [value_text("tokens", 2e6), value_text("f1", None), number(None), number(12.345)] == [
        "2.00",
        "",
        "-",
        "12.35",
    ]
    assert [duration(seconds) for seconds in (0.02, 5, 5400, 2e5)] == ["20 ms", "5 s", "1.5 h", "2.31 days"]

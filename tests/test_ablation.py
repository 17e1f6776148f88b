"""Plans of ablation tables: every row of every table is resolved, has the paper's parameter count, and keeps to the budget."""

import ast
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from albert_jax.ablation import At
from albert_jax.ablation import run as ablate
from albert_jax.ablation.budget import row_flops
from albert_jax.ablation.manifest import load_plan
from albert_jax.ablation.planning import resolve
from albert_jax.ablation.table import read_table
from albert_jax.cli import main
from albert_jax.config import InputError, differences, flat, to_dict
from albert_jax.model.heads import Albert, init_params, num_params, param_shapes
from albert_jax.pretraining import objective as pretraining
from albert_jax.pretraining import probes
from albert_jax.pretraining.objective import Vocabulary

from .conftest import ROOT, refused

FOLDER = ROOT / "experiments" / "ablations"
TABLES = sorted(FOLDER.glob("*.py"))
SCALES = ("paper", "small", "tiny")

both = pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)


def table(name: str) -> str:
    return str(FOLDER / f"{name}.py")


def at_scale(value: Any, scale: str) -> Any:
    return value[scale] if isinstance(value, At) else value


@both
@pytest.mark.parametrize("scale", SCALES)
def test_overrides_take_effect(path: Path, scale: str) -> None:
    """Every row has the values that it sets, no two rows are equal, and nothing else differs except what the budget adjusts.

    Fails if the scale or the budget overwrites a row's field, or if two rows are copies.
    """
    rows = read_table(str(path))[1].rows
    plan = resolve(str(path), scale=scale)
    assert [row.label for row in plan.rows] == list(rows)
    row_fields = {name for row in rows.values() for name in row.overrides}
    adjusted = ("run_dir", "eval_objective", "optim.num_warmup_steps", "train.")
    # Choosing a variant adds the fields of that variant.
    variants = tuple(f"{name}." for name in row_fields)
    seen = []
    for planned in plan.rows:
        config = to_dict(planned.config)
        values = flat(config)
        for name, value in rows[planned.label].overrides.items():
            chosen = values[f"{name}.name"] if f"{name}.name" in values else values[name]
            assert chosen == at_scale(value, scale), name
        shapes = param_shapes(Albert(planned.config.model))
        assert planned.parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes))
        seen.append(json.dumps(config, sort_keys=True) + planned.start + planned.teacher)
        changed = {line.partition(":")[0] for line in differences(to_dict(plan.rows[0].config), config)}
        assert all(name in row_fields or name.startswith((*adjusted, *variants)) for name in changed), changed
        assert planned.config.train.seed == plan.rows[0].config.train.seed or planned.start
    assert len(set(seen)) == len(seen)


@both
def test_parameter_counts_of_the_paper(path: Path) -> None:
    """At the scale `paper`, in millions, as the paper counts: with the pooler unless nothing is shared, without heads.

    The paper prints more parameters than its released code has for H = 2048, 4096 and 6144 (60, 225 or 235, 499).
    """
    for row in resolve(str(path), scale="paper").rows:
        if "parameters (M)" not in row.paper:
            continue
        shapes = param_shapes(Albert(row.config.model))
        counted = {"embeddings", "encoder"} | ({"pooler"} if row.config.model.sharing != "none" else set())
        millions = sum(leaf.size for name in counted for leaf in jax.tree.leaves(shapes[name])) / 1e6
        if row.config.model.hidden_size <= 1024:
            assert round(millions) == row.paper["parameters (M)"], row.label
        else:
            assert 0.94 * row.paper["parameters (M)"] < millions < row.paper["parameters (M)"], row.label


@both
def test_table_file(path: Path) -> None:
    """A table's docstring: a question, its command, what the paper reports, our results.  The file has less than 100 lines."""
    lines = (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()
    assert len(path.read_text().splitlines()) < 100
    assert lines[0].endswith("?")
    assert lines[2].startswith(f"    albert-jax ablate experiments/ablations/{path.stem}.py --scale tiny --seeds 5")
    assert lines[4].startswith(("Paper (Table ", "Not in the paper"))
    assert sum(line.startswith("Results: ") for line in lines[5:]) == 1


def test_rows_have_the_same_batches_and_initial_values() -> None:
    """All rows of `sharing` draw the same first batch, and the parameters that all of them have start with the same values.

    Fails if a row's seed, or the key of its parameters, depends on its place in the table.
    """
    plan = resolve(table("sharing"), overrides={"model.num_hidden_layers": 6})
    labels = ("all-shared", "shared-attention", "not-shared")
    rows = [plan.run_config(plan.row(label), 1) for label in labels]
    batch = {
        "tokens": np.random.default_rng(0).integers(5, 1000, (4, 91)).astype(np.int32),
        "sentence": np.repeat(np.arange(7), 13)[None].repeat(4, 0).astype(np.int32),
        "document": np.arange(4, dtype=np.int32),
    }
    vocabulary = Vocabulary(1000, 0, 2, 3, 4, np.ones(1000, bool))
    assert rows[0].objective == rows[1].objective == rows[2].objective
    draw = jax.jit(functools.partial(pretraining.draw, rows[0].objective, vocabulary))
    drawn = [draw(batch, jax.random.fold_in(jax.random.key(row.train.seed), 0)) for row in rows]
    initial = [init_params(Albert(row.model), jax.random.key(row.train.seed)) for row in rows]
    for examples, params in zip(drawn[1:], initial[1:], strict=True):
        assert all(np.array_equal(examples[name], drawn[0][name]) for name in drawn[0] if name != "dropout_keys")
        for part in ("embeddings", "pooler", "predictions", "sop_classifier"):
            assert jax.tree.all(jax.tree.map(np.array_equal, params[part], initial[0][part])), part
    other = init_params(Albert(rows[0].model), jax.random.key(rows[0].train.seed + 1))
    assert not jax.tree.all(jax.tree.map(np.array_equal, other["pooler"], initial[0]["pooler"]))


def test_budget_of_tokens() -> None:
    """With a different batch size, a row has different steps, and the same share of warm-up, logs and evaluations."""
    plan = resolve(table("optimizer"))
    one, quarter, four = (plan.row(f"AdamW, batch x {factor}").config for factor in ("1", "0.25", "4"))
    for config, factor in ((quarter, 0.25), (four, 4)):
        assert (
            config.train.num_train_steps * config.train.global_batch_size
            == one.train.num_train_steps * one.train.global_batch_size
        )
        assert config.train.num_train_steps == one.train.num_train_steps / factor
        for name in ("log_every", "eval_every", "checkpoint_every"):
            assert getattr(config.train, name) == pytest.approx(getattr(one.train, name) / factor, abs=0.5)
        assert config.optim.num_warmup_steps == pytest.approx(one.optim.num_warmup_steps / factor, abs=0.5)


def test_budget_of_flops() -> None:
    """Every row spends the same FLOPs as the first, to within a step."""
    plan = resolve(table("depth"), budget="flops")
    spent = [row_flops(row.config) * row.config.train.num_train_steps for row in plan.rows]
    for row, found in zip(plan.rows, spent, strict=True):
        assert abs(found - spent[0]) <= row_flops(row.config), row.label


def test_budget_of_params() -> None:
    """Each row has the width whose parameter count is nearest to the first row's, with the same number of heads.

    Fails if a neighboring width were nearer, or if E = H is not kept.
    """
    rows = ["all-shared", "2 groups", "not-shared, E = H"]
    plan = resolve(table("sharing"), budget="params", rows=rows)
    assert len(plan.rows) == len(rows)
    first = resolve(table("sharing")).rows[0]
    target = num_params(Albert(first.config.model))
    assert plan.rows[0].config.model == first.config.model
    for row in plan.rows:
        model = row.config.model
        heads = plan.base["model"]["num_attention_heads"]
        assert model.num_attention_heads == heads
        assert model.intermediate_size == 4 * model.hidden_size
        if row.label.endswith("E = H"):
            assert model.embedding_size == model.hidden_size
        gaps = []
        for width in (model.hidden_size - heads, model.hidden_size, model.hidden_size + heads):
            sizes = {"hidden_size": width, "intermediate_size": 4 * width}
            sizes |= {"embedding_size": width} if row.label.endswith("E = H") else {}
            gaps.append((abs(num_params(Albert(dataclasses.replace(model, **sizes))) - target), width))
        assert min(gaps)[1] == model.hidden_size, row.label


def test_budget_of_params_with_lora() -> None:
    """Fails if widths that are too narrow for the rank stop the search."""
    plan = resolve(table("per_pass"), budget="params", rows=["rank 16"])
    assert plan.rows[0].config.model.hidden_size < plan.base["model"]["hidden_size"]


def test_fractions_of_a_run_are_independent_of_its_steps() -> None:
    plan = resolve(table("delayed_sharing"), rows=["50"], overrides={"train.num_train_steps": 1000})
    assert [(row.config.tying.start, row.config.tying.end) for row in plan.rows] == [(0, 0.5), (0.5, 1)]


def test_budget_of_params_refuses_a_start_from_a_different_width() -> None:
    with pytest.raises(InputError, match="'shared, then 2 groups' cannot start from 'shared, first half'"):
        resolve(table("unsharing"), budget="params")


def test_batches_of_the_optimizer_table_are_multiples_of_the_scales() -> None:
    """And learning rates grow with the square root of the batch size."""
    for scale in SCALES:
        plan = resolve(table("optimizer"), scale=scale)
        assert plan.row("AdamW, batch x 1").config.train.global_batch_size == plan.base["train"]["global_batch_size"]
        one, four = (plan.row(f"AdamW, batch x {factor}").config.optim.learning_rate for factor in (1, 4))
        assert four == pytest.approx(2 * one)


def test_a_table_without_warm_up_stays_without() -> None:
    plan = resolve(table("unsharing"), overrides={"optim.num_warmup_steps": 0})
    assert {row.config.optim.num_warmup_steps for row in plan.rows} == {0}


def test_captions_name_what_is_not_equal() -> None:
    caption = resolve(table("unsharing")).caption
    assert "every row sees the same number of tokens; 'shared, first half' has 0.5 of the budget; " in caption
    assert caption.count("; a row that starts from another includes the other's tokens, FLOPs and time; ") == 1
    rate = {"optim.learning_rate": 0.004}
    caption = resolve(table("sharing"), overrides=rate).caption
    note = "the same number of tokens; all rows use the learning rate 0.004, which can be too high for rows with"
    assert note in caption
    assert "all rows use the learning rate 0.004. Does " in resolve(table("dropout"), overrides=rate).caption
    assert "rate" not in resolve(table("optimizer")).caption


def test_shares_and_starts() -> None:
    """A row that starts from another has different seeds, so that it does not repeat its batches, and its share of the steps."""
    plan = resolve(table("unsharing"), seeds=2)
    full, first, then = (plan.row(label) for label in ("shared", "shared, first half", "shared, then not shared"))
    steps = full.config.train.num_train_steps
    assert first.config.train.num_train_steps == then.config.train.num_train_steps == steps / 2
    assert then.start == first.label
    seeds = [{plan.run_config(row, seed).train.seed for seed in (0, 1)} for row in (first, then)]
    assert seeds[0].isdisjoint(seeds[1])
    run = plan.run_config(then, 1)
    assert run.init_from == f"{run.run_dir}/start"
    assert plan.run_config(first, 1).init_from == ""


def test_teachers() -> None:
    """A student learns from the run of the same seed; a tuning run of a student from the selected one of the teacher."""
    plan = resolve(table("distillation"), rows=["taught by shared"], tune=["optim.learning_rate=1e-3,2e-3"])
    assert [row.label for row in plan.rows] == ["shared", "shared, taught by shared"]
    teacher = dataclasses.replace(plan.rows[0], tuned={"optim.learning_rate": 0.002})
    plan = dataclasses.replace(plan, rows=(teacher, plan.rows[1]))
    student = plan.rows[1]
    assert plan.run_config(student, 3).distillation.teacher == plan.run_config(teacher, 3).run_dir
    assert plan.run_config(student, 3).train.seed == plan.run_config(teacher, 3).train.seed
    tuning_run = plan.run_config(student, {"optim.learning_rate": 0.001})
    assert tuning_run.distillation.teacher.endswith("/shared/tune-learning_rate-0.002")
    assert plan.run_config(teacher, 3).distillation.teacher == ""
    assert "tokens, FLOPs and time do not include those of teachers" in plan.caption


def test_all_rows_are_evaluated_with_the_same_masking() -> None:
    """Rows that differ in masking are evaluated with the scale's; rows that differ in sentence pairs with their own pairs."""
    rows = resolve(table("masking")).rows
    assert len({(row.config.eval_objective or row.config.objective) for row in rows}) == 1
    assert [row.config.eval_objective for row in resolve(table("sentence_objective")).rows] == [None] * 3


def test_rows_are_chosen_with_those_that_they_start_from() -> None:
    plan = resolve(table("depth"), rows=["6 layers from"])
    assert [row.label for row in plan.rows] == ["1 layer", "3 layers from 1", "6 layers from 3"]
    assert [row.label for row in resolve(table("sharing"), rows=["3 groups", "shared-FFN, "]).rows] == [
        "shared-FFN, E = H",
        "3 groups",
    ]


def test_a_plan_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    folder = str(tmp_path / "t")
    plan = resolve(table("depth"), seeds=2, run_dir=folder, overrides={"train.seed": 7})
    plan.save()
    assert load_plan(folder) == plan
    with pytest.raises(InputError, match=r"ablation\.json: no row 'no such'"):
        plan.row("no such")


def test_plans_in_one_folder_are_merged(tmp_path: Path) -> None:
    """A second launch keeps the rows, seeds and fine-tuning of the first; a plan of a different table is refused."""
    options = {"run_dir": str(tmp_path / "t"), "overrides": {"train.seed": 7}}
    sst2 = f"{ROOT}/experiments/finetune/sst2.py"
    plan = resolve(table("depth"), seeds=2, rows=["1 layer", "6 layers from"], finetune=[sst2], **options)
    again = resolve(table("depth"), rows=["3 layers"], **options)
    merged = again.merged(plan)
    labels = ["1 layer", "3 layers from 1", "3 layers", "6 layers from 3"]
    assert [row.label for row in merged.rows] == labels
    assert (merged.seeds, merged.finetune) == (2, {"sst2": sst2})
    with pytest.raises(InputError, match=r"holds a different table \(train.seed: 7 -> 0\)"):
        resolve(table("depth"), run_dir=str(tmp_path / "t")).merged(plan)


def test_a_plan_of_a_version_with_fewer_fields_is_continued(tmp_path: Path) -> None:
    """Fails if a field that was added since counts as a difference, in the rows or in what they override."""
    options = {"run_dir": str(tmp_path / "t")}
    plan = resolve(table("depth"), **options)
    plan.save()
    path = tmp_path / "t" / "ablation.json"
    stored = json.loads(path.read_text())
    for config in (stored["base"], *(row["config"] for row in stored["rows"])):
        del config["pairs"], config["train"]["loggers"]
    path.write_text(json.dumps(stored))
    assert resolve(table("depth"), **options).merged(load_plan(tmp_path / "t")) == plan


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no_such.py"], "no_such.py: no such file; see experiments/ablations/"),
        ([str(ROOT / "experiments" / "pretrain" / "tiny.py")], "tiny.py: must set 'ablation' to an Ablation"),
        ([table("sharing"), "--scale", "huge"], "--scale: unknown value 'huge'; choose one of paper, small, tiny"),
        (
            [table("sharing"), "--budget", "money"],
            "--budget: unknown value 'money'; choose one of tokens, flops, time, params",
        ),
        ([table("sharing"), "--seeds", "0"], "--seeds must be at least 1, got 0"),
        ([table("sharing"), "--rows", "bicycle"], "--rows: no label contains 'bicycle'; the labels are all-shared"),
        ([table("sharing"), "--model.sharing", "none"], "--model.sharing: rows of sharing set it; change it in "),
        (
            [table("sharing"), "--model.hiden-size", "64"],
            "unknown option --model.hiden-size; did you mean --model.hidden-size?",
        ),
        ([table("sharing"), "--train.seed", "x"], "train.seed: expected int, got 'x'"),
        ([table("width"), "--budget", "params"], "--budget params: the rows of width set the width themselves"),
        ([table("sharing"), "--scale", "small"], "spiece.model: cannot read the vocabulary"),
        ([table("sharing"), "--slurm", "a=1"], "--slurm needs --launcher slurm"),
        ([table("sharing"), "--launcher", "slurm", "--slurm", "a"], "--slurm a: expected NAME=VALUE"),
        (
            [table("sharing"), "--finetune", "nothing.py"],
            "--finetune 'nothing.py': nothing.py: no such experiment file",
        ),
        ([table("sharing"), "--finetune", "a.py 'b"], "--finetune 'a.py 'b': No closing quotation"),
        (
            [table("sharing"), *["--finetune", f"{ROOT}/experiments/finetune/sst2.py"] * 2],
            "--finetune: two experiments are named 'sst2'; copy one of the files",
        ),
        (
            [table("sharing"), "--finetune", f"{ROOT}/experiments/finetune/sst2.py --model.hidden-size 8"],
            "--model.hidden-size cannot be combined with --init-from",
        ),
        (
            [table("sharing"), "--finetune", f"{ROOT}/experiments/finetune/sst2.py --init-from x"],
            "--init-from is set by the row",
        ),
        (
            [table("sharing"), "--train.num-train-steps", "50"],
            "optim.num_warmup_steps (120) must be < train.num_train_steps (50)",
        ),
    ],
)
def test_refused(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(["ablate", *words], capsys)
    assert not list(tmp_path.iterdir())


MISTAKES = {
    "Row({'model.shering': 'all'})": "row 'a': unknown key 'model.shering'; did you mean 'sharing'?",
    "Row({'model.sharing': 'most'})": "row 'a': model.sharing: unknown value 'most'; choose one of all, ",
    "Row({'model.hidden_size': at(paper=64)})": "row 'a': model.hidden_size has no value at scale 'tiny', only at paper",
    "Row(start='b')": "row 'a' starts from 'b', which is not a row above it",
    "Row(teacher='b')": "row 'a' learns from 'b', which is not a row above it",
    "Row({'distillation.teacher': 'b'})": "row 'a' sets distillation.teacher: use 'teacher' to learn from a row",
    "Row({'distillation.weight': 2.0})": "row 'a' sets distillation.weight, but has no teacher",
    "Row({'train.num_train_steps': 3})": "row 'a' sets train.num_train_steps: the budget decides the steps",
    "Row({'train.seed': 3})": "row 'a' sets train.seed: all rows have the same seeds",
    "Row(share=0)": "row 'a': share must be in (0, 1], got 0",
    "Row({'objective.max_seq_length': 99})": "row 'a': objective.max_seq_length 99 > model.max_position_embeddings 64",
    "3": "'rows' must map labels to Row(...)",
    "Row(), '+a': Row()": "rows 'a' and '+a' have the same folder name 'a'; rename one",
    "Row(), '+': Row()": "row '+': the label must contain a letter or digit",
    "Row()}, base={'tinny': {}": "base: unknown scale 'tinny'; choose one of paper, small, tiny",
    "Row(": "new.py:2: SyntaxError",
}
"""A row in a table's file -> the error."""


@pytest.mark.parametrize("body", MISTAKES)
def test_a_mistake_in_a_table_is_reported(body: str, tmp_path: Path) -> None:
    (tmp_path / "scales").symlink_to(FOLDER / "scales")
    path = tmp_path / "new.py"
    path.write_text(f"from albert_jax.ablation import Ablation, Row, at\nablation = Ablation({{'a': {body}}})\n")
    with pytest.raises(InputError) as error:
        resolve(str(path))
    assert MISTAKES[body] in str(error.value)
    assert str(error.value).startswith(str(path))


def test_a_table_without_scales_is_refused(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text(
        "from albert_jax.ablation import Ablation, Row\nablation = Ablation({'a': Row()})\n"
    )
    with pytest.raises(InputError, match="no folder 'scales' beside it; copy or link"):
        resolve(str(tmp_path / "new.py"))


def test_a_row_can_have_shorter_inputs(tmp_path: Path) -> None:
    """It is evaluated at its own length, with the masking of the other rows, and has more steps."""
    (tmp_path / "scales").symlink_to(FOLDER / "scales")
    text = "from albert_jax.ablation import Ablation, Row\nablation = Ablation({'a': Row(), 'b': Row("
    text += "{'objective.max_seq_length': 16, 'objective.ngram': 2})})\n"
    (tmp_path / "new.py").write_text(text)
    a, b = (row.config for row in resolve(str(tmp_path / "new.py")).rows)
    assert b.eval_objective is not None
    assert (b.eval_objective.max_seq_length, b.eval_objective.ngram) == (16, 1)
    assert b.train.num_train_steps == 2 * a.train.num_train_steps


def test_a_failed_probe_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe is of the scale's sentence objective, whatever the row trains on."""
    probed = []

    def fail(config: Any) -> dict[str, Any]:
        probed.append(config.objective.sentence_objective)
        raise ValueError("one class only\nand more")

    monkeypatch.setattr(probes, "probe", fail)
    plan = resolve(table("sentence_objective"))
    assert ablate.probe(plan, plan.row("NSP").config) == {"error": "ValueError: one class only"}
    assert probed == ["sop"]


def test_dry_run_and_help(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", table("sharing"), "--dry-run", "--seeds", "3", "--scale", "paper"]) == 0
    out = capsys.readouterr().out
    assert "| not-shared | 125,000 | 89,780,402 | 570.4 | 262,144.00 | 1.5e+05 | 89 |" in out
    assert "10 rows x 3 seeds" in out
    assert main(["ablate", table("depth"), "--help"]) == 0
    out = capsys.readouterr().out
    assert "6 layers from 3: model.num_hidden_layers = 6, starts from '3 layers from 1'" in out
    assert not list(tmp_path.iterdir())

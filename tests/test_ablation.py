"""Tables as plans: every row of every table is built, says what it changes, has the paper's parameters, and is fair to the others."""

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from albert_jax.ablation import At
from albert_jax.ablation import run as ablate
from albert_jax.ablation.budget import row_flops
from albert_jax.ablation.planning import load_plan, resolve, slug
from albert_jax.ablation.table import read_table
from albert_jax.cli import main
from albert_jax.config import InputError, differences, to_dict
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


def field(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = config[part]
    return config


@both
@pytest.mark.parametrize("scale", SCALES)
def test_overrides_take_effect(path: Path, scale: str) -> None:
    """Every row is what it says, no two are the same, and nothing else differs but what follows from it.

    Fails if a row's field is overwritten by the scale or the budget, or two rows are copies.
    """
    rows = read_table(str(path))[1].rows
    plan = resolve(str(path), scale=scale)
    assert [row.label for row in plan.rows] == list(rows)
    own = {name for row in rows.values() for name in row.overrides}
    seen = []
    for planned in plan.rows:
        config = to_dict(planned.config)
        for name, value in rows[planned.label].overrides.items():
            assert field(config, name) == (value.values[scale] if isinstance(value, At) else value), name
        shapes = param_shapes(Albert(planned.config.model))
        assert planned.parameters == sum(leaf.size for leaf in jax.tree.leaves(shapes))
        seen.append(json.dumps(config | {"run_dir": ""}, sort_keys=True) + planned.start)
        changed = {line.partition(":")[0] for line in differences(to_dict(plan.rows[0].config), config)}
        follows = ("run_dir", "eval_objective", "optim.num_warmup_steps", "train.")
        assert all(name in own or name.startswith(follows) for name in changed), changed
        assert planned.config.train.seed == plan.rows[0].config.train.seed or planned.start
    assert len(set(seen)) == len(seen)


@both
def test_parameter_counts_of_the_paper(path: Path) -> None:
    """At the scale `paper`, rounded to millions as the paper counts: pooler but no heads, no pooler where nothing is shared.

    The paper prints three networks larger than its released code makes them: H = 2048, 4096 and 6144 (60, 225 or 235, 499).
    """
    for row in resolve(str(path), scale="paper").rows:
        if "parameters (M)" not in row.paper:
            continue
        shapes = param_shapes(Albert(row.config.model))
        left = {"predictions", "sop_classifier"} | ({"pooler"} if row.config.model.sharing == "none" else set())
        found = (
            sum(leaf.size for name, part in shapes.items() if name not in left for leaf in jax.tree.leaves(part)) / 1e6
        )
        if row.config.model.hidden_size <= 1024:
            assert round(found) == row.paper["parameters (M)"], row.label
        else:
            assert 0.94 * row.paper["parameters (M)"] < found < row.paper["parameters (M)"], row.label


@both
def test_table_file(path: Path) -> None:
    """Under 100 lines; its docstring asks, says its command, the paper's answer and where ours is."""
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert len(path.read_text().splitlines()) < 100
    assert doc.splitlines()[0].rstrip().endswith(("?", "on all of them."))
    assert f"albert-jax ablate experiments/ablations/{path.stem}.py --scale tiny --seeds 3" in doc
    assert "aper" in doc
    assert "Ours: " in doc


def test_rows_share_all_that_does_not_differ() -> None:
    """The same first batch is drawn for every row of 'sharing', and what all networks have begins the same.

    Fails if a row's seed, or the key of its parameters, depends on its place in the table.
    """
    rows = [
        resolve(table("sharing")).row(label).seed(1)
        for label in ("all-shared (1 group)", "not-shared (12 groups)", "4 groups")
    ]
    batch = {
        "tokens": np.random.default_rng(0).integers(5, 1000, (4, 91)).astype(np.int32),
        "sentence": np.repeat(np.arange(7), 13)[None].repeat(4, 0).astype(np.int32),
        "document": np.arange(4, dtype=np.int32),
    }
    vocabulary = Vocabulary(1000, 0, 2, 3, 4, np.ones(1000, bool))
    drawn = [
        pretraining.draw(row.objective, vocabulary, batch, jax.random.fold_in(jax.random.key(row.train.seed), 0))
        for row in rows
    ]
    begun = [init_params(Albert(row.model), jax.random.key(row.train.seed)) for row in rows]
    for examples, params in zip(drawn[1:], begun[1:], strict=True):
        assert all(np.array_equal(examples[name], drawn[0][name]) for name in drawn[0] if name != "dropout_keys")
        for part in ("embeddings", "pooler", "predictions", "sop_classifier"):
            assert jax.tree.all(jax.tree.map(np.array_equal, params[part], begun[0][part])), part
    other = init_params(Albert(rows[0].model), jax.random.key(rows[0].train.seed + 1))
    assert not jax.tree.all(jax.tree.map(np.array_equal, other["pooler"], begun[0]["pooler"]))


def test_budget_of_tokens() -> None:
    """Another batch size takes other steps, and as large a share of warm-up, logs and evaluations."""
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
    """Every row spends what the first one does, to one step."""
    plan = resolve(table("depth"), budget="flops")
    spent = [row_flops(row.config) * row.config.train.num_train_steps for row in plan.rows]
    for row, found in zip(plan.rows, spent, strict=True):
        assert abs(found - spent[0]) <= row_flops(row.config), row.label


def test_budget_of_params() -> None:
    """Widths are changed until all rows are as near to the first one's count as heads of one number allow.

    Fails if a neighbouring width would be nearer, or E = H does not stay so.
    """
    plan = resolve(table("sharing"), budget="params")
    first = resolve(table("sharing")).rows[0]
    target = num_params(Albert(first.config.model))
    assert plan.rows[0].config.model == first.config.model
    for row in plan.rows:
        model = row.config.model
        assert model.num_attention_heads == 4
        assert model.intermediate_size == 4 * model.hidden_size
        if row.label.endswith("E = H"):
            assert model.embedding_size == model.hidden_size
        gaps = []
        for width in (model.hidden_size - 4, model.hidden_size, model.hidden_size + 4):
            sizes = {"hidden_size": width, "intermediate_size": 4 * width}
            sizes |= {"embedding_size": width} if row.label.endswith("E = H") else {}
            gaps.append((abs(num_params(Albert(dataclasses.replace(model, **sizes))) - target), width))
        assert min(gaps)[1] == model.hidden_size, row.label


def test_budget_of_params_refuses_what_it_cannot_do() -> None:
    """A row that is to start from one of another width."""
    with pytest.raises(InputError, match="'shared, then 4 groups' cannot start from 'shared, first half'"):
        resolve(table("unsharing"), budget="params")


def test_batches_of_the_optimizer_table_are_the_scales() -> None:
    """What the table calls 'batch x 1'; rates go with the square root."""
    for scale in SCALES:
        plan = resolve(table("optimizer"), scale=scale)
        assert plan.row("AdamW, batch x 1").config.train.global_batch_size == plan.base["train"]["global_batch_size"]
        one, four = (plan.row(f"AdamW, batch x {factor}").config.optim.learning_rate for factor in (1, 4))
        assert four == pytest.approx(2 * one)


def test_no_warm_up_stays_none() -> None:
    plan = resolve(table("unsharing"), overrides=["--optim.num-warmup-steps", "0"])
    assert {row.config.optim.num_warmup_steps for row in plan.rows} == {0}


def test_captions_say_what_is_not_equal() -> None:
    told = resolve(table("unsharing")).caption
    assert "every row sees as many tokens (0.5 of that for 'shared, first half'; " in told
    assert "; what a row starts from comes on top). Can the cheap" in told
    assert "every row sees as many tokens. " in resolve(table("sharing")).caption


def test_shares_and_starts() -> None:
    """A row that starts from another has other seeds, so that it does not read the same batches again, and its share of steps."""
    plan = resolve(table("unsharing"), seeds=2)
    whole, first, then = (plan.row(label) for label in ("shared", "shared, first half", "shared, then not shared"))
    assert (
        first.config.train.num_train_steps
        == then.config.train.num_train_steps
        == whole.config.train.num_train_steps / 2
    )
    assert then.start == first.label
    assert {then.seed(k).train.seed for k in (0, 1)}.isdisjoint({first.seed(k).train.seed for k in (0, 1)})
    assert then.seed(1).init_from == f"{then.seed(1).run_dir}/start"
    assert first.seed(1).init_from == ""


def test_masking_is_scored_alike() -> None:
    """Rows that mask otherwise are scored on the masking of the scale; rows with another pair on pairs of their own."""
    rows = resolve(table("masking")).rows
    asked = {(row.config.eval_objective or row.config.objective) for row in rows}
    assert len(asked) == 1
    assert [row.config.eval_objective for row in resolve(table("sentence_objective")).rows] == [None] * 3


def test_rows_are_chosen_with_what_they_start_from() -> None:
    plan = resolve(table("depth"), rows=["6 layers from"])
    assert [row.label for row in plan.rows] == ["1 layer", "3 layers from 1", "6 layers from 3"]
    assert [row.label for row in resolve(table("sharing"), rows=["3 groups", "shared-FFN, "]).rows] == [
        "shared-FFN, E = H",
        "3 groups",
    ]


def test_plan_comes_back_from_its_file(tmp_path: Path) -> None:
    plan = resolve(table("depth"), seeds=2, run_dir=str(tmp_path / "t"), overrides=["--train.seed", "7"])
    plan.save()
    assert load_plan(tmp_path / "t" / "ablation.json") == plan
    again = resolve(table("depth"), rows=["3 layers"], run_dir=str(tmp_path / "t"), overrides=["--train.seed", "7"])
    assert again.joined(plan) == again  # nothing of the other was begun
    for row in plan.rows:
        Path(row.seed(1).run_dir).mkdir(parents=True)
    assert again.joined(plan) == plan
    with pytest.raises(InputError, match=r"holds another table, of another base \(train.seed: 7 -> 0\)"):
        resolve(table("depth"), run_dir=str(tmp_path / "t")).joined(plan)
    with pytest.raises(InputError, match=r"its ablation\.json has no row 'no such'"):
        plan.row("no such")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no_such.py"], "no_such.py: no such table"),
        ([str(ROOT / "experiments" / "pretrain" / "tiny.py")], "tiny.py: it must set 'ablation' to an Ablation"),
        ([table("sharing"), "--scale", "huge"], "--scale: one of paper, small, tiny, got 'huge'"),
        ([table("sharing"), "--budget", "money"], "--budget: one of tokens, flops, time, params, got 'money'"),
        ([table("sharing"), "--seeds", "0"], "--seeds must be at least 1, got 0"),
        ([table("sharing"), "--rows", "bicycle"], "--rows: no row has 'bicycle' in its label; they are all-shared"),
        ([table("sharing"), "--model.sharing", "none"], "--model.sharing: rows of sharing set it; change it in "),
        (
            [table("sharing"), "--model.hiden-size", "64"],
            "unknown option --model.hiden-size; did you mean --model.hidden-size?",
        ),
        ([table("sharing"), "--train.seed", "x"], "train.seed: expected int, got 'x'"),
        ([table("width"), "--budget", "params"], "--budget params: the rows of width set the width themselves"),
        ([table("sharing"), "--scale", "small"], "data.source 'corpus/*.jsonl.gz' matches no file"),
        ([table("sharing"), "--slurm", "a=1"], "--slurm needs --launcher slurm"),
        ([table("sharing"), "--launcher", "slurm", "--slurm", "a"], "--slurm a: expected NAME=VALUE"),
        (
            [table("sharing"), "--finetune", "nothing.py"],
            "--finetune 'nothing.py': nothing.py: no such experiment file",
        ),
        ([table("sharing"), "--finetune", "a.py 'b"], "--finetune 'a.py 'b': No closing quotation"),
        (
            [table("sharing"), *["--finetune", f"{ROOT}/experiments/finetune/sst2.py"] * 2],
            "--finetune: two of the name 'sst2'; copy one of the files",
        ),
        (
            [table("sharing"), "--finetune", f"{ROOT}/experiments/finetune/sst2.py --model.hidden-size 8"],
            "--model.hidden-size is the row's",
        ),
        (
            [table("sharing"), "--finetune", f"{ROOT}/experiments/finetune/sst2.py --init-from x"],
            "--init-from is the row's",
        ),
        (
            [table("sharing"), "--train.num-train-steps", "50"],
            "optim.num_warmup_steps (50) must be < train.num_train_steps (50)",
        ),
    ],
)
def test_refused(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert told in refused(["ablate", *words], capsys)
    assert not list(tmp_path.iterdir())


def test_mistakes_in_a_table_are_told(tmp_path: Path) -> None:
    (tmp_path / "scales").symlink_to(FOLDER / "scales")
    head = "from albert_jax.ablation import Ablation, Row, at\n"
    for body, told in {
        "Row({'model.shering': 'all'})": "row 'a': unknown key 'model.shering'; did you mean 'sharing'?",
        "Row({'model.sharing': 'most'})": "row 'a': model.sharing: one of 'all'",
        "Row({'model.hidden_size': at(paper=64)})": "row 'a': model.hidden_size has no value at scale 'tiny', only at paper",
        "Row(start='b')": "row 'a' starts from 'b', which is no row above it",
        "Row({'train.num_train_steps': 3})": "row 'a' sets train.num_train_steps: its steps come from the budget",
        "Row({'train.seed': 3})": "row 'a' sets train.seed: all rows have the same",
        "Row(share=0)": "row 'a': share must be in (0, 1], got 0",
        "Row({'objective.max_seq_length': 99})": "row 'a': objective.max_seq_length 99 > model.max_position_embeddings 64",
        "3": "'rows' must be a table of label -> Row(...)",
        "Row(), '+a': Row()": "rows 'a' and '+a' would share a folder",
        "Row()}, base={'tinny': {}": "base: no scale 'tinny'; there are paper, small, tiny",
        "Row(": "mine.py:2: SyntaxError",
    }.items():
        (tmp_path / "mine.py").write_text(f"{head}ablation = Ablation({{'a': {body}}})\n")
        with pytest.raises(InputError) as error:
            resolve(str(tmp_path / "mine.py"))
        assert told in str(error.value)
        assert str(error.value).startswith(str(tmp_path / "mine.py"))
    (tmp_path / "mine.py").write_text(f"{head}ablation = Ablation({{'a': Row()}})\n")
    (tmp_path / "scales").unlink()
    with pytest.raises(InputError, match="no scales beside it; copy or link"):
        resolve(str(tmp_path / "mine.py"))


def test_a_row_may_be_shorter(tmp_path: Path) -> None:
    """Its held-out inputs are as long as its own, and masked like the others'."""
    (tmp_path / "scales").symlink_to(FOLDER / "scales")
    text = "from albert_jax.ablation import Ablation, Row\nablation = Ablation({'a': Row(), 'b': Row("
    text += "{'objective.max_seq_length': 32, 'objective.ngram': 1})})\n"
    (tmp_path / "mine.py").write_text(text)
    a, b = (row.config for row in resolve(str(tmp_path / "mine.py")).rows)
    assert b.eval_objective is not None
    assert (b.eval_objective.max_seq_length, b.eval_objective.ngram) == (32, 3)
    assert b.train.num_train_steps == 2 * a.train.num_train_steps


def test_a_probe_that_fails_costs_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reason is kept; and it is SOP that is probed, whatever the row trains on."""
    asked = []

    def fail(config: Any) -> dict[str, Any]:
        asked.append(config.objective.sentence_objective)
        raise ValueError("one class only\nand more")

    monkeypatch.setattr(probes, "probe", fail)
    assert ablate.probed(resolve(table("sentence_objective")).row("NSP").config) == {
        "error": "ValueError: one class only"
    }
    assert asked == ["sop"]


def test_labels_make_folders() -> None:
    for path in TABLES:
        slugs = [slug(label) for label in read_table(str(path))[1].rows]
        assert len(set(slugs)) == len(slugs)
        assert all(slugs)


def test_dry_run_and_help(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ablate", table("sharing"), "--dry-run", "--seeds", "3", "--scale", "paper"]) == 0
    told = capsys.readouterr().out
    assert "| not-shared (12 groups) | 89,780,402 | 570.4 | 125,000 | 262,144.00 |" in told
    assert "12 rows x 3 seeds" in told
    assert main(["ablate", table("depth"), "--help"]) == 0
    told = capsys.readouterr().out
    assert "6 layers from 3: model.num_hidden_layers = 6, starts from '3 layers from 1'" in told
    assert not list(tmp_path.iterdir())

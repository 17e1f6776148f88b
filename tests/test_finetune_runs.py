"""Fine-tuning runs: resuming, corrupted checkpoints, several seeds, starting from other models, several devices."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

import albert_jax
from albert_jax.cli import main
from albert_jax.config import InputError, to_dict
from albert_jax.data.tokenizer_files import open_tokenizer
from albert_jax.exchange import load as exchange
from albert_jax.finetuning import files, tasks
from albert_jax.finetuning.classification import Classification
from albert_jax.finetuning.evaluation import Evaluation
from albert_jax.finetuning.family import is_constant, read_splits
from albert_jax.finetuning.run import _initial_params, load_config
from albert_jax.model.heads import Albert
from albert_jax.training.partition import make_mesh
from albert_jax.training.run_folder import read_metrics

from .conftest import ROOT, assert_input_error, refused
from .synthetic_tasks import FIELDS, WRITE, finetune_words, glue, summary, write_files

FROM_CHECKPOINT: dict[str, Any] = {
    name.replace(".", "__"): None for name in FIELDS if name.startswith("model.") and name != "model.scan_unroll"
} | {"data__vocab": None}
"""Overrides that leave the architecture and the vocabulary to --init-from."""
SHORT = {
    "train__num_train_steps": 2,
    "train__eval_every": 1,
    "optim__num_warmup_steps": 1,
    "data__max_seq_length": 16,  # one width, so one compilation
}
"""Overrides for a run of two steps."""


def words_of(folder: Path, run_dir: Path, **overrides: object) -> list[str]:
    """The command of the run in `finetuned_sst2`, in another run folder."""
    return [*finetune_words("sst2", run_dir, **overrides), "--data.dir", str(folder / "data")]


def same_params(a: Any, b: Any) -> bool:
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


@pytest.fixture(scope="module")
def rte(finetuned_sst2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, 4 steps of RTE from the SST-2 run at a very low learning rate, and its `data`.

    The run folder had an unfinished and an empty checkpoint, which a killed process leaves behind.
    """
    folder = tmp_path_factory.mktemp("rte")
    for unfinished in ("2.orbax-checkpoint-tmp", "2"):
        (folder / "run" / "checkpoints" / unfinished).mkdir(parents=True)
    short = SHORT | {"train__num_train_steps": 4, "train__eval_every": 2, "train__checkpoint_every": 2}
    overrides = FROM_CHECKPOINT | short | {"optim__learning_rate": 1e-9}
    init = ["--init-from", str(finetuned_sst2 / "run")]
    words = [*finetune_words("rte", folder / "run", *init, **overrides), *write_files("rte", folder / "data")]
    (folder / "command.json").write_text(json.dumps(words))
    assert main(words) == 0
    return folder


def test_run_folder_and_curves(finetuned_sst2: Path) -> None:
    run_dir = finetuned_sst2 / "run"
    names = {path.name for path in run_dir.iterdir()}
    written = {"config.json", "metrics.jsonl", "checkpoints", "best", "tensorboard", "curves.png", "summary.json"}
    assert written | {"predictions", "spiece.model"} <= names
    stored = json.loads((run_dir / "config.json").read_text())
    assert stored["job"] == "finetune"
    assert stored["heads"] == ["pooler", "classifier"]
    assert stored["labels"] == ["negative", "positive"]
    assert stored["config"]["data"]["name"] == "classification"
    assert [record["step"] for record in read_metrics(run_dir) if "eval/accuracy" in record] == [50, 100]


def test_best_parameters_are_not_the_last(finetuned_sst2: Path, tmp_path: Path) -> None:
    """At a rate that diverges the best step comes before the last; `load` uses the best, or the last if they are named."""
    run_dir = tmp_path / "run"
    diverging = {"optim__schedule": "constant", "optim__learning_rate": 0.05, "train__eval_every": 10}
    assert main(words_of(finetuned_sst2, run_dir, train__num_train_steps=60, **diverging)) == 0
    results = summary(run_dir)
    values = {record["step"]: record["eval/accuracy"] for record in read_metrics(run_dir) if "eval/accuracy" in record}
    best = max(values, key=lambda step: values[step])  # the first of equals
    assert best < 60, "the best step must not be the last: change the learning rate"
    assert results["best"] == {"step": best, "accuracy": values[best]}
    assert results["eval"]["accuracy"] == values[60]
    assert [path.name for path in (run_dir / "best").iterdir()] == [str(best)]
    default, named, last = (albert_jax.load(path)[1] for path in (run_dir, run_dir / "best", run_dir / "checkpoints"))
    assert same_params(default, named)
    assert not np.array_equal(default["classifier"]["kernel"], last["classifier"]["kernel"])


def test_a_crashed_run_resumes_to_the_same_result(
    finetuned_sst2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that crashes in its second evaluation ends with the same bits, metrics and predictions after a restart."""
    run_dir, evaluate, calls = tmp_path / "run", Evaluation.evaluate, []

    def crash(self: Evaluation, params: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("crash")
        return evaluate(self, params)

    monkeypatch.setattr(Evaluation, "evaluate", crash)
    with pytest.raises(RuntimeError, match="crash"):
        main(words_of(finetuned_sst2, run_dir))
    monkeypatch.undo()
    assert not (run_dir / "summary.json").exists()
    assert main(words_of(finetuned_sst2, run_dir)) == 0
    straight = finetuned_sst2 / "run"
    params, straight_params = (albert_jax.load(folder / "checkpoints")[1] for folder in (run_dir, straight))
    assert same_params(params, straight_params)
    assert summary(run_dir)["eval"] == summary(straight)["eval"]
    assert summary(run_dir)["best"] == summary(straight)["best"]
    predictions, straight_predictions = (folder / "predictions" / "SST-2.tsv" for folder in (run_dir, straight))
    assert predictions.read_bytes() == straight_predictions.read_bytes()


def test_rerunning_a_completed_run_changes_nothing(
    finetuned_sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, words = finetuned_sst2 / "run", words_of(finetuned_sst2, finetuned_sst2 / "run")
    before = summary(run_dir)
    config = str(run_dir / "config.json")
    assert main([config if word.endswith("sst2.py") else word for word in words]) == 0
    assert summary(run_dir)["eval"] == before["eval"]
    message = refused([*words, "--train.seed", "1"], capsys)
    assert "belongs to a different configuration (train.seed: 0 -> 1)" in message

    write_files("sst2", tmp_path / "data")
    stored = json.loads((run_dir / "config.json").read_text())
    stored["config"]["data"]["dir"] = str(tmp_path / "data")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text(json.dumps(stored))
    dev = tmp_path / "data" / "dev.tsv"
    dev.write_text(dev.read_text().replace("the", "than"))
    assert "data changed" in refused(words_of(tmp_path, tmp_path / "run"), capsys)


def test_init_from_brings_encoder_pooler_and_vocabulary(finetuned_sst2: Path, rte: Path) -> None:
    _, before, tokenizer = albert_jax.load(finetuned_sst2 / "run")
    _, after, own_tokenizer = albert_jax.load(rte / "run")
    assert tokenizer.sha256 == own_tokenizer.sha256
    for name in ("encoder", "pooler", "embeddings"):
        assert jax.tree.all(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-5), before[name], after[name])), name
    assert not np.allclose(before["classifier"]["kernel"], after["classifier"]["kernel"], atol=1e-3)


@pytest.mark.parametrize("labels", [("negative", "positive"), ("entailment", "not_entailment")])
def test_init_from_uses_a_classifier_of_the_same_classes(
    finetuned_sst2: Path, labels: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    source = exchange.read(str(finetuned_sst2 / "run"))
    model = Albert(source.weights.model.config, ("pooler", "classifier"), labels)
    config: Any = SimpleNamespace(init_from="SST-2", train=SimpleNamespace(seed=3))
    with caplog.at_level("INFO"):
        params = _initial_params(config, source, model)
    same = labels == source.weights.model.labels
    assert np.array_equal(params["classifier"]["kernel"], source.weights.params["classifier"]["kernel"]) == same
    assert same_params(params["encoder"], source.weights.params["encoder"])
    expected = "random: none; not used: none" if same else "random: classifier; not used: classifier"
    assert f"initialized from SST-2; {expected}" in caplog.text


def test_unfinished_best_parameters_are_skipped(rte: Path, tmp_path: Path) -> None:
    """`load` then uses the last checkpoint."""
    shutil.copytree(rte / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "best")
    (tmp_path / "run" / "best" / "2.orbax-checkpoint-tmp").mkdir(parents=True)
    assert same_params(albert_jax.load(tmp_path / "run")[1], albert_jax.load(rte / "run" / "checkpoints")[1])


def test_corrupted_best_parameters_are_replaced(rte: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = rte / "run"
    step = summary(run_dir)["best"]["step"]
    (run_dir / "best" / str(step) / "meta" / "metadata").write_text("{")
    capsys.readouterr()
    assert main(json.loads((rte / "command.json").read_text())) == 0
    assert f"best/{step} is corrupted" in capsys.readouterr().err
    assert summary(run_dir)["best"] == {"step": 4} | summary(run_dir)["eval"]


def test_a_hugging_face_folder_may_be_called_best(finetuned_sst2: Path, tmp_path: Path) -> None:
    for name in ("hf", "hf/best"):
        assert main(["convert", str(finetuned_sst2 / "run"), str(tmp_path / name)]) == 0
    config = json.loads((tmp_path / "hf" / "best" / "config.json").read_text())
    config["id2label"] = {"0": "no", "1": "yes"}
    (tmp_path / "hf" / "best" / "config.json").write_text(json.dumps(config))
    assert albert_jax.load(tmp_path / "hf" / "best")[0].labels == ("no", "yes")


def test_exported_to_hugging_face_and_back(
    finetuned_sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", str(finetuned_sst2 / "run"), str(tmp_path / "hf")]) == 0
    stored = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert stored["architectures"] == ["AlbertForSequenceClassification"]
    assert stored["id2label"] == {"0": "negative", "1": "positive"}
    capsys.readouterr()
    records = []
    for source in (finetuned_sst2 / "run", tmp_path / "hf"):
        assert main(["predict", str(source), "--json", "this large text", "some small list"]) == 0
        records.append([json.loads(line) for line in capsys.readouterr().out.splitlines()])
    for a, b in zip(*records, strict=True):
        assert a["label"] == b["label"]
        assert a["probability"] == pytest.approx(b["probability"], abs=1e-6)


def test_metrics_of_one_and_of_two_dev_splits(tmp_path: Path) -> None:
    """With two dev splits the metrics end with the split's name; the metric that selects is always one of them."""
    WRITE["mnli"](tmp_path)
    config = load_config(str(ROOT / "experiments" / "finetune" / "mnli.py"), {"data.dir": str(tmp_path)})
    task, mesh = tasks.TASKS["mnli"], make_mesh("cpu", 1)
    names = []
    for data in (
        config.data,
        replace(config.data, dev_file=str(tmp_path / "dev_matched.tsv")),
    ):
        splits = read_splits(task, files.find(data, task.splits), data)
        evaluation = Evaluation(config, task, splits, {}, Albert(config.model), mesh)
        assert evaluation.select in evaluation.baseline
        names.append((evaluation.select, sorted(evaluation.baseline)))
    assert names == [
        ("accuracy_matched", ["accuracy_matched", "accuracy_mismatched"]),
        ("accuracy", ["accuracy"]),
    ]


def test_fingerprint_depends_on_answer_files(tmp_path: Path) -> None:
    """MCTest has the answers in separate files."""
    WRITE["mctest"](tmp_path)
    data = tasks.TASKS["mctest"].data_config(task="mctest", dir=str(tmp_path))
    sources = files.find(data, tasks.TASKS["mctest"].splits)
    before = files.fingerprint(sources)
    path = tmp_path / "mc160.train.ans"
    path.write_text(path.read_text().translate(str.maketrans("ABCD", "BCDA")))
    assert files.fingerprint(sources) != before


def test_several_seeds(finetuned_sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The summary has statistics over all seeds, also those with constant predictions, which it names."""
    run_dir = tmp_path / "runs"
    # With weights near zero and almost no learning, all inputs have the same class.
    constant = {"optim__learning_rate": 1e-9, "model__initializer_range": 1e-9}
    words = words_of(finetuned_sst2, run_dir, **constant, **SHORT)
    assert main([*words, "--seeds", "2"]) == 0
    results, single = summary(run_dir), [summary(run_dir / f"seed-{seed}") for seed in range(2)]
    assert results["seeds"] == [0, 1]
    assert results["degenerate"] == [0, 1]
    assert all(one["degenerate"] for one in single)
    assert "degenerate, but included: seed 0, seed 1" in capsys.readouterr().err
    values = [one["best"]["accuracy"] for one in single]
    statistics = results["metrics"]["accuracy"]
    assert statistics["values"] == values
    assert statistics["median"] == np.median(values)
    assert statistics["std"] == pytest.approx(np.std(values, ddof=1))
    capsys.readouterr()
    assert main(["report", str(run_dir)]) == 0
    assert "accuracy" in capsys.readouterr().out
    assert "has the runs of several seeds" in refused(words, capsys)
    assert not np.array_equal(*(albert_jax.load(run_dir / f"seed-{n}")[1]["pooler"]["kernel"] for n in (0, 1)))


def test_constant_predictions_are_degenerate() -> None:
    assert is_constant(["a"] * 200 + ["b"])
    assert not is_constant(["a"] * 98 + ["b"] * 2)
    assert not is_constant(["a"])


def test_a_teacher_and_a_random_number_of_layers(
    finetuned_sst2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The parameters depend on both; a teacher with other classes is refused before the folder is written."""
    teacher = ["--distillation.teacher", str(finetuned_sst2 / "run")]
    options = {"plain": [], "taught": teacher, "random": ["--model.depth-sampling", "uniform"]}
    results = {}
    for name, words in options.items():
        assert main([*words_of(finetuned_sst2, tmp_path / name, **SHORT), *words]) == 0
        results[name] = albert_jax.load(tmp_path / name / "checkpoints")[1]
        assert any("train/distillation_loss" in one for one in read_metrics(tmp_path / name)) == (name == "taught")
    assert not same_params(results["plain"], results["taught"])
    assert not same_params(results["plain"], results["random"])
    words = [*finetune_words("rte", tmp_path / "rte", **SHORT), *write_files("rte", tmp_path / "data"), *teacher]
    assert "its classes are negative, positive, those of the data entailment, not_entailment" in refused(words, capsys)
    assert not (tmp_path / "rte").exists()


def test_evaluation_on_eight_devices(finetuned_sst2: Path) -> None:
    """21 dev rows in batches of 8 have the same metrics on 8 devices as on one."""
    run_dir = finetuned_sst2 / "run"
    model, params, _ = albert_jax.load(run_dir)
    config = load_config(str(run_dir / "config.json"))
    task = tasks.TASKS["sst2"]
    splits = read_splits(task, files.find(config.data, task.splits), config.data)
    tokenizer = open_tokenizer(config.data.vocab)
    rows = {name: task.rows(split, tokenizer, config.data) for name, split in splits.items()}
    evaluation = Evaluation(config, task, splits, rows, model, make_mesh("cpu", 8))
    metrics = evaluation.evaluate(params)["eval"]
    assert {"step": summary(run_dir)["best"]["step"]} | metrics == summary(run_dir)["best"]


def test_a_new_task_is_an_entry_and_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/fine-tuning.md, trained for two steps: its classes and its predictions file are used."""
    entry = Classification(
        text=("premise",),
        text_pair=("claim",),
        label=("verdict",),
        classes={"y": "supported", "n": "refuted"},
        metrics=("accuracy", "f1"),
        server={"test": "answers.tsv"},
    )
    monkeypatch.setitem(tasks.TASKS, "claims", entry)
    recipe = (ROOT / "experiments" / "finetune" / "rte.py").read_text().replace('"rte"', '"claims"')
    (tmp_path / "claims.py").write_text(recipe)
    write = glue("n\tpremise\tclaim\tverdict", "{n}\t{a}\t{b}\t{label}", ("n", "y"), test="{n}\t{a}\t{b}")
    (tmp_path / "data").mkdir()
    words = finetune_words("rte", tmp_path / "run", **SHORT)
    assert main(["finetune", str(tmp_path / "claims.py"), *words[2:], *write(tmp_path / "data")]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["labels"] == ["supported", "refuted"]
    assert summary(tmp_path / "run")["eval"].keys() == {"accuracy", "f1"}
    lines = (tmp_path / "run" / "predictions" / "answers.tsv").read_text().splitlines()
    assert {line.split("\t")[1] for line in lines[1:]} <= {"y", "n"}


def test_scale_and_a_trained_vocabulary(tmp_path: Path) -> None:
    """--scale tiny without a vocabulary trains one on the task's text; the command line overrides the scale."""
    path = str(ROOT / "experiments" / "finetune" / "sst2.py")
    small = {
        "model.vocab-size": 40,
        "model.num-hidden-layers": 1,
        "model.scan-unroll": 1,
        "model.intermediate-size": 64,
    }
    short = {"train.num-train-steps": 2, "train.eval-every": 2, "optim.num-warmup-steps": 1, "mesh.data": 1}
    short |= {"data.max-seq-length": 16}
    options = [f"--{name}={value}" for name, value in (small | short).items()]
    data = write_files("sst2", tmp_path / "data")
    assert main(["finetune", path, "--scale", "tiny", "--run-dir", str(tmp_path / "run"), *options, *data]) == 0
    stored = json.loads((tmp_path / "run" / "config.json").read_text())["config"]
    assert stored["model"]["hidden_size"] == 128
    assert stored["train"]["num_train_steps"] == 2
    assert albert_jax.load(tmp_path / "run")[2].vocab_size == 40


def test_a_scale_sets_the_data_fields_of_the_family_only() -> None:
    folder = ROOT / "experiments" / "finetune"
    squad, race = (load_config(str(folder / f"{name}.py"), scale="tiny").data for name in ("squad1", "race"))
    assert (squad.max_seq_length, to_dict(squad)["doc_stride"]) == (128, 48)
    assert (race.max_seq_length, to_dict(race)["max_qa_length"]) == (128, 48)
    message = "--scale: unknown value 'huge'; choose one of paper, large, tiny"
    assert_input_error(lambda: load_config(str(folder / "race.py"), scale="huge"), message)


def test_data_of_another_family_is_refused() -> None:
    """Whether it is a field, a task, or the dataclass that belongs to another family."""
    experiment = str(ROOT / "experiments" / "finetune" / "sst2.py")
    config, squad = load_config(experiment), load_config(experiment.replace("sst2", "squad1")).data
    message = "data.task: unknown value 'sst2' for QuestionAnsweringData; choose one of squad1, squad2"
    assert_input_error(lambda: replace(config, data=replace(squad, task="sst2")), message)
    message = "data.task: unknown value 'squad1' for ClassificationData; choose one of cola, sst2"
    assert_input_error(lambda: load_config(experiment, {"data.task": "squad1"}), message)
    message = "data.doc_stride is a field of question_answering, but the task 'sst2' is classification"
    assert_input_error(lambda: load_config(experiment, {"data.doc_stride": "3"}), message)


def test_labels_of_a_text(tmp_path: Path) -> None:
    """Lists and cells; indicators are refused, and empty cells of a split to be predicted are hidden."""
    task = tasks.TASKS["multilabel"]
    config = task.data_config(task="multilabel")

    def labels(lines: list[str], split: str = "train") -> list[Any]:
        path = tmp_path / ("x.jsonl" if lines[0].startswith("{") else "x.csv")
        path.write_text("\n".join(lines) + "\n")
        return [row.label for row in task.examples(files.Source(split, (path,)), config, ())]

    assert labels(['{"text": "a", "label": ["x", "y"]}', '{"text": "b", "label": []}']) == [("x", "y"), ()]
    assert labels(["text,label", 'a,"y, x"', "b,"]) == [("x", "y"), ()]
    assert labels(["text,label", "a,", "b,"], "test") == [None, None]
    for cell in ("[0, 1, 1]", "[0.0, 1.0]", '["x", null]', '["x", "x"]'):
        with pytest.raises(InputError, match="expected names of labels, not indicators"):
            labels([f'{{"text": "a", "label": {cell}}}'])

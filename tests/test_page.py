"""`report.html`: complete, self-contained, escaped; the examples that runs write for it."""

import base64
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from albert_jax.cli import main
from albert_jax.config import load, non_defaults
from albert_jax.data import loader
from albert_jax.data.prepare import prepare
from albert_jax.exchange.load import read
from albert_jax.finetuning import choice_formats, classification, squad_format, token_classification
from albert_jax.finetuning.evaluation import shown_examples
from albert_jax.finetuning.family import Split
from albert_jax.finetuning.tasks import TASKS
from albert_jax.model.tree import leaves, nested
from albert_jax.pretraining.evaluation import make_evaluate
from albert_jax.pretraining.examples import COUNT, make_examples, numbered
from albert_jax.pretraining.objective import vocabulary_of
from albert_jax.pretraining.run import PretrainConfig
from albert_jax.reports import page
from albert_jax.training.job import environment
from albert_jax.training.partition import make_mesh

from .conftest import ROOT, overrides_of

Words = Callable[..., list[str]]


class Page(HTMLParser):
    """The addresses, cells of tables, and text of each section of a page; checks that tags are closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.text: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(path.read_text())
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] == "h2":
            self.text[data] = ""
        if self.text:
            self.text[list(self.text)[-1]] += data


def images(found: Page) -> list[bytes]:
    """The pictures in a page, which has no other address."""
    prefix = "data:image/png;base64,"
    assert all(address.startswith(prefix) for address in found.addresses)
    return [base64.b64decode(address.removeprefix(prefix)) for address in found.addresses]


@pytest.fixture(scope="module")
def run_dir(short: Words, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "a<b>&c"
    assert main(short(run_dir)) == 0
    return run_dir


def test_report_of_a_pretraining_run(run_dir: Path, tmp_path: Path, short: Words) -> None:
    """Fails if text is not escaped, a picture is a link, or a section is missing."""
    folder = Path(shutil.copytree(run_dir, tmp_path / run_dir.name))
    assert main(["report", str(folder)]) == 0
    found = Page(folder / "report.html")
    assert list(found.text) == ["Results", "Curves", "Examples", "Configuration", "Environment"]
    assert images(found) == [(folder / "curves.png").read_bytes()]
    content = (folder / "report.html").read_text()
    assert "<title>a&lt;b&gt;&amp;c</title>" in content
    assert not re.search(r"https?://|@import|url\(", content)
    results, examples, changed, everything, environment = found.tables
    accuracy = json.loads((folder / "summary.json").read_text())["eval"]["mlm_accuracy"]
    assert results[1][:2] == ["mlm_accuracy", f"{accuracy:.4f}"]
    assert results[1][2].startswith("unigram 0.")
    assert len(examples) == 1 + COUNT
    assert ["train.num_train_steps", "12"] in changed
    fields = [name for name, _ in everything[1:]]
    assert {name for name, _ in changed[1:]} < set(fields)
    assert {"run_dir", "model.hidden_size", "optim.optimizer.name"} <= set(fields)
    facts = dict(environment[1:])
    assert facts["devices"] == "1 x cpu"
    assert "jax " in facts["versions"]
    assert facts["command"] == "called from Python"


def test_report_of_an_unfinished_run_of_an_earlier_version(run_dir: Path, tmp_path: Path) -> None:
    """What is missing is left out with a reason."""
    folder = Path(shutil.copytree(run_dir, tmp_path / "run"))
    for name in ("summary.json", "examples.json"):
        (folder / name).unlink()
    stored = json.loads((folder / "config.json").read_text())
    del stored["non_defaults"], stored["environment"]
    (folder / "config.json").write_text(json.dumps(stored))
    assert main(["report", str(folder)]) == 0
    text = Page(folder / "report.html").text
    assert "Not finished: at step 12 of 12." in text["Results"]
    assert "examples.json is written when a run completes" in text["Examples"]
    assert "is not recorded: the run began with an earlier version" in text["Configuration"]
    assert "versions" in text["Environment"]


def test_report_of_fine_tuning(finetuned_sst2: Path, tmp_path: Path) -> None:
    """The examples are dev sentences with the predictions that the run stored; the report can be written elsewhere."""
    output = tmp_path / "out"
    assert main(["report", str(finetuned_sst2 / "run"), "--output", str(output)]) == 0
    found = Page(output / "report.html")
    header, *rows = found.tables[1]
    assert header == ["text", "expected", "predicted"]
    lines = (finetuned_sst2 / "data" / "dev.tsv").read_text().splitlines()[1:]
    predicted = (finetuned_sst2 / "run" / "predictions" / "dev.tsv").read_text().splitlines()[1:]
    names = {"0": "negative", "1": "positive"}
    expected = [
        [line.split("\t")[0], names[line.split("\t")[1]], names[guess.split("\t")[1]]]
        for line, guess in zip(lines, predicted, strict=True)
    ]
    right, wrong = ([row for row in expected if (row[1] == row[2]) is same][:5] for same in (True, False))
    assert [[" ".join(text.split()), *labels] for text, *labels in right + wrong] == rows


def test_report_of_runs_side_by_side(run_dir: Path, short: Words, tmp_path: Path) -> None:
    other, output = tmp_path / "other", tmp_path / "compared"
    assert main(short(other, optim__learning_rate=0.02)) == 0
    assert main(["report", str(run_dir), str(other), "--output", str(output)]) == 0
    found = Page(output / "report.html")
    assert list(found.text) == ["Results", "Figures", "Runs", "Configuration", "Environment of the first run"]
    assert images(found) == [(output / f"{name}.png").read_bytes() for name in ("curves", "scores")]
    differing = next(table for table in found.tables if "optim.learning_rate" in table[0])
    assert differing == [["", "optim.learning_rate"], ["learning_rate 0.01", "0.01"], ["learning_rate 0.02", "0.02"]]


def test_examples_of_pretraining(run_dir: Path, short: Words, tmp_path: Path) -> None:
    """The accuracy of the most probable pieces is that of an evaluation on the same inputs; the text has a number for each.

    Fails if pieces and positions are mixed up.
    """
    rows = json.loads((run_dir / "examples.json").read_text())["rows"]
    lines = [line for row in rows for line in row["right piece → predictions"].splitlines()]
    best = [re.fullmatch(r"\[\d+\] (.+) → (.+?) [\d.]+ · .* [\d.]+ · .* [\d.]+", line) for line in lines]
    pairs = [match.groups() for match in best if match]
    assert len(pairs) == len(lines) > 10
    for row in rows:
        marks = [word for word in row["held-out text"].split() if re.fullmatch(r"\[\d+\]", word)]
        assert marks == [line.split()[0] for line in row["right piece → predictions"].splitlines()]

    words = short(run_dir)[1:]
    config = load(PretrainConfig, words[0], overrides_of(PretrainConfig, words[1:]))
    prepared, weights = prepare(config.data, config.model.vocab_size), read(run_dir).weights
    heldout = loader.open_split(prepared, "heldout", config.objective.max_seq_length)
    mesh = make_mesh("any", 1)
    vocabulary = vocabulary_of(prepared.tokenizer)
    evaluate = make_evaluate(weights.model, config.objective, vocabulary, heldout, {}, mesh, COUNT, 1)
    accuracy = evaluate(weights.params)["eval"]["mlm_accuracy"]
    assert sum(right == guess for right, guess in pairs) / len(pairs) == pytest.approx(accuracy)

    padded = leaves(weights.params)
    for path, value in ((("embeddings", "word_embeddings", "embedding"), 0.0), (("predictions", "bias"), 50.0)):
        padded[path] = np.pad(padded[path], [(0, 4), *[(0, 0)] * (padded[path].ndim - 1)], constant_values=value)
    model = weights.model.clone(config=replace(weights.model.config, vocab_size=config.model.vocab_size + 4))
    examples = make_examples(model, config.objective, prepared.tokenizer, heldout, mesh)(nested(padded))
    assert len(examples["rows"]) == len(rows)  # fails if rows of the table that have no piece are shown


SHOWN: dict[str, tuple[Any, Any, dict[str, str]]] = {
    "rte": (
        classification.Example("a:1", "One.", "Two.", "entailment"),
        "not_entailment",
        {"text": "One.", "second text": "Two.", "expected": "entailment", "predicted": "not_entailment"},
    ),
    "stsb": (
        classification.Example("a:1", "One.", None, 3.8),
        3.512,
        {"text": "One.", "expected": "3.80", "predicted": "3.51"},
    ),
    "multilabel": (
        classification.Example("a:1", "One.", None, ("joy", "love")),
        (),
        {"text": "One.", "expected": "joy, love", "predicted": "none"},
    ),
    "squad2": (
        squad_format.Example("q", "Who?", "Ann or Bo.", (("Ann", 0), ("Bo", 7)), True),
        {"answer": "Bo"},
        {"context": "Ann or Bo.", "question": "Who?", "expected": "Bo", "predicted": "Bo"},
    ),
    "race": (
        choice_formats.Example("q", "A text.", "Who?", ("Ann", "Bo"), 1, "high"),
        "A",
        {"passage": "A text.", "question": "Who?", "expected": "B: Bo", "predicted": "A: Ann"},
    ),
    "ner": (
        token_classification.Example("a:1", ("Ann", "is", "in", "Rome"), ("B-PER", "O", "O", "B-LOC")),
        ["B-PER", "O", "O", "O"],
        {"text": "Ann is in Rome", "expected": "Ann B-PER, Rome B-LOC", "predicted": "Ann B-PER"},
    ),
}


@pytest.mark.parametrize("task", SHOWN)
def test_an_example_of_each_family(task: str) -> None:
    example, prediction, row = SHOWN[task]
    assert TASKS[task].shown(example, prediction) == row


def test_long_examples() -> None:
    """They are compared before they are cut; text without spaces is cut too.  Fails if tags are compared as they are shown."""
    tags = [("B-PER",) * 200, ("B-PER",) * 199 + ("O",)]
    examples = [token_classification.Example(f"a:{i}", ("好" * 3,) * 200, tags[0]) for i in range(2)]
    content = shown_examples(TASKS["ner"], Split("dev", examples, ()), [tags[1], tags[0]])
    right, wrong = content["rows"]
    assert right == wrong
    assert right["text"] == ("好好好 " * 100)[:400] + " ..."
    long = [classification.Example("a:1", "好" * 500, None, "x")] * 7
    rows = shown_examples(TASKS["sst2"], Split("dev", long, ()), ["x"] * 7)["rows"]
    assert [row["text"] for row in rows] == ["好" * 400 + " ..."] * 5


COMMANDS = {
    (
        "/venv/bin/albert-jax",
        "pretrain",
        "x.py",
        "--data.source",
        "https://me:secret@host/a b",
    ): "albert-jax pretrain x.py --data.source 'https://***@host/a b'",
    ("/src/albert_jax/__main__.py", "report"): "albert-jax report",
    ("-c",): "called from Python",
    ("/lib/ipykernel_launcher.py", "-f", "/home/joe/kernel.json"): "called from Python",
}


@pytest.mark.parametrize("words", COMMANDS)
def test_the_command_of_a_run(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of albert-jax, without passwords."""
    monkeypatch.setattr("sys.argv", list(words))
    assert environment(make_mesh("any", 1))["command"] == COMMANDS[words]


def test_passwords_are_not_shown() -> None:
    assert page._value(["https://me:secret@host/a"]) == '["https://***@host/a"]'


def test_no_answer() -> None:
    """Is expected and predicted as such."""
    example = squad_format.Example("q", "Who?", "Ann.", (), True)
    row = TASKS["squad2"].shown(example, {"answer": ""})
    assert (row["expected"], row["predicted"]) == ("no answer", "no answer")


def test_numbered_text() -> None:
    """Numbers stand where the pieces were, and | between the segments."""
    from .small_models import random_model

    _, _, tokenizer = random_model()
    a, b = (tokenizer.encode(text) for text in ("the cat sat on the mat", "a hat"))
    ids = tokenizer.join(a, b)["input_ids"]
    assert numbered(tokenizer, ids, []) == f"{tokenizer.decode(a)} | {tokenizer.decode(b)}"
    assert numbered(tokenizer, ids, [1, len(a) + 2]) == f"[1] {tokenizer.decode(a[1:])} | [2] {tokenizer.decode(b[1:])}"
    assert numbered(tokenizer, ids[: len(a) + 1], []) == tokenizer.decode(a)


def test_fields_that_differ_from_the_defaults() -> None:
    """They are those of the command line and the experiment file; a variant counts by its name."""
    overrides = {"optim.optimizer": "lion", "optim.optimizer.beta2": "0.98", "train.log_every": "100", "mesh.data": "1"}
    names = non_defaults(load(PretrainConfig, str(ROOT / "experiments" / "pretrain" / "base.py"), overrides))
    assert {"run_dir", "optim.optimizer.name", "optim.optimizer.beta2", "mesh.data"} <= set(names)
    assert "train.log_every" not in names
    assert "optim.optimizer.beta1" not in names


def test_markdown_with_pipes() -> None:
    """A pipe in a label does not end its cell."""
    content = page._markdown("A <caption>\n\n|  | x |\n|---|---|\n| a\\|b | 1.5 ± 0.2 |")
    assert "<p>A &lt;caption&gt;</p>" in content
    assert '<td class="label">a|b</td><td class="number">1.5 ± 0.2</td>' in content

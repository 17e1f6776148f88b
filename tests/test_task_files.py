"""Reading the examples of fine-tuning tasks from the benchmarks' files, the user's files, and TFDS."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from albert_jax.config import InputError
from albert_jax.finetuning import (
    files,
    multiple_choice,
    question_answering,
)
from albert_jax.finetuning import prepared as tfds_prepared

from .synthetic_tasks import WRITE
from .task_reading import config, line, read, read_with


def test_columns_of_all_distributions_of_a_data_set(tmp_path: Path) -> None:
    """GLUE's .tsv files, and .jsonl files with the column names and class numbers of Hugging Face, give the same examples."""
    own, other = tmp_path / "tsv", tmp_path / "jsonl"
    for folder in (own, other):
        folder.mkdir()
    WRITE["mrpc"](own)
    for split in ("train", "dev", "test"):
        _, *lines = (own / f"{split}.tsv").read_text().splitlines()
        rows = [line.split("\t") for line in lines]
        records = [
            {"sentence1": row[2], "sentence2": row[3]} | ({"label": int(row[4])} if split != "test" else {})
            for row in rows
        ]
        (other / f"{split}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (theirs, labels), (mine, own_labels) = read("mrpc", own), read("mrpc", other)
    assert labels == own_labels == ("not_equivalent", "equivalent")
    for split in ("train", "dev", "test"):
        assert [row[1:] for row in theirs[split]] == [row[1:] for row in mine[split]]


def test_byte_order_mark_crlf_and_quotes(tmp_path: Path) -> None:
    text = '\ufeffsentence\tlabel\r\n"the text\t1\r\n a ""quoted"" list\t0\r\n'
    for split in ("train", "dev"):
        (tmp_path / f"{split}.tsv").write_bytes(text.encode())
    found, labels = read("sst2", tmp_path)
    assert [(row.text, row.label) for row in found["dev"]] == [
        ('"the text', "positive"),
        (' a ""quoted"" list', "negative"),
    ]
    assert labels == ("negative", "positive")


def test_mctest_and_race_files(tmp_path: Path) -> None:
    WRITE["mctest"](tmp_path)
    found, _ = read("mctest", tmp_path)
    first = found["dev"][0]
    assert first.id == "mc160.dev.0.0"
    assert "\n" in first.passage
    assert not first.question.startswith("one: ")
    assert first.options[first.answer].endswith("large")
    assert all(row.answer is None for row in found["test"])
    race = tmp_path / "race"
    race.mkdir()
    WRITE["race"](race)
    both, middle = read("race", race)[0], read("race", race, level="middle")[0]
    assert {row.part for row in both["dev"]} == {"middle", "high"}
    assert [row for row in both["dev"] if row.part == "middle"] == middle["dev"]


def prepared(folder: Path, features: Any, splits: dict[str, list[dict[str, Any]]]) -> str:
    """Prepare a data set without TensorFlow, as array_record; return the value of --data.dir."""
    import tensorflow_datasets as tfds

    class Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features(tfds.features)))

        def _split_generators(self, manager: Any) -> Any:
            return {name: self._generate_examples(rows) for name, rows in splits.items()}

        def _generate_examples(self, rows: Any) -> Any:
            yield from enumerate(rows)

    builder = Made(data_dir=str(folder), file_format="array_record")
    builder.download_and_prepare()
    return f"tfds:{builder.data_dir}"


def test_glue_from_tfds(tmp_path: Path) -> None:
    """The same examples as from the .tsv files; hidden labels are -1."""
    WRITE["sst2"](tmp_path)
    plain, labels = read("sst2", tmp_path)
    splits = {
        theirs: [
            {"sentence": row.text, "label": -1 if row.label is None else row.label, "idx": number}
            for number, row in enumerate(plain[own])
        ]
        for theirs, own in (("train", "train"), ("validation", "dev"), ("test", "test"))
    }
    names = ["negative", "positive"]
    folder = prepared(
        tmp_path / "tfds", lambda f: {"sentence": f.Text(), "label": f.ClassLabel(names=names), "idx": np.int32}, splits
    )
    chosen = config(dir=folder)
    found, own = read_with(chosen)
    assert own == labels
    for split in ("train", "dev", "test"):
        assert sorted((row.text, str(row.label)) for row in found[split]) == sorted(
            (row.text, str(row.label)) for row in plain[split]
        )
    with pytest.raises(InputError, match=r"data.dir tfds:nowhere/none: no such prepared data set"):
        read_with(config(dir="tfds:nowhere/none"))


def test_squad_from_tfds(tmp_path: Path) -> None:
    answers = {"text": ["text", "the text"], "answer_start": [4, 0]}
    rows = [{"id": "q", "question": "what?", "context": "the text", "answers": answers}]
    folder = prepared(
        tmp_path,
        lambda f: {
            "id": f.Text(),
            "question": f.Text(),
            "context": f.Text(),
            "answers": f.Sequence({"text": f.Text(), "answer_start": np.int32}),
        },
        {"train": rows, "validation": rows},
    )
    chosen = config("squad1", dir=folder, max_query_length=8)
    found, _ = read_with(chosen)
    assert found["dev"] == [question_answering.Example("q", "what?", "the text", (("text", 4), ("the text", 0)), True)]


def test_race_from_tfds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data set calls its dev split `dev`.  Nested lists need TensorFlow, which an error explains."""
    record = {
        "article": "the text",
        "questions": ["what?"],
        "options": [["a", "b"]],
        "answers": ["B"],
        "example_id": "high1",
    }

    class Builder:
        """The used part of a TFDS builder."""

        info = SimpleNamespace(splits=("train", "dev"), features={})
        rows: ClassVar[Any] = [record]

        def as_data_source(self, split: str) -> Any:
            return self.rows

    class Refuses(list[Any]):
        """Fails like TFDS without TensorFlow."""

        def __getitem__(self, at: Any) -> Any:
            raise ModuleNotFoundError("No module named 'tensorflow'")

    for module in (files, tfds_prepared):
        monkeypatch.setattr(module, "builder_of", lambda name: Builder())
    chosen = config("race", dir="tfds:race/high")
    found, _ = read_with(chosen)
    assert found["dev"] == [multiple_choice.Example("high1.0", "the text", "what?", ("a", "b"), 1, "high")]
    Builder.rows = Refuses([record])
    with pytest.raises(InputError, match=r"data.dir tfds:race/high: TFDS needs TensorFlow to read its features; name"):
        read_with(chosen)


def test_conll_from_tfds(tmp_path: Path) -> None:
    rows = [{"tokens": ["the", "text", "list"], "ner": ["O", "I-X", "B-X"]}]
    folder = prepared(
        tmp_path,
        lambda f: {"tokens": f.Sequence(f.Text()), "ner": f.Sequence(f.ClassLabel(names=["O", "B-X", "I-X"]))},
        {"train": rows, "validation": rows},
    )
    chosen = config("ner", dir=folder)
    found, labels = read_with(chosen)
    assert labels == ("O", "B-X", "I-X")
    assert found["dev"][0][1:] == (("the", "text", "list"), ("O", "B-X", "B-X"))


def test_malformed_lines_can_be_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    WRITE["qqp"](tmp_path)
    line("train.tsv", 4, "1\t2")(tmp_path)
    line("train.tsv", 9, "8\ta\tb\t5")(tmp_path)
    with caplog.at_level("WARNING"):
        found, _ = read("qqp", tmp_path, malformed="skip")
    assert len(found["train"]) == 318
    assert "train: 2 lines skipped, the first: " in caplog.text
    assert "train.tsv:4: expected" in caplog.text


def test_forms_of_hidden_labels(tmp_path: Path) -> None:
    """In a test file: no column, an empty cell, -1.  In the user's own table -1 is a number."""
    WRITE["stsb"](tmp_path)
    for number, cells in enumerate(("-1", "-1.0", "")):
        (tmp_path / "test.tsv").write_text(f"index\tsentence1\tsentence2\tscore\n0\ta\tb\t{cells}\n")
        assert read("stsb", tmp_path)[0]["test"][0].label is None, number
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.csv").write_text("text,label\na,-1\nb,1\n")
    named = {f"{split}_file": str(tmp_path / f"{split}.csv") for split in ("train", "dev", "test")}
    chosen = config("regression", **named)
    found, _ = read_with(chosen)
    assert [row.label for row in found["test"]] == [-1.0, 1.0]


def test_class_numbers_of_hugging_face(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        rows = [{"sentence1": "a", "sentence2": "b", "label": number} for number in (0, 1)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row.label for row in read("rte", tmp_path)[0]["dev"]] == ["entailment", "not_entailment"]


def test_lone_surrogates_are_replaced(tmp_path: Path) -> None:
    row = '{"text": "a\\ud800b", "label": 1.5}\n'
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(row)
    named = {f"{split}_file": str(tmp_path / f"{split}.jsonl") for split in ("train", "dev")}
    chosen = config("regression", **named)
    assert read_with(chosen)[0]["dev"][0].text == "a\ufffdb"


def test_levels_come_from_ids_and_folders_only(tmp_path: Path) -> None:
    """Fails if the level is searched for in the complete path."""
    folder = tmp_path / "middle-earth"
    folder.mkdir()
    WRITE["race"](folder)
    assert {row.part for row in read("race", folder)[0]["dev"]} == {"middle", "high"}


def test_invalid_utf8_can_be_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    WRITE["sst2"](tmp_path)
    (tmp_path / "dev.tsv").write_bytes(b"sentence\tlabel\ngo\xffod\t1\n")
    with caplog.at_level("WARNING"):
        found, _ = read("sst2", tmp_path, encoding_errors="replace")
    assert found["dev"][0].text == "go\ufffdod"
    assert "1 lines with invalid UTF-8 replaced" in caplog.text


def test_limits_take_the_first_examples(tmp_path: Path) -> None:
    WRITE["sst2"](tmp_path)
    found, few = read("sst2", tmp_path)[0], read("sst2", tmp_path, max_train_samples=7, max_eval_samples=3)[0]
    assert few == {"train": found["train"][:7], "dev": found["dev"][:3], "test": found["test"][:3]}

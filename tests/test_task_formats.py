"""Files of fine-tuning tasks as people have them: tables, SQuAD's variants, multiple choice as published and on the hub."""

import bz2
import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from albert_jax.config import InputError
from albert_jax.finetuning.choice_formats import Example as Choice
from albert_jax.finetuning.squad_format import Example as Question
from albert_jax.finetuning.squad_format import find

from .task_reading import config, read_with


def rows_of(path: Path, task: str, content: Any, **fields: Any) -> list[Any]:
    """The dev examples of a file with this content: text, bytes, or records to be written as JSON lines."""
    if isinstance(content, list):
        content = "".join(json.dumps(record) + "\n" for record in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_with(config(task, train_file=str(path), dev_file=str(path), **fields))[0]["dev"]


# Tables

PAIRS = [("a film", "pos"), ("a bore", "neg")]
RECORDS = [{"text": text, "label": label} for text, label in PAIRS]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS)
TABLES: dict[str, tuple[str, Any]] = {
    "blank last line, csv": ("x.csv", "text,label\na film,pos\na bore,neg\n\n"),
    "blank last line, tsv": ("x.tsv", "text\tlabel\na film\tpos\na bore\tneg\n\n"),
    "empty cells at the end": ("x.csv", "text,label\na film,pos\na bore,neg\n,\n , \n"),
    "blank first line": ("x.tsv", "\ntext\tlabel\na film\tpos\na bore\tneg\n"),
    "index of pandas": ("x.csv", ",text,label\n0,a film,pos\n1,a bore,neg\n"),
    "columns without names": ("x.csv", "text,label,,,\r\na film,pos,,,\r\na bore,neg,,,\r\n"),
    "cells beyond the header": ("x.csv", "text,label\na film,pos,,\na bore,neg,\n"),
    "fewer cells than columns": ("x.csv", "text,label,,\na film,pos\na bore,neg\n"),
    "semicolons": ("x.csv", "text;label\na film;pos\na bore;neg\n"),
    "suffix in upper case": ("X.CSV", "text,label\na film,pos\na bore,neg\n"),
    "suffixes in upper case": ("X.TSV.gz", gzip.compress(b"text\tlabel\na film\tpos\na bore\tneg\n")),
    "JSON array without suffix": ("x", json.dumps(RECORDS)),
    "JSON lines without suffix": ("x.gz", gzip.compress(LINES.encode())),
    "two equal columns": ("x.csv", "text,note,label,note\na film,1,pos,2\na bore,3,neg,4\n"),
    "JSON lines": ("x.json", LINES),
    "JSON array": ("x.json", json.dumps(RECORDS, indent=1)),
    "JSON array with a byte-order mark": ("x.json", "\ufeff" + json.dumps(RECORDS)),
    "compressed JSON lines": ("x.json.gz", gzip.compress(LINES.encode())),
    "compressed JSON array": ("x.json.gz", gzip.compress(json.dumps(RECORDS).encode())),
    "compressed table": ("x.csv.gz", gzip.compress(b"text,label\na film,pos\na bore,neg\n")),
}


@pytest.mark.parametrize("case", TABLES)
def test_tables(case: str, tmp_path: Path) -> None:
    name, content = TABLES[case]
    assert [row[1:] for row in rows_of(tmp_path / name, "text", content)] == [(a, None, b) for a, b in PAIRS]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "utf-16", "gbk"])
@pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.json"])
def test_encodings(encoding: str, name: str, tmp_path: Path) -> None:
    word = "電影" if encoding == "gbk" else "Ärger £5"
    records = [{"text": f"{word} {number}", "label": "ab"[number]} for number in range(2)]
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    text = f"text,label\n{word} 0,a\n{word} 1,b\n" if name == "x.csv" else lines if name == "x.jsonl" else None
    content = (text or json.dumps(records, ensure_ascii=False)).encode(encoding)
    assert [row.text for row in rows_of(tmp_path / name, "text", content, encoding=encoding)] == [
        f"{word} 0",
        f"{word} 1",
    ]
    if encoding == "cp1252":
        with pytest.raises(InputError, match=r"x\.\w+(:\d)?: .* at byte \d+; .*name its encoding"):
            rows_of(tmp_path / name, "text", content)


def test_unknown_encoding_is_refused() -> None:
    with pytest.raises(
        InputError, match="encoding: unknown text encoding 'cp12'; name one of Python's, such as cp1252"
    ):
        config("text", encoding="cp12")


def test_text_in_columns_without_names_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = "v1,v2,,\nham,a film,,\nspam,a bore, and more,\n"
    rows = rows_of(tmp_path / "x.csv", "text", content, text_column="v2", label_column="v1")
    assert [row.text for row in rows] == ["a film", "a bore"]
    assert "x.csv: 1 rows have text in columns without a name" in caplog.text


def test_columns_of_one_name_are_numbered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = "text,text,label\n1,a film,pos\n2,a bore,neg\n"
    rows = rows_of(tmp_path / "x.csv", "text", content, text_column="text (2)")
    assert [row.text for row in rows] == ["a film", "a bore"]
    assert "x.csv:1: several columns are called 'text'; they are read as 'text (1)', 'text (2)', ..." in caplog.text
    with pytest.raises(InputError, match=r"name it with --data.text-column 'text \(2\)'"):
        rows_of(tmp_path / "x.csv", "text", content)


def test_a_byte_order_mark_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = "\ufefftext,label\na film,pos\na bore,neg\n"
    with caplog.at_level(logging.INFO):
        assert [row.text for row in rows_of(tmp_path / "x.csv", "text", content)] == ["a film", "a bore"]
    levels = {record.levelno for record in caplog.records if "byte-order marks removed" in record.getMessage()}
    assert levels == {logging.INFO}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("{}.tsv.gz", gzip.compress(b"sentence\tlabel\na film\t1\n")),
        ("{}.jsonl.bz2", bz2.compress(b'{"sentence": "a film", "label": 1}')),
        ("data/{}-00000-of-00001.parquet", None),
    ],
    ids=["gz", "bz2", "hub"],
)
def test_compressed_files_and_the_folder_data(name: str, content: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "dev" if content else "validation"):
        path = tmp_path / name.format(split)
        if content:
            path.write_bytes(content)
        else:
            parquet.write_table(pyarrow.Table.from_pylist([{"sentence": "a film", "label": 1}]), path)
    found, _ = read_with(config("sst2", dir=str(tmp_path)))
    assert {split: [row[1:] for row in rows] for split, rows in found.items()} == {
        split: [("a film", None, "positive")] for split in ("train", "dev")
    }


def test_sentences_of_the_hub(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split in ("train", "validation"):
        table = pyarrow.Table.from_pylist([{"tokens": ["a"], "ner_tags": ["B-X"]}])
        parquet.write_table(table, tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert read_with(config("ner", dir=str(tmp_path)))[0]["dev"][0].tags == ("B-X",)


def test_whole_numbers_with_decimals_are_the_same_class(tmp_path: Path) -> None:
    """The class is called as where it occurs first; the text of a regression keeps its number."""
    for name, values in {"train": ("1", "0", "1.0"), "dev": ("1.0", "0.0", " 1")}.items():
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "".join(f"a,{value}\n" for value in values))
    files = {f"{name}_file": str(tmp_path / f"{name}.csv") for name in ("train", "dev")}
    found, labels = read_with(config("text", **files))
    assert labels == ("0", "1")
    assert [row.label for row in found["train"]] == ["1", "0", "1"] == [row.label for row in found["dev"]]
    sentence = "sentence\tlabel\na\t1.0\nb\t0.0\n"
    assert [row.label for row in rows_of(tmp_path / "x.tsv", "sst2", sentence)] == ["positive", "negative"]
    spaces = "text,label\na, pos\nb, neg\nc,pos\n"
    assert [row.label for row in rows_of(tmp_path / "x.csv", "text", spaces)] == ["pos", "neg", "pos"]
    records = [{"text": "a", "label": True}, {"text": "b", "label": False}]
    assert [row.label for row in rows_of(tmp_path / "x.jsonl", "text", records)] == ["True", "False"]


def test_booleans_are_the_classes_0_and_1(tmp_path: Path) -> None:
    records = [{"sentence": "a", "label": True}, {"sentence": "b", "label": False}]
    assert [row.label for row in rows_of(tmp_path / "x.jsonl", "sst2", records)] == ["positive", "negative"]
    (tmp_path / "train.csv").write_text("text,label\na,1\nb,0\n")
    (tmp_path / "dev.csv").write_text("text,label\na,False\nb,true\n")
    files = {f"{name}_file": str(tmp_path / f"{name}.csv") for name in ("train", "dev")}
    assert [row.label for row in read_with(config("text", **files))[0]["dev"]] == ["0", "1"]
    with pytest.raises(InputError, match="label 'True' is not one of entailment, not_entailment"):
        rows_of(tmp_path / "x.jsonl", "rte", [{"sentence1": "a", "sentence2": "b", "label": True}])


def test_a_label_of_spaces_is_hidden(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,label\na film,pos\na bore,neg\n")
    (tmp_path / "test.csv").write_text("text,label\na film, \n")
    files = {f"{name}_file": str(tmp_path / "x.csv") for name in ("train", "dev")}
    found, _ = read_with(config("text", test_file=str(tmp_path / "test.csv"), **files))
    assert found["test"][0].label is None


def test_rows_with_malformed_quotes_are_skipped_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also if the quote is not closed, and at the end.  Fails if reading resumes where the error was found."""
    rows = [
        "text,label",
        '"he said "no" twice",b',
        "one,a",
        '"never closed,a',
        '"two, or\nthree",b',
        "four,a",
        '"five,b',
    ]
    found = rows_of(tmp_path / "x.csv", "text", "\n".join(rows), malformed="skip")
    assert [(row.id.rpartition(":")[2], row.text) for row in found] == [
        ("3", "one"),
        ("5", "two, or\nthree"),
        ("7", "four"),
    ]
    assert "dev: 3 lines skipped, the first: " in caplog.text
    assert "x.csv:2: not CSV: ',' expected after" in caplog.text


@pytest.mark.parametrize(
    ("header", "advice"),
    [
        ("sentence,label", "no column text; the columns are sentence, label; name it with --data.text-column sentence"),
        ("Text,label", "name it with --data.text-column Text"),
        ("my text,label", "name it with --data.text-column 'my text'"),
        ("v1,v2", "name one of them with --data.text-column"),
        ("text,Category", "no column label; the columns are text, Category; name it with --data.label-column Category"),
        ("text,labels", "name it with --data.label-column labels"),
    ],
)
def test_columns_with_other_names_are_suggested(header: str, advice: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        rows_of(tmp_path / "x.csv", "text", f"{header}\na,b\nc,d\n")
    assert str(error.value).endswith(advice)


def test_parquet_of_the_hub(tmp_path: Path) -> None:
    """Classes have their names, and -1 is hidden; the files of a folder belong to the splits."""
    options = {"feature": [{"text": {"_type": "Value"}}], "_type": "Sequence"}
    features = {
        "options": options,
        "sentence": {"_type": "Value"},
        "label": {"names": ["negative", "positive"], "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    for name, labels in {"train": [0, 1], "validation": [1, 0], "test": [-1, -1]}.items():
        table = pyarrow.table({"sentence": ["a", "b"], "label": labels}).replace_schema_metadata(metadata)
        parquet.write_table(table, tmp_path / f"{name}-00000-of-00001.parquet")
    found, _ = read_with(config("sst2", dir=str(tmp_path)))
    assert {name: [row.label for row in rows] for name, rows in found.items()} == {
        "train": ["negative", "positive"],
        "dev": ["positive", "negative"],
        "test": [None, None],
    }
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(InputError, match=r"x.parquet: cannot be read: "):
        read_with(config("sst2", train_file=str(tmp_path / "x.parquet"), dev_file=str(tmp_path / "x.parquet")))


# Question answering

CONTEXT = "Ada CanAda met Ada in London in 1815."
QA = {"id": "q", "question": "where?", "answers": [{"text": "London", "answer_start": 22}]}


def squad(*qas: dict[str, Any]) -> str:
    return json.dumps({"data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": list(qas)}]}]})


FLAT = QA | {"context": CONTEXT}
ON_HUB = FLAT | {"answers": {"text": ["London"], "answer_start": [22]}}
SQUADS: dict[str, str] = {
    "nested": squad(QA),
    "plain text": squad(QA | {"answers": ["London"]}),
    "one plain text": squad(QA | {"answers": "London"}),
    "no position": squad(QA | {"answers": [{"text": "London"}]}),
    "one answer": squad(QA | {"answers": QA["answers"][0]}),
    "position as text": squad(QA | {"answers": [{"text": "London", "answer_start": "22"}]}),
    "position with decimals": squad(QA | {"answers": [{"text": "London", "answer_start": 22.0}]}),
    "records": json.dumps([FLAT]),
    "records on the hub": json.dumps([ON_HUB]),
    "records in data": json.dumps({"data": [FLAT]}),
    "a record per line": json.dumps(ON_HUB) + "\n\n",
    "articles": json.dumps(json.loads(squad(QA))["data"]),
    "one answer by another name": squad({"answer" if name == "answers" else name: value for name, value in QA.items()}),
    "answer and position": squad({"id": "q", "question": "where?", "answer": "London", "answer_start": 22}),
    "empty position": squad(QA | {"answers": [{"text": "London", "answer_start": ""}]}),
    "a blank answer": squad(QA | {"answers": [{"text": " ", "answer_start": 3}, *QA["answers"]]}),
    "JSON in a cell": squad(QA | {"answers": '{"text": ["London"], "answer_start": [22]}'}),
    "another name of the id": squad({"qid" if name == "id" else name: value for name, value in QA.items()}),
}


@pytest.mark.parametrize("case", SQUADS)
def test_variants_of_squad(case: str, tmp_path: Path) -> None:
    wanted = [Question("q", "where?", CONTEXT, (("London", 22),), True)]
    assert rows_of(tmp_path / "x.json", "squad1", SQUADS[case]) == wanted


@pytest.mark.parametrize(
    "fields",
    [
        {"answers": [{"text": "", "answer_start": -1}]},
        {"answers": [""]},
        {"answers": {"text": [""], "answer_start": [0]}},
        {"answers": "[]"},
        {"is_impossible": True},
        {"is_impossible": "True"},
        {"is_impossible": 1},
        {"is_impossible": "1"},
    ],
)
def test_questions_without_an_answer(fields: dict[str, Any], tmp_path: Path) -> None:
    """A blank text is no answer."""
    (row,) = rows_of(tmp_path / "x.json", "squad2", squad(QA | fields))
    assert row == Question("q", "where?", CONTEXT, (), True)


def test_answers_in_a_table(tmp_path: Path) -> None:
    """The text False is not true.  Fails if the question counts as unanswerable."""
    header = "id,question,context,is_impossible,answers\n"
    rows = f'1,where?,{CONTEXT},False,London\n2,who?,{CONTEXT},TRUE,""\n'
    found = rows_of(tmp_path / "x.csv", "squad2", header + rows)
    assert [row.answers for row in found] == [(("London", 22),), ()]
    for fields, message in (
        ({"answers": "{'text': ['London']}"}, "answers is .*; expected JSON or plain text"),
        ({"is_impossible": "maybe"}, "is_impossible is 'maybe'; expected true or false"),
        ({"answers": [{"text": "London", "answer_start": "x"}]}, "answer_start is 'x'; expected a whole number"),
        ({"id": 7.5}, "id is 7.5; expected text or a whole number"),
        ({"question": 1}, "question is 1; expected text"),
    ):
        with pytest.raises(InputError, match=f"x.json: its first question is not in SQuAD's format: {message}"):
            rows_of(tmp_path / "x.json", "squad2", squad(QA | fields))


def test_squad_from_parquet(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        parquet.write_table(pyarrow.Table.from_pylist([ON_HUB]), tmp_path / f"{name}-00000-of-00001.parquet")
    assert read_with(config("squad1", dir=str(tmp_path)))[0]["dev"][0].answers == (("London", 22),)


def test_ids_of_questions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Numbers become text.  Generated ids depend on the texts and not on the order, and are unique."""
    assert [row.id for row in rows_of(tmp_path / "x.json", "squad1", squad(QA | {"id": 7}, QA | {"id": 8.0}))] == [
        "7",
        "8",
    ]
    no_id, other = ({"question": text, "answers": ["London"]} for text in ("where?", "in which city?"))
    with caplog.at_level(logging.INFO):
        ids = [row.id for row in rows_of(tmp_path / "x.json", "squad1", squad(no_id, other, no_id))]
    assert "dev: 3 questions have no id; ids are generated from their texts" in caplog.text
    assert ids == [ids[0], ids[1], f"{ids[0]}-2"]
    assert ids[0] != ids[1]
    assert [row.id for row in rows_of(tmp_path / "x.json", "squad1", squad(other, no_id))] == [ids[1], ids[0]]


@pytest.mark.parametrize(
    ("answer", "start", "wanted"),
    [
        ("London", 22, ("London", 22)),
        ("London", 0, ("London", 22)),
        ("London", 23, ("London", 22)),
        ("London", -1, ("London", 22)),
        ("London", 9999, ("London", 22)),
        ("Ada", 12, ("Ada", 15)),  # the nearest
        ("Ada", 6, ("Ada", 0)),  # not in CanAda, which is nearer
        ("an", None, ("an", 5)),  # a part of a word, if there is no other
        (" London ", 3, (" London ", 21)),
        ("London  ", None, ("London", 22)),
        ("Paris", 22, ("Paris", -1)),
    ],
)
def test_answers_are_searched_for(answer: str, start: int | None, wanted: tuple[str, int]) -> None:
    assert find(CONTEXT, answer, start) == wanted


def test_corrected_positions_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wrong = [QA | {"id": f"q{at}", "answers": [{"text": "London", "answer_start": at}]} for at in (22, 21, 0)]
    rows = rows_of(tmp_path / "x.json", "squad1", squad(*wrong))
    assert [row.answers for row in rows] == [(("London", 22),)] * 3
    assert "train: answers of 2 questions are not at their position, the first: q21; the nearest" in caplog.text


# Multiple choice

OPTIONS = ("a cat", "a dog", "a hen")
LABELED = [{"label": label, "text": text} for label, text in zip("ABC", OPTIONS, strict=True)]
RACE = {"example_id": "high1.txt", "article": "the text", "question": "what?", "options": list(OPTIONS)}
ARC = {"id": "m", "question": {"stem": "what?", "choices": LABELED}, "answerKey": "B"}
ON_HUB_ARC = {"id": "m", "question": "what?", "choices": {"text": OPTIONS, "label": list("ABC")}}
NUMBERED = {"id": "m", "question": "what?", "choices": {"text": OPTIONS, "label": list("123")}}
SWAG = {"sent1": "the text", "sent2": "what?"} | {f"ending{number}": text for number, text in enumerate(OPTIONS)}
QUIZ = {"id": "m", "question": "what?"} | {f"option{number}": text for number, text in enumerate(OPTIONS, 1)}
WITHOUT_PASSAGE = Choice("m", "what?", "", OPTIONS, 1, "all")
CHOICES: dict[str, tuple[str, dict[str, Any], Choice]] = {
    "RACE": ("race", RACE | {"answer": "B"}, Choice("high1.txt.0", "the text", "what?", OPTIONS, 1, "high")),
    "RACE, number": ("race", RACE | {"answer": 1}, Choice("high1.txt.0", "the text", "what?", OPTIONS, 1, "high")),
    "RACE, passage": (
        "race",
        {"id": "middle2", "article": "the text", "questions": ["what?"], "options": [list(OPTIONS)], "answers": [1]},
        Choice("middle2.0", "the text", "what?", OPTIONS, 1, "middle"),
    ),
    "ARC": ("arc", ARC, WITHOUT_PASSAGE),
    "ARC on the hub": ("arc", ON_HUB_ARC | {"answerKey": "B"}, WITHOUT_PASSAGE),
    "ARC, numbers": ("arc", NUMBERED | {"answerKey": "2"}, WITHOUT_PASSAGE),
    "ARC, letter for a number": ("arc", NUMBERED | {"answerKey": "b"}, WITHOUT_PASSAGE),
    "ARC, number for a letter": ("arc", ON_HUB_ARC | {"answerKey": 2}, WITHOUT_PASSAGE),
    "CommonsenseQA": ("commonsense_qa", ON_HUB_ARC | {"question_concept": "x", "answerKey": "B"}, WITHOUT_PASSAGE),
    "OpenBookQA": (
        "arc",
        {"id": "m", "question_stem": "what?", "choices": ON_HUB_ARC["choices"], "answerKey": "B"},
        WITHOUT_PASSAGE,
    ),
    "SWAG": ("swag", SWAG | {"label": 1}, Choice("", "the text", "what?", OPTIONS, 1, "all")),
    "SWAG, text": ("swag", SWAG | {"label": "1"}, Choice("", "the text", "what?", OPTIONS, 1, "all")),
    "HellaSwag": (
        "swag",
        {"ctx_a": "the text", "ctx_b": "what?", "endings": list(OPTIONS), "label": "1"},
        Choice("", "the text", "what?", OPTIONS, 1, "all"),
    ),
    "MMLU": ("arc", {"id": "m", "question": "what?", "choices": list(OPTIONS), "answer": 1}, WITHOUT_PASSAGE),
    "options by letter": (
        "arc",
        {"id": "m", "question": "what?", "options": dict(zip("ABC", OPTIONS, strict=True)), "answer": "B"},
        WITHOUT_PASSAGE,
    ),
    "columns A to C": (
        "arc",
        {"id": "m", "question": "what?", "answer": "B"} | dict(zip("ABC", OPTIONS, strict=True)),
        WITHOUT_PASSAGE,
    ),
    "columns option_a to option_c": (
        "arc",
        {"id": "m", "question": "what?", "answer": "b"}
        | dict(zip(("option_a", "option_b", "option_c"), OPTIONS, strict=True)),
        WITHOUT_PASSAGE,
    ),
    "text of the answer": (
        "arc",
        {"id": "m", "question": "what?", "choices": list(OPTIONS), "answer": "a dog"},
        WITHOUT_PASSAGE,
    ),
    "RACE, options by letter": (
        "race",
        RACE | {"options": dict(zip("ABC", OPTIONS, strict=True)), "answer": "B"},
        Choice("high1.txt.0", "the text", "what?", OPTIONS, 1, "high"),
    ),
    "columns from 1": ("arc", QUIZ | {"answer": "2"}, WITHOUT_PASSAGE),
}


@pytest.mark.parametrize("case", CHOICES)
def test_formats_of_multiple_choice(case: str, tmp_path: Path) -> None:
    """Fails if a number counts from the wrong end, or an option is lost."""
    task, record, wanted = CHOICES[case]
    row = rows_of(tmp_path / "x.jsonl", task, [record])[0]
    assert row == (wanted if wanted.id else wanted._replace(id=f"{tmp_path / 'x.jsonl'}:1"))
    field = next(name for name in ("answers", "answer", "answerKey", "label") if name in record)
    with pytest.raises(InputError, match=r"x.jsonl:1: answer 'E' is not one of"):
        rows_of(tmp_path / "x.jsonl", task, [record | {field: ["E"] if field == "answers" else "E"}])


@pytest.mark.parametrize("options", ["yes|no", "A", {"text": "yes|no"}])
def test_options_that_are_no_list_are_refused(options: Any, tmp_path: Path) -> None:
    """Fails if the characters of a text become options."""
    for record in (
        {"question": "what?", "choices": options, "answer": 1},
        {"article": "x", "questions": ["what?"], "options": [options], "answers": ["A"]},
    ):
        with pytest.raises(InputError, match=r"x.jsonl:1: the options are .*; expected a list of texts"):
            rows_of(tmp_path / "x.jsonl", "arc", [record])


def test_a_number_can_be_the_text_of_an_option(tmp_path: Path) -> None:
    """A text that could be both is refused; a number is a position."""
    record = {"question": "how many?", "choices": ["4", "5", "1"]}
    for answer, position in (("5", 1), ("4", 0), (1, 1), ("C", 2)):
        assert rows_of(tmp_path / "x.jsonl", "arc", [record | {"answer": answer}])[0].answer == position
    with pytest.raises(InputError, match="answer '1' is an option and the number of a different one; give its letter"):
        rows_of(tmp_path / "x.jsonl", "arc", [record | {"answer": "1"}])


def test_questions_of_a_passage_have_different_ids(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "x.jsonl", "race", [RACE | {"answer": letter} for letter in "AB"])
    assert [row.id for row in rows] == ["high1.txt.0", "high1.txt.1"]


def test_numbers_that_are_no_option_are_refused(tmp_path: Path) -> None:
    for record, number in ((RACE, 3), (SWAG, 3), (NUMBERED, 0), (ON_HUB_ARC, 0), (RACE, True)):
        field = "answerKey" if "choices" in record else "answer"
        with pytest.raises(InputError, match=f"x.jsonl:1: answer {number} is not one of"):
            rows_of(tmp_path / "x.jsonl", "arc", [record | {field: number}])


def test_hidden_answers_and_unknown_fields(tmp_path: Path) -> None:
    for answer in ({}, {"label": ""}, {"label": -1}, {"label": None}):
        (tmp_path / "test.jsonl").write_text(json.dumps(SWAG | answer))
        (tmp_path / "x.jsonl").write_text(json.dumps(SWAG | {"label": 0}))
        files = {f"{name}_file": str(tmp_path / "x.jsonl") for name in ("train", "dev")}
        found, _ = read_with(config("swag", test_file=str(tmp_path / "test.jsonl"), **files))
        assert found["test"][0].answer is None
    with pytest.raises(InputError, match=r"x.jsonl:1: not in a known format .*: no 'options'"):
        rows_of(tmp_path / "x.jsonl", "arc", [{"question": "what?", "answer": 1}])

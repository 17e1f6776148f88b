"""Mistakes in the files and options of fine-tuning tasks are reported in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import GOLDEN_TOKENIZER, ROOT, refused
from .synthetic_tasks import WRITE
from .task_reading import line


def changed(task: str, change: Callable[[Path], object] = lambda folder: None) -> Callable[[Path], list[str]]:
    """A function that writes the files of a task and changes one of them; returns the command-line words."""

    def write(folder: Path) -> list[str]:
        words = WRITE[task](folder)
        change(folder)
        return words

    return write


def content(file: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(data)


def race_file(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / "dev" / "high" / "1.txt"
        record = json.loads(path.read_text())
        change(record)
        path.write_text(json.dumps(record))

    return edit


def without_answers(split: str) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / f"{split}-v1.1.json"
        table = json.loads(path.read_text())
        table["data"][0]["paragraphs"][3]["qas"][0].pop("answers")
        path.write_text(json.dumps(table))

    return change


def answer_of(**fields: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        path = folder / "dev-v1.1.json"
        table = json.loads(path.read_text())
        table["data"][0]["paragraphs"][3]["qas"][0]["answers"][0].update(fields)
        path.write_text(json.dumps(table))

    return change


def saved_to_disk(folder: Path) -> None:
    """As DatasetDict.save_to_disk writes it."""
    for path in folder.iterdir():
        path.unlink()
    (folder / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')


BAD: dict[str, tuple[str, Callable[[Path], list[str]], list[str], str]] = {
    "empty": ("sst2", changed("sst2", content("train.tsv", b"")), [], "train.tsv: no examples"),
    "a header alone": ("sst2", changed("sst2", content("dev.tsv", b"sentence\tlabel\n")), [], "dev.tsv: no examples"),
    "no sentence": ("ner", changed("ner", content("eng.testa", b"\n\n")), [], "eng.testa: no examples"),
    "no question": ("squad1", changed("squad1", content("dev-v1.1.json", b'{"data": []}')), [], "dev-v1.1.json: no examples"),
    "UTF-8": (
        "sst2",
        changed("sst2", content("dev.tsv", b"sentence\tlabel\ngo\xffod\t1\n")),
        [],
        "dev.tsv:2: invalid UTF-8 at byte 17; ",
    ),
    "encoding of JSON": ("squad1", changed("squad1", content("dev-v1.1.json", b"\xff")), [], "dev-v1.1.json: not UTF-8 at byte 0"),
    "label": ("rte", changed("rte", line("dev.tsv", 3, "1\ta\tb\tmaybe")), [], "dev.tsv:3: label 'maybe' is not one of entailment, not_entailment"),
    "number": ("sst2", changed("sst2", line("train.tsv", 5, "a text\t7")), [], "train.tsv:5: label '7' is not one of 0, 1"),
    "minus 100": ("cola", changed("cola", line("dev.tsv", 1, "x\t-100\t\ta text")), [], "dev.tsv:1: label '-100' is not one of 0, 1"),
    "new in dev": ("text", changed("text", line("dev.csv", 4, "a text,d")), [], "dev.csv:4: label 'd' is not one of a, b, c"),
    "no label": ("sst2", changed("sst2", line("dev.tsv", 2, "a text\t")), [], "dev.tsv:2: no label"),
    "one class": ("text", changed("text", content("train.csv", b"review,stars\na,x\nb,x\n")), [], "train.csv:2: all training examples have the class 'x'"),
    "columns": ("mrpc", changed("mrpc", line("train.tsv", 7, "1\t2\t3")), [], "train.tsv:7: expected 5 columns (#1 ID, #2 ID, #1 String, #2 String, Quality), found 3; fix it, or skip such lines with --data.malformed skip"),
    "a column": ("mnli", changed("mnli", line("dev_matched.tsv", 1, "index\tsentence1\tsentence2\tlabel1")), [], "dev_matched.tsv:2: no column gold_label or label; the columns are index, sentence1"),
    "quotes": ("text", changed("text", line("train.csv", 3, '"never closed,a')), [], "train.csv:3: not CSV: ',' expected after"),
    "own column": ("text", changed("text"), ["--data.text-column", "txt"], "train.csv:2: no column txt; the columns are review, stars; name it with --data.text-column review"),
    "JSON": ("regression", changed("regression", line("dev.jsonl", 2, '{"text": ')), [], "dev.jsonl:2: not JSON"),
    "JSON list": ("regression", changed("regression", line("dev.jsonl", 2, "[1]")), [], "dev.jsonl:2: expected a JSON object"),
    "no text": ("regression", changed("regression", line("dev.jsonl", 2, '{"text": null, "label": 1}')), [], "dev.jsonl:2: text is None; expected text or a number"),
    "conll": ("ner", changed("ner", line("eng.train", 4, "the X O")), [], "eng.train:4: expected 4 columns, as in the lines before, found 3"),
    "a tag": ("ner", changed("ner", line("eng.train", 4, "the X O LOC")), [], "eng.train:3, word 4 'space': either all tags but O have a prefix such as B-, or none; found "),
    "one column": ("ner", changed("ner", content("eng.train", b"the\ntext\n")), [], "eng.train:1; all training and dev examples need one"),
    "new type": ("ner", changed("ner", line("eng.testa", 3, "the X O I-ORG")), [], "eng.testa:3: unknown type 'ORG'; the training file has LOC, PER"),
    "no entity": ("ner", changed("ner", content("eng.train", b"the O\n")), [], "eng.train:1: the training file has no entity; all tags are O"),
    "mctest": ("mctest", changed("mctest", line("mc160.dev.tsv", 2, "a\tb")), [], "mc160.dev.tsv:2: expected 23 columns"),
    "answers": ("mctest", changed("mctest", line("mc160.dev.ans", 2, "A\tB")), [], "mc160.dev.ans:2: expected 4 answers, found 2"),
    "too few answers": ("mctest", changed("mctest", content("mc160.dev.ans", b"A\tB\tC\tD\n")), [], "mc160.dev.ans: 1 lines, but"),
    "letter": ("race", changed("race", race_file(lambda r: r.update(answers=["E"]))), [], "answer 'E' is not one of A, B, C, D"),
    "race": ("race", changed("race", race_file(lambda r: r.pop("article"))), [], "1.txt:1: not in RACE's format (article, questions, options, answers): no 'article'"),
    "race options": ("race", changed("race", race_file(lambda r: r.update(options=[]))), [], "1.txt:1: 1 questions, 0 lists of options, 1 answers"),
    "level": ("race", changed("race"), ["--data.level", "low"], "data.level: unknown value 'low'; choose one of all, middle, high"),
    "score": ("stsb", changed("stsb", line("train.tsv", 9, "8\ta\tb\tfive")), [], "train.tsv:9: label 'five' is not a number"),
    "nan": ("stsb", changed("stsb", line("dev.tsv", 9, "8\ta\tb\tnan")), [], "dev.tsv:9: label 'nan' is not a number"),
    "form": ("squad1", changed("squad1", content("dev-v1.1.json", b'{"data": [{"paragraphs": [{"qas": [{}]}]}]}')), [], "dev-v1.1.json: its first question is not in SQuAD's format: no 'context'"),
    "unanswerable": ("squad2", changed("squad2"), ["--data.task", "squad1", "--data.train-file", "{folder}/train-v2.0.json", "--data.dev-file", "{folder}/dev-v2.0.json"], "question train0 has no answer; use --data.task squad2"),
    "question room": ("squad1", changed("squad1"), ["--data.max-query-length", "64"], "data.max_seq_length 32 has no room for a question of max_query_length 64 and a context; it must be at least 75"),
    "two letters": ("race", changed("race", race_file(lambda r: r.update(answers=["AB"]))), [], "answer 'AB' is not one of A, B, C, D"),
    "no letter": ("race", changed("race", race_file(lambda r: r.update(answers=[""]))), [], "no label for high1.txt.0; all training and dev examples need one"),
    "no answers": ("squad1", changed("squad1", without_answers("dev")), [], "dev-v1.1.json: no label for dev3; all training and dev examples need one"),
    "no answers in train": ("squad1", changed("squad1", without_answers("train")), [], "train-v1.1.json: no label for train3"),
    "a place": ("squad1", changed("squad1", answer_of(answer_start=4.7)), [], "the question after dev2 is not in SQuAD's format: answer_start is 4.7; expected a whole number"),
    "a text": ("squad1", changed("squad1", answer_of(text=None)), [], "the question after dev2 is not in SQuAD's format: the text of an answer is None; expected text"),
    "a column twice": ("sst2", changed("sst2", line("dev.tsv", 1, "sentence\tsentence")), [], "dev.tsv:2: no column sentence; the columns are sentence (1), sentence (2)"),
    "an id twice": ("race", changed("race", race_file(lambda r: r.update(id="middle0.txt"))), [], "two questions have the id 'middle0.txt.0'; make ids unique"),
    "test lines": ("qqp", changed("qqp", line("test.tsv", 3, "1")), [], "test.tsv:3: expected 3 columns (id, question1, question2), found 1"),
    "too many answers": ("mctest", changed("mctest", line("mc160.dev.ans", 1, "A\tB\tC\tD\nA\tB\tC\tD")), [], "mc160.dev.ans: 7 lines, but"),
    "a table in .txt": ("sst2", changed("sst2", content("dev.txt", b"sentence\tlabel\na\t1\n")), ["--data.dev-file", "{folder}/dev.txt"], "dev.txt:1: not JSON: Expecting value: line 1 column 1 (char 0); .txt is read as JSON lines (RACE's format): save a table as .tsv"),
    "save_to_disk": ("sst2", changed("sst2", lambda folder: (folder / "state.json").write_text("{}")), ["--data.dev-file", "{folder}"], "data: a folder; name its files; for a folder of save_to_disk, save each split with Dataset.to_parquet"),
    "save_to_disk, splits": ("sst2", changed("sst2", saved_to_disk), [], "give --data.dir or --data.train-file; for a folder of save_to_disk, save each split"),
    "save_to_disk, file": ("sst2", changed("sst2", content("x.arrow", b"")), ["--data.dev-file", "{folder}/x.arrow"], "x.arrow: cannot read '.arrow' files; known: tsv, csv, jsonl, json, txt, parquet, also with .gz, .bz2, .xz, .zst; save the data set with Dataset.to_parquet"),
    "no dir": ("sst2", lambda folder: [], [], "no train data; give --data.dir or --data.train-file"),
    "dir": ("sst2", lambda folder: ["--data.dir", "nowhere"], [], "data.dir nowhere: no such folder"),
    "no dev": ("sst2", changed("sst2", lambda folder: (folder / "dev.tsv").unlink()), [], "no dev.tsv in data.dir"),
    "file": ("sst2", changed("sst2"), ["--data.dev-file", "nowhere.tsv"], "data.dev_file nowhere.tsv: no such file"),
    "kind": ("sst2", changed("sst2"), ["--data.dev-file", "{folder}/../spiece.bin"], "cannot read '.bin' files; known: tsv, csv, jsonl, json, txt, parquet, also with .gz"),
    "task": ("sst2", changed("sst2"), ["--data.task", "sst3"], "data.task: unknown value 'sst3' for ClassificationData; choose one of cola, sst2,"),
    "batch": ("sst2", changed("sst2"), ["--train.global-batch-size", "4096"], "train.global_batch_size is 4096, but there are only 320 training examples"),
    "length": ("sst2", changed("sst2"), ["--data.max-seq-length", "600"], "data.max_seq_length 600 > model.max_position_embeddings 512; use --data.max-seq-length 512"),
    "init": ("sst2", changed("sst2"), ["--init-from", "nowhere/at/all"], "nowhere/at/all: no such file or folder"),
    "init and model": ("sst2", changed("sst2"), ["--init-from", "x", "--model.hidden-size", "64"], "--model.hidden-size cannot be combined with --init-from: the architecture comes from the checkpoint. You can set: dtype"),
    "vocabulary": ("sst2", changed("sst2"), ["--data.vocab", ""], "cannot train a vocabulary of 30000 pieces"),
    "warm-up": ("sst2", changed("sst2"), ["--train.num-train-steps", "1256"], "optim.num_warmup_steps (1256) must be < train.num_train_steps (1256)"),
    "seeds": ("sst2", changed("sst2"), ["--seeds", "0"], "--seeds must be at least 1, got 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names the file and line, exit code 2, and no run folder."""
    task, write, more, message = BAD[case]
    folder, run_dir = tmp_path / "data", tmp_path / "run"
    folder.mkdir()
    (tmp_path / "spiece.bin").write_bytes(b"x")
    words = ["--data.vocab", str(GOLDEN_TOKENIZER / "spiece.model"), "--run-dir", str(run_dir)]
    words += ["--data.max-seq-length", "32"]
    own = [word.replace("{folder}", str(folder)) for word in more]
    experiment = str(ROOT / "experiments" / "finetune" / f"{task}.py")
    assert message in refused(["finetune", experiment, *words, *write(folder), *own], capsys)
    assert not run_dir.exists()


def test_architecture_with_init_from_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Refused whether --init-from is on the command line or in the experiment; a column called init is no --init-from."""
    text = (ROOT / "experiments" / "finetune" / "text.py").read_text()
    path = tmp_path / "mine.py"
    path.write_text(text.replace('run_dir="runs/text",', 'run_dir="runs/text", init_from="x",'))
    more = ["--model.hidden-size", "96", "--data.text-column", "init"]
    assert "--model.hidden-size cannot be combined with --init-from" in refused(["finetune", str(path), *more], capsys)
    assert "no train data" in refused(["finetune", str(ROOT / "experiments" / "finetune" / "text.py"), *more], capsys)

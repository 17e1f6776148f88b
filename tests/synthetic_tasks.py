"""Synthetic data for every task, in the file formats of its benchmark; a tiny model learns it in a hundred steps."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
FIELDS = {
    "data.vocab": ROOT / "tests" / "golden" / "tokenizer" / "spiece.model",
    "data.max_seq_length": 32,
    "model.embedding_size": 16,
    "model.hidden_size": 32,
    "model.num_hidden_layers": 2,
    "model.num_attention_heads": 2,
    "model.intermediate_size": 48,
    "model.max_position_embeddings": 32,
    "model.scan_unroll": 1,
    "model.initializer_range": 0.2,
    "optim.learning_rate": 2e-3,
    "optim.num_warmup_steps": 10,
    "train.num_train_steps": 100,
    "train.global_batch_size": 16,
    "train.log_every": 30,
    "train.eval_every": 50,
    "train.checkpoint_every": 50,
    "train.eval_batch_size": 8,
    "mesh.data": 1,
}
"""Fields of a fine-tuning run that takes seconds."""

FILLER = ["the", "text", "list", "that", "from", "this", "while", "than", "other", "more", "some", "case"]
SIZES = {"train": 320, "dev": 21, "test": 5}
GOOD, BAD = "large", "small"
PLACES = ["space", "source", "pool", "point", "state"]


def some(draw: random.Random, least: int = 2, most: int = 6) -> str:
    """Random filler words."""
    return " ".join(draw.choice(FILLER) for _ in range(draw.randint(least, most)))


def hinted(draw: random.Random, label: int) -> str:
    """A text with a word that tells its label."""
    return f"{some(draw)} {(BAD, GOOD, 'import')[label]} {some(draw)}"


def _tsv(path: Path, header: str, rows: list[str]) -> None:
    path.write_text("\n".join([header, *rows] if header else rows) + "\n", encoding="utf-8")


def glue(
    header: str, row: str, labels: tuple[str, ...], test: str = "", **files: tuple[str, str]
) -> Callable[..., Any]:
    """A writer of .tsv files.

    Args:
      header: the first line.
      row, test: formats of a line, of {n}, {a}, {b} and {label}.
      files: split -> (file, format), if not the usual ones.
    """

    def write(folder: Path) -> list[str]:
        draw = random.Random(0)
        for name, (file, form) in (files or {s: (f"{s}.tsv", row if s != "test" else test) for s in SIZES}).items():
            rows = []
            for number in range(SIZES[name.split("_")[0]]):
                label = number % len(labels)
                rows.append(form.format(n=number, a=some(draw), b=hinted(draw, label), label=labels[label]))
            head = header if form == row else header.rsplit("\t", 1)[0]
            _tsv(folder / file, "index\tsentence" if form == "{n}\t{b}" else head, rows)
        return ["--data.dir", str(folder)]

    return write


def _squad(form: str, impossible: bool) -> Callable[[Path], list[str]]:
    def write(folder: Path) -> list[str]:
        draw = random.Random(1)
        for split, size in SIZES.items():
            paragraphs = []
            for number in range(size):
                place = draw.choice(PLACES)
                none = impossible and number % 3 == 0
                context = f"{some(draw)} {'' if none else f'import {place} '}{some(draw)}"
                answers = [] if none else [{"text": place, "answer_start": context.index(place)}]
                qa = {"id": f"{split}{number}", "question": "what is it", "answers": answers, "is_impossible": none}
                if split == "test":
                    qa = {"id": f"{split}{number}", "question": "what is it"}
                paragraphs.append({"context": context, "qas": [qa]})
            file = folder / form.format(split=split)
            file.write_text(json.dumps({"version": "x", "data": [{"title": "t", "paragraphs": paragraphs}]}))
        return ["--data.dir", str(folder), "--data.max-query-length", "5", "--data.doc-stride", "6"]

    return write


def _race(folder: Path) -> list[str]:
    draw = random.Random(2)
    for split, size in SIZES.items():
        for number in range(size):
            level = ("middle", "high")[number % 2]
            options, right = [some(draw, 1, 2) for _ in range(4)], draw.randint(0, 3)
            options[right] += f" {GOOD}"
            passage = {
                "article": some(draw),
                "questions": ["what is _ ?"],
                "options": [options],
                "id": f"{level}{number}.txt",
            }
            if split != "test":
                passage["answers"] = ["ABCD"[right]]
            path = folder / split / level / f"{number}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(passage) + "\n")
    return ["--data.dir", str(folder), "--data.max-qa-length", "16"]


def _mctest(folder: Path) -> list[str]:
    draw = random.Random(3)
    for split, size in SIZES.items():
        rows, answers = [], []
        for number in range(size // 4 + 1):
            cells, letters = [f"mc160.{split}.{number}", "Author: 1", f"{some(draw)}.\\newline{some(draw)}."], []
            for kind in ("one", "multiple") * 2:
                options, right = [some(draw, 1, 2) for _ in range(4)], draw.randint(0, 3)
                options[right] += f" {GOOD}"
                cells += [f"{kind}: {some(draw)}?", *options]
                letters.append("ABCD"[right])
            rows.append("\t".join(cells))
            answers.append("\t".join(letters))
        _tsv(folder / f"mc160.{split}.tsv", "", rows)
        if split != "test":
            _tsv(folder / f"mc160.{split}.ans", "", answers)
    return ["--data.dir", str(folder), "--data.max-qa-length", "16"]


def _swag(folder: Path) -> list[str]:
    draw = random.Random(7)
    for split, size in SIZES.items():
        rows = []
        for number in range(size):
            endings, right = [some(draw, 1, 2) for _ in range(4)], draw.randint(0, 3)
            endings[right] += f" {GOOD}"
            answer = [] if split == "test" else [str(right)]
            rows.append(",".join([str(number), some(draw), "the list", *endings, *answer]))
        head = ",sent1,sent2," + ",".join(f"ending{number}" for number in range(4))
        (folder / f"{'val' if split == 'dev' else split}.csv").write_text(
            "\n".join([head if split == "test" else f"{head},label", *rows]) + "\n"
        )
    return ["--data.dir", str(folder), "--data.max-qa-length", "16"]


def _arc(*names: str) -> Callable[[Path], list[str]]:
    """A writer of ARC's format, which CommonsenseQA has too, into files of these names for train, dev and test."""

    def write(folder: Path) -> list[str]:
        draw = random.Random(8)
        for name, (split, size) in zip(names, SIZES.items(), strict=True):
            lines = []
            for number in range(size):
                labels, right = ("ABCD", "1234")[number % 2], draw.randint(0, 3)
                choices = [{"text": some(draw, 1, 2), "label": label} for label in labels]
                choices[right]["text"] += f" {GOOD}"
                record = {"id": f"{split}{number}", "question": {"stem": "what is it ?", "choices": choices}}
                lines.append(json.dumps(record | ({"answerKey": labels[right]} if split != "test" else {})))
            (folder / name).write_text("\n".join(lines) + "\n")
        return ["--data.dir", str(folder), "--data.max-qa-length", "16"]

    return write


def _ner(folder: Path) -> list[str]:
    draw = random.Random(4)
    for file, size in (("eng.train", 320), ("eng.testa", 21), ("eng.testb", 5)):
        lines = ["-DOCSTART- -X- O O", ""]
        for _ in range(size):
            for _ in range(draw.randint(2, 5)):
                lines.append(f"{draw.choice(FILLER)} X O O")
                if draw.random() < 0.5:
                    lines.append(f"{draw.choice(PLACES)} X O I-LOC")
                elif draw.random() < 0.3:
                    lines += ["import X O I-PER", f"{draw.choice(PLACES)} X O I-PER", "the X O O"]
            lines.append("")
        (folder / file).write_text("\n".join(lines))
    return ["--data.dir", str(folder)]


def _text(folder: Path) -> list[str]:
    draw = random.Random(5)
    for split in ("train", "dev"):
        rows = [f'"{hinted(draw, n % 3)}, and ""more""",{"abc"[n % 3]}' for n in range(SIZES[split])]
        (folder / f"{split}.csv").write_text("review,stars\n" + "\n".join(rows) + "\n")
    files = ["--data.train-file", str(folder / "train.csv"), "--data.dev-file", str(folder / "dev.csv")]
    return [*files, "--data.text-column", "review", "--data.label-column", "stars"]


def _multilabel(folder: Path) -> list[str]:
    draw = random.Random(9)
    for split in ("train", "dev"):
        rows = []
        for number in range(SIZES[split]):
            names = [name for name in (GOOD, BAD, "import") if draw.random() < 0.5]
            text = " ".join([some(draw), *names, some(draw)])
            rows.append({"text": text, "labels": names if number % 2 else ",".join(names)})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--data.train-file", str(folder / "train.jsonl"), "--data.dev-file", str(folder / "dev.jsonl")]
    return [*files, "--data.label-column", "labels"]


def _regression(folder: Path) -> list[str]:
    draw = random.Random(6)
    for split in ("train", "dev"):
        rows = [{"text": hinted(draw, n % 2), "label": n % 2 + 0.5} for n in range(SIZES[split])]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--data.train-file", str(folder / "train.jsonl"), "--data.dev-file", str(folder / "dev.jsonl")]


_YES = ("entailment", "not_entailment")
_PAIR, _PAIR_TEST = "{n}\t{a}\t{b}\t{label}", "{n}\t{a}\t{b}"
_MNLI = "index\tsentence1\tsentence2\tgold_label"

WRITE: dict[str, Callable[[Path], list[str]]] = {
    "cola": glue("", "gj04\t{label}\t\t{b}", ("0", "1"), test="{n}\t{b}"),
    "sst2": glue("sentence\tlabel", "{b}\t{label}", ("0", "1"), test="{n}\t{b}"),
    "mrpc": glue(
        "#1 ID\t#2 ID\t#1 String\t#2 String\tQuality", "{n}\t1\t{a}\t{b}\t{label}", ("0", "1"), test="{n}\t1\t{a}\t{b}"
    ),
    "stsb": glue("index\tsentence1\tsentence2\tscore", _PAIR, ("0.25", "4.500"), test=_PAIR_TEST),
    "qqp": glue("id\tquestion1\tquestion2\tis_duplicate", _PAIR, ("0", "1"), test=_PAIR_TEST),
    "mnli": glue(
        _MNLI,
        _PAIR,
        ("entailment", "neutral", "contradiction"),
        train=("train.tsv", _PAIR),
        dev_a=("dev_matched.tsv", _PAIR),
        dev_b=("dev_mismatched.tsv", _PAIR),
        test_a=("test_matched.tsv", _PAIR_TEST),
        test_b=("test_mismatched.tsv", _PAIR_TEST),
        test_c=("diagnostic.tsv", _PAIR_TEST),
    ),
    "qnli": glue("index\tquestion\tsentence\tlabel", _PAIR, _YES, test=_PAIR_TEST),
    "rte": glue("index\tsentence1\tsentence2\tlabel", _PAIR, _YES, test=_PAIR_TEST),
    "wnli": glue("index\tsentence1\tsentence2\tlabel", _PAIR, ("0", "1"), test=_PAIR_TEST),
    "squad1": _squad("{split}-v1.1.json", False),
    "squad2": _squad("{split}-v2.0.json", True),
    "race": _race,
    "mctest": _mctest,
    "swag": _swag,
    "arc": _arc("ARC-Easy-Train.jsonl", "ARC-Easy-Dev.jsonl", "ARC-Easy-Test.jsonl"),
    "commonsense_qa": _arc("train_rand_split.jsonl", "dev_rand_split.jsonl", "test_rand_split_no_answers.jsonl"),
    "ner": _ner,
    "text": _text,
    "multilabel": _multilabel,
    "regression": _regression,
}
"""Task -> function that writes its files into a folder, and returns the command-line words that name them."""


def finetune_words(task: str, run_dir: Path, *more: str, **overrides: object) -> list[str]:
    """The command that fine-tunes a tiny model; an override of None leaves a field as it is in the experiment."""
    fields = FIELDS | {name.replace("__", "."): value for name, value in overrides.items()} | {"run_dir": run_dir}
    options = [word for name, value in fields.items() if value is not None for word in (f"--{name}", str(value))]
    return ["finetune", str(ROOT / "experiments" / "finetune" / f"{task}.py"), *options, *more]


def write_files(task: str, folder: Path) -> list[str]:
    """Write the files of a task into a new folder; return the command-line words that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    return WRITE[task](folder)


def summary(run_dir: Path) -> dict[str, Any]:
    """The content of `summary.json`."""
    return json.loads((run_dir / "summary.json").read_text())

"""Script that wrote metrics.json: the scores that official scorers give to random predictions, for test_metrics.py.

    pip install seqeval==1.2.2 scikit-learn
    python tests/golden/make_metrics.py path/to/evaluate-v2.0.py

SQuAD's scorer is https://github.com/rajpurkar/SQuAD-explorer, evaluate-v2.0.py.
"""

import json
import random
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "a",
    "an",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "in",
    "2010,",
    "New",
    "York's",
    "(big)",
    "House;",
    "café",
    "naïve",
    "3.5%",
    "U.S.",
    "red-blue",
]
TYPES = ("PER", "LOC", "creative-work")


def tags(draw: random.Random, scheme: str) -> list[str]:
    """The tags of a random sentence in a scheme; for `any`, arbitrary tags of all schemes."""
    if scheme == "any":
        return [draw.choice(["O", *(f"{p}-{t}" for p in "BIES" for t in TYPES)]) for _ in range(draw.randint(1, 12))]
    sentence: list[str] = []
    while len(sentence) < draw.randint(1, 14):
        size, kind = draw.randint(1, 3), draw.choice([*TYPES, "O"])
        if kind == "O":
            sentence += ["O"] * size
        elif scheme == "IOB2":
            sentence += [f"B-{kind}"] + [f"I-{kind}"] * (size - 1)
        elif scheme == "IOB1":
            before = sentence[-1][2:] if sentence else ""
            sentence += [f"{'B' if before == kind else 'I'}-{kind}"] + [f"I-{kind}"] * (size - 1)
        else:
            sentence += [f"S-{kind}"] if size == 1 else [f"B-{kind}", *[f"I-{kind}"] * (size - 2), f"E-{kind}"]
    return sentence


def entities(draw: random.Random) -> list[dict[str, Any]]:
    """Gold and predicted tags, and the scores and entities according to seqeval."""
    from seqeval.metrics import classification_report
    from seqeval.metrics.sequence_labeling import get_entities

    cases = []
    for scheme in ("IOB1", "IOB2", "IOBES", "any"):
        gold = [tags(draw, scheme) for _ in range(25)]
        guessed = [[draw.choice([tag, tag, tag, "O", f"B-{TYPES[0]}", f"I-{TYPES[1]}"]) for tag in row] for row in gold]
        report = classification_report(gold, guessed, output_dict=True, zero_division=0)
        plain = {name: {key: float(value) for key, value in row.items()} for name, row in report.items()}
        found = [[[a, b + 1, kind] for kind, a, b in get_entities(row)] for row in gold]
        cases.append({"gold": gold, "guessed": guessed, "report": plain, "spans": found})
    return cases


def answers(draw: random.Random, scorer: str) -> list[dict[str, Any]]:
    """Questions, predictions with odds of no answer, and their scores according to evaluate-v2.0.py."""
    cases: list[dict[str, Any]] = []
    for impossible in (0.0, 0.4):
        data: list[dict[str, Any]] = []
        guessed: dict[str, str] = {}
        odds: dict[str, float] = {}
        for number in range(80):
            text = " ".join(draw.choice(WORDS) for _ in range(20))
            words = text.split()
            gold: list[dict[str, Any]] = []
            for _ in range(0 if draw.random() < impossible else draw.randint(1, 3)):
                at = draw.randint(0, 16)
                gold.append({"text": " ".join(words[at : at + draw.randint(1, 4)]), "answer_start": 0})
            data.append({"id": str(number), "question": "?", "answers": gold, "context": text})
            at = draw.randint(0, 16)
            near = gold[0]["text"] if gold and draw.random() < 0.6 else " ".join(words[at : at + 3])
            guessed[str(number)] = draw.choice([near, near, near + " the", near.upper(), near.split()[0]])
            odds[str(number)] = round(draw.random() * (0.5 if gold else 1.0), 3)
        file = {
            "version": "v2.0",
            "data": [{"title": "", "paragraphs": [{"context": row["context"], "qas": [row]} for row in data]}],
        }
        with tempfile.TemporaryDirectory() as folder:
            paths = [Path(folder) / name for name in ("data.json", "guessed.json", "odds.json")]
            for path, value in zip(paths, (file, guessed, odds), strict=True):
                path.write_text(json.dumps(value))
            words_ = [sys.executable, scorer, *map(str, paths[:2]), "--na-prob-file", str(paths[2])]
            report = json.loads(subprocess.run(words_, capture_output=True, check=True, text=True).stdout)
        gold_answers = {row["id"]: [answer["text"] for answer in row["answers"]] for row in data}
        cases.append({"gold": gold_answers, "guessed": guessed, "odds": odds, "report": report})
    normalize = runpy.run_path(scorer, run_name="scorer")["normalize_answer"]
    texts = ["The  Cat, sat.", "a-an the", "U.S.", "x_y's", "Théâtre", "an", "“The” end", "the\tcat\n a"]
    cases.append({"normalized": {text: normalize(text) for text in texts}})
    return cases


if __name__ == "__main__":
    source = random.Random(0)
    out = {"entities": entities(source), "answers": answers(source, sys.argv[1])}
    Path(__file__).with_name("metrics.json").write_text(json.dumps(out, ensure_ascii=False) + "\n")

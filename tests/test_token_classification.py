"""Schemes of tags, and words of plain text in any script."""

from pathlib import Path

import pytest

from albert_jax.config import InputError
from albert_jax.finetuning.family import Split
from albert_jax.finetuning.files import Source
from albert_jax.finetuning.metrics import with_prefix
from albert_jax.finetuning.token_classification import (
    WORDS,
    Example,
    TokenClassification,
    TokenClassificationData,
)
from albert_jax.inference import finetuned

from .small_models import random_model
from .task_reading import TOKENIZER

WORDS_OF = {
    "The U.S. cost $5, don't": ["The", "U", ".", "S", ".", "cost", "$", "5", ",", "don", "'", "t"],
    "snake_case x1": ["snake_case", "x1"],
    "cafe\u0301 déjà": ["cafe\u0301", "déjà"],
    "नमस्ते दुनिया": ["नमस्ते", "दुनिया"],
    "مُحَمَّد هنا": ["مُحَمَّد", "هنا"],
    "می\u200cروم": ["می\u200cروم"],
    "张伟在北京。": ["张", "伟", "在", "北", "京", "。"],
    "東京タワーへ": ["東", "京", "タ", "ワ", "ー", "へ"],
    "สวัสดีที่นี่": ["ส", "วั", "ส", "ดี", "ที่", "นี่"],
    "서울 시": ["서울", "시"],
    "ok 👩‍👩‍👧 🇩🇪": ["ok", "👩‍👩‍👧", "🇩🇪"],
}
"""Text -> its words.  Graphemes as Unicode's annex 29 defines them."""


@pytest.mark.parametrize("text", WORDS_OF)
def test_words_of_every_script(text: str) -> None:
    """No word ends inside a character, and a sentence in Chinese is not one word."""
    assert [match.group() for match in WORDS.finditer(text)] == WORDS_OF[text]


def examples(text: str, path: Path, labels: tuple[str, ...] = ()) -> list[Example]:
    path.write_text(text)
    config = TokenClassificationData(task="ner")
    return list(TokenClassification().examples(Source("train", (path,)), config, labels))


SENTENCE = ("Ann", "Lee", "saw", "Bonn")
TAGS = {
    "IOB2": ("B-PER", "I-PER", "O", "B-LOC"),
    "IOB1": ("I-PER", "I-PER", "O", "I-LOC"),
    "IOBES": ("B-PER", "E-PER", "O", "S-LOC"),
    "BILOU": ("B-PER", "L-PER", "O", "U-LOC"),
    "underscores": ("B_PER", "I_PER", "O", "B_LOC"),
    "suffixes": ("PER-B", "PER-I", "O", "LOC-B"),
    "IO": ("PER", "PER", "O", "LOC"),
    "parts of speech": ("PROPN", "PROPN", "VERB", "PROPN"),
    "numbers": ("LABEL_0", "LABEL_0", "LABEL_1", "LABEL_0"),
}


@pytest.mark.parametrize("scheme", TAGS)
def test_every_scheme_is_read_and_scored(scheme: str, tmp_path: Path) -> None:
    """The scheme follows from the tags.  A model that predicts the targets has a perfect score, and so has the baseline here."""
    text = "".join(f"{word}\t{tag}\n" for word, tag in zip(SENTENCE, TAGS[scheme], strict=True)) + "\n"
    task, rows = TokenClassification(), examples(text, tmp_path / "train.txt")
    labels = task.labels(rows)
    is_plain = scheme in ("IO", "parts of speech", "numbers")
    assert set(labels) == (set(TAGS[scheme]) if is_plain else {"O", "B-PER", "I-PER", "B-LOC", "I-LOC"})
    assert rows[0].tags == (TAGS[scheme] if is_plain else TAGS["IOB2"])
    assert examples(text, tmp_path / "dev.txt", labels) == [Example(str(tmp_path / "dev.txt:1"), *rows[0][1:])]
    split = Split("dev", rows, labels)
    parts = task.rows(split, TOKENIZER, TokenClassificationData(task="ner", max_seq_length=32))
    outputs = [{"label": row["target"], "probability": row["weights"]} for row in (parts[0],)]
    score = task.score(split, parts, outputs)
    assert score.predictions == [list(rows[0].tags or ())]
    assert score.metrics["f1"] == task.baseline(split, split)["f1"] == 1


def test_mixed_tags_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        examples("a B-PER\nb O\nc PER\n", tmp_path / "x.txt")
    assert (
        "x.txt:1, word 3 'c': either all tags but O have a prefix such as B-, or none; found 'B-PER' and 'PER'"
        in str(error.value)
    )


def test_prefixes_without_a_type(tmp_path: Path) -> None:
    """As in BC5CDR: entities of one type, also if the dev file has only some of the prefixes."""
    task = TokenClassification()
    rows = examples("a B\nb E\nc O\nd S\n", tmp_path / "train.txt")
    assert rows[0].tags == ("B-entity", "I-entity", "O", "B-entity")
    labels = task.labels(rows)
    assert labels == ("O", "B-entity", "I-entity")
    assert examples("a S\n", tmp_path / "dev.txt", labels)[0].tags == ("B-entity",)
    with pytest.raises(InputError, match=r"x.txt:2001, word 2 'b': either all .* found 'B-entity' and 'PER'"):
        examples("a B\n\n" * 1000 + "a B\nb PER\n", tmp_path / "x.txt")
    assert examples("a S\nb V\n", tmp_path / "pos.txt")[0].tags == ("S", "V")
    assert examples("a S\n", tmp_path / "pos.txt", ("B", "S", "V"))[0].tags == ("S",)


@pytest.mark.parametrize("tags", [("b-per", "O"), ("b", "o"), ("b_x", "o")])
def test_tags_in_lower_case_are_refused(tags: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"x.txt:1: tags in lower case, such as 'b.*'; write O and prefixes"):
        examples(f"x {tags[0]}\ny {tags[1]}\n", tmp_path / "x.txt")


def test_empty_sentences(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Are skipped and counted, but kept for a split to be predicted, whose sentences a server counts."""
    path = tmp_path / "x.jsonl"
    text = '{"tokens": [], "ner_tags": []}\n{"tokens": ["a"], "ner_tags": ["B-X"]}\n'
    rows = examples(text, path)
    assert [row.words for row in rows] == [("a",)]
    assert "train: 1 empty sentences skipped, the first: " in caplog.text
    config, task = TokenClassificationData(task="ner", max_seq_length=32), TokenClassification()
    hidden = Split("test", list(task.examples(Source("test", (path,)), config, ())), task.labels(rows))
    assert [row.words for row in hidden.examples] == [(), ("a",)]
    parts = task.rows(hidden, TOKENIZER, config)
    outputs = [{"label": parts[0]["target"], "probability": parts[0]["weights"]}]
    score = task.score(hidden, parts, outputs)
    assert score.predictions == [[], ["B-X"]]
    assert task.write(tmp_path, hidden, score.predictions).read_text() == "\na\tB-X\tB-X\n\n"


@pytest.mark.parametrize(("suffix", "advice"), [("csv", "with a tab between them"), ("arrow", "Dataset.to_parquet")])
def test_files_without_columns_are_refused(suffix: str, advice: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"x.{suffix}: sentences cannot be read from .{suffix}; .*{advice}"):
        examples("a,B-PER\n", tmp_path / f"x.{suffix}")


@pytest.mark.parametrize("labels", [("NOUN", "VERB", "ADJ"), ("LABEL_0", "LABEL_1"), ("O", "PER", "LOC")])
def test_a_model_without_prefixes_tags_words(labels: tuple[str, ...]) -> None:
    """Each word has its own tag, with its characters.  Fails if neighbors of one tag become one entity."""
    text = "The Text, in 2010. "
    found = finetuned.entities(*random_model(("token_classifier",), labels), text)[0]
    words = [match.group() for match in WORDS.finditer(text)]
    if "O" not in labels:
        assert [one["text"] for one in found] == words
    assert {one["text"] for one in found} <= set(words)
    assert {one["type"] for one in found} <= set(labels) - {"O"}


@pytest.mark.parametrize(
    ("labels", "types"), [(("I", "B", "O"), {"entity"}), (("PER-I", "PER-B", "LOC-B", "LOC-I", "O"), {"PER", "LOC"})]
)
def test_a_model_with_other_spellings_of_prefixes_finds_entities(labels: tuple[str, ...], types: set[str]) -> None:
    """As a model with the usual labels does.  Fails if such labels count as tags of words."""
    text = "The Text, in 2010, was read by many people in many places. "
    usual = tuple(with_prefix(label) for label in labels)
    found, wanted = (
        finetuned.entities(*random_model(("token_classifier",), names), text)[0] for names in (labels, usual)
    )
    assert found == wanted
    assert {one["type"] for one in found} <= types
    assert any(" " in one["text"] or "," in one["text"] for one in found)

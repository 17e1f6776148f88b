"""CoNLL files as people have them: columns, comments, schemes; and sentences in records."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from albert_jax.config import InputError
from albert_jax.finetuning import conll

from .task_reading import config, read_with


def sentences(path: Path, text: str, **columns: str) -> list[tuple[list[str], list[str]]]:
    """Words and tags of the sentences in a file with this text."""
    path.write_text(text)
    named = {"word_column": "", "tag_column": ""} | columns
    return [(row.words, row.tags) for row in conll.sentences(path, config("ner"), **named)]


ANNA = (["Anna", "Berg", "sings"], ["B-PER", "I-PER", "O"])
PLAIN = "Anna\tB-PER\nBerg\tI-PER\nsings\tO\n\n"
FILES: dict[str, tuple[str, dict[str, str]]] = {
    "tabs": (PLAIN, {}),
    "spaces": (PLAIN.replace("\t", "  "), {}),
    "no blank line at the end": (PLAIN.rstrip(), {}),
    "trailing tabs": (PLAIN.replace("\n", "\t\n"), {}),
    "trailing spaces": (PLAIN.replace("\n", " \n"), {}),
    "blank lines with spaces": (" \n\t\n" + PLAIN, {}),
    "CoNLL-2003": ("-DOCSTART- -X- O O\n\nAnna NNP B-NP B-PER\nBerg NNP I-NP I-PER\nsings VB B-VP O\n", {}),
    "tags first": ("B-PER Anna\nI-PER Berg\nO sings\n", {}),
    "numbered": ("1\tAnna\tB-PER\n2\tBerg\tI-PER\n3\tsings\tO\n", {}),
    "numbered from 0": ("0 Anna B-PER\n1 Berg I-PER\n2 sings O\n", {}),
    "GermEval": (
        "#\thttp://example.org/a [2009-10-17]\n1\tAnna\tB-PER\tO\n2\tBerg\tI-PER\tO\n3\tsings\tO\tO\n",
        {"tag_column": "3"},
    ),
    "GermEval, inner entities": ("1\tAnna\tO\tB-PER\n2\tBerg\tO\tI-PER\n3\tsings\tO\tO\n", {"tag_column": "4"}),
    "named columns": ("x B-PER 7 Anna\nx I-PER 8 Berg\nx O 9 sings\n", {"word_column": "4", "tag_column": "2"}),
    "ids of sentences": ("s1\t1\tAnna\tB-PER\ns1\t2\tBerg\tI-PER\ns1\t3\tsings\tO\n", {}),
    "sentences numbered": ("1\t1\tAnna\tB-PER\n1\t2\tBerg\tI-PER\n1\t3\tsings\tO\n", {}),
    "offsets": ("0\t4\tAnna\tB-PER\n5\t9\tBerg\tI-PER\n10\t15\tsings\tO\n", {}),
    "ranges": ("0-4\tAnna\tB-PER\n5-9\tBerg\tI-PER\n10-15\tsings\tO\n", {}),
    "offsets last": ("Anna\tB-PER\t0\t4\nBerg\tI-PER\t5\t9\nsings\tO\t10\t15\n", {}),
    "numbers with periods": ("1.\tAnna\tB-PER\n2.\tBerg\tI-PER\n3.\tsings\tO\n", {}),
    "CoNLL-2012": (
        "#begin document (bn/x); part 000\nbn/x01 0 0 Anna NNP B-PER\nbn/x01 0 1 Berg NNP I-PER\n"
        "bn/x01 0 2 sings VB O\n\n#end document\n",
        {"tag_column": "6"},
    ),
    "header": ("Token\tTag\n" + PLAIN, {}),
    "header and comment": ("# x\n\nID\tWORD\tNER\n\n1\tAnna\tB-PER\n2\tBerg\tI-PER\n3\tsings\tO\n", {}),
    "comments": ("# id = 1\n" + PLAIN, {}),
    "comment of as many cells": ("# comment\n" + PLAIN.replace("\t", " "), {}),
}


@pytest.mark.parametrize("case", FILES)
def test_columns(case: str, tmp_path: Path) -> None:
    text, columns = FILES[case]
    assert sentences(tmp_path / "x", text, **columns) == [ANNA]


def test_contractions_of_conll_u(tmp_path: Path) -> None:
    """Their parts are words; omitted words are not in the text."""
    lines = [
        "# text = zum Haus",
        "1-2 zum _ _ _",
        "1 zu zu ADP _",
        "2 dem der DET _",
        "2.1 x x X _",
        "3 Haus Haus NOUN _",
    ]
    text = "\n".join(line.replace(" ", "\t") if line[0] != "#" else line for line in lines)
    assert sentences(tmp_path / "x", text, tag_column="4") == [(["zu", "dem", "Haus"], ["ADP", "DET", "NOUN"])]


def test_no_break_spaces_are_part_of_words(tmp_path: Path) -> None:
    for separator in "\t ":
        text = f"10\u00a0000{separator}B-X\n\u3000{separator}O\n"
        assert sentences(tmp_path / "x", text) == [(["10\u00a0000", "\u3000"], ["B-X", "O"])]


def test_a_number_sign_can_be_a_word(tmp_path: Path) -> None:
    text = "#\tO\n#oslo\tB-LOC\n\n#new\tB-PER\nx\tO\n"
    assert sentences(tmp_path / "x", text) == [(["#", "#oslo"], ["O", "B-LOC"]), (["#new", "x"], ["B-PER", "O"])]


def test_hashtags_are_words_whatever_their_tag(tmp_path: Path) -> None:
    """Fails if a tag that the first lines do not have makes the line a comment."""
    text = "x\tVB\nx\tVB\n\n" * conll.SAMPLE + "#\tVB\n#oslo\tHASH\n"
    assert sentences(tmp_path / "x", text)[-1] == (["#", "#oslo"], ["VB", "HASH"])


def test_a_hidden_file_without_the_column_of_tags(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("Anna NNP B-PER\nsings VB O\n")
    (tmp_path / "test").write_text("Anna NNP\nsings VB\n")
    files_ = {f"{split}_file": str(tmp_path / "train") for split in ("train", "dev")}
    found, _ = read_with(config("ner", tag_column="3", test_file=str(tmp_path / "test"), **files_))
    assert found["test"][0][1:] == (("Anna", "sings"), None)
    with pytest.raises(InputError, match=r"test:1: data.tag_column '3' is not a column"):
        read_with(config("ner", tag_column="3", **files_ | {"dev_file": str(tmp_path / "test")}))


def test_files_without_tags(tmp_path: Path) -> None:
    for text in ("Anna\nsings\n", "1\tAnna\n2\tsings\n", "Anna\t\nsings\t\n"):
        assert sentences(tmp_path / "x", text) == [(["Anna", "sings"], [])]


REFUSED: dict[str, tuple[str, dict[str, str], str]] = {
    "numbers as words": ("1\tB-PER\n2\tO\n", {}, "x:1: column 1 holds numbers, and no other column holds words; name"),
    "only numbers": ("1\n2\n", {}, "x:1: column 1 holds numbers, and no other column holds words"),
    "several columns of tags": (
        "1 a B-X O\n2 b O O\n",
        {},
        r"x:1: several columns can hold the tags \(3, 4\); name the",
    ),
    "POS and lemma": ("1 a b NN\n2 c d VB\n", {}, r"x:1: several columns can hold the tags \(3, 4\)"),
    "placeholders": (
        "a NN _\nb VB _\n",
        {},
        r"x:1: the last column \('_'\) does not hold tags; name the column of the tags",
    ),
    "words last": ("NN a\nNN b\nNN c\n", {}, r"x:1: the last column \('a'\) does not hold tags"),
    "no such column": (
        "a O\n",
        {"tag_column": "3"},
        "x:1: data.tag_column '3' is not a column; give a number from 1 to 2",
    ),
    "no number": ("a O\n", {"word_column": "word"}, "x:1: data.word_column 'word' is not a column"),
    "no tag": ("a\tO\tx\nb\t\tx\nc\tO\tx\n", {"tag_column": "2"}, "x:2: no tag in column 2"),
    "one word": (
        "doc Anna O\ndoc sings B-X\n",
        {},
        "x:1: column 1 holds only 'doc'; name the column of the words with --data.word-column",
    ),
    "no word": ("a\tO\n\tO\n", {}, "x:2: no word in column 1"),
    "hashtag": (
        "a O\n#b x O\n",
        {},
        "x:2: expected 2 columns, as in the lines before, found 3; a comment begins with '# '",
    ),
    "not a number": ("1 a O\n2 b B-X\nc d O\n", {}, "x:3: 'c' is not the number of a word, as in the lines before"),
    "columns": ("a O\nb O\nc x O\n", {}, "x:3: expected 2 columns, as in the lines before, found 3"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unclear_columns_are_refused(case: str, tmp_path: Path) -> None:
    text, columns, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        sentences(tmp_path / "x", text, **columns)


SCHEMES = {
    "IOB1": ["I-X", "I-X", "B-X", "O", "I-Y"],
    "IOB2": ["B-X", "I-X", "B-X", "O", "B-Y"],
    "IOBES": ["B-X", "E-X", "S-X", "O", "S-Y"],
    "BILOU": ["B-X", "L-X", "U-X", "O", "U-Y"],
    "BMES": ["B-X", "M-X", "E-X", "O", "S-Y"],
    "underscores": ["B_X", "I_X", "B_X", "O", "B_Y"],
    "IO": ["X", "X", "X", "O", "Y"],
    "parts of speech": ["NN", "NNP", ".", "``", "-LRB-"],
    "labels by number": ["LABEL_0", "LABEL_1", "LABEL_0", "LABEL_2", "O"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_tags_of_all_schemes_are_read(scheme: str, tmp_path: Path) -> None:
    tags = SCHEMES[scheme]
    text = "".join(f"{word}\t{tag}\n" for word, tag in zip("abcde", tags, strict=True))
    assert sentences(tmp_path / "x", text) == [(list("abcde"), tags)]


def test_three_tagging_schemes_give_the_same_tags(tmp_path: Path) -> None:
    rows = {
        "IOB1": ["a\tI-X", "b\tI-X", "c\tB-X", "d\tO", "e\tI-Y"],
        "IOB2": ["a\tB-X", "b\tI-X", "c\tB-X", "d\tO", "e\tB-Y"],
        "IOBES": ["a\tB-X", "b\tE-X", "c\tS-X", "d\tO", "e\tS-Y"],
    }
    seen = []
    for name, lines in rows.items():
        for split in ("train", "dev"):
            (tmp_path / f"{split}.{name}").write_text("\n".join(lines) + "\n")
        given_ = {f"{split}_file": str(tmp_path / f"{split}.{name}") for split in ("train", "dev")}
        chosen = config("ner", **given_)
        found, labels = read_with(chosen)
        seen.append((found["train"][0].tags, labels))
    assert seen == [(("B-X", "I-X", "B-X", "O", "B-Y"), ("O", "B-X", "I-X", "B-Y", "I-Y"))] * 3


NAMES = ["O", "B-X", "I-X"]
SENTENCE = {"tokens": ["the", "text", "list"], "ner_tags": ["O", "B-X", "I-X"]}


@pytest.mark.parametrize("case", ["jsonl", "json", "parquet", "own names"])
def test_sentences_in_records(case: str, tmp_path: Path) -> None:
    """In .parquet files of the hub, tags are numbers, and their names are in the file."""
    names = {"word_column": "w", "tag_column": "t"} if case == "own names" else {}
    path = tmp_path / f"x.{'jsonl' if names else case}"
    record: dict[str, Any] = {"w": SENTENCE["tokens"], "t": SENTENCE["ner_tags"]} if names else SENTENCE
    if case == "parquet":
        feature = {"feature": {"names": NAMES, "_type": "ClassLabel"}, "_type": "List"}
        metadata = {"huggingface": json.dumps({"info": {"features": {"ner_tags": feature}}})}
        numbers = [NAMES.index(tag) for tag in SENTENCE["ner_tags"]]
        table = pyarrow.Table.from_pylist([SENTENCE | {"ner_tags": numbers}]).replace_schema_metadata(metadata)
        parquet.write_table(table, path)
    else:
        path.write_text(json.dumps([record] if case == "json" else record))
    found, labels = read_with(config("ner", train_file=str(path), dev_file=str(path), **names))
    assert found["dev"][0][1:] == (("the", "text", "list"), ("O", "B-X", "I-X"))
    assert labels == ("O", "B-X", "I-X")


def test_malformed_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    for change, message in (
        (
            {"ner_tags": [0, 1, 2]},
            r"x.jsonl:1: ner_tags is \[0, 1, 2\]; expected a list of texts, also of tags, not numbers; Dataset.to_parquet keeps the names of tags",
        ),
        ({"ner_tags": ["O"]}, "x.jsonl:1: 3 words, but 1 tags"),
    ):
        path.write_text(json.dumps(SENTENCE | change))
        with pytest.raises(InputError, match=message):
            read_with(config("ner", train_file=str(path), dev_file=str(path)))
    path.write_text(json.dumps({"words": ["a"], "pos": ["NN"]}))
    with pytest.raises(
        InputError, match=r"no 'ner_tags'; the features are words, pos; name one of them with --data.tag-column"
    ):
        read_with(config("ner", train_file=str(path), dev_file=str(path)))

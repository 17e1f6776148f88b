"""Rows of fine-tuning tasks: truncation, pairs, options, and sentences in several parts."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from albert_jax.data.batches import collate
from albert_jax.data.tokenizer import fit
from albert_jax.finetuning import (
    classification,
    family,
    multiple_choice,
    token_classification,
)
from albert_jax.finetuning.family import Split
from albert_jax.model.albert import AlbertConfig

from .task_reading import TOKENIZER, config


@given(st.integers(0, 40), st.integers(0, 40), st.integers(2, 50))
def test_fit_takes_from_the_longer_end(first: int, second: int, room: int) -> None:
    """Equals the released loop, which removes one token at a time."""
    a, b = first, second
    while a + b > room:
        a, b = (a - 1, b) if a > b else (a, b - 1)
    assert fit(first, second, room) == (a, b)


def test_pair_rows_equal_the_tokenizers_pairs() -> None:
    texts = [("the text", "a list of lines " * 9), ("some space", None), ("the text of lines " * 9, "text"), ("", "")]
    texts.append(("text " * 30, "list " * 30))
    examples = [classification.Example("", first, second, None) for first, second in texts]
    rows = classification.pair_rows(Split("dev", examples), np.arange(len(texts)), TOKENIZER, 32)
    for number, (first, second) in enumerate(texts):
        wanted = TOKENIZER(first, second, max_length=32)
        row = rows[number]
        assert row["input_ids"].tolist() == wanted["input_ids"][0].tolist()
        assert row["token_type_ids"].tolist() == wanted["token_type_ids"][0].tolist()
        assert len(row["input_ids"]) == rows.lengths[number]
        assert row["target"] == number


def test_option_side_keeps_its_end_and_the_passage_its_beginning() -> None:
    passage, question = "the text of lines " * 9, "from the list of some more"
    example = multiple_choice.Example("q", passage, f"{question} _ ?", ("space", "pool of states"), 1, "all")
    rows = multiple_choice.MultipleChoice().rows(Split("dev", [example]), TOKENIZER, config("race", max_qa_length=9))
    row = rows[0]
    assert row["input_ids"].shape == (2, 32)
    for number, option in enumerate(example.options):
        side = TOKENIZER.encode(f"{question} {option} ?")[-9:]
        ids = row["input_ids"][number][row["attention_mask"][number] == 1].tolist()
        assert ids[-10:] == [*side, TOKENIZER.sep_id]
        assert ids[:-10] == [TOKENIZER.cls_id, *TOKENIZER.encode(passage)[: 32 - 3 - 9], TOKENIZER.sep_id]
        types = row["token_type_ids"][number]
        assert types.tolist() == [0] * (32 - 10) + [1] * 10
    assert multiple_choice.question_with_option("_ and _", "a") == "a and a"
    assert multiple_choice.question_with_option("what is it ?", "a list") == "what is it ? a list"


SENTENCES = st.lists(
    st.sampled_from(["the", "space", "Émile", "2010,", "\u200d", "x" * 40, "(", "import"]), min_size=1, max_size=60
)


@settings(max_examples=60, deadline=None)
@given(st.lists(SENTENCES, min_size=1, max_size=4))
def test_no_label_is_lost_when_a_sentence_is_split(sentences: list[list[str]]) -> None:
    """Every word has one label, on its first token, and the outputs of the parts give one tag per word.

    Fails if a word without tokens, or one longer than the window, is dropped.
    """
    labels = ("O", "B-X", "I-X")
    tags = [["B-X" if n % 3 == 0 else "I-X" if n % 3 == 1 else "O" for n in range(len(row))] for row in sentences]
    examples = [
        token_classification.Example("", tuple(row), tuple(own)) for row, own in zip(sentences, tags, strict=True)
    ]
    task = token_classification.TokenClassification()
    split = Split("dev", examples, labels)
    rows = task.rows(split, TOKENIZER, config("ner", max_seq_length=12))
    found = []
    for number in range(len(rows)):
        row = rows[number]
        assert len(row["input_ids"]) == rows.lengths[number] <= 12
        found.append({"label": row["target"], "probability": np.ones(len(row["target"]), np.float32)})
    assert sum(int(rows[number]["weights"].sum()) for number in range(len(rows))) == sum(map(len, sentences))
    result = task.score(split, rows, found)
    assert result.predictions == tags
    assert result.metrics["f1"] == 1.0


def test_rows_are_padded_to_the_same_number_of_options() -> None:
    """The batches of all processes have the same shape."""
    examples = [multiple_choice.Example(str(n), "the", "what", ("a", "b", "c")[: 2 + n], 0, "all") for n in range(2)]
    rows = multiple_choice.MultipleChoice().rows(Split("dev", examples), TOKENIZER, config("race"))
    assert [collate([rows[n]], 1, 16)["input_ids"].shape for n in range(2)] == [(1, 3, 16)] * 2


def test_scale_divides_by_the_weights_of_the_batch() -> None:
    """The scaled losses of a batch add up to its mean, without padding."""
    batch = {"input_ids": jnp.zeros((4, 3)), "weights": jnp.array([1.0, 1, 1, 0])}
    drawn = family.draw(AlbertConfig(), batch, jax.random.key(0))
    assert np.allclose(drawn["scale"], [1 / 3, 1 / 3, 1 / 3, 0])
    assert drawn["dropout_keys"].shape == (4,)

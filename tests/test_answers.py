"""Question answering: windows, positions of answers, and the heads."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert_jax.config import InputError
from albert_jax.data.batches import collate
from albert_jax.exchange import tf1
from albert_jax.exchange.weights import slots
from albert_jax.finetuning import (
    question_answering,
    windows,
)
from albert_jax.finetuning.family import Split
from albert_jax.finetuning.tasks import TASKS
from albert_jax.model.albert import AlbertConfig
from albert_jax.model.heads import HEADS, Albert, param_shapes
from albert_jax.model.tree import leaves
from albert_jax.training.optim import decay_mask

from .small_models import one_set_shapes
from .task_reading import TOKENIZER, config, read


def squad(folder: Path, context: str, answers: list[tuple[str, int]], split: str = "train", **qa: Any) -> None:
    question = {
        "id": "q",
        "question": "what is it",
        "answers": [{"text": t, "answer_start": s} for t, s in answers],
    } | qa
    table = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": [question]}]}]}
    (folder / f"{split}-v1.1.json").write_text(json.dumps(table))


CONTEXTS = st.text(alphabet="the listÉ .,-2010ﬁ\u0301“”\n", min_size=1, max_size=200)


@settings(max_examples=60, deadline=None)
@given(CONTEXTS, st.data())
def test_every_window_labels_the_answer_at_its_position(context: str, data: st.DataObject) -> None:
    """The characters of the labeled tokens contain the answer, or are contained in it.

    Fails if a window's start, or the positions of [CLS] and the question, are not counted.
    """
    begin = data.draw(st.integers(0, len(context) - 1))
    end = data.draw(st.integers(begin + 1, min(len(context), begin + 20)))
    answer = context[begin:end]
    example = question_answering.Example("q", "what is it", context, ((answer, begin),), True)
    chosen = config("squad1", max_seq_length=24, max_query_length=6, doc_stride=5)
    task = question_answering.QuestionAnswering()
    rows = task.rows(Split("train", [example]), TOKENIZER, chosen)
    if not len(rows):
        assert not answer.strip() or windows.locate(windows.tokenize(TOKENIZER, context), answer, begin) is None
        return
    seen: set[int] = set()
    owned: list[int] = []
    for number, window in enumerate(rows.items):
        row = rows[number]
        assert len(row["input_ids"]) <= 24
        first = len(window.question) + 2
        inside = row["input_ids"][first : first + window.size]
        assert np.array_equal(inside, window.context.ids[window.start : window.start + window.size])
        assert row["answer_mask"].sum() == window.size
        seen |= set(range(window.start, window.start + window.size))
        owned += (window.start + np.flatnonzero(window.best)).tolist()
        if row["start"]:
            start, stop = (int(row[name]) - first + window.start for name in ("start", "end"))
            covered = context[window.context.ranges[start, 0] : window.context.ranges[stop, 1]]
            assert answer.strip() in covered or covered in answer
    assert seen == set(range(len(rows.items[0].context.ids)))
    assert sorted(owned) == sorted(seen)  # each token belongs to one window


def test_windows_overlap_by_the_stride() -> None:
    context = windows.tokenize(TOKENIZER, "the text of lines " * 20)
    found = list(windows.windows(0, np.arange(4), context, 30, 12))
    assert [window.start for window in found[:3]] == [0, 12, 24]
    assert sum(len(context.ids) - window.start <= 30 for window in found) == 1


def test_the_best_answer_is_a_substring_of_the_context(tmp_path: Path) -> None:
    """The answer has the capitals and accents of the context, whichever window it is found in."""
    context = "The Text,  of Émile 2010 and Lines " + "of more text " * 12
    example = question_answering.Example("q", "what is it", context, (("Émile 2010", 14),), True)
    chosen = config("squad1", max_seq_length=36, max_query_length=6, doc_stride=3)
    task = question_answering.QuestionAnswering()
    trained = task.rows(Split("train", [example]), TOKENIZER, chosen)
    assert sum(bool(trained[i]["start"]) for i in range(len(trained))) > 1
    for number in range(len(trained)):
        row = trained[number]
        if not row["start"]:
            continue
        found = [
            {"start": np.array([1]), "end": np.array([1]), "score": np.array([-1e30]), "null": np.array(0.0)}
            for _ in range(len(trained))
        ]
        found[number] = {name: np.array([row[name]]) for name in ("start", "end")} | {
            "score": np.array([7.0]),
            "null": np.array(3.0),
        }
        result = task.score(Split("dev", [example]), trained, found)
        assert result.predictions[0]["answer"] == "Émile 2010"
        assert result.metrics == {"exact": 100.0, "f1": 100.0}
        assert result.predictions[0]["null_odds"] == pytest.approx(0.0 - 7.0)


def test_misplaced_answers_are_counted_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    squad(tmp_path, "the text of lines", [("nowhere", 4)])
    squad(tmp_path, "the text of lines", [("text", 4)], "dev")
    found, _ = read("squad1", tmp_path, max_query_length=8)
    task = TASKS["squad1"]
    with caplog.at_level("WARNING"):
        assert len(task.rows(Split("train", found["train"]), TOKENIZER, config("squad1", max_query_length=8))) == 0
    assert "train: 1 of 1 answers are not in their contexts, the first: q; left out" in caplog.text
    with pytest.raises(InputError, match="are not in their contexts, the first: q; fix them"):
        task.rows(Split("train", found["train"]), TOKENIZER, config("squad1", max_query_length=8, strict=True))
    assert len(task.rows(Split("dev", found["dev"]), TOKENIZER, config("squad1", max_query_length=8))) == 1


def answer_model() -> tuple[Albert, Any, dict[str, Any]]:
    small = AlbertConfig(
        vocab_size=60,
        embedding_size=8,
        hidden_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
    )
    model, random = Albert(small, ("answer_class",)), np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32) * 0.5, param_shapes(model))
    mask = np.ones((3, 10), np.int32)
    mask[1, 7:] = 0
    allowed = mask * (np.arange(10) >= 4)
    allowed[:, 9] = 0
    batch = {"input_ids": random.integers(5, 60, (3, 10)), "attention_mask": mask, "answer_mask": allowed}
    return model, params, batch


def test_answer_class_head_is_the_released_one() -> None:
    """Equals the formulas of squad_utils.py.  In training, end scores are for the gold start; otherwise, for each of the best starts."""
    model, params, batch = answer_model()
    apply: Any = model.apply
    starts = np.array([5, 0, 7])
    trained = apply({"params": params}, **batch, start_positions=starts)
    evaluated = apply({"params": params}, **batch)
    hidden = np.asarray(trained["last_hidden_state"], np.float64)
    head = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["answer_class"])

    def dense(name: str, x: np.ndarray) -> np.ndarray:
        return x @ head[name]["kernel"] + head[name].get("bias", 0)

    p_mask = 1 - batch["answer_mask"]
    p_mask[:, 0] = 0
    start_logits = np.where(p_mask == 1, -1e30, dense("start_logits", hidden)[..., 0])
    assert np.allclose(trained["start_logits"], start_logits, atol=1e-4)

    def ends(row: int, start: int) -> np.ndarray:
        both = np.concatenate([hidden[row], np.tile(hidden[row, start], (10, 1))], axis=-1)
        x = np.tanh(dense("end_dense", both))
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        x = x * head["LayerNorm"]["scale"] + head["LayerNorm"]["bias"]
        return np.where(p_mask[row] == 1, -1e30, dense("end_logits", x)[:, 0])

    def log_softmax(x: np.ndarray) -> np.ndarray:
        return x - x.max() - np.log(np.exp(x - x.max()).sum())

    for row, start in enumerate(starts):
        assert np.allclose(trained["end_logits"][row], ends(row, start), atol=1e-4)
        share = np.exp(log_softmax(start_logits[row]))
        answer = np.concatenate([share @ hidden[row], hidden[row, 0]])
        wanted = np.tanh(dense("answer_dense", answer)) @ head["answer_class"]["kernel"]
        assert np.allclose(trained["answer_class_logits"][row], wanted[0], atol=1e-4)
        assert np.allclose(evaluated["answer_class_logits"][row], wanted[0], atol=1e-4)
        best = np.argsort(-start_logits[row], kind="stable")[:5]
        assert evaluated["start_top_index"][row].tolist() == best.tolist()
        assert np.allclose(evaluated["start_top_log_probs"][row], log_softmax(start_logits[row])[best], atol=1e-4)
        for number, index in enumerate(best):
            expected = log_softmax(ends(row, index))
            assert np.allclose(evaluated["end_top_log_probs"][row, number], np.sort(expected)[::-1][:5], atol=1e-3)


def test_answer_class_head_under_googles_names() -> None:
    found = sorted(slot.tensor for slot in slots(answer_model()[0], tf1.NAMES) if slot.path[0] == "answer_class")
    assert found == sorted(
        [
            f"{part}/{leaf}"
            for part in ("start_logits/dense", "end_logits/dense_0", "end_logits/dense_1")
            for leaf in ("kernel", "bias")
        ]
        + ["end_logits/LayerNorm/gamma", "end_logits/LayerNorm/beta"]
        + ["answer_class/dense_0/kernel", "answer_class/dense_0/bias", "answer_class/dense_1/kernel"]
    )


@pytest.mark.parametrize("head", ["qa_outputs", "answer_class"])
def test_padding_does_not_change_answers(head: str) -> None:
    """A row has the same loss and answers alone as in a wider batch with empty rows."""
    small = answer_model()[0].config
    model, random = Albert(small, (head,)), np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(np.float32) * 0.5, param_shapes(model))
    chosen = config("squad2", n_best_size=4, qa_head="plain" if head == "qa_outputs" else head)
    row = {
        "input_ids": random.integers(5, 60, 14).astype(np.int32),
        "token_type_ids": np.zeros(14, np.int32),
        "answer_mask": (np.arange(14) > 3).astype(np.int32),
        "best": (np.arange(14) > 5).astype(np.int32),
        "start": np.int32(6),
        "end": np.int32(8),
        "weights": np.float32(1),
    }
    task = question_answering.QuestionAnswering(unanswerable=True)
    results = []
    for size, width in ((1, 14), (3, 32)):
        batch = {name: jnp.asarray(value) for name, value in collate([row], size, width).items()}
        loss, metrics = task.loss(task.logits(model.apply, params, batch, None), batch | {"scale": batch["weights"]})
        found = {name: value[0] for name, value in task.outputs(model.apply, params, batch, chosen).items()}
        good = np.asarray(found["score"]) > -1e29
        order = np.argsort(-np.asarray(found["score"])[good])
        results.append([float(loss), float(metrics["tokens"][0]), float(found["null"])])
        results[-1] += [np.asarray(found[name])[good][order].tolist() for name in ("start", "end")]
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)
    assert results[0][1] == results[1][1] == 14
    assert results[0][2] == pytest.approx(results[1][2], abs=1e-5)
    assert results[0][3:] == results[1][3:]


def test_every_norm_and_bias_is_outside_weight_decay() -> None:
    """The heads' too (the released AdamW excludes LayerNorm and bias by name)."""
    for head in HEADS:
        small = answer_model()[0].config
        model = Albert(small, ("pooler", head) if head != "pooler" else (head,), ("a", "b"))
        for path, decayed in leaves(decay_mask(one_set_shapes(model))).items():
            assert decayed == ("LayerNorm" not in path and "bias" not in path), path

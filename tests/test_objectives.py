"""Pairs, masks and losses on device against the released algorithm in plain Python, and invariants of every row.

Docstrings name the deliberate breaks that were tried and made the test fail.
"""

import functools
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax.data.sequences import capacity
from albert_jax.pretraining import masking, segment_pairs
from albert_jax.pretraining import objective as objectives
from albert_jax.pretraining.objective import ObjectiveConfig, Vocabulary
from albert_jax.pretraining.segment_pairs import SENTENCE_OBJECTIVES, Segment
from albert_jax.training import partition
from tests import oracle
from tests.oracle import CLS, MASK, PAD, SEP, STARTS_WORD, Rows, instances, text

CONFIG = ObjectiveConfig(max_seq_length=128, max_predictions_per_seq=20)
SHORT = replace(CONFIG, max_seq_length=64, short_seq_prob=0.5)


def vocabulary(size: int = 2**20) -> Vocabulary:
    return Vocabulary(size, PAD, CLS, SEP, MASK, STARTS_WORD[:size])


@functools.cache
def drawer(config: ObjectiveConfig, vocab_size: int = 2**20) -> Callable[[Rows, Any], Rows]:
    draw = jax.jit(functools.partial(objectives.draw, config, vocabulary(vocab_size)))

    def run(rows: Rows, key: Any) -> Rows:
        examples = draw(rows, jax.random.key(key) if isinstance(key, int) else key)
        keys = jax.random.key_data(examples["dropout_keys"])
        return {name: np.asarray(value) for name, value in (examples | {"dropout_keys": keys}).items()}

    return run


@pytest.mark.parametrize(
    ("ngram", "favor_shorter", "count", "mean"), [(3, True, 4096, 1.67), (3, False, 12288, 2.29), (1, True, 2048, 1.2)]
)
def test_masks_are_distributed_as_released(ngram: int, favor_shorter: bool, count: int, mean: float) -> None:
    """Both algorithms agree on `count` sequences; a quarter of the pieces continue words.

    Fails if spans are visited in reading order, if n is drawn uniformly, if p(n) is not reversed, or if MASKED is 0.82.
    """
    config = replace(CONFIG, ngram=ngram, favor_shorter_ngram=favor_shorter)
    rows, rng = text(count, 128), random.Random(0)
    device = oracle.mask_statistics(instances(drawer(config)(rows, 0)))
    reference = oracle.mask_statistics(
        [oracle.instance(oracle.sentences(rows, row), config, rng) for row in range(count)]
    )
    for name, expected in reference.items():
        np.testing.assert_allclose(device[name], expected, atol=0.01, err_msg=name)
    assert device["words in a run of masked words"] @ np.arange(1, 8) == pytest.approx(mean, abs=0.1)


def test_pairs_are_distributed_as_released() -> None:
    """Both algorithms agree on the lengths and labels of 32,768 pairs; half of them are short.

    Two standard errors of a difference are 0.8 %.  Fails if short lengths are at most M / 2, if the sentence that reaches the
    length is left out, if A is never a single sentence, or if pairs are swapped with p = 0.48.
    """
    config = replace(CONFIG, short_seq_prob=0.5)
    rows, rng = text(32768, 128), random.Random(1)
    names = ("attention_mask", "token_type_ids", "sentence_labels")  # without the masks this is fast
    draw = jax.jit(lambda rows, key: [objectives.draw(config, vocabulary(), rows, key)[name] for name in names])
    mask, types, labels = (np.asarray(array) for array in draw(rows, jax.random.key(1)))
    device = np.stack([(mask - types).sum(1) - 2, types.sum(1) - 1, labels])
    pairs = [oracle.pair(oracle.sentences(rows, row), config, rng) for row in range(32768)]
    reference = np.array([(len(a), len(b), label) for a, b, label in pairs]).T
    for selected in (slice(0, 2), slice(0, 1), slice(1, 2)):  # both segments together, A, B
        actual, expected = device[selected].sum(0), reference[selected].sum(0)
        np.testing.assert_allclose(
            oracle.shares(actual // 16, range(8)), oracle.shares(expected // 16, range(8)), atol=0.01
        )
        assert abs(actual.mean() - expected.mean()) < 0.01 * 128
        np.testing.assert_allclose(*(np.quantile(x, [0.1, 0.25, 0.5, 0.75, 0.9]) for x in (actual, expected)), atol=2)
    assert abs(labels.mean() - 0.5) < 0.01


@pytest.mark.parametrize("masked_lm_prob", [0.15, 0.2, 0.05])
def test_budget_is_the_released_formula(masked_lm_prob: float) -> None:
    """The budgets of all lengths agree.  Fails if a half is rounded up, or if the product is computed in float32."""
    lengths = np.arange(3, 513)
    actual = np.asarray(masking.prediction_budget(jnp.asarray(lengths), 512, masked_lm_prob, 77))
    expected = np.array([oracle.budget(length, masked_lm_prob, 77) for length in lengths.tolist()])
    np.testing.assert_array_equal(actual, expected, err_msg=f"at {lengths[actual != expected]}")


@pytest.mark.parametrize(("seq_length", "most"), [(128, 20), (64, 7)])
def test_budget_is_filled(seq_length: int, most: int) -> None:
    """Full inputs use the whole budget.  Fails if a span may not use up the budget, or if more than P pieces are masked."""
    config = replace(CONFIG, max_seq_length=seq_length, max_predictions_per_seq=most, short_seq_prob=0.0)
    examples = drawer(config)(text(1024, seq_length, 2), 0)
    assert examples["masked_lm_positions"].shape == (1024, most)
    for one in instances(examples):
        assert len(one.positions) == oracle.budget(len(one.tokens), 0.15, most)
        assert MASK not in one.tokens


@pytest.mark.parametrize("config", [SHORT, replace(SHORT, ngram=1)], ids=["3", "1"])
def test_whole_words_are_masked(config: ObjectiveConfig) -> None:
    """Words are masked completely or not at all.  With ngram = 1, no word remains that would have fit into the budget.

    Fails if a word continues past the end of its segment, or if [SEP] may be masked.
    """
    for one in instances(drawer(config)(text(512, 64, 4), 0)):
        masked, words = set(one.positions), oracle.words(one)
        assert all(masked.issuperset(word) or masked.isdisjoint(word) for word in words)
        left = oracle.budget(len(one.tokens), 0.15, 20) - len(masked)
        assert left >= 0
        assert config.ngram > 1 or all(len(word) > left for word in words if masked.isdisjoint(word))


def test_pieces_are_masked_independently() -> None:
    """Without `do_whole_word_mask`, most masked words of several pieces are masked partly; with it none is.

    Fails if the flag does nothing.
    """
    for whole_words in (True, False):
        config = replace(CONFIG, ngram=1, do_whole_word_mask=whole_words)
        partly = masked_words = 0
        for one in instances(drawer(config)(text(512, 64, 4), 0)):
            masked = set(one.positions)
            words = [word for word in oracle.words(one) if len(word) > 1 and not masked.isdisjoint(word)]
            masked_words += len(words)
            partly += sum(not masked.issuperset(word) for word in words)
        assert masked_words > 500
        assert partly == 0 if whole_words else partly > 0.5 * masked_words


def test_spans_do_not_cross_segments() -> None:
    """Two words each in A and B, a budget of two, and n = 2 drawn twice as often as n = 1.

    If spans crossed [SEP], the words beside it would be masked together in more than a sixth of the cases.  Fails if [SEP]
    does not end a word, if n-grams are those of the released code, or if a segment that starts inside a word cannot be
    masked there.
    """
    segment = jnp.array([-1, 0, 0, -1, 1, 1, -1, -1])
    keys = jax.random.split(jax.random.key(0), 4000)
    choose = functools.partial(masking.choose, max_budget=2, ngram=2, favor_shorter_ngram=False)
    draw = jax.jit(jax.vmap(lambda key, start: choose(key, start, segment, jnp.int32(2)), in_axes=(0, None)))
    chosen = np.asarray(draw(keys, jnp.ones(8, bool)))
    assert np.all(chosen.sum(1) == 2)
    assert not chosen[:, np.asarray(segment) < 0].any()
    assert np.mean(chosen[:, 2] & chosen[:, 4]) < 0.14
    inside = np.unique(np.asarray(draw(keys, jnp.zeros(8, bool))), axis=0)
    assert [np.flatnonzero(row).tolist() for row in inside] == [[4, 5], [1, 2]]


@pytest.mark.parametrize("objective", SENTENCE_OBJECTIVES)
def test_segments_are_runs_of_sentences(objective: str) -> None:
    """Without masks and in order, both segments are runs of the row's tokens, split at the end of a sentence.

    A B from a different document starts at the start of a sentence.  Segments that fit are not truncated.  Fails if labels are
    read from the masked input, if two labels are swapped, or if B starts inside a sentence.
    """
    rows = text(512, 64, 4)
    row_of, sentence_of = {}, {}
    for (row, place), token in np.ndenumerate(rows["tokens"]):
        row_of[int(token)], sentence_of[int(token)] = row, int(rows["sentence"][row, place])
    classes = SENTENCE_OBJECTIVES[objective].classes or ("in order",)
    counts = Counter[str]()
    for row, one in enumerate(instances(drawer(replace(SHORT, sentence_objective=objective))(rows, 0))):
        label = classes[one.label]
        counts[label] += 1
        first, second = one.tokens[1 : 1 + one.a_length], one.tokens[2 + one.a_length : -1]
        if label == "swapped":
            first, second = second, first
        for run in (first, second):
            assert run == list(range(run[0], run[-1] + 1))
            assert row_of[run[0]] == row_of[run[-1]]
        assert row_of[first[0]] == row
        row_tokens, uncut = rows["tokens"][row][rows["sentence"][row] >= 0].tolist(), len(first) + len(second) < 61
        assert not uncut or first[0] == row_tokens[0]
        if label == "different document":
            assert rows["document"][row_of[second[0]]] != rows["document"][row]
            starts_row = second[0] == rows["tokens"][row_of[second[0]], 0]
            assert not uncut or starts_row or sentence_of[second[0]] > sentence_of[second[0] - 1]
            continue
        assert row_of[second[0]] == row
        assert sentence_of[first[-1]] < sentence_of[second[0]]
        if uncut:
            assert second[0] == first[-1] + 1
            assert second[-1] == row_tokens[-1] or sentence_of[second[-1]] < sentence_of[second[-1] + 1]
    assert set(counts) == set(classes)
    assert all(abs(count / 512 - 1 / len(classes)) < 0.1 for count in counts.values())  # four standard errors


def test_without_another_document_there_is_no_negative() -> None:
    """In a batch with one document, the three-class objective draws the other two classes, and its rows get weight 0."""
    rows = text(64, 64, 5) | {"document": np.zeros(64, np.int32)}
    examples = drawer(replace(SHORT, sentence_objective="sso"))(rows, 0)
    assert set(examples["sentence_labels"].tolist()) == {0, 1}
    assert not examples["sentence_weights"].any()


@pytest.mark.parametrize("objective", SENTENCE_OBJECTIVES)
def test_rows_of_one_sentence(objective: str) -> None:
    """They are [CLS] A [SEP] [SEP] with masks, and have no weight for the sentence loss.

    Fails if the order of one sentence is a label.
    """
    rows = text(8, 64, 10)
    rows["sentence"][:4] = np.where(np.arange(rows["sentence"].shape[1]) < 20, 0, -1)
    examples = drawer(replace(SHORT, sentence_objective=objective))(rows, 0)
    np.testing.assert_array_equal(examples["sentence_weights"], [0] * 4 + [1] * 4)
    assert examples["masked_lm_weights"].sum(1).min() > 0
    if objective in ("sop", "none"):
        assert (examples["attention_mask"][:4].sum(1) == 23).all()
        drawn = objectives.draw(replace(SHORT, sentence_objective="none"), vocabulary(), rows, jax.random.key(0))
        ids = np.array(drawn["input_ids"])[:4]
        position, label, weight = (
            np.asarray(drawn[f"masked_lm_{name}"])[:4] for name in ("positions", "labels", "weights")
        )
        for row in range(4):
            ids[row, position[row][weight[row] > 0]] = label[row][weight[row] > 0]
        np.testing.assert_array_equal(ids[:, 1:21], rows["tokens"][:4, :20])
        np.testing.assert_array_equal(ids[:, [0, 21, 22]], [[CLS, SEP, SEP]] * 4)


def test_labels_for_a_head_with_other_classes() -> None:
    """Classes are matched by name; a class that the head lacks becomes its last one.  Fails if indices are compared."""
    labels = {"sentence_labels": jnp.arange(3)}
    sso, nsp = (SENTENCE_OBJECTIVES[name].classes for name in ("sso", "nsp"))
    assert objectives.sentence_labels(labels, "sso", sso).tolist() == [0, 1, 2]
    two = {"sentence_labels": jnp.arange(2)}
    assert objectives.sentence_labels(two, "nsp", sso).tolist() == [0, 2]
    assert objectives.sentence_labels(two, "sop", nsp).tolist() == [0, 1]


def test_truncate_equals_removing_one_token_at_a_time() -> None:
    """Fails if a token of A is removed on a tie."""
    grid = np.array(list(itertools.product(range(11), range(11), range(1, 14))))
    keys = jax.random.split(jax.random.key(0), len(grid))
    cut = jax.vmap(lambda key, a, b, room: segment_pairs.truncate(key, Segment(a * 0, a), Segment(b * 0, b), room, 20))
    for i, (a, b) in enumerate(zip(*(np.stack(side, 1) for side in jax.jit(cut)(keys, *grid.T)), strict=True)):
        slow_a, slow_b = [0] * grid[i, 0], [0] * grid[i, 1]
        oracle.truncate_seq_pair(slow_a, slow_b, grid[i, 2], random.Random(i))
        assert (a[1], b[1]) == (len(slow_a), len(slow_b)), grid[i]
        assert 0 <= a[0] <= grid[i, 0] - a[1]
        assert 0 <= b[0] <= grid[i, 1] - b[1]


def test_truncate_removes_half_from_the_front() -> None:
    """Of 40,000 tokens per segment: 1 % is four standard errors.

    Fails if the probability of the front is 0.52, if it is drawn once per row, or if the start of a segment is not moved.
    """
    keys, full = jax.random.split(jax.random.key(3), 2000), Segment(jnp.int32(0), jnp.int32(30))
    a, b = jax.jit(jax.vmap(lambda key: segment_pairs.truncate(key, full, full, 20, 30)))(keys)
    for side in (a, b):
        assert abs(np.mean(side.start) / 20 - 0.5) < 0.01
        assert abs(np.var(side.start) / (20 * 0.25) - 1) < 0.15


def test_nsp_negatives_are_of_other_documents() -> None:
    """Fails if a negative comes from the same document or an empty row, or if a batch with one document has one."""
    rows = text(8, 64, 5) | {"document": np.array([0, 0, 0, 1, 1, 2, 3, -1], np.int32)}
    rows["sentence"][7] = -1
    draw = drawer(replace(SHORT, sentence_objective="nsp"))
    partners = set()
    for step in range(60):
        for row, one in enumerate(instances({name: value[:7] for name, value in draw(rows, step).items()})):
            if one.label:
                partners.add((row, int(np.argwhere(rows["tokens"] == one.tokens[-2])[0, 0])))
    documents = rows["document"]
    assert partners == {(i, j) for i in range(7) for j in range(7) if documents[i] != documents[j]}
    assert not draw(rows | {"document": np.zeros(8, np.int32)}, 0)["sentence_labels"].any()
    rows["sentence"][2:], rows["document"][:] = -1, [0, 1, *[-1] * 6]
    assert 0.4 < np.mean([draw(rows, step)["sentence_labels"][:2] for step in range(200)]) < 0.6


def test_examples_depend_on_the_key_and_the_row_only() -> None:
    """The same key gives the same examples, and a different step different ones.  With SOP they depend only on their row.

    Fails if SOP reads another row, if rows share one key, or if the batch size is folded into the key.
    """
    rows, draw = text(8, 64, 8) | {"document": np.arange(8, dtype=np.int32)}, drawer(SHORT)
    key = functools.partial(jax.random.fold_in, jax.random.key(7))
    one, again, later = draw(rows, key(1)), draw(rows, key(1)), draw(rows, key(2))
    part = draw({name: value[:4] for name, value in rows.items()}, key(1))
    other = draw({name: np.concatenate([rows[name][:4], text(4, 64, 9)[name]]) for name in rows}, key(1))
    same = draw({name: np.repeat(value[:1], 8, axis=0) for name, value in rows.items()}, key(1))
    for name in one:
        np.testing.assert_array_equal(one[name], again[name], err_msg=name)
        if not name.endswith("_scale"):
            np.testing.assert_array_equal(one[name][:4], part[name], err_msg=name)
            np.testing.assert_array_equal(one[name][:4], other[name][:4], err_msg=name)
    for name in ("masked_lm_positions", "sentence_labels", "dropout_keys"):
        assert np.any(one[name] != later[name])
    for name in ("masked_lm_positions", "dropout_keys"):
        assert len({row.tobytes() for row in same[name]}) == 8


@pytest.mark.parametrize("objective", ["sop", "nsp"])
def test_draw_follows_the_width_of_the_rows(objective: str) -> None:
    """Rows as wide as 64 tokens need give the inputs of a run with max_seq_length 64, number of predictions included.

    Fails if shapes or budgets come from the configuration alone.
    """
    for length in range(8, 700):
        assert objectives.row_length(capacity(length)) == length
    config = ObjectiveConfig(objective, max_seq_length=512, max_predictions_per_seq=77)
    narrow = ObjectiveConfig(objective, max_seq_length=64, max_predictions_per_seq=10)
    rows = text(6, 64)
    drawn, expected = (drawer(c)(rows, jax.random.key(3)) for c in (config, narrow))
    assert drawn["input_ids"].shape == (6, 64)
    assert drawn["masked_lm_positions"].shape == (6, 10)
    jax.tree.map(np.testing.assert_array_equal, drawn, expected)
    assert objectives.max_predictions(replace(config, max_predictions_per_seq=99), 512) == 99


def test_draw_is_the_same_on_eight_devices() -> None:
    """Bit for bit, with an objective that also reads other rows.  Fails if the number of devices is folded into a key."""
    batch, drawn = text(16, 64, 9, 2000), []
    draw = functools.partial(objectives.draw, replace(SHORT, sentence_objective="nsp"), vocabulary(2000))
    for num_devices in (1, 8):
        mesh = partition.make_mesh("cpu", num_devices)
        rows = partition.put_batch(mesh, batch)
        examples = jax.jit(draw, out_shardings=partition.by_rows(mesh))(rows, jax.random.key(0))
        assert len(examples["input_ids"].sharding.device_set) == num_devices
        examples["dropout_keys"] = jax.random.key_data(examples["dropout_keys"])
        drawn.append({name: np.asarray(value) for name, value in examples.items()})
    one, eight = drawn
    assert one.keys() == eight.keys()
    for name in one:
        assert one[name].tobytes() == eight[name].tobytes(), name


def model(variables: Any, ids: Any, mask: Any, types: Any, positions: Any, dropout_keys: Any) -> dict[str, Any]:
    """Logits from tables, so that numpy can compute the same."""
    tables, seen = variables["params"], jnp.take_along_axis(ids, positions, axis=1)
    return {"prediction_logits": tables["mlm"][seen], "sop_logits": tables["sop"][ids[:, 1]]}


@pytest.mark.parametrize("objective", ["sop", "nsp", "none"])
def test_loss(objective: str) -> None:
    """The loss of a batch, and the sum of the losses of its parts, agree with numpy; an empty row adds nothing.

    Fails if the mean is taken over P, if the sentence loss is halved or counted under 'none', if the scale is that of one
    row, or if an empty row has a weight.
    """
    config, size = replace(SHORT, sentence_objective=objective), 500
    rows = text(8, 64, 10, size)
    rows["sentence"][7], rows["document"][7] = -1, -1
    examples = drawer(SHORT, size)(rows, 0)
    rng = np.random.default_rng(0)
    tables = {name: rng.normal(size=(size, n)).astype(np.float32) for name, n in (("mlm", size), ("sop", 2))}

    def loss(examples: Rows) -> tuple[float, Rows]:
        return jax.device_get(objectives.loss(config, model, tables, examples, train=False))

    total, metrics = loss(examples)
    used, real = examples["masked_lm_weights"] == 1, np.arange(8) < 7
    np.testing.assert_array_equal(used.any(1), real)
    np.testing.assert_array_equal(examples["sentence_weights"], real)
    seen = np.take_along_axis(examples["input_ids"], examples["masked_lm_positions"], axis=1)[used]
    expected = {"tokens": (examples["attention_mask"][:7].sum(), 0)}
    mean = 0.0
    for name, logits, labels in (
        ("mlm", tables["mlm"][seen], examples["masked_lm_labels"][used]),
        (objective, tables["sop"][examples["input_ids"][real, 1]], examples["sentence_labels"][real]),
    ):
        if name != "none":
            losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels]
            expected[f"{name}_loss"] = losses.sum(), len(labels)
            expected[f"{name}_accuracy"] = np.sum(logits.argmax(-1) == labels), len(labels)
            mean += losses.mean()
    assert set(metrics) == set(expected)
    for name, pair in expected.items():
        np.testing.assert_allclose(metrics[name], pair, rtol=1e-5)
    assert total == pytest.approx(mean, rel=1e-5)
    for kind in ("masked_lm", "sentence"):
        assert np.sum(examples[f"{kind}_scale"]) == pytest.approx(1, abs=1e-5)
    parts = [loss({name: value[part] for name, value in examples.items()}) for part in (slice(4), slice(4, 8))]
    assert float(sum(part for part, _ in parts)) == pytest.approx(total, rel=1e-5)
    for name in metrics:
        np.testing.assert_allclose(sum(part[name] for _, part in parts), metrics[name], rtol=1e-5)

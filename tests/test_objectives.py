"""Pairs, masks and losses on device: against the released algorithm in plain Python, and what must hold of every row.

Every break that a docstring names was made once, and that test turned red.
"""

import functools
import itertools
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from albert_jax import partition
from albert_jax.config import InputError
from albert_jax.data import loader
from albert_jax.objectives import masking, pretraining, segment_pairs
from albert_jax.objectives.pretraining import ObjectiveConfig, Vocabulary
from albert_jax.objectives.segment_pairs import Segment
from tests import oracle
from tests.oracle import Instance, Settings

PAD, CLS, SEP, MASK, FIRST = 0, 2, 3, 4, 5
Rows = dict[str, np.ndarray]

STARTS_WORD = np.random.default_rng(0).random(2000) < 0.75  # the released vocabulary: 23,242 of 30,000
VOCABULARY = Vocabulary(2000, PAD, CLS, SEP, MASK, STARTS_WORD)
CONFIG = ObjectiveConfig(max_seq_length=128, max_predictions_per_seq=20)


def text(count: int, max_seq_length: int, seed: int = 0) -> Rows:
    """Rows as the loader makes them, of random sentences; each begins with a word."""
    rng = np.random.default_rng(seed)
    plain = np.arange(FIRST, len(STARTS_WORD))
    records: list[Rows] = []
    index: list[tuple[int, int, int]] = []
    while len(index) < count:
        lengths = 2 + rng.geometric(0.07, rng.integers(2, 30))
        tokens = rng.choice(plain, lengths.sum())
        tokens[np.cumsum(lengths) - lengths] = rng.choice(plain[STARTS_WORD[plain]], len(lengths))
        index += [(len(records), *span) for span in loader.spans(lengths, max_seq_length)]
        records.append({"tokens": tokens, "sentence_lengths": lengths})
    sequences = loader.Sequences(records, np.array(index[:count], np.uint32), max_seq_length)
    rows = [sequences[i] for i in range(count)]
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def numbered(rows: Rows) -> tuple[Rows, Vocabulary]:
    """The same rows with every token its own id, so that a piece tells where it comes from: FIRST + row * C + position."""
    size = FIRST + rows["tokens"].size
    ids = np.arange(FIRST, size, dtype=np.int32).reshape(rows["tokens"].shape)
    starts = np.random.default_rng(1).random(size) < 0.75
    return rows | {"tokens": ids}, Vocabulary(size, PAD, CLS, SEP, MASK, starts)


def drawer(config: ObjectiveConfig, vocabulary: Vocabulary = VOCABULARY) -> Callable[[Rows, Any], Rows]:
    draw = jax.jit(functools.partial(pretraining.draw, config, vocabulary))

    def run(rows: Rows, key: Any) -> Rows:
        examples = draw(rows, jax.random.key(key) if isinstance(key, int) else key)
        keys = jax.random.key_data(examples.pop("dropout_keys"))
        return {name: np.asarray(value) for name, value in (examples | {"dropout_keys": keys}).items()}

    return run


def instances(examples: Rows) -> list[Instance]:
    """What was drawn, with the pieces back in place; on the way, the form of every row is checked."""
    found = []
    for row in range(len(examples["input_ids"])):
        weights = examples["masked_lm_weights"][row]
        length, used = int(examples["attention_mask"][row].sum()), int(weights.sum())
        hidden, types = examples["input_ids"][row].tolist(), examples["token_type_ids"][row]
        positions, labels = (examples[f"masked_lm_{name}"][row].tolist() for name in ("positions", "labels"))
        assert examples["attention_mask"][row].tolist() == [1] * length + [0] * (len(hidden) - length)
        assert weights.tolist() == [1] * used + [0] * (len(weights) - used)
        assert positions[used:] == labels[used:] == [0] * (len(weights) - used)
        tokens = list(hidden)
        for position, label in zip(positions[:used], labels[:used], strict=True):
            tokens[position] = label
        assert tokens[length:] == [PAD] * (len(tokens) - length)
        ends = [i for i, token in enumerate(tokens) if token == SEP]
        assert tokens[0] == CLS
        assert len(ends) == 2
        assert ends[1] == length - 1
        assert types.tolist() == [0] * (ends[0] + 1) + [1] * (ends[1] - ends[0]) + [0] * (len(tokens) - length)
        assert np.all(np.diff(positions[:used]) > 0)
        assert not {0, *ends}.intersection(positions[:used])
        assert max(positions) < length
        label = int(examples["sentence_labels"][row])
        found.append(Instance(tokens[:length], hidden[:length], positions[:used], ends[0] - 1, label))
    return found


def settings(config: ObjectiveConfig, vocabulary: Vocabulary = VOCABULARY) -> Settings:
    return Settings(
        vocabulary.starts_word.tolist(),
        CLS,
        SEP,
        MASK,
        config.max_seq_length,
        config.max_predictions_per_seq,
        config.masked_lm_prob,
        config.ngram,
        config.favor_shorter_ngram,
        config.short_seq_prob,
    )


def sentences(rows: Rows, row: int) -> list[list[int]]:
    number = rows["sentence"][row]
    return [rows["tokens"][row][number == i].tolist() for i in range(number.max() + 1)]


def shares(values: Any, keys: Any) -> np.ndarray:
    counts = Counter(values)
    assert set(counts) <= set(keys)
    return np.array([counts[key] for key in keys]) / counts.total()


def mask_statistics(found: list[Instance]) -> dict[str, np.ndarray]:
    """Shares, to be compared between device and oracle."""
    runs, fates, places, counts = [], [], [], []
    for one in found:
        masked = set(one.positions)
        whole = [masked.issuperset(word) and (1 + (word[0] > one.a_length)) for word in oracle.words(one, STARTS_WORD)]
        runs += [min(len(list(run)), 7) for is_masked, run in itertools.groupby(whole) if is_masked]
        for position in one.positions:
            was, now = one.tokens[position], one.hidden[position]
            fates.append("mask" if now == MASK else "same" if now == was else "random")
            places.append(position // 16)
        counts.append(len(one.positions))
    tokens = sum(len(one.tokens) for one in found)
    assert tokens > 10**5
    return {
        "masked share": np.array(sum(counts) / tokens),
        "words in a run of masked words": shares(runs, range(1, 8)),
        "mask, random, same": shares(fates, ("mask", "random", "same")),
        "position": shares(places, range(8)),
        "predictions": shares((min(count // 4, 5) for count in counts), range(6)),
        "predictions, cumulative mean over P": np.array(np.mean(counts) / 20),
    }


@pytest.mark.parametrize(("ngram", "favor_shorter"), [(3, True), (3, False), (1, True)])
def test_masks_are_distributed_as_released(ngram: int, favor_shorter: bool) -> None:
    """4,096 sequences each (470,000 tokens, 70,000 predicted, 30,000 runs: two standard errors are under 0.8 %).

    Fails if spans are taken in reading order; if n is drawn evenly; if p(n) is not reversed; if MASKED is 0.82.
    """
    config = replace(CONFIG, ngram=ngram, favor_shorter_ngram=favor_shorter)
    rows = text(4096, 128)
    device = mask_statistics(instances(drawer(config)(rows, 0)))
    rng = random.Random(0)
    slow = mask_statistics([oracle.instance(sentences(rows, row), settings(config), rng) for row in range(4096)])
    for name, expected in slow.items():
        np.testing.assert_allclose(device[name], expected, atol=0.01, err_msg=name)
    longer = device["words in a run of masked words"] @ np.arange(1, 8)
    assert (longer > 2.3, longer < 1.4) == (not favor_shorter, ngram == 1)


def test_pairs_are_distributed_as_released() -> None:
    """Lengths and labels of 32,768 pairs each, half of them short, so that two standard errors of a difference are 0.8 %.

    Fails if short lengths are drawn up to M / 2 only, if the sentence that reaches the length is left out, if A never
    takes the last but one sentence, or if pairs are swapped with p = 0.48.
    """
    config = replace(CONFIG, short_seq_prob=0.5)
    rows = text(32768, 128)
    names = ("attention_mask", "token_type_ids", "sentence_labels")
    draw = jax.jit(lambda rows, key: [pretraining.draw(config, VOCABULARY, rows, key)[name] for name in names])
    mask, types, labels = (np.asarray(array) for array in draw(rows, jax.random.key(1)))
    device = np.stack([(mask - types).sum(1) - 2, types.sum(1) - 1, labels])
    rng = random.Random(1)
    pairs = [oracle.pair(sentences(rows, row), settings(config), rng) for row in range(32768)]
    slow = np.array([(len(a), len(b), label) for a, b, label in pairs]).T
    for which in (slice(0, 2), slice(0, 1), slice(1, 2)):  # both segments together, A, B
        found, expected = device[which].sum(0), slow[which].sum(0)
        np.testing.assert_allclose(shares(found // 16, range(8)), shares(expected // 16, range(8)), atol=0.01)
        assert abs(found.mean() - expected.mean()) < 0.01 * 128
        np.testing.assert_allclose(*(np.quantile(x, [0.1, 0.25, 0.5, 0.75, 0.9]) for x in (found, expected)), atol=2)
    assert abs(device[2].mean() - 0.5) < 0.01
    assert abs(np.corrcoef(device[0], device[2])[0, 1] - np.corrcoef(slow[0], slow[2])[0, 1]) < 0.03


@pytest.mark.parametrize("masked_lm_prob", [0.15, 0.2, 0.05])
def test_budget_is_the_released_formula(masked_lm_prob: float) -> None:
    """For every length; fails if a half is rounded up, or if the product is rounded to float32 first."""
    lengths = np.arange(3, 513)
    found = np.asarray(masking.budget(jnp.asarray(lengths), masked_lm_prob, 77))
    expected = np.array([oracle.budget(length, masked_lm_prob, 77) for length in lengths.tolist()])
    np.testing.assert_array_equal(found, expected, err_msg=f"at {lengths[found != expected]}")


@pytest.mark.parametrize(("seq_length", "most"), [(128, 20), (128, 7), (64, 64)])
def test_budget_is_filled(seq_length: int, most: int) -> None:
    """Full inputs; fails if a span that is too long is skipped rather than made shorter, or if P is not a bound."""
    config = replace(CONFIG, max_seq_length=seq_length, max_predictions_per_seq=most, short_seq_prob=0)
    examples = drawer(config)(text(1024, seq_length, 2), 0)
    assert examples["masked_lm_positions"].shape == (1024, most)
    for one in instances(examples):
        assert len(one.positions) == oracle.budget(len(one.tokens), 0.15, most)


@pytest.mark.parametrize("objective", ["sop", "nsp", "none"])
def test_words_are_masked_whole(objective: str) -> None:
    """And with ngram = 1, where every word gets its turn, no word is left out that would have fitted into the budget.

    Fails if a word is not ended by a segment's end, if B's first piece starts no word, or if [SEP] may be masked.
    """
    for ngram in (1, 3):
        config = replace(CONFIG, max_seq_length=48, sentence_objective=objective, ngram=ngram, short_seq_prob=0.5)
        for one in instances(drawer(config)(text(1024, 48, 3), 0)):
            masked, words = set(one.positions), oracle.words(one, STARTS_WORD)
            assert all(masked.issuperset(word) or masked.isdisjoint(word) for word in words)
            left = oracle.budget(len(one.tokens), 0.15, 20) - len(masked)
            assert left >= 0
            assert ngram > 1 or all(len(word) > left for word in words if masked.isdisjoint(word))


def test_spans_do_not_cross_segments() -> None:
    """Two words each in A and B, a budget of two, n = 2 twice as likely as 1: of spans that might cross [SEP], 1 in 6
    would hide the two words beside it.  Two spans of one word do that in a share of 1/4 x 2/12 = 4 %.

    Fails if `choose` does not ask for the same segment.
    """
    segment = jnp.array([-1, 0, 0, -1, 1, 1, -1, -1])
    start = jnp.ones(8, bool)
    keys = jax.random.split(jax.random.key(0), 4000)
    chosen = jax.vmap(lambda key: masking.choose(key, start, segment, jnp.int32(2), 2, False))(keys)
    chosen = np.asarray(chosen)
    assert np.all(chosen.sum(1) == 2)
    assert not chosen[:, np.array(segment) < 0].any()
    print("SHARE", np.mean(chosen[:, 2] & chosen[:, 4]))
    assert np.mean(chosen[:, 2] & chosen[:, 4]) < 0.1


def segments(one: Instance) -> tuple[np.ndarray, np.ndarray]:
    """A and B of `numbered` rows, as places in the batch's flattened tokens."""
    tokens = np.array(one.tokens) - FIRST
    return tokens[1 : 1 + one.a_length], tokens[2 + one.a_length : -1]


@pytest.mark.parametrize("objective", ["sop", "nsp", "none"])
@pytest.mark.parametrize("short", [0.0, 0.7])
def test_pieces_come_back(objective: str, short: float) -> None:
    """With masks and order undone, both segments are runs of the row (NSP's negative: of another document's), whole
    where nothing had to be cut, and a sentence ends between them.

    Fails if labels are read from the masked input, if the label is the wrong way round, if `truncate` does not move the
    start along, if NSP's negative is taken from its own document, or if B starts in the middle of a sentence.
    """
    config = replace(CONFIG, max_seq_length=64, sentence_objective=objective, short_seq_prob=short)
    rows, vocabulary = numbered(text(512, 64, 4))
    capacity, seen = rows["tokens"].shape[1], Counter[int]()
    sentence = rows["sentence"].ravel()
    for row, one in enumerate(instances(drawer(config, vocabulary)(rows, 0))):
        seen[one.label] += 1
        first, second = segments(one)
        if objective == "sop" and one.label:
            first, second = second, first
        for run in (first, second):
            assert len(run) >= 1
            assert np.all(np.diff(run) == 1)
            assert run[0] // capacity == run[-1] // capacity
            assert np.all(sentence[run] >= 0)
        assert first[0] // capacity == row
        length = int((rows["sentence"][row] >= 0).sum())
        if objective == "nsp" and one.label:
            assert rows["document"][second[0] // capacity] != rows["document"][row]
            if len(first) + len(second) < 61:  # nothing cut
                assert first[0] % capacity == 0
                assert second[0] % capacity == 0 or sentence[second[0]] != sentence[second[0] - 1]
            continue
        assert second[0] // capacity == row
        assert sentence[first[-1]] < sentence[second[0]]
        if len(first) + len(second) < 61:
            assert first[0] == row * capacity
            assert second[0] == first[-1] + 1
            end = second[-1] + 1
            assert end == row * capacity + length or (short and sentence[end] != sentence[end - 1])
    assert set(seen) == ({0} if objective == "none" else {0, 1})


def test_truncate_is_popping_one_at_a_time() -> None:
    """Fails if a tie takes from A, or if an odd rest does."""
    grid = np.array(list(itertools.product(range(11), range(11), range(1, 14))))
    keys = jax.random.split(jax.random.key(0), len(grid))

    def cut(key: Any, a: Any, b: Any, room: Any) -> Any:
        return segment_pairs.truncate(key, Segment(100 + 0 * a, a), Segment(200 + 0 * b, b), room, 20)

    a, b = jax.vmap(cut)(keys, *grid.T)
    for i, (a_length, b_length, room) in enumerate(grid.tolist()):
        slow_a, slow_b = list(range(100, 100 + a_length)), list(range(200, 200 + b_length))
        oracle.truncate_seq_pair(slow_a, slow_b, room, random.Random(i))
        assert (int(a.length[i]), int(b.length[i])) == (len(slow_a), len(slow_b)), (a_length, b_length, room)
        assert 100 <= a.start[i] <= 100 + a_length - a.length[i]
        assert 200 <= b.start[i] <= 200 + b_length - b.length[i]


def test_truncate_takes_half_from_the_front() -> None:
    """80,000 tokens: the share's standard error is 0.2 %.  Fails if the front's chance is 0.52, or is drawn once."""
    keys = jax.random.split(jax.random.key(3), 2000)
    full = Segment(jnp.int32(0), jnp.int32(30))
    a, b = jax.vmap(lambda key: segment_pairs.truncate(key, full, full, 20, 30))(keys)
    for side in (a, b):
        assert abs(np.mean(side.start) / 20 - 0.5) < 0.01
        assert abs(np.var(side.start) / (20 * 0.25) - 1) < 0.15
    assert abs(np.corrcoef(a.start, b.start)[0, 1]) < 0.1


def test_nsp_takes_the_negative_from_another_document() -> None:
    """Fails if the row's own document counts too, if an empty row may be it, or if a lone document is paired with itself."""
    config = replace(CONFIG, max_seq_length=32, sentence_objective="nsp")
    rows, vocabulary = numbered(text(8, 32, 5))
    rows["document"] = np.array([0, 0, 0, 1, 1, 2, 3, -1], np.int32)
    rows["sentence"][7] = -1
    draw = drawer(config, vocabulary)
    partners: set[tuple[int, int]] = set()
    for step in range(60):
        examples = draw(rows, step)
        for row, one in enumerate(instances({name: value[:7] for name, value in examples.items()})):
            if one.label:
                partners.add((row, int(segments(one)[1][0]) // rows["tokens"].shape[1]))
    documents = rows["document"]
    assert partners == {(i, j) for i in range(7) for j in range(7) if documents[i] != documents[j]}
    alone = draw(rows | {"document": np.zeros(8, np.int32)}, 0)
    assert not alone["sentence_labels"].any()


def test_sop_looks_at_no_other_row() -> None:
    """Fails if B is taken from another row, as the released code does for a document of one sentence."""
    rows = text(8, 64, 6)
    others = {name: np.concatenate([rows[name][:1], text(7, 64, 7)[name]]) for name in rows}
    draw = drawer(replace(CONFIG, max_seq_length=64))
    for step in range(20):
        one, two = draw(rows, step), draw(others, step)
        for name in one:
            if not name.endswith("_scale"):
                np.testing.assert_array_equal(one[name][0], two[name][0], err_msg=name)


def test_the_key_decides() -> None:
    """Same key, same examples; the next step's differ in order, masks and dropout; the first rows do not depend on how
    many come after them.  Fails if rows share one key, or if keys are folded with the batch's size.
    """
    rows = text(8, 64, 8)
    draw = drawer(replace(CONFIG, max_seq_length=64))
    key = functools.partial(jax.random.fold_in, jax.random.key(7))
    one, again, later = draw(rows, key(1)), draw(rows, key(1)), draw(rows, key(2))
    part = draw({name: value[:4] for name, value in rows.items()}, key(1))
    for name in one:
        np.testing.assert_array_equal(one[name], again[name], err_msg=name)
        if not name.endswith("_scale"):
            np.testing.assert_array_equal(one[name][:4], part[name], err_msg=name)
    for name in ("masked_lm_positions", "sentence_labels", "dropout_keys"):
        assert np.any(one[name] != later[name])
    same = draw({name: np.repeat(value[:1], 8, axis=0) for name, value in rows.items()}, key(1))
    assert len({row.tobytes() for row in same["masked_lm_positions"]}) == 8
    assert len({row.tobytes() for row in same["dropout_keys"]}) == 8


def draw_on_all_devices(path: str, objective: str) -> None:
    """Runs in a process of its own, too."""
    mesh = partition.make_mesh("cpu")
    config = replace(CONFIG, max_seq_length=64, sentence_objective=objective)
    rows = partition.put(mesh, text(16, 64, 9))
    draw = functools.partial(pretraining.draw, config, VOCABULARY)
    examples = jax.jit(draw, out_shardings=partition.by_rows(mesh))(rows, jax.random.key(0))
    examples["dropout_keys"] = jax.random.key_data(examples["dropout_keys"])
    assert len(examples["input_ids"].sharding.device_set) == jax.device_count()
    np.savez(path, devices=jax.device_count(), **{name: np.asarray(value) for name, value in examples.items()})


@pytest.mark.parametrize("objective", ["sop", "nsp"])
def test_draw_is_the_same_on_eight_devices(tmp_path: Path, objective: str) -> None:
    """Bit for bit.  Fails if each device draws from its own rows alone (shard_map with the key as it is)."""
    code = f"from tests.test_objectives import *; draw_on_all_devices({str(tmp_path / 'eight.npz')!r}, {objective!r})"
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1], env=environment, timeout=300
    )
    draw_on_all_devices(str(tmp_path / "one.npz"), objective)
    one, eight = np.load(tmp_path / "one.npz"), np.load(tmp_path / "eight.npz")
    assert (int(one["devices"]), int(eight["devices"])) == (jax.device_count(), 8)
    for name in set(one) - {"devices"}:
        assert one[name].tobytes() == eight[name].tobytes(), name


def model(variables: Any, ids: Any, mask: Any, types: Any, positions: Any, dropout_keys: Any) -> dict[str, Any]:
    """Logits by tables, so that numpy can follow."""
    tables = variables["params"]
    seen = jnp.take_along_axis(ids, positions, axis=1)
    return {"prediction_logits": tables["mlm"][seen], "sop_logits": tables["sop"][ids[:, 1]]}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("objective", ["sop", "nsp", "none"])
def test_loss(objective: str) -> None:
    """Against numpy, whole and as the sum of unequal parts, with an empty row that adds nothing.

    Fails if the mean is taken over P, if the sentence loss is halved or counted under 'none', if the scales are of one
    row each, or if an empty row has a weight.
    """
    config = replace(CONFIG, max_seq_length=32, max_predictions_per_seq=6, sentence_objective=objective)
    rows = text(7, 32, 10)
    empty = {
        "tokens": np.zeros((1, 43), np.int32),
        "sentence": np.full((1, 43), -1, np.int32),
        "document": np.array([-1], np.int32),
    }
    padded = {name: np.concatenate([rows[name], empty[name]]) for name in rows}
    examples = drawer(config)(padded, 0)
    rng = np.random.default_rng(0)
    tables = {
        "mlm": rng.normal(size=(2000, 2000)).astype(np.float32),
        "sop": rng.normal(size=(2000, 2)).astype(np.float32),
    }

    def loss(examples: Rows) -> tuple[float, dict[str, np.ndarray]]:
        total, metrics = pretraining.loss(config, model, tables, examples, train=False)
        return float(total), {name: np.asarray(pair) for name, pair in metrics.items()}

    total, metrics = loss(examples)
    used = examples["masked_lm_weights"] == 1
    real = np.arange(8) < 7
    assert used.sum(1).tolist() == [
        *[len(one.positions) for one in instances({k: v[:7] for k, v in examples.items()})],
        0,
    ]
    np.testing.assert_array_equal(examples["sentence_weights"], real)
    seen = np.take_along_axis(examples["input_ids"], examples["masked_lm_positions"], axis=1)[used]
    expected = 0.0
    for name, logits, labels in (
        ("mlm", tables["mlm"][seen], examples["masked_lm_labels"][used]),
        (objective, tables["sop"][examples["input_ids"][real, 1]], examples["sentence_labels"][real]),
    ):
        if name == "none":
            continue
        losses = -log_softmax(logits.astype(np.float64))[np.arange(len(labels)), labels]
        right = np.sum(logits.argmax(-1) == labels)
        np.testing.assert_allclose(metrics.pop(f"{name}_loss"), [losses.sum(), len(labels)], rtol=1e-5)
        np.testing.assert_allclose(metrics.pop(f"{name}_accuracy"), [right, len(labels)])
        expected += losses.mean()
    assert metrics.pop("tokens").tolist() == [examples["attention_mask"][:7].sum(), 0]
    assert not metrics
    assert total == pytest.approx(expected, rel=1e-5)
    for kind in ("masked_lm", "sentence"):
        assert np.sum(examples[f"{kind}_scale"]) == pytest.approx(1, abs=1e-5)
    parts = [loss({name: value[part] for name, value in examples.items()}) for part in (slice(0, 3), slice(3, 8))]
    assert sum(part for part, _ in parts) == pytest.approx(total, rel=1e-5)
    for name, whole in loss(examples)[1].items():
        np.testing.assert_allclose(sum(part[name] for _, part in parts), whole, rtol=1e-5)
    if objective != "nsp":  # there the draw of a partner depends on the batch
        assert loss(drawer(config)(rows, 0))[0] == pytest.approx(total, rel=1e-5)


def test_baseline_is_the_unigram_distribution() -> None:
    """Fails if unused predictions count, or if nothing is added to unseen pieces."""
    examples = drawer(replace(CONFIG, max_seq_length=32))(text(64, 32, 11), 0)
    labels = examples["masked_lm_labels"][examples["masked_lm_weights"] == 1]
    counts = np.random.default_rng(0).integers(0, 50, 2000)
    counts[labels[0]] = 99
    counts[labels[1]] = 0
    found = pretraining.baseline(counts, examples)
    losses = -np.log((counts[labels] + 1) / np.sum(counts + 1))
    np.testing.assert_allclose(found["mlm_loss"], [losses.sum(), len(labels)], rtol=1e-5)
    np.testing.assert_allclose(found["mlm_accuracy"], [np.sum(labels == labels[0]), len(labels)])
    assert set(found) == {"mlm_loss", "mlm_accuracy"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("masked_lm_prob", 0.0),
        ("masked_lm_prob", 1.0),
        ("masked_lm_prob", float("nan")),
        ("max_predictions_per_seq", 0),
        ("max_predictions_per_seq", 129),
        ("max_seq_length", 7),
        ("ngram", 0),
        ("short_seq_prob", 1.1),
        ("sentence_objective", "sops"),
    ],
)
def test_bad_settings_are_told_in_one_line(field: str, value: Any) -> None:
    """Fails if a bound is dropped."""
    with pytest.raises(InputError, match=field) as error:
        replace(CONFIG, **{field: value})
    assert "\n" not in str(error.value)

"""Batches of rows of unequal length: every row once, few shapes, the same for any number of processes."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from albert_jax.data import batches
from albert_jax.data.batches import WIDTHS, Row, eval_batches, plan, train_batches, width_of


class Made:
    """Row i holds i in every token."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = np.array(lengths, np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, item: int) -> Row:
        ids = np.full(self.lengths[item], item + 1, np.int32)
        return {"input_ids": ids, "token_type_ids": ids * 0, "weights": np.float32(1), "number": np.int32(item)}


LENGTHS = st.lists(st.integers(2, 100), min_size=5, max_size=70)


@settings(max_examples=30, deadline=None)
@given(LENGTHS, st.integers(1, 9))
def test_evaluation_covers_every_row_once(lengths: list[int], size: int) -> None:
    """Fails if the last, partial batch is dropped."""
    rows, seen = Made(lengths), []
    for chosen, batch in eval_batches(rows, size, 100):
        assert batch["input_ids"].shape[0] == size
        assert batch["weights"].sum() == len(chosen)
        for at, number in enumerate(chosen.tolist()):
            assert batch["number"][at] == number
            ids = batch["input_ids"][at]
            assert np.array_equal(ids[: lengths[number]], np.full(lengths[number], number + 1))
            assert not ids[lengths[number] :].any()
            assert batch["attention_mask"][at].sum() == lengths[number]
        seen += chosen.tolist()
    assert sorted(seen) == list(range(len(lengths)))


@settings(max_examples=20, deadline=None)
@given(LENGTHS, st.integers(0, 2**32 - 1))
def test_an_epoch_has_every_row_at_most_once(lengths: list[int], seed: int) -> None:
    numbers = plan(np.array(lengths), 4, seed, 3)
    assert numbers.shape == (len(lengths) // 4, 4)
    assert len(set(numbers.ravel().tolist())) == numbers.size


def test_batches_do_not_depend_on_processes_nor_on_the_start() -> None:
    rows = Made([int(n) for n in np.random.default_rng(0).integers(2, 90, 50)])
    whole = list(itertools.islice(train_batches(rows, 8, 100, 5, 0), 20))
    later = list(itertools.islice(train_batches(rows, 8, 100, 5, 13), 7))
    for a, b in zip(whole[13:], later, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    parts = [list(itertools.islice(train_batches(rows, 8, 100, 5, 0, number, 2), 20)) for number in range(2)]
    for joined, own in zip(whole, zip(*parts, strict=True), strict=True):
        for name in joined:
            assert np.array_equal(joined[name], np.concatenate([part[name] for part in own]))


def test_few_shapes_and_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 4000)
    rows = Made(lengths.tolist())
    used = padded = 0
    widths = set()
    for batch in itertools.islice(train_batches(rows, 32, 512, 0, 0), 125):
        widths.add(batch["input_ids"].shape[1])
        used += int(batch["attention_mask"].sum())
        padded += batch["input_ids"].size
    assert widths <= {*WIDTHS, 512}
    assert used / padded > 0.75  # 0.5 without sorting
    assert len({width_of(n, 200) for n in range(1, 201)}) <= len(WIDTHS) + 1


def test_epochs_differ_and_leave_other_rows_over() -> None:
    lengths = np.full(10, 5)
    first, second = plan(lengths, 4, 0, 0), plan(lengths, 4, 0, 1)
    assert not np.array_equal(first, second)
    left = {frozenset(range(10)) - set(plan(lengths, 4, 0, epoch).ravel().tolist()) for epoch in range(20)}
    assert len(left) > 3


def test_less_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has 3 rows, train.global_batch_size needs 16"):
        batches.check_batch(Made([5, 5, 5]), 16)

"""Batches of rows of unequal length: every row once, few shapes, independent of the number of processes."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from albert_jax.data.batches import WIDTHS, Row, epoch_batches, eval_batches, padded_width, train_batches


class ConstantRows:
    """Rows of given lengths; every token of row i is i + 1."""

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
def test_evaluation_covers_every_row_once(lengths: list[int], batch_size: int) -> None:
    """Fails if the last, partial batch is dropped."""
    seen: list[int] = []
    for numbers, batch in eval_batches(ConstantRows(lengths), batch_size, 100):
        assert batch["input_ids"].shape[0] == batch_size
        assert batch["weights"].sum() == len(numbers)
        for place, number in enumerate(numbers.tolist()):
            assert batch["number"][place] == number
            ids = batch["input_ids"][place]
            assert np.array_equal(ids[: lengths[number]], np.full(lengths[number], number + 1))
            assert not ids[lengths[number] :].any()
            assert batch["attention_mask"][place].sum() == lengths[number]
        seen += numbers.tolist()
    assert sorted(seen) == list(range(len(lengths)))


@settings(max_examples=20, deadline=None)
@given(LENGTHS, st.integers(0, 2**32 - 1))
def test_an_epoch_has_every_row_at_most_once(lengths: list[int], seed: int) -> None:
    numbers = epoch_batches(np.array(lengths), 4, seed, 3)
    assert numbers.shape == (len(lengths) // 4, 4)
    assert len(set(numbers.ravel().tolist())) == numbers.size


def test_batches_depend_neither_on_processes_nor_on_the_start() -> None:
    rows = ConstantRows([int(n) for n in np.random.default_rng(0).integers(2, 90, 50)])
    batches = list(itertools.islice(train_batches(rows, 8, 100, 5, 0), 20))
    resumed = list(itertools.islice(train_batches(rows, 8, 100, 5, 13), 7))
    for a, b in zip(batches[13:], resumed, strict=True):
        assert all(np.array_equal(a[name], b[name]) for name in a)
    parts = [list(itertools.islice(train_batches(rows, 8, 100, 5, 0, process, 2), 20)) for process in range(2)]
    for batch, halves in zip(batches, zip(*parts, strict=True), strict=True):
        for name in batch:
            assert np.array_equal(batch[name], np.concatenate([half[name] for half in halves]))


def test_few_shapes_and_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 4000)
    tokens = positions = 0
    widths = set()
    for batch in itertools.islice(train_batches(ConstantRows(lengths.tolist()), 32, 512, 0, 0), 125):
        widths.add(batch["input_ids"].shape[1])
        tokens += int(batch["attention_mask"].sum())
        positions += batch["input_ids"].size
    assert widths <= {*WIDTHS, 512}
    assert tokens / positions > 0.75  # 0.5 without sorting
    assert len({padded_width(n, 200) for n in range(1, 201)}) <= len(WIDTHS) + 1


def test_epochs_differ_in_order_and_in_the_rows_they_drop() -> None:
    lengths = np.full(10, 5)
    first, second = epoch_batches(lengths, 4, 0, 0), epoch_batches(lengths, 4, 0, 1)
    assert not np.array_equal(first, second)
    dropped = {frozenset(range(10)) - set(epoch_batches(lengths, 4, 0, epoch).ravel().tolist()) for epoch in range(20)}
    assert len(dropped) > 3

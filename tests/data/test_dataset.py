"""Datasets: order, batches, splits and the trimming of filled-up batches."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.data import Batch, Dataset, read
from onnxq.data.batch import stack_rows
from onnxq.errors import InputError
from onnxq.runtime import TensorSpec

FLOAT = np.dtype(np.float32)


def spec(*shape: int | str | None, name: str = "x") -> TensorSpec:
    return TensorSpec(name, FLOAT, "tensor(float)", shape)


def numbered(count: int, batch: int | str = "N", **extra: np.ndarray) -> Dataset:
    """Return samples [i, i], whose labels are i."""
    values = np.arange(count)
    x = np.stack([values, values], axis=1).astype(np.float32)
    return read({"x": x, "labels": values, **extra}, [spec(batch, 2)], batch_size=4)


def contents(dataset: Dataset) -> list[int]:
    """Return the numbers of a dataset's real samples, checking feeds against labels."""
    numbers = []
    for batch in dataset.batches():
        assert batch.labels is not None
        np.testing.assert_array_equal(batch.feeds["x"][:, 0], batch.labels)
        numbers += batch.labels[: batch.valid].tolist()
    return numbers


def test_every_pass_gives_all_samples_in_order() -> None:
    dataset = numbered(10)
    assert len(dataset) == 10
    assert (dataset.has_labels, dataset.labels_ndim) == (True, 1)
    assert contents(dataset) == contents(dataset) == list(range(10))
    assert [batch.size for batch in dataset.batches()] == [4, 4, 2]


def test_the_last_batch_of_a_fixed_size_repeats_its_last_sample() -> None:
    *_, last = numbered(10, batch=8).batches()
    assert (last.valid, last.size) == (2, 8)
    np.testing.assert_array_equal(last.feeds["x"][:, 1], [8, 9, 9, 9, 9, 9, 9, 9])
    assert last.labels is not None
    np.testing.assert_array_equal(last.labels, [8, 9, 9, 9, 9, 9, 9, 9])


def test_trim_cuts_only_what_runs_over_samples() -> None:
    outputs = {"y": np.arange(8), "state": np.zeros((2, 8)), "s": np.float32(1), "list": [1] * 4}
    batch = Batch({}, None, valid=3, size=8)
    trimmed = batch.trim(outputs)
    np.testing.assert_array_equal(trimmed["y"], [0, 1, 2])
    assert trimmed["state"].shape == (2, 8)
    assert (trimmed["s"], trimmed["list"]) == (1, [1] * 4)
    assert Batch({}, None, valid=8, size=8).trim(outputs)["y"].shape == (8,)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=8), st.integers(1, 9), st.booleans())
def test_stacking_keeps_every_row_in_order(blocks: list[int], size: int, fill: bool) -> None:
    bounds = np.cumsum([0, *blocks])
    rows = np.arange(bounds[-1])
    batches = list(
        stack_rows(
            (({"x": rows[low:high]}, rows[low:high]) for low, high in pairwise(bounds.tolist())),
            size,
            fill=fill,
        )
    )
    seen = np.concatenate([batch.feeds["x"][: batch.valid] for batch in batches])
    np.testing.assert_array_equal(seen, rows)
    assert all(batch.valid == size for batch in batches[:-1])
    assert all(len(batch.feeds["x"]) == batch.size for batch in batches)
    assert batches[-1].size == (size if fill else batches[-1].valid)


def test_rows_of_another_shape_begin_a_batch_of_their_own() -> None:
    blocks = [({"x": np.zeros((1, width))}, None) for width in (3, 3, 5, 5, 5, 3)]
    shapes = [batch.feeds["x"].shape for batch in stack_rows(blocks, 2, fill=False)]
    assert shapes == [(2, 3), (2, 5), (1, 5), (1, 3)]


def test_split_is_a_seeded_partition_in_order() -> None:
    dataset = numbered(101)
    calibration, held_out = dataset.split(7)
    first, second = contents(calibration), contents(held_out)
    assert (len(calibration), len(held_out)) == (50, 51)
    assert sorted(first + second) == list(range(101))
    assert first == sorted(first)
    assert second == sorted(second)
    assert first != list(range(50))
    assert contents(dataset.split(7)[0]) == first
    assert contents(dataset.split(8)[0]) != first


def test_the_drawn_samples_are_pinned() -> None:
    # numpy guarantees RandomState's stream, so another numpy must give the same split.
    assert contents(numbered(12).split(0)[0]) == sorted([6, 11, 4, 10, 2, 8])


def test_calibration_takes_at_most_512_unless_told() -> None:
    dataset = numbered(2000)
    assert [len(part) for part in dataset.split(0)] == [512, 1488]
    assert [len(part) for part in dataset.split(0, 900)] == [900, 1100]
    assert [len(part) for part in dataset.split(0, 1999)] == [1999, 1]


def test_the_sources_own_split_is_used() -> None:
    split = np.array([1, 0, 1, 0, 0, 1, 1, 1], np.uint8)
    dataset = numbered(8, split=split)
    for seed in (0, 1):
        calibration, held_out = dataset.split(seed)
        assert contents(calibration) == [1, 3, 4]
        assert contents(held_out) == [0, 2, 5, 6, 7]
    smaller, held_out = dataset.split(0, 2)
    assert set(contents(smaller)) < {1, 3, 4}
    assert len(smaller) == 2
    assert contents(held_out) == [0, 2, 5, 6, 7]
    assert contents(dataset.split(0, 100)[0]) == [1, 3, 4]


def test_take_is_spread_evenly_and_can_be_split_again() -> None:
    dataset = numbered(100)
    assert contents(dataset.take(4)) == [0, 25, 50, 75]
    assert contents(dataset.take(3)) == [0, 33, 66]
    assert contents(dataset.take(100)) == contents(dataset.take(1000)) == list(range(100))
    first, second = dataset.take(10).split(0)
    assert sorted(contents(first) + contents(second)) == list(range(0, 100, 10))


@given(st.integers(1, 300), st.integers(1, 300))
def test_take_gives_exactly_that_many_distinct_samples(count: int, wanted: int) -> None:
    taken = contents(numbered(count).take(wanted))
    assert len(taken) == len(set(taken)) == min(count, wanted)


def test_feeds_of_several_samples_are_split_and_taken_whole() -> None:
    feeds = [{"x": np.full((8, 2), i, np.float32), "labels": np.full(8, i)} for i in range(10)]
    dataset = read(feeds, [spec("N", 2)])
    assert len(dataset) == 80
    calibration, held_out = dataset.split(0)
    assert (len(calibration), len(held_out)) == (40, 40)
    assert set(contents(calibration)).isdisjoint(contents(held_out))
    assert [len(part) for part in dataset.split(0, 9)] == [16, 64]
    assert len(dataset.take(20)) == 24
    assert len(read(feeds, [spec("N", 2)], samples=20)) == 24


@pytest.mark.parametrize("count", [0, -3])
def test_numbers_below_one_are_refused(count: int) -> None:
    with pytest.raises(InputError, match="at least 1"):
        numbered(4).take(count)
    with pytest.raises(InputError, match="at least 1"):
        numbered(4).split(0, count)
    with pytest.raises(InputError, match="at least 1"):
        read({"x": np.zeros((4, 2))}, [spec("N", 2)], samples=count)
    with pytest.raises(InputError, match="at least 1"):
        read({"x": np.zeros((4, 2))}, [spec("N", 2)], batch_size=count)


def test_splits_that_leave_nothing_are_refused() -> None:
    with pytest.raises(InputError, match="holds one sample"):
        numbered(1).split(0)
    with pytest.raises(InputError, match="leave none for verification"):
        numbered(5).split(0, 5)
    with pytest.raises(InputError, match="leaves the held-out part empty"):
        numbered(2, split=np.array([0, 0])).split(0)
    with pytest.raises(InputError, match="leaves the calibration part empty"):
        numbered(2, split=np.array([1, 1])).split(0)


def test_parts_hold_every_sample_once_where_the_batch_is_open() -> None:
    dataset = numbered(11)
    parts = dataset.in_parts(3, [spec("N", 2)])
    assert contents(parts) == list(range(11)) and len(parts) == 11
    assert [batch.size for batch in parts.batches()] == [2, 2, 2, 2, 3]
    assert [batch.size for batch in dataset.in_parts(1, [spec("N", 2)]).batches()] == [1] * 11
    assert contents(parts.take(4)) == contents(dataset.take(4))
    assert [b.size for b in numbered(6, 4).in_parts(1, [spec(4, 2)]).batches()] == [4, 4]

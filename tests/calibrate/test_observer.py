"""Observers against numpy over all values kept, whatever the order and the sharding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.calibrate import OBSERVERS, MinMaxObserver, Observer, Range

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
BATCHES = st.lists(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=FLOATS),
    min_size=1,
    max_size=8,
).filter(lambda batches: any(b.size for b in batches))


def _observed(batches: list[np.ndarray], name: str = "minmax") -> Observer:
    observer = OBSERVERS[name]()
    for batch in batches:
        observer.add(batch)
    return observer


def _bits(found: Range) -> bytes:
    return np.array([found.min, found.max]).tobytes()


@given(BATCHES)
def test_minmax_is_that_of_all_values(batches: list[np.ndarray]) -> None:
    kept = np.concatenate([b.reshape(-1) for b in batches])
    assert _observed(batches).range() == Range(float(kept.min()), float(kept.max()))


@pytest.mark.parametrize("name", OBSERVERS)
@given(batches=BATCHES, data=st.data())
def test_order_and_shards_change_no_bit(
    name: str, batches: list[np.ndarray], data: st.DataObject
) -> None:
    wanted = _bits(_observed(batches, name).range())
    shuffled = data.draw(st.permutations(batches))
    assert _bits(_observed(shuffled, name).range()) == wanted
    cut = data.draw(st.integers(0, len(batches)))
    for first, second in ((shuffled[:cut], shuffled[cut:]), (shuffled[cut:], shuffled[:cut])):
        shard = _observed(first, name)
        shard.merge(_observed(second, name))
        assert _bits(shard.range()) == wanted


@pytest.mark.parametrize("numbers", [[0.0, -0.0], [-0.0, 0.0], [-0.0]])
def test_zero_has_no_sign(numbers: list[float]) -> None:
    found = _observed([np.array([n], np.float32) for n in numbers]).range()
    assert str(found) == "Range(min=0.0, max=0.0)"


@pytest.mark.parametrize("batches", [[], [np.zeros((0, 3), np.float32)]])
def test_without_values_there_is_no_range(batches: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="no value"):
        _observed(batches).range()


def test_an_empty_batch_changes_nothing() -> None:
    observer = _observed([np.array([1.0, 2.0], np.float32), np.zeros((0,), np.float32)])
    observer.merge(MinMaxObserver())
    assert observer.range() == Range(1.0, 2.0)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_nan_anywhere_makes_the_range_no_range(position: int) -> None:
    batches = [np.array([float(i)], np.float32) for i in range(3)]
    batches[position][0] = np.nan
    found = _observed(batches).range()
    assert np.isnan([found.min, found.max]).all() and not found.is_finite


def test_infinities_are_kept() -> None:
    found = _observed([np.array([1.0, np.inf], np.float32)]).range()
    assert found == Range(1.0, np.inf) and not found.is_finite


def test_the_largest_floats_are_finite() -> None:
    top = float(np.finfo(np.float32).max)
    found = _observed([np.array([-top, top], np.float32)]).range()
    assert found == Range(-top, top) and found.is_finite


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_floats_are_taken_as_float32(dtype: type) -> None:
    found = _observed([np.array([0.1, -2.0], dtype)]).range()
    assert found == Range(-2.0, float(np.float32(dtype(0.1))))

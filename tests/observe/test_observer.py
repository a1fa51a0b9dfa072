"""Observers against numpy over all values kept, whatever the order and the sharding."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.observe import ChannelStatistics, Statistics
from onnxq.observe.observer import MovingObserver, RangeObserver
from onnxq.plain import read, to_plain
from tests.observe.observing import observed, shown

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
BATCHES = st.lists(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0), elements=FLOATS),
    min_size=1,
    max_size=6,
).filter(lambda batches: any(b.size for b in batches))


def _ends(seen: Statistics) -> bytes:
    return np.array([seen.min, seen.max]).tobytes()


@settings(max_examples=50)
@given(BATCHES)
def test_the_ends_are_those_of_all_values(batches: list[np.ndarray]) -> None:
    kept = np.concatenate([b.reshape(-1) for b in batches])
    seen = observed(batches)
    assert (seen.min, seen.max) == (float(kept.min()), float(kept.max()))
    assert (seen.count, seen.not_finite, seen.is_finite) == (kept.size, 0, True)
    assert seen.histogram is None


@settings(max_examples=30)
@given(batches=BATCHES, data=st.data())
def test_order_and_shards_change_no_bit(batches: list[np.ndarray], data: st.DataObject) -> None:
    wanted = observed(batches, histogram=True)
    shuffled = data.draw(st.permutations(batches))
    assert observed(shuffled, histogram=True) == wanted
    cut = data.draw(st.integers(0, len(batches)))
    parts = [p for p in (shuffled[:cut], shuffled[cut:]) if any(b.size for b in p)]
    shards = [observed(part, histogram=True) for part in parts]
    for order in (shards, shards[::-1]):
        merged = order[0] if len(order) == 1 else order[0].merge(order[1])
        assert merged == wanted and _ends(merged) == _ends(wanted)
        assert to_plain(merged) == to_plain(wanted)


@pytest.mark.parametrize("numbers", [[0.0, -0.0], [-0.0, 0.0], [-0.0]])
def test_zero_has_no_sign(numbers: list[float]) -> None:
    seen = observed([np.array([n], np.float32) for n in numbers])
    assert str((seen.min, seen.max)) == "(0.0, 0.0)"


@pytest.mark.parametrize("batches", [[], [np.zeros((0, 3), np.float32)]])
def test_without_values_there_are_no_statistics(batches: list[np.ndarray]) -> None:
    for observer in (RangeObserver(True), MovingObserver(0.5)):
        assert shown(observer, batches).result() is None


def test_an_empty_batch_changes_nothing() -> None:
    values = np.array([1.0, 2.0], np.float32)
    options = {"histogram": True, "momentum": 0.5}
    with_empty = observed([values, np.zeros((0,), np.float32), values], **options)
    assert with_empty == observed([values, values], **options)


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("histogram", [False, True])
def test_a_nan_anywhere_is_noticed_and_counted(position: int, histogram: bool) -> None:
    batches = [np.array([float(i), 5.0], np.float32) for i in range(3)]
    batches[position][0] = np.nan
    seen = observed(batches, histogram=histogram)
    assert np.isnan([seen.min, seen.max]).all() and not seen.is_finite
    assert (seen.count, seen.not_finite) == (6, 1)
    shards = [observed([b], histogram=histogram) for b in batches]
    merged = shards[0].merge(shards[1]).merge(shards[2])
    assert not merged.is_finite and merged.not_finite == 1


def test_infinities_are_kept() -> None:
    seen = observed([np.array([1.0, np.inf, -np.inf, np.inf], np.float32)], histogram=True)
    assert (seen.min, seen.max, seen.not_finite) == (-np.inf, np.inf, 3)
    assert seen.histogram is not None and seen.histogram.total == 1


def test_the_largest_floats_are_finite() -> None:
    top = float(np.finfo(np.float32).max)
    seen = observed([np.array([-top, top], np.float32)], histogram=True)
    assert (seen.min, seen.max, seen.is_finite) == (-top, top, True)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_floats_are_taken_as_float32(dtype: type) -> None:
    values = np.array([0.1, -2.0, 0.1], dtype)
    seen = observed([values], histogram=True)
    assert seen == observed([values.astype(np.float32)], histogram=True)
    assert (seen.min, seen.max) == (-2.0, float(np.float32(dtype(0.1))))


def test_a_number_beyond_float32_is_infinite() -> None:
    assert observed([np.array([1e300])]).not_finite == 1


def test_values_need_not_be_contiguous() -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    assert observed([values.T[::2]], histogram=True) == observed(
        [values.T[::2].copy()], histogram=True
    )


def test_the_moving_average_moves_with_every_batch() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal(20).astype(np.float32) for _ in range(5)]
    low, high = float(batches[0].min()), float(batches[0].max())
    for batch in batches[1:]:
        low = 0.75 * low + 0.25 * float(batch.min())
        high = 0.75 * high + 0.25 * float(batch.max())
    moving = observed(batches, momentum=0.25).moving
    assert moving is not None and moving.batches == 5
    np.testing.assert_allclose([moving.min, moving.max], [low, high], rtol=1e-12)
    assert observed(batches[::-1], momentum=0.25).moving != moving


def test_parts_of_a_batch_are_one_batch_to_the_moving_average() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal(20).astype(np.float32) for _ in range(3)]
    observer = MovingObserver(0.25)
    for batch in batches:
        for part in np.split(batch, [3, 11]):
            observer.add(part, np.arange(len(part)))
        observer.end_batch()
    ends = observer.result()
    assert ends is not None and ends.moving() == observed(batches, momentum=0.25).moving


def test_moving_averages_of_shards_count_by_their_batches() -> None:
    batches = [np.array([x], np.float32) for x in (1.0, 3.0, 8.0)]
    first, second = observed(batches[:2], momentum=0.5), observed(batches[2:], momentum=0.5)
    merged = first.merge(second).moving
    assert merged is not None
    assert merged.min == pytest.approx((2 * 2.0 + 8.0) / 3) and merged.batches == 3
    with pytest.raises(ValueError, match="momentum"):
        first.merge(observed(batches, momentum=0.25))


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_channels_against_numpy(axis: int) -> None:
    rng = np.random.default_rng(axis + 1)
    kept = rng.standard_normal((12, 4, 5)).astype(np.float32)
    kept = kept if axis else kept.swapaxes(0, 1)
    whole_axis = axis % 3
    parts = np.split(kept, 2, axis=1 if whole_axis == 0 else 0)
    shards = [ChannelStatistics.of(part, axis) for part in parts]
    others = tuple(a for a in range(3) if a != whole_axis)
    for seen in (shards[0].merge(shards[1]), shards[1].merge(shards[0])):
        assert np.array_equal(seen.absmax, np.abs(kept).max(axis=others))
        assert np.array_equal(seen.lowest, kept.min(axis=others))
        wide = kept.astype(np.float64)
        np.testing.assert_allclose(seen.mean, wide.mean(axis=others), atol=1e-12)
        np.testing.assert_allclose(seen.magnitude, np.abs(wide).sum(axis=others), rtol=1e-12)
        np.testing.assert_allclose(seen.square, (wide**2).sum(axis=others), rtol=1e-6)
        assert seen.count * len(seen.absmax) == kept.size


def test_channels_have_to_agree() -> None:
    seen = ChannelStatistics.of(np.zeros((2, 3), np.float32), 1)
    with pytest.raises(ValueError, match="channels differ"):
        seen.merge(ChannelStatistics.of(np.zeros((2, 4), np.float32), 1))
    with pytest.raises(ValueError, match="2 axes, and none is axis 2"):
        ChannelStatistics.of(np.zeros((2, 3), np.float32), 2)


def test_statistics_read_back() -> None:
    values = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    seen = observed([values], histogram=True, momentum=0.5)
    assert seen.moving is not None
    assert read(Statistics, to_plain(seen), "it") == seen
    plain = observed([values])
    assert read(Statistics, to_plain(plain), "it") == plain
    assert plain != seen

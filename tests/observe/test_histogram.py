"""Histograms against numpy over all values kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.observe.histogram import RELATIVE_WIDTH, TABLE_BYTES, Histogram, Tally, histogram_of

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ARRAYS = hnp.arrays(np.float32, st.integers(0, 40), elements=FLOATS)
TINY = float(np.finfo(np.float32).tiny)


def histogram(*parts: np.ndarray) -> Histogram:
    tally = Tally()
    for part in parts:
        tally.add(np.asarray(part, np.float32))
    return tally.histogram()


@settings(max_examples=30)
@given(ARRAYS)
def test_every_value_lies_in_a_bin_of_the_stated_width(values: np.ndarray) -> None:
    found = histogram(values)
    assert found.total == values.size
    assert (np.diff(found.bins) > 0).all() and (found.counts > 0).all()
    places = np.searchsorted(found.upper, values.astype(np.float64), side="left")
    # Upper edges above zero belong to the next bin.
    places += (values > 0) & (values == found.upper[np.minimum(places, len(found.upper) - 1)])
    assert np.array_equal(np.bincount(places, minlength=len(found.bins)), found.counts)
    assert (found.lower[places] <= values).all() and (values <= found.upper[places]).all()


@settings(max_examples=30)
@given(ARRAYS.filter(len))
def test_the_relative_error_is_below_one_per_cent(values: np.ndarray) -> None:
    found = histogram(values)
    normal = np.minimum(np.abs(found.lower), np.abs(found.upper)) >= TINY
    width = (found.upper - found.lower)[normal]
    magnitude = np.minimum(np.abs(found.lower), np.abs(found.upper))[normal]
    assert RELATIVE_WIDTH < 0.01
    assert (width <= RELATIVE_WIDTH * magnitude).all()
    assert (found.upper - found.lower)[~normal].max(initial=0) <= 2.0**-132


@settings(max_examples=30)
@given(st.lists(ARRAYS, max_size=5), st.data())
def test_order_and_merging_change_nothing(parts: list[np.ndarray], data: st.DataObject) -> None:
    wanted = histogram(*parts)
    shuffled = data.draw(st.permutations(parts))
    assert histogram(*shuffled) == wanted
    merged = Tally().histogram()
    for part in shuffled:
        merged = merged.merge(histogram(part))
    assert merged == wanted
    assert (merged.bins.dtype, merged.counts.dtype) == (wanted.bins.dtype, wanted.counts.dtype)


@settings(max_examples=30)
@given(st.lists(ARRAYS, max_size=3))
def test_the_text_reads_back(parts: list[np.ndarray]) -> None:
    found = histogram(*parts)
    assert Histogram.from_plain(found.to_plain()) == found


def test_large_counts_read_back() -> None:
    found = Histogram(
        np.array([-32639, 0, 32639], np.int32), np.array([1, 2**62, 2**40 + 3], np.int64)
    )
    assert Histogram.from_plain(found.to_plain()) == found


@pytest.mark.parametrize(
    "text",
    [
        "?",
        "AAE",
        "gA==",  # a number that is cut off
        "AQ==",  # a bin without a count
        "AAE=",  # bin -32768
        "gIACAA==",  # bin 0 with count 0
        "gIACgIACAQE=",  # a bin beyond the largest
        "////////////AQE=",
    ],
)
def test_what_is_no_histogram(text: str) -> None:
    with pytest.raises(ValueError):
        Histogram.from_plain(text)


def test_zeros_of_both_signs_and_the_smallest_numbers_share_a_bin() -> None:
    smallest = float(np.float32(2.0**-149))
    found = histogram([0.0, -0.0, smallest, -smallest, 0.0])
    assert found == Histogram(np.array([0], np.int32), np.array([5], np.int64))


def test_denormal_and_largest_numbers_have_bins() -> None:
    top = np.finfo(np.float32).max
    found = histogram([2.0**-130, -(2.0**-130), top, -top, 1e38])
    assert found.total == 5 and len(found.bins) == 5
    assert found.upper[-1] == 2.0**128 and found.lower[0] == -(2.0**128)
    assert found.lower[2] <= 2.0**-130 < found.upper[2]
    assert found.lower[1] < -(2.0**-130) <= found.upper[1]
    assert found.lower[3] <= 1e38 < found.upper[3]


def test_more_values_than_a_chunk() -> None:
    values = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    for sign in (1, -1):
        found = histogram(sign * values)
        assert found.total == values.size
        above = found.bins > 0
        # Bins hold their edge that is nearer to zero, as numpy's do above zero.
        edges = np.unique(np.append(found.lower[above], found.upper[above]))
        counted, _ = np.histogram((sign * values).astype(np.float64), edges)
        assert np.array_equal(counted[counted > 0], found.counts[above])


def test_nan_and_infinite_values_are_in_no_bin() -> None:
    tally = Tally()
    tally.add(np.array([1.0, np.nan, -np.nan, np.inf, -np.inf, 2.0], np.float32))
    assert tally.histogram().total == 2


@settings(max_examples=100)
@given(
    hnp.arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32) | st.just(-0.0)),
)
def test_one_array_is_counted_as_by_a_tally(values: np.ndarray) -> None:
    found, wanted = histogram_of(values), histogram(values)
    assert found == wanted
    assert (found.bins.dtype, found.counts.dtype) == (wanted.bins.dtype, wanted.counts.dtype)


def test_the_memory_has_a_bound() -> None:
    tally = Tally()
    patterns = np.arange(0, 1 << 16, dtype=np.uint32) << 16
    tally.add(patterns.view(np.float32))
    (table,) = vars(tally).values()
    assert table.nbytes == TABLE_BYTES
    not_finite = 2 * (1 << 7)
    assert tally.histogram().total + not_finite == 1 << 16

"""Expected squared errors against the errors of many values kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.observe.histogram import RELATIVE_WIDTH, Tally
from onnxq.observe.squared_error import SquaredError


def _error(values: np.ndarray) -> SquaredError:
    tally = Tally()
    tally.add(values.astype(np.float32))
    return SquaredError(tally.histogram(), float(values.min()), float(values.max()))


@settings(max_examples=25)
@given(
    st.integers(0, 1000),
    st.floats(0.002, 0.3),
    st.integers(0, 20),
    st.integers(1, 300),
    st.sampled_from([-1.0, 0.0, 1.5]),
)
def test_against_all_values(seed: int, scale: float, below: int, above: int, shift: float) -> None:
    values = np.random.default_rng(seed).standard_normal(100_000) + shift
    low, high = -below * scale, above * scale
    kept = values.astype(np.float32).astype(np.float64)
    inside = (kept >= low) & (kept <= high)
    rounding = np.square(kept - scale * np.rint(kept / scale))[inside].sum()
    excess = np.abs(kept - np.clip(kept, low, high))
    error = _error(values)
    # A value may lie anywhere in its bin.
    width = RELATIVE_WIDTH * np.abs(kept)
    bound = (2 * excess * width + width**2)[~inside].sum()
    assert abs(error.clipping(low, high) - np.square(excess).sum()) <= bound
    # Rounding errors in a bin are evenly spread, up to chance.
    chance = 0.4 * np.sqrt(inside.sum()) * scale**2
    assert error.rounding(scale, low, high) == pytest.approx(rounding, rel=0.02, abs=chance)


@pytest.mark.parametrize("value", [1.0, -1.0, 0.7, 3e-39, 1e38, -1e38])
def test_one_value_is_a_point(value: float) -> None:
    kept = float(np.float32(value))
    error = SquaredError(_histogram([kept]), kept, kept)
    for scale in (abs(kept) / 7, abs(kept) / 7.3, abs(kept) * 5):
        wanted = (kept - scale * np.rint(kept / scale)) ** 2
        reach = 10 * scale + abs(kept)
        assert error.rounding(scale, -reach, reach) == pytest.approx(
            wanted, rel=1e-6, abs=1e-25 * kept**2
        )
        assert error.clipping(-reach, reach) == 0.0
    half = kept / 2
    low, high = min(half, 0.0), max(half, 0.0)
    assert error.clipping(low, high) == pytest.approx(half**2, rel=1e-12)


def _histogram(values: list[float]):  # type: ignore[no-untyped-def]
    tally = Tally()
    tally.add(np.array(values, np.float32))
    return tally.histogram()


def test_zeros_cost_nothing() -> None:
    error = SquaredError(_histogram([0.0, 0.0, -0.0]), 0.0, 0.0)
    assert error.rounding(0.1, -1.0, 1.0) == error.clipping(-1.0, 1.0) == 0.0
    assert error.clipping(0.0, 0.0) == 0.0


def test_rounding_and_clipping_share_a_bin_at_the_end_of_the_range() -> None:
    # All values in one bin, of which the range holds the lower quarter.
    values = np.linspace(1.0, 1.0 + 2.0**-7, 100_001)[:-1]
    error = _error(values)
    limit = 1.0 + 2.0**-9
    clipping = np.square(np.maximum(values - limit, 0)).sum()
    assert error.clipping(-1.0, limit) == pytest.approx(clipping, rel=1e-3)
    scale = limit / 500
    inside = values[values <= limit]
    rounding = np.square(inside - scale * np.rint(inside / scale)).sum()
    assert error.rounding(scale, -1.0, limit) == pytest.approx(rounding, rel=1e-3)

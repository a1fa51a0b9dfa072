"""Binary and ternary weights against brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.errors import InputError
from onnxq.quant import (
    FLOAT8E4M3FN,
    INT2,
    INT4,
    INT8,
    MIN_SCALE,
    PER_TENSOR,
    UINT2,
    UINT8,
    Format,
    Granularity,
    QuantizedTensor,
    binary,
    per_block,
    per_channel,
    quantize,
    ternary,
)

Values = npt.NDArray[np.float32]
GRANULARITIES = [PER_TENSOR, per_channel(0), per_channel(1), per_block(1, 32), per_block(0, 5)]

small = hnp.arrays(
    np.float32, st.integers(1, 6), elements=st.floats(-(2.0**60), 2.0**60, width=32)
).filter(lambda w: np.abs(w).max() == 0 or np.abs(w).max() > 2.0**-60)


def _error(w: Values, quantized: QuantizedTensor) -> float:
    return float(((w.astype(np.float64) - quantized.dequantize()) ** 2).sum())


def _least_error(w: Values, levels: tuple[int, ...]) -> float:
    """Over all assignments of levels, each with its best scale."""
    x = w.astype(np.float64)
    best = float((x**2).sum())
    for choice in product(levels, repeat=len(x)):
        t = np.array(choice, np.float64)
        if t.any():
            scale = max((x * t).sum() / (t * t).sum(), 0)
            best = min(best, float(((x - scale * t) ** 2).sum()))
    return best


@given(small)
def test_ternary_is_the_optimum(w: Values) -> None:
    quantized = ternary(w, PER_TENSOR)
    assert set(quantized.values.astype(int).tolist()) <= {-1, 0, 1}
    power = float((w.astype(np.float64) ** 2).sum())
    assert _error(w, quantized) <= _least_error(w, (-1, 0, 1)) + 1e-6 * power


@given(small)
def test_binary_is_the_optimum(w: Values) -> None:
    quantized = binary(w, PER_TENSOR)
    assert set(quantized.values.astype(int).tolist()) <= {-1, 1}
    power = float((w.astype(np.float64) ** 2).sum())
    assert _error(w, quantized) <= _least_error(w, (-1, 1)) + 1e-6 * power + 1e-70


def test_known_values() -> None:
    w = np.float32([[3.0, -1.0, 0.1, 0.0], [0.5, 0.5, -0.5, 2.0]])
    # Of 3, 1, .1 the sums over counts are 9, 8, 5.6; of 2, .5, .5, .5: 4, 3.1, 3, 3.06.
    optimal = ternary(w, per_channel(0))
    assert optimal.values.astype(int).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]
    assert optimal.qparams.scale.tolist() == [3.0, 2.0]
    two = binary(w, per_channel(0))
    assert two.values.astype(int).tolist() == [[1, -1, 1, 1], [1, 1, -1, 1]]
    assert two.qparams.scale.tolist() == np.float32([1.025, 0.875]).tolist()


def test_normal_weights_have_the_threshold_and_scale_of_theory() -> None:
    w = np.random.default_rng(0).standard_normal(200_000).astype(np.float32)
    # Minimising the error over a normal distribution: scale 1.224, threshold half of it.
    optimal = ternary(w, PER_TENSOR)
    assert float(optimal.qparams.scale) == pytest.approx(1.224, rel=0.01)
    assert _error(w, optimal) / len(w) == pytest.approx(0.1902, rel=0.01)
    two = binary(w, PER_TENSOR)
    assert float(two.qparams.scale) == pytest.approx(np.sqrt(2 / np.pi), rel=0.01)
    assert _error(w, two) / len(w) == pytest.approx(1 - 2 / np.pi, rel=0.01)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("format", [INT2, UINT2, INT4, INT8, UINT8], ids=lambda f: f.name)
def test_every_format_holds_the_same_weights(format: Format, granularity: Granularity) -> None:
    w = np.random.default_rng(1).standard_normal((12, 70)).astype(np.float32)
    for method in (ternary, binary):
        quantized = method(w, granularity, format=format)
        assert quantized.values.dtype == format.storage
        assert quantized.qparams.format is format
        in_two_bits = method(w, granularity)
        np.testing.assert_array_equal(quantized.dequantize(), in_two_bits.dequantize())
        # The stored values are those that quantizing what they stand for gives.
        again = quantize(quantized.dequantize(), quantized.qparams)
        np.testing.assert_array_equal(again, quantized.values)
        if method is ternary:
            np.testing.assert_array_equal(quantize(w, quantized.qparams), quantized.values)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_groups_are_as_if_alone(granularity: Granularity) -> None:
    w = np.random.default_rng(2).standard_normal((10, 70)).astype(np.float32)
    axis, size = granularity.axis, granularity.block_size
    together = ternary(w, granularity)
    pair = binary(w, granularity)
    for index in np.ndindex(together.qparams.scale.shape):
        if axis is None:
            part = w
        elif size is None:
            part = np.take(w, index[0], axis)
        else:
            cut: list[slice | int] = list(index)
            cut[axis] = slice(index[axis] * size, (index[axis] + 1) * size)
            part = w[tuple(cut)]
        alone = ternary(part, PER_TENSOR).qparams.scale
        assert together.qparams.scale[index] == pytest.approx(float(alone), rel=1e-6)
        mean = np.abs(part.astype(np.float64)).mean()
        assert pair.qparams.scale[index] == pytest.approx(mean, rel=1e-6)


def test_groups_longer_than_what_is_worked_on_at_a_time() -> None:
    w = np.random.default_rng(3).standard_normal((2, 40_000)).astype(np.float32)
    for row in range(2):
        magnitudes = np.sort(np.abs(w[row].astype(np.float64)))[::-1]
        sums = np.cumsum(magnitudes)
        best = np.argmax(sums**2 / np.arange(1, len(sums) + 1))
        found = ternary(w, per_channel(0)).qparams.scale[row]
        assert found == pytest.approx(sums[best] / (best + 1), rel=1e-6)


def test_zeros_and_tiny_weights() -> None:
    w = np.float32([[0, 0, 0], [4, -4, 4], [1e-44, 0, 0]])
    three = ternary(w, per_channel(0))
    assert three.qparams.scale.tolist() == [MIN_SCALE, 4.0, MIN_SCALE]
    assert three.values.astype(int).tolist() == [[0, 0, 0], [1, -1, 1], [0, 0, 0]]
    assert ternary(np.zeros(3), PER_TENSOR).qparams.scale == 1
    two = binary(w, per_channel(0))
    assert two.values.astype(int).tolist() == [[1, 1, 1], [1, -1, 1], [1, 1, 1]]
    assert two.qparams.scale.tolist() == [MIN_SCALE, 4.0, MIN_SCALE]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)])
@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(0), per_block(0, 2)], ids=str)
def test_empty_arrays(shape: tuple[int, ...], granularity: Granularity) -> None:
    w = np.zeros(shape, np.float32)
    for quantized in (ternary(w, granularity), binary(w, granularity)):
        assert quantized.values.shape == shape
        assert quantized.dequantize().shape == shape


def test_largest_floats() -> None:
    w = np.float32([3.4e38, -3.4e38, 3.3e38])
    for quantized in (ternary(w, PER_TENSOR), binary(w, PER_TENSOR)):
        np.testing.assert_allclose(quantized.dequantize(), w, rtol=0.03)


def test_what_cannot_be_asked_for() -> None:
    for method in (ternary, binary):
        with pytest.raises(InputError, match="'w' holds NaN"):
            method([1.0, np.nan], PER_TENSOR, name="w")
        with pytest.raises(InputError, match="'w' cannot be stored as float8e4m3fn"):
            method([1.0], PER_TENSOR, format=FLOAT8E4M3FN, name="w")
        with pytest.raises(InputError, match="'w' has 1 axes, and none is axis 1"):
            method([1.0], per_channel(1), name="w")

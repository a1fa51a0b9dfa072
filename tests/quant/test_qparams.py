"""Scale and zero-point from ranges and weights."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.errors import InputError
from onnxq.quant import (
    ABSMAX,
    FORMATS,
    INT2,
    INT4,
    INT8,
    INT16,
    INT32,
    MIN_SCALE,
    PER_TENSOR,
    SIGNED_ABSMAX,
    UINT2,
    UINT4,
    UINT8,
    UINT16,
    ZERO_POINT,
    Format,
    Granularity,
    QParams,
    Scheme,
    dequantize,
    fake_quantize,
    per_block,
    per_channel,
    qparams_from_range,
    quantize,
    quantize_weight,
    weight_qparams,
)
from onnxq.quant._ranges import absmax_scale, scale_from_range

NARROW = Scheme(symmetric=True, narrow_range=True)
INTEGERS = [format for format in FORMATS.values() if format.bits < 32 and not format.is_float]
FLOAT32_MAX = float(np.finfo(np.float32).max)

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
formats = st.sampled_from(INTEGERS)
schemes = st.builds(
    Scheme,
    symmetric=st.booleans(),
    narrow_range=st.booleans(),
    power_of_two=st.booleans(),
    signed_scale=st.booleans(),
)


@pytest.mark.parametrize(
    ("format", "scheme", "low", "high", "scale", "zero_point"),
    [
        (INT8, ABSMAX, -1.0, 1.0, 1 / 127, 0),
        (INT8, ABSMAX, -1.0, 0.5, 1 / 128, 0),
        (INT8, NARROW, -1.0, 0.5, 1 / 127, 0),
        (INT8, ABSMAX, 2.0, 3.0, 3 / 127, 0),
        (INT8, ABSMAX, -3.0, -2.0, 3 / 128, 0),
        (INT8, ZERO_POINT, -1.0, 3.0, 4 / 255, -64),
        (INT8, Scheme(symmetric=True, reduced_range=True), -1.0, 1.0, 1 / 63, 0),
        (UINT8, ABSMAX, -1.0, 1.0, 1 / 127, 128),
        (UINT8, ABSMAX, 0.0, 1.0, 1 / 127, 128),
        (UINT8, ZERO_POINT, -1.0, 3.0, 4 / 255, 64),
        (UINT8, ZERO_POINT, 2.0, 6.0, 6 / 255, 0),
        (UINT8, ZERO_POINT, -6.0, -2.0, 6 / 255, 255),
        (UINT8, Scheme(symmetric=False, reduced_range=True), 0.0, 1.0, 1 / 127, 0),
        (UINT8, Scheme(symmetric=False, narrow_range=True), 0.0, 1.0, 1 / 254, 1),
        (UINT8, Scheme(symmetric=False, power_of_two=True), 0.0, 1.0, 1 / 128, 0),
        (INT8, Scheme(symmetric=True, power_of_two=True), -16.0, 16.0, 0.25, 0),
        (INT8, Scheme(symmetric=True, power_of_two=True), -16.0, 15.0, 0.125, 0),
        (INT16, ABSMAX, -1.0, 1.0, 1 / 32767, 0),
        (UINT16, ZERO_POINT, -1.0, 1.0, 2 / 65535, 32768),
        (INT4, ABSMAX, -8.0, 7.0, 1.0, 0),
        (UINT4, ABSMAX, -8.0, 7.0, 1.0, 8),
        (INT2, ABSMAX, -2.0, 1.0, 1.0, 0),
        (INT2, NARROW, -2.0, 1.0, 2.0, 0),
        (UINT2, ZERO_POINT, 0.0, 6.0, 2.0, 0),
        (INT2, SIGNED_ABSMAX, -2.0, 1.0, 1.0, 0),
        (INT2, SIGNED_ABSMAX, -1.0, 2.0, -1.0, 0),
        (INT2, SIGNED_ABSMAX, -2.0, 2.0, 1.0, 0),
        (INT2, SIGNED_ABSMAX, 0.0, 0.0, 1.0, 0),
        (UINT4, SIGNED_ABSMAX, -1.0, 8.0, -1.0, 8),
        (INT8, Scheme(True, narrow_range=True, signed_scale=True), -0.5, 1.0, 1 / 127, 0),
        (INT4, Scheme(True, power_of_two=True, signed_scale=True), -1.0, 9.0, -2.0, 0),
        (INT8, Scheme(False, signed_scale=True), -1.0, 3.0, 4 / 255, -64),
    ],
)
def test_known_ranges(
    format: Format, scheme: Scheme, low: float, high: float, scale: float, zero_point: int
) -> None:
    qparams = qparams_from_range(low, high, format, scheme)
    assert qparams.scale == np.float32(scale)
    assert int(qparams.zero_point) == zero_point
    assert qparams.zero_point.dtype == format.storage
    assert isinstance(qparams.scale, np.ndarray)
    assert isinstance(qparams.zero_point, np.ndarray)


@given(formats, schemes, floats, floats)
def test_range_is_covered_and_zero_is_exact(
    format: Format, scheme: Scheme, first: float, second: float
) -> None:
    low, high = min(first, second), max(first, second)
    qparams = qparams_from_range(low, high, format, scheme)
    scale = abs(float(qparams.scale))
    assert MIN_SCALE <= scale <= FLOAT32_MAX
    if scheme.power_of_two:
        assert np.frexp(scale)[0] == 0.5
    assert dequantize(quantize(np.zeros(3), qparams), qparams).tolist() == [0.0] * 3

    inside = np.clip(
        np.array([low, high, 0.9 * low, 0.3 * low + 0.6 * high, 0.5 * high]), low, high
    )
    error = np.abs(inside - fake_quantize(inside, qparams).astype(np.float64))
    # float32's own rounding is 1/100 of a step at most (16 bits). Only near the largest float32
    # may the ends be clipped.
    if max(-low, high) < 1e38:
        assert (error <= 0.51 * scale).all()
    else:
        assert np.isfinite(error).all()


@given(formats, schemes, floats, floats)
def test_every_integer_dequantizes_to_a_finite_number(
    format: Format, scheme: Scheme, first: float, second: float
) -> None:
    qparams = qparams_from_range(min(first, second), max(first, second), format, scheme)
    ends = np.array([format.qmin, format.qmax]).astype(format.storage)
    assert np.isfinite(dequantize(ends, qparams)).all()


@pytest.mark.parametrize("format", INTEGERS, ids=lambda format: format.name)
@pytest.mark.parametrize("scheme", [ABSMAX, ZERO_POINT, NARROW], ids=str)
def test_largest_floats_stay_finite(format: Format, scheme: Scheme) -> None:
    x = np.array([-FLOAT32_MAX, 0.0, FLOAT32_MAX], np.float32)
    qparams = weight_qparams(x, format, scheme, PER_TENSOR)
    back = fake_quantize(x, qparams).astype(np.float64)
    assert back[1] == 0.0
    assert np.isfinite(back).all()
    # Half a step on either side of each end, and up to one more for keeping it finite.
    assert np.abs(back - x).max() <= 1.5 * float(qparams.scale)


def test_largest_floats_stay_finite_at_every_zero_point() -> None:
    zero_points = np.arange(256)
    longer = np.maximum(zero_points, 255 - zero_points)
    low, high = -FLOAT32_MAX * (zero_points / longer), FLOAT32_MAX * ((255 - zero_points) / longer)
    qparams = qparams_from_range(low, high, UINT8, ZERO_POINT, axis=0)
    assert qparams.zero_point.tolist() == zero_points.tolist()
    for end in (0, 255):
        back = dequantize(np.full(256, end, np.uint8), qparams)
        assert np.isfinite(back).all()
        assert np.abs(back - np.where(end, high, low)).max() <= 1e-6 * FLOAT32_MAX


def test_difference_of_large_ends_does_not_overflow() -> None:
    qparams = qparams_from_range(-3e38, 1e38, UINT8, ZERO_POINT)
    assert qparams.scale == pytest.approx(4e38 / 255)
    assert int(qparams.zero_point) == 191


def test_subnormal_values_get_the_smallest_scale() -> None:
    x = np.array([1e-40, -1e-45, 0.0], np.float32)
    qparams = weight_qparams(x, INT8, ABSMAX, PER_TENSOR)
    assert float(qparams.scale) == MIN_SCALE == 2.0**-126
    assert quantize(x, qparams).tolist() == [0, 0, 0]


def test_ranges_are_vectors_per_channel() -> None:
    low, high = np.array([-1.0, 0.0, 2.0]), np.array([1.0, 0.0, 4.0])
    qparams = qparams_from_range(low, high, UINT8, ZERO_POINT, axis=1)
    singles = [qparams_from_range(*ends, UINT8, ZERO_POINT) for ends in zip(low, high, strict=True)]
    assert qparams.scale.tolist() == [float(single.scale) for single in singles]
    assert qparams.zero_point.tolist() == [int(single.zero_point) for single in singles]
    assert qparams.scale[1] == 1.0


def _slices(x: npt.NDArray[np.float32], axis: int, size: int) -> list[npt.NDArray[np.float32]]:
    return np.split(x, range(size, x.shape[axis], size), axis=axis)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=7), elements=floats),
    formats,
    schemes,
    st.data(),
)
def test_channels_and_blocks_are_as_if_alone(
    x: npt.NDArray[np.float32], format: Format, scheme: Scheme, data: st.DataObject
) -> None:
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    x = np.where(x == 0, np.float32(1), x)
    channels = weight_qparams(x, format, scheme, per_channel(axis))
    assert channels.axis == axis % x.ndim
    for index, part in enumerate(_slices(x, axis, 1)):
        alone = weight_qparams(part, format, scheme, PER_TENSOR)
        assert channels.scale[index] == alone.scale
        assert channels.zero_point[index] == alone.zero_point

    size = data.draw(st.integers(1, x.shape[axis] + 1))
    blocks = weight_qparams(x, format, scheme, per_block(axis, size))
    lines = np.moveaxis(x, axis, -1)
    scales, zero_points = (
        np.moveaxis(array, axis, -1) for array in (blocks.scale, blocks.zero_point)
    )
    for place in np.ndindex(lines.shape[:-1]):
        for index, part in enumerate(_slices(lines[place], 0, size)):
            alone = weight_qparams(part, format, scheme, PER_TENSOR)
            assert scales[place][index] == alone.scale
            assert zero_points[place][index] == alone.zero_point


def test_zero_channel_takes_the_smallest_scale_beside_it() -> None:
    w = np.array([[0.0, 0.0], [12.7, 1.0], [0.0, 0.0], [-1.27, 1.0]], np.float32)
    qparams = weight_qparams(w, INT8, NARROW, per_channel(0))
    assert qparams.scale.tolist() == np.array([0.01, 0.1, 0.01, 0.01], np.float32).tolist()
    assert quantize(w, qparams)[[0, 2]].tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_block(0, 2)], ids=str)
@pytest.mark.parametrize("scheme", [ABSMAX, ZERO_POINT], ids=str)
def test_only_zeros_have_scale_one(granularity: Granularity, scheme: Scheme) -> None:
    w = np.zeros((4, 3), np.float32)
    qparams = weight_qparams(w, UINT8, scheme, granularity)
    assert (qparams.scale == 1).all()
    assert not fake_quantize(w, qparams).any()


@pytest.mark.parametrize("value", [5.0, -5.0, 1e38, -3e-39])
@pytest.mark.parametrize("scheme", [ABSMAX, ZERO_POINT], ids=str)
def test_one_element(value: float, scheme: Scheme) -> None:
    w = np.array(value, np.float32)
    qparams = weight_qparams(w, INT8, scheme, PER_TENSOR)
    assert quantize(w, qparams).shape == ()
    back = float(fake_quantize(w, qparams))
    assert back == pytest.approx(value, rel=1e-6, abs=0.5 * MIN_SCALE)


@pytest.mark.parametrize(
    ("shape", "granularity", "scale_shape"),
    [
        ((0,), PER_TENSOR, ()),
        ((0, 3), per_channel(0), (0,)),
        ((0, 3), per_channel(1), (3,)),
        ((0, 3), per_block(0, 4), (0, 3)),
        ((3, 0), per_block(0, 2), (2, 0)),
    ],
)
def test_empty_arrays(
    shape: tuple[int, ...], granularity: Granularity, scale_shape: tuple[int, ...]
) -> None:
    w = np.zeros(shape, np.float32)
    qparams = weight_qparams(w, INT8, ABSMAX, granularity)
    assert qparams.scale.shape == scale_shape
    assert quantize(w, qparams).shape == shape
    assert fake_quantize(w, qparams).shape == shape


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_other_float_types_are_taken_as_float32(dtype: npt.DTypeLike) -> None:
    w = np.linspace(-3, 2, 50).astype(dtype)
    expected = weight_qparams(w.astype(np.float32), INT8, ABSMAX, PER_TENSOR)
    qparams = weight_qparams(w, INT8, ABSMAX, PER_TENSOR)
    assert qparams == expected
    np.testing.assert_array_equal(
        quantize(w, qparams), quantize(w.astype(np.float32), expected), strict=True
    )


@pytest.mark.parametrize(
    ("name", "scheme", "scale"),
    [
        ("float8e4m3fn", ABSMAX, 3.0 / 448),
        ("float8e4m3fnuz", NARROW, 3.0 / 240),
        ("float8e5m2", ABSMAX, 3.0 / 57344),
        ("float4e2m1", ABSMAX, 0.5),
        ("float4e2m1", Scheme(symmetric=True, power_of_two=True), 0.5),
        ("float8e4m3fn", Scheme(symmetric=True, power_of_two=True), 2.0**-7),
    ],
)
def test_ranges_of_float_formats(name: str, scheme: Scheme, scale: float) -> None:
    qparams = qparams_from_range(-3.0, 1.0, FORMATS[name], scheme)
    assert qparams.scale == np.float32(scale)
    assert not qparams.zero_point.astype(np.float32)


@given(st.sampled_from([f for f in FORMATS.values() if f.is_float]), floats, st.booleans())
def test_float_formats_clip_nothing_and_stay_finite(
    format: Format, end: float, power_of_two: bool
) -> None:
    scheme = Scheme(symmetric=True, power_of_two=power_of_two)
    qparams = qparams_from_range(min(end, 0), max(end, 0), format, scheme)
    assert float(qparams.scale) >= MIN_SCALE
    ends = np.array([format.qmin, format.qmax]).astype(format.storage)
    assert np.isfinite(dequantize(ends, qparams)).all()
    if MIN_SCALE * format.qmax < abs(end) < 1e38:
        mantissa = ml_dtypes.finfo(format.storage).nmant
        assert fake_quantize([end], qparams)[0] == pytest.approx(end, rel=2.0 ** -(mantissa + 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_beyond_float32_are_refused_by_name(value: float) -> None:
    w = np.array([1.0, value])
    for granularity in (PER_TENSOR, per_channel(0), per_block(0, 2)):
        with pytest.raises(InputError, match=r"'conv\.weight' holds NaN, infinity"):
            weight_qparams(w, INT8, ABSMAX, granularity, name="conv.weight")
    with pytest.raises(InputError, match="'x' holds NaN, infinity"):
        quantize(w, qparams_from_range(-1, 1, INT8, ABSMAX), name="x")


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, -1.0), (np.nan, 1.0), (0.0, np.inf), (0.0, 1e39), ([0.0], [1.0, 2.0])]
)
def test_ranges_that_are_none_are_refused_by_name(low: object, high: object) -> None:
    with pytest.raises(InputError, match="'relu_out'"):
        qparams_from_range(low, high, INT8, ABSMAX, name="relu_out")


def test_what_cannot_be_asked_for() -> None:
    w = np.ones((2, 3), np.float32)
    with pytest.raises(InputError, match="'w' has 2 axes, and none is axis 2"):
        weight_qparams(w, INT8, ABSMAX, per_channel(2), name="w")
    with pytest.raises(InputError, match="reduced_range is for 8-bit integers, not int4"):
        weight_qparams(w, INT4, Scheme(True, reduced_range=True), PER_TENSOR)
    with pytest.raises(InputError, match="int32 has no zero-point"):
        weight_qparams(w, INT32, ZERO_POINT, PER_TENSOR)
    with pytest.raises(InputError, match="block size 0"):
        per_block(0, 0)
    with pytest.raises(InputError, match="block size needs an axis"):
        Granularity(block_size=3)
    with pytest.raises(InputError, match="no numbers"):
        weight_qparams(np.array(["a"]), INT8, ABSMAX, PER_TENSOR)


def _array(value: object, dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
    return np.asarray(value, dtype)


@pytest.mark.parametrize("scale", [0.0, 1e-40, -1e-40, np.nan, -np.inf])
def test_qparams_refuse_scales_that_are_no_scales(scale: float) -> None:
    with pytest.raises(InputError, match="a scale is zero, subnormal"):
        QParams(INT8, np.float32([1.0, scale]), np.zeros(2, np.int8), 0)


@pytest.mark.parametrize(
    ("scale", "zero_point", "axis"),
    [
        (_array(1, np.float64), _array(0, np.int8), None),
        (_array(1, np.float32), _array(0, np.uint8), None),
        (_array([1, 1], np.float32), _array([0], np.int8), 0),
        (_array([1], np.float32), _array([0], np.int8), None),
        (_array(1, np.float32), _array(0, np.int8), 0),
    ],
)
def test_qparams_refuse_arrays_that_do_not_go_together(
    scale: npt.NDArray[np.float32], zero_point: npt.NDArray[np.int8], axis: int | None
) -> None:
    with pytest.raises(InputError):
        QParams(INT8, scale, zero_point, axis)


def test_equality_is_that_of_all_values() -> None:
    def make(scale: float = 1.0, zero_point: int = 0, axis: int = 0) -> QParams:
        return QParams(INT8, np.float32([scale]), np.int8([zero_point]), axis)

    assert make() == make()
    assert hash(make()) == hash(make())
    assert all(make() != other for other in (make(scale=2), make(zero_point=1), make(axis=1), "x"))


def test_opset_is_the_higher_of_format_and_granularity() -> None:
    w = np.ones((4, 4), np.float32)
    opsets = [
        weight_qparams(w, format, ABSMAX, granularity).opset
        for format in (INT8, INT4, INT2)
        for granularity in (PER_TENSOR, per_channel(0), per_block(0, 2))
    ]
    assert opsets == [10, 13, 21, 21, 21, 21, 25, 25, 25]


@given(formats, schemes, st.lists(st.tuples(floats, floats), min_size=1, max_size=5))
def test_absmax_in_float32_is_that_of_float64(
    format: Format, scheme: Scheme, ends: list[tuple[float, float]]
) -> None:
    low = np.array([min(0.0, *pair) for pair in ends], np.float32)
    high = np.array([max(0.0, *pair) for pair in ends], np.float32)
    found = absmax_scale(low, high, format, scheme)
    exact, _ = scale_from_range(low.astype(np.float64), high.astype(np.float64), format, scheme)
    if scheme.symmetric and not scheme.power_of_two and np.abs([low, high]).max() < 1e30:
        assert found is not None
    if found is not None:
        assert found.dtype == np.float32 and np.array_equal(found, exact)


@pytest.mark.parametrize(
    "bits", [0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001]
)
@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(0), per_block(1, 8)])
@pytest.mark.parametrize("axis", [0, 1])
def test_infinity_and_every_nan_is_found(bits: int, granularity: Granularity, axis: int) -> None:
    x = np.random.default_rng(0).normal(size=(16, 24)).astype(np.float32)
    x.view(np.uint32)[5, 17] = bits
    if axis:
        x = x.T
    with pytest.raises(InputError, match="tensor 'w' holds NaN, infinity"):
        weight_qparams(x, FORMATS["int4"], ABSMAX, granularity, name="w")
    with pytest.raises(InputError, match="tensor 'w' holds NaN, infinity"):
        quantize_weight(x, FORMATS["int4"], ABSMAX, granularity, name="w")

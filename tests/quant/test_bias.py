"""Biases as int32."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.quant import (
    ABSMAX,
    BIAS_LIMIT,
    INT8,
    INT32,
    MIN_SCALE,
    PER_TENSOR,
    QParams,
    Scheme,
    bias_qparams,
    dequantize,
    fake_quantize,
    per_block,
    per_channel,
    quantize,
    quantize_bias,
    weight_qparams,
    weight_qparams_for_bias,
)

scales = st.floats(2.0**-60, 2.0**60, width=32)


def _channels(scale: list[float]) -> QParams:
    return QParams(INT8, np.float32(scale), np.zeros(len(scale), np.int8), 0)


@given(scales, scales, st.floats(-(2.0**60), 2.0**60, width=32))
def test_bias_is_the_nearest_multiple_of_the_product_or_refused(
    input_scale: float, weight_scale: float, bias: float
) -> None:
    step = Fraction(float(np.float32(input_scale) * np.float32(weight_scale)))
    nearest = round(Fraction(bias) / step)  # Python rounds half to even
    if abs(nearest) > BIAS_LIMIT:
        with pytest.raises(InputError, match=r"'conv\.bias' does not fit an int32 bias"):
            quantize_bias([bias], input_scale, [weight_scale], name="conv.bias")
    else:
        q = quantize_bias([bias], input_scale, [weight_scale])
        assert q.dtype == np.int32
        # The quotient is rounded to 53 bits first, which moves ties only.
        assert abs(int(q[0]) - Fraction(bias) / step) <= Fraction(1, 2) + Fraction(1, 2**20)


@given(
    st.floats(2.0**-100, 2.0**60, width=32),
    st.lists(
        st.tuples(
            st.floats(2.0**-126, 2.0**60, width=32), st.floats(-(2.0**20), 2.0**20, width=32)
        ),
        min_size=1,
        max_size=5,
    ),
)
def test_raised_weight_scales_make_any_bias_fit(
    input_scale: float, channels: list[tuple[float, float]]
) -> None:
    weight = _channels([scale for scale, _ in channels])
    bias = np.float32([bias for _, bias in channels])
    fitted = weight_qparams_for_bias(weight, input_scale, bias)
    product = bias_qparams(input_scale, fitted.scale)
    step = product.scale.astype(np.float64)
    q = quantize_bias(bias, input_scale, fitted.scale)
    error = np.abs(dequantize(q, product).astype(np.float64) - bias)
    assert (error <= 0.5 * step + 1e-7 * np.abs(bias)).all()

    raised = fitted.scale.astype(np.float64) / weight.scale
    assert ((raised >= 1) & (np.frexp(raised)[0] == 0.5)).all()
    # Not further than needed: a quarter of a raised scale would not do.
    too_small = (np.abs(bias) > 0.24 * BIAS_LIMIT * step) | (step / 4 < MIN_SCALE)
    assert (too_small | (raised == 1)).all()


def test_limit_itself_fits_and_the_next_number_does_not() -> None:
    limit = np.float32(0.5 * BIAS_LIMIT)
    weight = _channels([0.5])
    for bias in (limit, -limit):
        assert abs(int(quantize_bias([bias], 1.0, weight.scale)[0])) == BIAS_LIMIT
        beyond = [np.nextafter(bias, np.float32(2) * bias)]
        with pytest.raises(InputError, match="does not fit"):
            quantize_bias(beyond, 1.0, weight.scale)
        assert weight_qparams_for_bias(weight, 1.0, beyond).scale == 1.0


def test_weight_that_fits_is_returned_as_it_is() -> None:
    weight = _channels([0.01, 0.02])
    assert weight_qparams_for_bias(weight, 0.05, [1.0, -1.0]) is weight


def test_dead_channel_keeps_its_bias() -> None:
    """A channel that BatchNormalization has all but zeroed, with a normal bias."""
    w = np.float32([[1e-30, -2e-30], [0.5, -0.25], [0.0, 0.0]])
    bias = np.float32([0.3, 0.1, -0.7])
    scheme = Scheme(symmetric=True, narrow_range=True)
    plain = weight_qparams(w, INT8, scheme, per_channel(0))
    with pytest.raises(InputError, match="does not fit"):
        quantize_bias(bias, 0.05, plain.scale)

    fitted = weight_qparams_for_bias(plain, 0.05, bias)
    assert fitted.scale[1] == plain.scale[1]
    back = dequantize(quantize_bias(bias, 0.05, fitted.scale), bias_qparams(0.05, fitted.scale))
    # The live channel's bias is rounded to its own step, the others' almost exactly.
    assert np.abs(back - bias)[[0, 2]].max() < 1e-7
    assert abs(back[1] - bias[1]) <= 0.05 * plain.scale[1] / 2
    assert np.abs(fake_quantize(w, fitted) - w).max() <= 0.5 * 0.5 / 127 + 1e-9


def test_one_scale_for_all_channels_is_raised_for_the_largest_bias() -> None:
    weight = weight_qparams(np.float32([[1e-12, 0.0]]), INT8, ABSMAX, PER_TENSOR)
    bias = np.float32([1e-3, -5.0, 2.0])
    fitted = weight_qparams_for_bias(weight, 1e-3, bias)
    assert fitted.scale.shape == ()
    q = quantize_bias(bias, 1e-3, fitted.scale)
    assert BIAS_LIMIT // 4 < np.abs(q).max() <= BIAS_LIMIT


def test_bias_qparams_are_the_float32_product() -> None:
    qparams = bias_qparams(np.float32(0.1), np.float32([0.3, 0.7]))
    assert qparams.format is INT32
    assert qparams.scale.tolist() == (np.float32(0.1) * np.float32([0.3, 0.7])).tolist()
    assert qparams.zero_point.tolist() == [0, 0]
    assert qparams.axis == 0
    assert bias_qparams(0.5, 0.25).axis is None
    assert quantize(np.float32([1.0]), bias_qparams(0.5, [0.25])).tolist() == [8]


@pytest.mark.parametrize("pair", [(1e-30, 1e-30), (1e30, 1e30), (1e-20, 1e-19)])
def test_products_beyond_float32_are_refused_by_name(pair: tuple[float, float]) -> None:
    with pytest.raises(InputError, match=r"'fc\.bias' cannot be an int32 bias"):
        bias_qparams(*pair, name="fc.bias")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_bias_without_a_value_is_refused_by_name(value: float) -> None:
    weight = _channels([1.0])
    with pytest.raises(InputError, match="'b' holds NaN"):
        quantize_bias([value], 1.0, weight.scale, name="b")
    with pytest.raises(InputError, match="'b' holds NaN"):
        weight_qparams_for_bias(weight, 1.0, [value], name="b")


def _blocks() -> QParams:
    return weight_qparams(np.ones((4, 4), np.float32), INT8, ABSMAX, per_block(0, 2))


@pytest.mark.parametrize(
    ("weight", "input_scale", "bias", "message"),
    [
        (_blocks(), 1.0, [1.0] * 4, "'b' cannot be an int32 bias.*per block"),
        (_channels([1.0, 1.0]), 1.0, [1.0], r"'b' has shape \(1,\)"),
        (_channels([1.0]), 1e-37, [3e38], "'b' is too large"),
    ],
)
def test_what_no_weight_scale_can_help(
    weight: QParams, input_scale: float, bias: npt.ArrayLike, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        weight_qparams_for_bias(weight, input_scale, bias, name="b")

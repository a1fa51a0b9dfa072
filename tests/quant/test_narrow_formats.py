"""Integers of 3, 5, 6 and 7 bits in the next wider type, against float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.errors import InputError
from onnxq.quant import (
    ABSMAX,
    FORMATS,
    MIN_SCALE,
    NARROW_FORMATS,
    SCALE_SEARCHES,
    ZERO_POINT,
    Format,
    Scheme,
    per_block,
    quantize_weight,
    value_range,
    weight_qparams,
)

ALL = st.sampled_from(list(NARROW_FORMATS.values()))
BLOCK = 4


@pytest.mark.parametrize("name", ["int3", "uint3", "int5", "uint5", "int6", "uint6", "int7"])
def test_they_are_part_of_the_type_that_holds_them(name: str) -> None:
    format, bits = NARROW_FORMATS[name], int(name[-1])
    (held,) = (f for f in FORMATS.values() if f.onnx_dtype == format.onnx_dtype)
    assert held.name == ("int4" if bits == 3 else "int8").rjust(len(name), "u")
    assert (format.bits, format.storage, format.opset) == (held.bits, held.storage, held.opset)
    low = -(2 ** (bits - 1)) if format.signed else 0
    assert (format.qmin, format.qmax, format.levels) == (low, low + 2**bits - 1, 2**bits)
    assert name not in FORMATS, "activations have none of them"
    with pytest.raises(InputError, match="for 8-bit integers"):
        value_range(format, Scheme(symmetric=True, reduced_range=True))


def oracle(group: np.ndarray, format: Format, scheme: Scheme) -> np.ndarray:
    """What a group of numbers dequantizes to, in float64 but for the scale."""
    x = group.astype(np.float64)
    low, high = min(x.min(), 0.0), max(x.max(), 0.0)
    middle = 0 if format.signed else format.levels // 2
    if scheme.symmetric:
        exact = max(high / (format.qmax - middle), low / (format.qmin - middle))
    else:
        exact = (high - low) / (format.levels - 1)
    scale = float(np.float32(max(exact, MIN_SCALE) if high > low else 1.0))
    zero = middle if scheme.symmetric else np.rint(format.qmin - low / scale)
    quotient = (group / np.float32(scale)).astype(np.float64)
    codes = np.clip(np.rint(quotient) + zero, format.qmin, format.qmax)
    return (codes - zero) * scale


@given(
    hnp.arrays(np.float32, (BLOCK, 3), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    ALL,
    st.sampled_from([ABSMAX, ZERO_POINT]),
)
def test_each_block_is_quantized_as_float64_does(
    x: np.ndarray, format: Format, scheme: Scheme
) -> None:
    x[0, :] = np.where(x.any(axis=0), x[0], 1)  # a block of zeros takes the scale of another
    made = quantize_weight(x, format, scheme, per_block(0, BLOCK))
    codes = made.values.astype(np.int32)
    assert codes.min() >= format.qmin and codes.max() <= format.qmax
    wanted = np.stack([oracle(column, format, scheme) for column in x.T], axis=1)
    np.testing.assert_allclose(made.dequantize(), wanted, rtol=3e-7, atol=1e-37)


@pytest.mark.parametrize("search", ["mse", "percentile", "grouped-search"])
@pytest.mark.parametrize("scheme", [ABSMAX, ZERO_POINT])
@pytest.mark.parametrize("name", ["int3", "uint6"])
def test_searches_stay_within_the_bits(name: str, scheme: Scheme, search: str) -> None:
    x = np.random.default_rng(0).standard_t(3, (64, 8)).astype(np.float32)
    format, errors = NARROW_FORMATS[name], {}
    for chosen in ("plain", search):
        made = quantize_weight(x, format, scheme, per_block(0, 32), search=SCALE_SEARCHES[chosen])
        codes = made.values.astype(np.int32)
        assert codes.min() >= format.qmin and codes.max() <= format.qmax
        errors[chosen] = np.square(made.dequantize() - x).sum()
    assert search != "mse" or errors["mse"] < errors["plain"]
    plain = weight_qparams(x, format, scheme, per_block(0, 32))
    assert plain.bounds == (format.qmin, format.qmax)

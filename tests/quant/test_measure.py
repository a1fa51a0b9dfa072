"""Measured error against closed forms and exact sums."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.quant import (
    ABSMAX,
    INT4,
    INT8,
    INT16,
    PER_TENSOR,
    Format,
    QParams,
    fake_quantize,
    per_channel,
    quantization_error,
    weight_qparams,
)


@given(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20))
def test_sums_are_those_of_exact_arithmetic(values: list[float]) -> None:
    x = np.float32(values)
    qparams = weight_qparams(x, INT4, ABSMAX, PER_TENSOR)
    errors = [
        Fraction(float(a)) - Fraction(float(b))
        for a, b in zip(x, fake_quantize(x, qparams), strict=True)
    ]
    noise = sum(error * error for error in errors)
    measured = quantization_error(x, qparams)
    assert measured.mse == pytest.approx(float(noise / len(values)), rel=1e-9)
    if noise:
        ratio = sum(Fraction(float(a)) ** 2 for a in x) / noise
        assert measured.sqnr_db == pytest.approx(10 * math.log10(ratio), abs=1e-6)
    else:
        assert measured.sqnr_db == math.inf


@pytest.mark.parametrize(("format", "bits"), [(INT8, 8), (INT16, 16)])
def test_uniform_values_lose_a_twelfth_of_a_squared_step(format: Format, bits: int) -> None:
    x = np.random.default_rng(0).uniform(-1, 1, 200_000).astype(np.float32)
    qparams = weight_qparams(x, format, ABSMAX, PER_TENSOR)
    measured = quantization_error(x, qparams)
    assert measured.mse == pytest.approx(float(qparams.scale) ** 2 / 12, rel=0.02)
    assert measured.sqnr_db == pytest.approx(20 * math.log10(2) * bits, abs=0.15)


def test_large_values_and_zeros() -> None:
    large = np.float32([3e38, -1e38, 1.0])
    measured = quantization_error(large, weight_qparams(large, INT8, ABSMAX, PER_TENSOR))
    assert math.isfinite(measured.mse)
    assert 40 < measured.sqnr_db < 60
    for x in (np.zeros(5, np.float32), np.zeros(0, np.float32)):
        nothing = quantization_error(x, weight_qparams(x, INT8, ABSMAX, PER_TENSOR))
        assert (nothing.mse, nothing.sqnr_db) == (0.0, math.inf)


def test_channels_have_their_own_scale_and_names_are_given() -> None:
    x = np.float32([[127.0, 3.0], [1.27, 0.03]])
    assert quantization_error(x, weight_qparams(x, INT8, ABSMAX, per_channel(0))).mse < 1e-12
    assert quantization_error(x, weight_qparams(x, INT8, ABSMAX, PER_TENSOR)).mse > 1e-3
    qparams = QParams(INT8, np.asarray(1, np.float32), np.asarray(0, np.int8))
    with pytest.raises(InputError, match="'act' holds NaN"):
        quantization_error([1.0, math.nan], qparams, name="act")

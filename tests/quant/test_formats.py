"""Formats against ml_dtypes' own limits and ONNX's operator schemas."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxq.quant import FORMATS, Format, Granularity
from onnxq.quant._rounding import from_storage, round_to, to_storage

FLOATS = [format for format in FORMATS.values() if format.is_float]


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS.keys())
def test_limits_and_storage_are_those_of_the_dtype(format: Format) -> None:
    info = (ml_dtypes.finfo if format.is_float else ml_dtypes.iinfo)(format.storage)
    assert (format.qmin, format.qmax, format.bits) == (info.min, info.max, info.bits)
    assert format.signed == (info.min < 0)
    assert onnx.helper.tensor_dtype_to_np_dtype(format.onnx_dtype) == format.storage
    assert onnx.TensorProto.DataType.Name(format.onnx_dtype).lower() == format.name


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS.keys())
def test_opset_is_the_lowest_whose_schema_has_the_type(format: Format) -> None:
    def taken(opset: int) -> bool:
        schema = onnx.defs.get_schema("DequantizeLinear", opset)
        return f"tensor({format.name})" in schema.type_constraints[0].allowed_type_strs

    assert format.opset == min(opset for opset in range(10, 27) if taken(opset))


def test_granularity_opset_follows_the_attributes() -> None:
    def first_with(attribute: str) -> int:
        return next(
            opset
            for opset in range(10, 27)
            if attribute in onnx.defs.get_schema("QuantizeLinear", opset).attributes
        )

    assert Granularity().opset == 10
    assert Granularity(axis=1).opset == first_with("axis")
    assert Granularity(axis=1, block_size=32).opset == first_with("block_size")


def test_float_formats_are_those_of_onnx() -> None:
    floating = {name: format.qmax for name, format in FORMATS.items() if format.is_float}
    assert floating == {
        "float8e4m3fn": 448,
        "float8e4m3fnuz": 240,
        "float8e5m2": 57344,
        "float8e5m2fnuz": 57344,
        "float4e2m1": 6,
    }


@pytest.mark.parametrize("format", FLOATS, ids=lambda format: format.name)
def test_rounding_and_codes_are_those_of_ml_dtypes(format: Format) -> None:
    """Every float32 with 9 bits of mantissa, its neighbours, and random ones."""
    upper = np.arange(1 << 17, dtype=np.uint32) << 15
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint32)
    x = np.concatenate([upper, upper + 1, upper - 1, random]).view(np.float32)
    x = x[np.isfinite(x)]
    x = np.clip(x, format.qmin, format.qmax)
    expected = x.astype(format.storage)
    rounded = x.copy()
    round_to(rounded, format)
    np.testing.assert_array_equal(rounded, expected.astype(np.float32))
    codes = to_storage(rounded, format)
    assert codes.dtype == format.storage
    np.testing.assert_array_equal(codes.view(np.uint8), expected.view(np.uint8))


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS.keys())
def test_values_of_all_codes(format: Format) -> None:
    if format.is_float:
        codes = np.arange(1 << format.bits, dtype=np.uint8).view(format.storage)
    else:
        low, high = max(int(format.qmin), -40000), min(int(format.qmax), 70000)
        codes = np.arange(low, high + 1).astype(format.storage)
    values = from_storage(codes, format)
    np.testing.assert_array_equal(values, codes.astype(np.float32))
    known = np.isfinite(values)
    assert known.sum() >= min(1 << format.bits, 1 << 16) - 8
    back = to_storage(values[known], format)
    np.testing.assert_array_equal(back.view(np.uint8), codes[known].view(np.uint8))


def test_formats_are_values_that_can_be_keys() -> None:
    assert {FORMATS["int8"]: 1}[replace(FORMATS["int8"])] == 1
    assert FORMATS["int4"].storage == np.dtype(ml_dtypes.int4)

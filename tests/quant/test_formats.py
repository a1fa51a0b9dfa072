"""Formats against ml_dtypes' own limits and ONNX's operator schemas."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxq.errors import InputError
from onnxq.quant import FORMATS, Format, Granularity, format_of


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS.keys())
def test_limits_and_storage_are_those_of_the_dtype(format: Format) -> None:
    info = ml_dtypes.iinfo(format.storage)
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


def test_format_of_finds_every_format_by_its_element_type() -> None:
    for format in FORMATS.values():
        assert format_of(onnx.helper.np_dtype_to_tensor_dtype(format.storage)) is format


def test_format_of_names_the_type_it_does_not_know() -> None:
    with pytest.raises(InputError, match="STRING is not a format"):
        format_of(onnx.TensorProto.STRING)
    with pytest.raises(InputError, match="4711 is not a format"):
        format_of(4711)


def test_formats_are_values_that_can_be_keys() -> None:
    assert {FORMATS["int8"]: 1}[format_of(onnx.TensorProto.INT8)] == 1
    assert FORMATS["int4"].storage == np.dtype(ml_dtypes.int4)

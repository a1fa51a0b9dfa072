"""Stored integers and real values, bit for bit against onnx.reference and onnxruntime."""

from __future__ import annotations

from functools import lru_cache

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from onnxq.errors import InputError
from onnxq.quant import (
    ABSMAX,
    FORMATS,
    INT8,
    INT32,
    PER_TENSOR,
    UINT8,
    UINT16,
    ZERO_POINT,
    Format,
    Granularity,
    QParams,
    Scheme,
    dequantize,
    fake_quantize,
    format_of,
    per_block,
    per_channel,
    quantize,
    weight_qparams,
)

INTEGERS = [format for format in FORMATS.values() if format.bits < 32]

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
schemes = st.builds(
    Scheme, symmetric=st.booleans(), narrow_range=st.booleans(), power_of_two=st.booleans()
)


@lru_cache
def _model(op_type: str, onnx_dtype: int, granularity: Granularity) -> onnx.ModelProto:
    """Model of one operator, at the lowest opset that has format and granularity.

    But at least 19: onnx.reference has no DequantizeLinear before that.
    """
    source, target = TensorProto.FLOAT, onnx_dtype
    if op_type == "DequantizeLinear":
        source, target = target, source
    attributes = {"axis": granularity.axis, "block_size": granularity.block_size}
    node = helper.make_node(
        op_type,
        ["x", "scale", "zero_point"],
        ["y"],
        **{key: value for key, value in attributes.items() if value is not None},
    )
    graph = helper.make_graph(
        [node],
        op_type,
        [
            helper.make_tensor_value_info("x", source, None),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("zero_point", onnx_dtype, None),
        ],
        [helper.make_tensor_value_info("y", target, None)],
    )
    opset = max(format_of(onnx_dtype).opset, granularity.opset, 19)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@lru_cache
def _reference(op_type: str, onnx_dtype: int, granularity: Granularity) -> ReferenceEvaluator:
    return ReferenceEvaluator(_model(op_type, onnx_dtype, granularity))


def _run_reference(
    op_type: str, x: npt.NDArray[np.generic], qparams: QParams
) -> npt.NDArray[np.generic]:
    evaluator = _reference(op_type, qparams.format.onnx_dtype, qparams.granularity)
    feeds = {"x": x, "scale": qparams.scale, "zero_point": qparams.zero_point}
    return evaluator.run(None, feeds)[0]


def _run_onnxruntime(
    op_type: str, x: npt.NDArray[np.generic], qparams: QParams
) -> npt.NDArray[np.generic]:
    model = _model(op_type, qparams.format.onnx_dtype, qparams.granularity)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    feeds = {"x": x, "scale": qparams.scale, "zero_point": qparams.zero_point}
    return session.run(None, feeds)[0]


def _assert_same(actual: npt.NDArray[np.generic], expected: npt.NDArray[np.generic]) -> None:
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    assert actual.tobytes() == expected.tobytes()


def _assert_as_reference(x: npt.NDArray[np.float32], qparams: QParams) -> None:
    q = quantize(x, qparams)
    _assert_same(q, _run_reference("QuantizeLinear", x, qparams))
    back = dequantize(q, qparams)
    _assert_same(back, _run_reference("DequantizeLinear", q, qparams))
    _assert_same(fake_quantize(x, qparams), back)


def _granularities(draw: st.DrawFn, shape: tuple[int, ...]) -> Granularity:
    if not shape or draw(st.booleans()):
        return PER_TENSOR
    axis = draw(st.integers(0, len(shape) - 1))
    if draw(st.booleans()):
        return per_channel(axis)
    return per_block(axis, draw(st.integers(1, shape[axis] + 1)))


@st.composite
def _tensors(draw: st.DrawFn) -> tuple[npt.NDArray[np.float32], Granularity]:
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=6))
    x = draw(hnp.arrays(np.float32, shape, elements=floats))
    return x, _granularities(draw, shape)


@given(_tensors(), st.sampled_from(INTEGERS), schemes)
def test_a_tensor_with_its_own_qparams(
    tensor: tuple[npt.NDArray[np.float32], Granularity], format: Format, scheme: Scheme
) -> None:
    x, granularity = tensor
    _assert_as_reference(x, weight_qparams(x, format, scheme, granularity))


@pytest.mark.parametrize("format", INTEGERS, ids=lambda format: format.name)
@pytest.mark.parametrize(
    "granularity", [PER_TENSOR, per_channel(1), per_block(1, 4), per_block(2, 5)], ids=str
)
@pytest.mark.parametrize("scheme", [ABSMAX, ZERO_POINT], ids=str)
def test_larger_tensors(format: Format, granularity: Granularity, scheme: Scheme) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((3, 8, 33)) * np.exp(rng.standard_normal((1, 8, 1)))).astype(
        np.float32
    )
    x[0, 0, 0] = 1e4
    _assert_as_reference(x, weight_qparams(x, format, scheme, granularity))


@given(
    st.sampled_from(INTEGERS),
    st.floats(2.0**-100, 2.0**90, width=32),
    st.data(),
)
def test_any_qparams_and_values_out_of_range(
    format: Format, scale: float, data: st.DataObject
) -> None:
    zero_point = data.draw(st.integers(format.qmin, format.qmax))
    steps = data.draw(hnp.arrays(np.float64, 8, elements=st.floats(-1e6, 1e6, width=64)))
    # Halves: ties between two integers, whose rounding differs between methods.
    steps[:4] = np.round(steps[:4]) + 0.5
    qparams = QParams(
        format, np.asarray(scale, np.float32), np.array(zero_point).astype(format.storage)
    )
    _assert_as_reference((steps * scale).astype(np.float32), qparams)


def test_ties_go_to_the_even_integer_before_the_zero_point_is_added() -> None:
    qparams = QParams(UINT8, np.asarray(0.5, np.float32), np.asarray(3, np.uint8))
    x = np.array([-0.75, -0.25, 0.25, 0.75, 1.25], np.float32)
    assert quantize(x, qparams).tolist() == [1, 3, 3, 5, 5]


def test_quotients_are_float32() -> None:
    # 4.5 in float32, which rounds to 4; a quotient in float64 is above it and rounds to 5.
    x, scale = np.float32(0.45000002), np.float32(0.1)
    assert np.rint(np.float64(x) / np.float64(scale)) == 5
    qparams = QParams(INT8, np.asarray(scale), np.asarray(0, np.int8))
    assert quantize(x, qparams) == 4


@pytest.mark.parametrize("format", [INT8, UINT8, UINT16], ids=lambda format: format.name)
def test_quotients_beyond_32_bits_saturate_as_in_onnxruntime(format: Format) -> None:
    qparams = QParams(format, np.asarray(1e-30, np.float32), np.zeros((), format.storage))
    x = np.array([1e38, -1e38, 1e-20, 3.0, -3.0, 0.0], np.float32)
    high, low = format.qmax, format.qmin
    assert quantize(x, qparams).tolist() == [high, low, high, high, low, 0]
    _assert_same(quantize(x, qparams), _run_onnxruntime("QuantizeLinear", x, qparams))


@pytest.mark.parametrize(
    "granularity", [PER_TENSOR, per_channel(1), per_block(1, 4), per_block(1, 5)], ids=str
)
@pytest.mark.parametrize("name", ["int8", "uint8", "int16", "uint16", "int4", "uint4"])
def test_onnxruntime_gives_the_same(name: str, granularity: Granularity) -> None:
    x = np.random.default_rng(1).standard_normal((6, 16)).astype(np.float32)
    qparams = weight_qparams(x, FORMATS[name], ZERO_POINT, granularity)
    q = quantize(x, qparams)
    if FORMATS[name].bits >= 8:  # its Python interface cannot return arrays below 8 bits
        _assert_same(q, _run_onnxruntime("QuantizeLinear", x, qparams))
        _assert_same(dequantize(q, qparams), _run_onnxruntime("DequantizeLinear", q, qparams))
    else:
        _assert_same(q, _run_reference("QuantizeLinear", x, qparams))


def test_noncontiguous_and_read_only_arrays() -> None:
    x = np.random.default_rng(2).standard_normal((8, 12)).astype(np.float32)[::2].T
    x.flags.writeable = False
    before = x.copy()
    for granularity in (PER_TENSOR, per_channel(0), per_block(0, 4), per_block(0, 5)):
        _assert_as_reference(x, weight_qparams(x, INT8, ABSMAX, granularity))
    np.testing.assert_array_equal(x, before)


def test_int32_is_exact_where_float32_is_not() -> None:
    qparams = QParams(INT32, np.asarray(1.0, np.float32), np.asarray(0, np.int32))
    x = np.array([2**31, -(2**31), 2**24 + 2, 0.5, 1.5], np.float32)
    assert quantize(x, qparams).tolist() == [2**31 - 1, -(2**31), 2**24 + 2, 0, 2]
    q = np.array([2**31 - 1, 2**24 + 1, -7], np.int32)
    _assert_same(dequantize(q, qparams), _run_reference("DequantizeLinear", q, qparams))


def test_shapes_and_dtypes_that_do_not_fit_are_named() -> None:
    x = np.ones((4, 6), np.float32)
    by_row = weight_qparams(x, INT8, ABSMAX, per_channel(0))
    with pytest.raises(InputError, match=r"'w' has shape \(6, 4\), which needs a scale of shape"):
        quantize(x.T, by_row, name="w")
    by_block = weight_qparams(x, INT8, ABSMAX, per_block(1, 4))
    with pytest.raises(InputError, match=r"'w' has shape \(4, 9\).*\(4, 3\).*\(4, 2\)"):
        quantize(np.ones((4, 9)), by_block, name="w")
    with pytest.raises(InputError, match="'w' has 1 axes, and none is axis 1"):
        quantize(np.ones(4), by_block, name="w")
    with pytest.raises(InputError, match="'w' holds uint8, but its format is int8"):
        dequantize(np.ones((4, 6), np.uint8), by_row, name="w")
    with pytest.raises(InputError, match="'w' holds int8, but its format is int4"):
        dequantize(
            np.ones(2, np.int8), weight_qparams(x, FORMATS["int4"], ABSMAX, PER_TENSOR), name="w"
        )


def test_storage_below_8_bits_is_that_of_ml_dtypes() -> None:
    x = np.array([-8.0, 7.0, 3.4], np.float32)
    q = quantize(x, weight_qparams(x, FORMATS["int4"], ABSMAX, PER_TENSOR))
    assert q.dtype == np.dtype(ml_dtypes.int4)
    assert q.astype(int).tolist() == [-8, 7, 3]

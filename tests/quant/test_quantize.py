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
    per_block,
    per_channel,
    quantize,
    quantize_weight,
    weight_qparams,
)
from onnxq.quant import qparams as qparams_module

FORMATS_OF_QUANTIZE = [format for format in FORMATS.values() if format is not INT32]
FLOATS = [format for format in FORMATS.values() if format.is_float]

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


def _schemes_of(format: Format) -> list[Scheme]:
    """Every scheme that the format can have."""
    return [
        Scheme(symmetric, narrow_range, power_of_two, reduced_range)
        for symmetric in (True, False)[: 1 if format.is_float else 2]
        for narrow_range in (False, True)
        for power_of_two in (False, True)
        for reduced_range in (False, True)[: 2 if format.name in ("int8", "uint8") else 1]
    ]


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
    (format,) = (f for f in FORMATS.values() if f.onnx_dtype == onnx_dtype)
    opset = max(format.opset, granularity.opset, 19)
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
    if qparams.scale.size:  # without any, onnx.reference fails in float formats
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


@given(_tensors(), st.sampled_from(FORMATS_OF_QUANTIZE), st.data())
def test_a_tensor_with_its_own_qparams(
    tensor: tuple[npt.NDArray[np.float32], Granularity], format: Format, data: st.DataObject
) -> None:
    x, granularity = tensor
    scheme = data.draw(st.sampled_from(_schemes_of(format)))
    qparams = weight_qparams(x, format, scheme, granularity)
    _assert_as_reference(x, qparams)
    made = quantize_weight(x, format, scheme, granularity)
    assert made.qparams == qparams
    _assert_same(made.values, quantize(x, qparams))


def _extremes() -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float32)
    outlier = random.copy()
    outlier[1, 2] = -1e6
    return {
        "random": random,
        "all zero": np.zeros((3, 7), np.float32),
        "one value": np.full((3, 7), -0.3, np.float32),
        "denormal": (random * 1e-40).astype(np.float32),
        "1e38": np.sign(random) * np.float32(1e38),
        "largest": np.clip(random, -1, 1) * np.finfo(np.float32).max,
        "one outlier": outlier,
        "one row of zeros": random * np.float32([[1], [0], [1]]),
        "empty": np.zeros((3, 0), np.float32),
        "one element": np.full((1, 1), 0.7, np.float32),
    }


@pytest.mark.parametrize("format", FORMATS_OF_QUANTIZE, ids=lambda format: format.name)
def test_every_scheme_and_granularity_on_extreme_tensors(format: Format) -> None:
    granularities = [
        PER_TENSOR,
        per_channel(0),
        per_channel(1),
        per_block(0, 2),
        per_block(1, 3),
        per_block(1, 7),
    ]
    for x in _extremes().values():
        for scheme in _schemes_of(format):
            for granularity in granularities:
                _assert_as_reference(x, weight_qparams(x, format, scheme, granularity))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("format", FORMATS_OF_QUANTIZE, ids=lambda format: format.name)
def test_no_number_is_refused_by_name(format: Format, value: float) -> None:
    qparams = weight_qparams(np.float32([1, 2]), format, ABSMAX, PER_TENSOR)
    with pytest.raises(InputError, match=r"'layer\.weight' holds NaN, infinity"):
        quantize(np.float32([1, value]), qparams, name="layer.weight")


@pytest.mark.parametrize("format", FORMATS_OF_QUANTIZE, ids=lambda format: format.name)
@pytest.mark.parametrize(
    "granularity", [PER_TENSOR, per_channel(1), per_block(1, 4), per_block(2, 5)], ids=str
)
def test_larger_tensors(format: Format, granularity: Granularity) -> None:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((3, 8, 33)) * np.exp(rng.standard_normal((1, 8, 1)))).astype(
        np.float32
    )
    x[0, 0, 0] = 1e4
    for scheme in _schemes_of(format):
        _assert_as_reference(x, weight_qparams(x, format, scheme, granularity))


@given(
    st.sampled_from(FORMATS_OF_QUANTIZE),
    st.floats(2.0**-100, 2.0**90, width=32),
    st.data(),
)
def test_any_qparams_and_values_out_of_range(
    format: Format, scale: float, data: st.DataObject
) -> None:
    lowest, highest = (0, 0) if format.is_float else (int(format.qmin), int(format.qmax))
    zero_point = data.draw(st.integers(lowest, highest))
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


@pytest.mark.parametrize("format", FLOATS, ids=lambda format: format.name)
def test_float_formats_saturate_and_round_ties_to_even(format: Format) -> None:
    qparams = QParams(format, np.asarray(0.5, np.float32), np.zeros((), format.storage))
    top = format.qmax / 2
    x = np.array([1e38, -1e38, top * 1.01, 1.25, 1.5, -0.0, -1e-30, 0.0], np.float32)
    back = fake_quantize(x, qparams)
    assert back[:3].tolist() == [top, -top, top]
    _assert_as_reference(x, qparams)
    tiny = QParams(format, np.asarray(1e-37, np.float32), np.zeros((), format.storage))
    _assert_as_reference(np.array([3e38, -3e38], np.float32), tiny)  # infinite quotients


@pytest.mark.parametrize("granularity", [PER_TENSOR, per_channel(1), per_block(1, 4)], ids=str)
@pytest.mark.parametrize("format", [f for f in FLOATS if f.bits == 8], ids=lambda f: f.name)
def test_float8_is_that_of_onnxruntime(format: Format, granularity: Granularity) -> None:
    x = (np.random.default_rng(1).standard_normal((6, 16)) ** 5).astype(np.float32)
    qparams = weight_qparams(x / 4, format, ABSMAX, granularity)
    _assert_same(fake_quantize(x, qparams), _round_trip_in_onnxruntime(x, qparams))


def _round_trip_in_onnxruntime(
    x: npt.NDArray[np.float32], qparams: QParams
) -> npt.NDArray[np.generic]:
    quantizing = _model("QuantizeLinear", qparams.format.onnx_dtype, qparams.granularity)
    node = helper.make_node("DequantizeLinear", ["y", "scale", "zero_point"], ["back"])
    node.attribute.extend(quantizing.graph.node[0].attribute)
    model = onnx.ModelProto()
    model.CopyFrom(quantizing)
    zero_point = onnx.numpy_helper.from_array(qparams.zero_point, "zero_point")
    del model.graph.input[2:]
    model.graph.initializer.append(zero_point)
    model.graph.node.append(node)
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("back", TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": x, "scale": qparams.scale})[0]


def test_limits_are_kept_beside_those_of_the_format() -> None:
    one, zero = np.asarray(1.0, np.float32), np.asarray(0, np.int8)
    x = np.float32([-200, -128, -127, 5, 127, 200])
    limited = QParams(INT8, one, zero, limits=(-127, 100))
    assert quantize(x, limited).tolist() == [-127, -127, -127, 5, 100, 100]
    assert limited != QParams(INT8, one, zero)
    assert QParams(INT8, one, zero, limits=(-128, 127)) == QParams(INT8, one, zero)
    for limits in [(-129, 127), (3, 3)]:
        with pytest.raises(InputError, match="are none within format int8"):
            QParams(INT8, one, zero, limits=limits)


@pytest.mark.parametrize("format", FLOATS, ids=lambda format: format.name)
def test_float_formats_have_no_zero_point(format: Format) -> None:
    with pytest.raises(InputError, match=f"{format.name} has no zero-point"):
        QParams(format, np.asarray(1, np.float32), np.ones((), format.storage))
    with pytest.raises(InputError, match=f"{format.name} has no zero-point; use the absmax"):
        weight_qparams([1.0], format, ZERO_POINT, PER_TENSOR)
    with pytest.raises(InputError, match="reduced_range is for 8-bit integers"):
        weight_qparams([1.0], format, Scheme(True, reduced_range=True), PER_TENSOR)


@pytest.mark.parametrize(
    "shape",
    [(3, 40000), (40000, 3), (5, 300, 70), (100000,), (2, 3, 33, 500)],
    ids=str,
)
@pytest.mark.parametrize("format", [INT8, FORMATS["uint4"], FORMATS["float8e4m3fn"]], ids=str)
def test_tensors_larger_than_what_is_worked_on_at_a_time(
    shape: tuple[int, ...], format: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qparams_module, "WIDE_PIECE", 1 << 14)
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    scheme = ABSMAX if format.is_float else ZERO_POINT
    axis = len(shape) - 1
    for granularity in (PER_TENSOR, per_channel(0), per_channel(axis), per_block(axis, 32)):
        qparams = weight_qparams(x, format, scheme, granularity)
        _assert_as_reference(x, qparams)
        _assert_same(quantize_weight(x, format, scheme, granularity).values, quantize(x, qparams))


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

"""Grouped formats, bit for bit against the gguf package."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx.helper
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto

from onnxq.errors import InputError
from onnxq.quant import (
    GROUPED_TYPES,
    INT8,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    UINT4,
    GroupedTensor,
    GroupedType,
    grouped_quantize,
    grouped_to_onnx,
    is_exact_in_onnx,
    quantize,
)

gguf = pytest.importorskip("gguf")

Values = npt.NDArray[np.float32]
types = st.sampled_from(list(GROUPED_TYPES.values()))
each_type = pytest.mark.parametrize("type", GROUPED_TYPES.values(), ids=GROUPED_TYPES.keys())
WITHOUT_MINIMUM = [type for type in GROUPED_TYPES.values() if not type.has_minimum]
WITH_MINIMUM = [type for type in GROUPED_TYPES.values() if type.has_minimum]


def _theirs(x: Values, type: GroupedType) -> npt.NDArray[np.uint8]:
    # Scales below float16's smallest are rounded to 0 there with a warning from numpy.
    with np.errstate(all="ignore"):
        return gguf.quants.quantize(x, gguf.GGMLQuantizationType[type.name])


def _theirs_back(data: npt.NDArray[np.uint8], type: GroupedType) -> Values:
    return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[type.name])


def _assert_as_gguf(x: Values, type: GroupedType) -> None:
    ours = grouped_quantize(x, type)
    data = _theirs(x, type)
    assert ours.to_bytes().shape == data.shape
    assert ours.to_bytes().tobytes() == data.tobytes()
    back = _theirs_back(data, type)
    assert ours.dequantize().tobytes() == back.tobytes()
    assert ours.dequantize().shape == x.shape
    read = GroupedTensor.from_bytes(data, type)
    assert read.codes.dtype == ours.codes.dtype
    assert read.to_bytes().tobytes() == data.tobytes()
    assert read.dequantize().tobytes() == back.tobytes()


@given(
    types,
    hnp.arrays(np.float32, (2, 64), elements=st.floats(-(2.0**14), 2.0**14, width=32)),
    st.sampled_from([1.0, 1e-3, 1e-6, 3.0]),
)
def test_bytes_and_values_are_those_of_gguf(type: GroupedType, x: Values, factor: float) -> None:
    x = (x * np.float32(factor)).astype(np.float32)
    # Below, the reciprocal of the scale overflows, and theirs is undefined.
    _assert_as_gguf(np.where(np.abs(x) < 1e-30, np.float32(0), x), type)


@each_type
@pytest.mark.parametrize("shape", [(32,), (0, 32), (3, 0), (2, 3, 96), (700, 320)], ids=str)
def test_shapes(type: GroupedType, shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    if x.size:
        _assert_as_gguf(x, type)
    ours = grouped_quantize(x, type)
    assert ours.codes.shape == ours.dequantize().shape == shape
    assert ours.to_bytes().size == x.size // 32 * type.group_bytes


@each_type
def test_ties_zeros_and_equal_magnitudes(type: GroupedType) -> None:
    half_steps = np.arange(-16, 16, dtype=np.float32) / 2
    x = np.stack(
        [
            np.zeros(32, np.float32),
            half_steps,
            half_steps[::-1],
            np.tile(np.float32([-2, 2]), 16),
            np.tile(np.float32([2, -2]), 16),
            np.full(32, 0.7, np.float32),
            np.full(32, -0.7, np.float32),
            np.eye(32, dtype=np.float32)[5],
        ]
    )
    _assert_as_gguf(x, type)


@each_type
def test_blocks_take_the_bytes_that_gguf_says(type: GroupedType) -> None:
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[type.name]]
    assert size == (32, type.group_bytes)


def _weights(seed: int = 1) -> Values:
    x = np.random.default_rng(seed).standard_normal((40, 96)).astype(np.float32)
    x[3] = 0
    x[4, :32] = -0.25
    x[5] *= 1e-9  # the scale becomes 0 in float16
    return x


@pytest.mark.parametrize("type", WITHOUT_MINIMUM, ids=lambda type: type.name)
def test_types_without_a_minimum_are_exact_in_onnx(type: GroupedType) -> None:
    ours = grouped_quantize(_weights(), type)
    assert is_exact_in_onnx(ours)
    mapped = grouped_to_onnx(ours)
    assert mapped.qparams.format is (UINT4 if type is Q4_0 else INT8)
    assert (mapped.qparams.axis, mapped.qparams.block_size) == (1, 32)
    np.testing.assert_array_equal(mapped.dequantize(), ours.dequantize())
    np.testing.assert_array_equal(mapped.dequantize(), _theirs_back(ours.to_bytes(), type))
    again = quantize(mapped.dequantize(), mapped.qparams)
    np.testing.assert_array_equal(again, mapped.values)


def test_q4_0_has_zero_point_8_or_turned_around_7() -> None:
    x = np.stack([np.linspace(-8, 7, 32), np.linspace(-7, 8, 32)]).astype(np.float32)
    ours = grouped_quantize(x, Q4_0)
    assert ours.scale.tolist() == [[1.0], [-1.0]]
    mapped = grouped_to_onnx(ours)
    assert mapped.qparams.zero_point.astype(int).tolist() == [[8], [7]]
    assert mapped.qparams.scale.tolist() == [[1.0], [1.0]]
    np.testing.assert_array_equal(mapped.values[0].astype(int), ours.codes[0])
    np.testing.assert_array_equal(mapped.values[1].astype(int), 15 - ours.codes[1])


@pytest.mark.parametrize("type", [Q5_0, Q8_0], ids=lambda type: type.name)
def test_negative_scales_read_from_a_file(type: GroupedType) -> None:
    rng = np.random.default_rng(2)
    data = rng.integers(0, 256, (500, 4 * type.group_bytes), dtype=np.uint8)
    blocks = data.reshape(-1, type.group_bytes)
    blocks[:, :2] = rng.standard_normal(len(blocks)).astype(np.float16)[:, None].view(np.uint8)
    ours = GroupedTensor.from_bytes(data, type)
    assert (ours.scale < 0).any() and (ours.codes == (0 if type is Q5_0 else -128)).any()
    np.testing.assert_array_equal(grouped_to_onnx(ours).dequantize(), _theirs_back(data, type))


@pytest.mark.parametrize("type", WITH_MINIMUM, ids=lambda type: type.name)
def test_minimums_are_not_exact_in_onnx(type: GroupedType) -> None:
    ours = grouped_quantize(_weights(), type)
    assert not is_exact_in_onnx(ours)
    with pytest.raises(InputError, match=rf"'w' of type {type.name} has blocks whose minimum"):
        grouped_to_onnx(ours, name="w")


@pytest.mark.parametrize("type", WITH_MINIMUM, ids=lambda type: type.name)
@settings(max_examples=50)
@given(data=st.data())
def test_minimums_that_are_whole_steps_are_exact(type: GroupedType, data: st.DataObject) -> None:
    furthest = data.draw(st.sampled_from([15, 90, 127, 128]))
    steps = data.draw(
        hnp.arrays(np.int64, (3, 2), elements=st.integers(-15, 0) | st.integers(-furthest, 20))
    )
    exponents = data.draw(hnp.arrays(np.int64, (3, 2), elements=st.integers(-8, 3)))
    signs = data.draw(hnp.arrays(np.int64, (3, 2), elements=st.sampled_from([-1, 0, 1])))
    scale = signs * 2.0**exponents
    minimum = np.where(signs == 0, steps, steps * scale).astype(np.float16)
    codes = data.draw(hnp.arrays(np.uint8, (3, 64), elements=st.integers(0, (1 << type.bits) - 1)))
    ours = GroupedTensor(type, codes, scale.astype(np.float16), minimum)
    away = np.where(signs == 0, 0, -steps)
    fits = np.maximum(np.abs(away), np.abs((1 << type.bits) - 1 - away)).max() <= 127
    assert is_exact_in_onnx(ours) == fits
    if fits:
        mapped = grouped_to_onnx(ours)
        np.testing.assert_array_equal(mapped.dequantize(), ours.dequantize())
        np.testing.assert_array_equal(ours.dequantize(), _theirs_back(ours.to_bytes(), type))
        small = type is Q4_1 and away.min() >= 0 and away.max() <= 15
        assert mapped.qparams.format is (UINT4 if small else INT8)


@pytest.mark.parametrize(("steps", "exact"), [(127, True), (128, False), (-96, True), (-97, False)])
def test_minimums_beyond_what_int8_holds(steps: int, exact: bool) -> None:
    codes = np.arange(32, dtype=np.uint8)
    minimum = np.float16([-steps / 4])
    ours = GroupedTensor(Q5_1, codes, np.float16([0.25]), minimum)
    assert is_exact_in_onnx(ours) == exact
    if exact:
        np.testing.assert_array_equal(grouped_to_onnx(ours).dequantize(), ours.dequantize())


def test_onnxruntime_gives_the_values_of_gguf() -> None:
    ours = grouped_quantize(_weights(), Q4_0)
    mapped = grouped_to_onnx(ours)
    qparams = mapped.qparams
    arrays = {"q": mapped.values, "scale": qparams.scale, "zero_point": qparams.zero_point}
    node = onnx.helper.make_node("DequantizeLinear", list(arrays), ["y"], axis=1, block_size=32)
    graph = onnx.helper.make_graph(
        [node],
        "g",
        [],
        [onnx.helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [onnx.helper.make_opsetid("", qparams.opset)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    np.testing.assert_array_equal(session.run(None, {})[0], _theirs_back(ours.to_bytes(), Q4_0))


@each_type
def test_tiny_values_become_zeros(type: GroupedType) -> None:
    for factor in (1e-20, 1e-38, 1e-42):
        x = (np.linspace(-1, 1, 32) * factor).astype(np.float32)
        assert not grouped_quantize(x, type).dequantize().any()


@each_type
def test_what_cannot_be_asked_for(type: GroupedType) -> None:
    with pytest.raises(InputError, match=rf"'w' has shape \(3, 33\), but {type.name} needs"):
        grouped_quantize(np.ones((3, 33)), type, name="w")
    with pytest.raises(InputError, match=r"'w' has shape \(\)"):
        grouped_quantize(1.0, type, name="w")
    with pytest.raises(InputError, match="'w' holds NaN"):
        grouped_quantize(np.full(32, np.nan), type, name="w")
    large = np.linspace(-3e38, 3e38, 32, dtype=np.float32)
    for x in (large, large[::-1].copy()):
        with pytest.raises(InputError, match=f"'w' holds values too large for {type.name}"):
            grouped_quantize(x, type, name="w")
    with pytest.raises(InputError, match="'w' holds rows of 33 bytes"):
        GroupedTensor.from_bytes(np.zeros((2, 33), np.uint8), type, name="w")
    broken = np.full(type.group_bytes, 0xFF, np.uint8)
    with pytest.raises(InputError, match="'w' has a block whose scale is NaN"):
        GroupedTensor.from_bytes(broken, type, name="w")


def test_q5_1_and_q4_1_keep_their_minimum() -> None:
    x = np.linspace(2, 3, 32, dtype=np.float32)
    for type in (Q4_1, Q5_1):
        ours = grouped_quantize(x, type)
        assert ours.minimum is not None and float(ours.minimum[0]) == 2.0
        assert np.abs(ours.dequantize() - x).max() < 0.6 * float(ours.scale[0])

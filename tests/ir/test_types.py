from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from onnxq.ir import DataType, OpaqueType, TensorType
from onnxq.ir.types import Dim, merge_types, static_size, type_from_proto, type_to_proto

DEFINED = [d for d in DataType if d is not DataType.UNDEFINED]


def test_numbers_are_those_of_onnx() -> None:
    assert {d.name: d.value for d in DataType} == dict(onnx.TensorProto.DataType.items())


@pytest.mark.parametrize("dtype", DEFINED)
def test_numpy_types(dtype: DataType) -> None:
    assert dtype.numpy == helper.tensor_dtype_to_np_dtype(dtype)
    assert DataType.of(dtype.numpy) is dtype


@pytest.mark.parametrize("dtype", [d for d in DEFINED if d is not DataType.STRING])
def test_bits_are_what_onnx_stores(dtype: DataType) -> None:
    stored = onnx.numpy_helper.from_array(np.zeros(24, dtype=dtype.numpy))
    assert dtype.bits * 24 == len(stored.raw_data) * 8


def test_types_without_bits() -> None:
    assert DataType.STRING.bits == DataType.UNDEFINED.bits == 0


def test_which_are_floats() -> None:
    # "Float" by what the numbers do, not by the name: halves survive in all but E8M0.
    def holds_fractions(dtype: DataType) -> bool:
        return dtype.numpy.kind in "fV" and float(np.float32(0.5).astype(dtype.numpy)) == 0.5

    floats = {d for d in DEFINED if d is not DataType.STRING and holds_fractions(d)}
    assert {d for d in DataType if d.is_float} == floats


@pytest.mark.parametrize("dtype", [np.dtype("U3"), np.dtype(object), np.dtype("S2")])
def test_strings_in_numpy(dtype: np.dtype[np.generic]) -> None:
    assert DataType.of(dtype) is DataType.STRING


def test_numpy_types_that_onnx_lacks() -> None:
    with pytest.raises((ValueError, KeyError)):
        DataType.of(np.dtype("datetime64[s]"))


SHAPES: list[tuple[Dim, ...] | None] = [None, (), (2, 3), ("N", None, 0), (None,)]


@pytest.mark.parametrize("shape", SHAPES)
def test_tensor_types_round_trip(shape: tuple[Dim, ...] | None) -> None:
    proto = helper.make_tensor_type_proto(onnx.TensorProto.INT8, shape)
    known = type_from_proto(proto)
    assert known == TensorType(DataType.INT8, shape)
    assert type_to_proto(TensorType(DataType.INT8, shape)) == proto


def test_empty_symbol_is_unknown() -> None:
    proto = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ("",))
    assert type_from_proto(proto) == TensorType(DataType.FLOAT, (None,))


def test_no_type() -> None:
    assert type_from_proto(onnx.TypeProto()) is None


TENSOR = helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, ["N"])


def denoted() -> onnx.TypeProto:
    proto = onnx.TypeProto()
    proto.CopyFrom(TENSOR)
    proto.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    return proto


@pytest.mark.parametrize(
    "proto, text",
    [
        (helper.make_sequence_type_proto(TENSOR), "sequence"),
        (helper.make_optional_type_proto(TENSOR), "optional"),
        (helper.make_map_type_proto(onnx.TensorProto.INT64, TENSOR), "map"),
        (helper.make_sparse_tensor_type_proto(onnx.TensorProto.FLOAT, [2]), "sparse_tensor"),
        (onnx.TypeProto(tensor_type=TENSOR.tensor_type, denotation="IMAGE"), "tensor"),
        (denoted(), "tensor"),
    ],
)
def test_other_types_are_kept_as_they_are(proto: onnx.TypeProto, text: str) -> None:
    known = type_from_proto(proto)
    assert isinstance(known, OpaqueType)
    assert type_to_proto(known) == proto and str(known) == text


def test_opaque_type_of_nothing() -> None:
    assert str(OpaqueType(b"")) == "unknown"


def test_text() -> None:
    assert str(TensorType(DataType.FLOAT, ("N", 3, None))) == "float[N, 3, ?]"
    assert str(TensorType(DataType.INT8)) == "int8[...]"
    assert str(TensorType(DataType.INT8, ())) == "int8[]"


@pytest.mark.parametrize(
    "shape, size", [((), 1), ((2, 3), 6), ((2, 0), 0), (("N", 2), None), ((None,), None)]
)
def test_static_size(shape: tuple[Dim, ...], size: int | None) -> None:
    assert static_size(shape) == size
    assert static_size(None) is None


FLOAT, INT = DataType.FLOAT, DataType.INT8


@pytest.mark.parametrize(
    "known, found, merged",
    [
        (None, TensorType(INT, (2,)), TensorType(INT, (2,))),
        (TensorType(INT), None, TensorType(INT)),
        (TensorType(INT), TensorType(INT, (2,)), TensorType(INT, (2,))),
        (TensorType(INT, (2,)), TensorType(INT), TensorType(INT, (2,))),
        (
            TensorType(INT, (None, "N", 3, "M")),
            TensorType(INT, (1, 2, 4, "K")),
            TensorType(INT, (1, 2, 3, "M")),
        ),
        (TensorType(INT, (None,)), TensorType(INT, ("N",)), TensorType(INT, ("N",))),
        # What contradicts is not taken over.
        (TensorType(INT), TensorType(FLOAT, (2,)), TensorType(INT)),
        (TensorType(INT, (None,)), TensorType(INT, (2, 3)), TensorType(INT, (None,))),
        (OpaqueType(b"a"), TensorType(INT), OpaqueType(b"a")),
        (TensorType(INT), OpaqueType(b"a"), TensorType(INT)),
    ],
)
def test_merge(
    known: TensorType | OpaqueType | None,
    found: TensorType | OpaqueType | None,
    merged: TensorType | OpaqueType,
) -> None:
    assert merge_types(known, found) == merged

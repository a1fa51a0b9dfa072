from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, Tensor, load, save
from onnxq.ir import tensor as tensor_module

NUMBERS = [d for d in DataType if d not in (DataType.UNDEFINED, DataType.STRING)]


def numbers_of(dtype: DataType, count: int) -> np.ndarray:
    """Every bit pattern of small types, random bits of large ones."""
    generator = np.random.default_rng(int(dtype))
    if dtype is DataType.BOOL:
        return generator.integers(0, 2, count).astype(bool)
    if dtype.bits < 8:
        return generator.integers(0, 2, count).astype(np.float32).astype(dtype.numpy)
    return np.frombuffer(generator.bytes(count * dtype.bits // 8), dtype=dtype.numpy)


def bits(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def proto_of(array: np.ndarray, name: str = "t") -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("shape", [(15,), (3, 5), (1,), (), (0, 3)])
def test_numbers_are_those_of_onnx(dtype: DataType, shape: tuple[int, ...]) -> None:
    array = numbers_of(dtype, int(np.prod(shape))).reshape(shape)
    proto = proto_of(array)
    tensor = Tensor.from_proto(proto)
    assert (tensor.dtype, tensor.shape, tensor.size) == (dtype, shape, array.size)
    assert tensor.nbytes == len(proto.raw_data)
    found = tensor.numpy()
    assert found.dtype == dtype.numpy and found.shape == shape
    assert bits(found) == bits(numpy_helper.to_array(proto))
    assert not found.flags.writeable
    assert tensor.numpy() is found
    assert tensor.to_proto("t") == proto
    again = Tensor(array)
    assert (again.dtype, again.shape) == (dtype, shape)
    assert again.to_proto("t") == proto
    assert again.digest() == tensor.digest()


@pytest.mark.parametrize("dtype", NUMBERS)
def test_numbers_in_typed_fields(dtype: DataType) -> None:
    wanted = numbers_of(dtype, 6)
    if dtype.is_float or "COMPLEX" in dtype.name:
        wanted = np.array([1, 0.5, 2, 1, 1, 4]).astype(dtype.numpy)
    proto = helper.make_tensor("t", dtype, (2, 3), wanted.astype(object).tolist())
    assert not proto.HasField("raw_data")
    tensor = Tensor.from_proto(proto)
    assert bits(tensor.numpy()) == bits(wanted.reshape(2, 3))
    assert tensor.to_proto("t") == proto


def test_strings() -> None:
    array = np.array(["a", "", "hé"], dtype=object)
    proto = proto_of(array)
    tensor = Tensor.from_proto(proto)
    assert tensor.dtype is DataType.STRING and tensor.shape == (3,)
    assert [_text(s) for s in tensor.numpy()] == ["a", "", "hé"]
    assert tensor.nbytes in (3, 4)
    assert Tensor(array).to_proto("t") == proto
    assert tensor.digest() == Tensor(array).digest()
    assert Tensor(np.array(["ab"], object)).digest() != Tensor(np.array(["a", "b"])).digest()


def _text(item: str | bytes) -> str:
    return item.decode() if isinstance(item, bytes) else item


def test_name_is_not_part_of_the_tensor() -> None:
    tensor = Tensor.from_proto(proto_of(np.ones(2), "before"))
    assert tensor.to_proto("after").name == "after"
    assert not tensor.to_proto("").HasField("name")
    assert repr(tensor) == "Tensor(double[2])"


@given(st.lists(st.floats(width=32), max_size=8), st.lists(st.floats(width=32), max_size=8))
def test_digest_tells_bits_apart(first: list[float], second: list[float]) -> None:
    one, other = np.array(first, np.float32), np.array(second, np.float32)
    assert (Tensor(one).digest() == Tensor(other).digest()) == (one.tobytes() == other.tobytes())


def test_digest_tells_dtype_and_shape_apart() -> None:
    zeros = np.zeros((2, 3), np.int32)
    kinds = [zeros, zeros.reshape(3, 2), zeros.view(np.float32), zeros.view(np.uint32), zeros.T]
    assert len({Tensor(k).digest() for k in kinds}) == 4
    assert Tensor(np.array([0.0])).digest() != Tensor(np.array([-0.0])).digest()
    order = np.arange(6).reshape(2, 3)
    assert Tensor(np.asfortranarray(order)).digest() == Tensor(order).digest()


# Sparse


@pytest.mark.parametrize("linear", [True, False])
def test_sparse(linear: bool) -> None:
    dense = np.zeros((3, 4), np.float32)
    dense[0, 1], dense[2, 3] = 5, -6
    where = np.flatnonzero(dense) if linear else np.argwhere(dense)
    proto = helper.make_sparse_tensor(
        proto_of(np.array([5, -6], np.float32), "s"), proto_of(where.astype(np.int64)), [3, 4]
    )
    tensor = Tensor.from_sparse(proto)
    assert tensor.is_sparse and not tensor.is_external
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == (DataType.FLOAT, (3, 4), 48)
    assert np.array_equal(tensor.numpy(), dense)
    assert tensor.digest() == Tensor(dense).digest()
    assert tensor.to_sparse_proto("s") == proto
    assert tensor.to_sparse_proto("other").values.name == "other"
    assert np.array_equal(numpy_helper.to_array(tensor.to_proto("d")), dense)


# Bad


@pytest.mark.parametrize(
    "proto, message",
    [
        (onnx.TensorProto(name="t"), "'t' has element type 0, which ONNX does not define"),
        (onnx.TensorProto(name="t", data_type=99), "'t' has element type 99"),
        (onnx.TensorProto(name="t", data_type=1, dims=[2, -1]), r"negative .* \[2, -1\]"),
        (
            onnx.TensorProto(name="t", data_type=1, dims=[100], raw_data=b"1234"),
            "'t' holds .* of the 400 bytes",
        ),
        (onnx.TensorProto(name="t", data_type=8, dims=[2], string_data=[b"a"]), "holds 1 of the 2"),
        (onnx.TensorProto(name="t", data_type=1, dims=[1 << 40], raw_data=b""), "'t' holds"),
    ],
)
def test_damaged(proto: onnx.TensorProto, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Tensor.from_proto(proto)


def test_damage_that_only_reading_finds() -> None:
    proto = onnx.TensorProto(name="t", data_type=8, dims=[1], string_data=[b"\xff"])
    tensor = Tensor.from_proto(proto)
    with pytest.raises(InputError, match=r"tensor 't' cannot be read .*damaged"):
        tensor.numpy()


# External data


def external(folder: Path, array: np.ndarray, start: int = 0, **entries: str) -> onnx.TensorProto:
    """A tensor whose data lies in w.bin."""
    raw = proto_of(array).raw_data
    (folder / "w.bin").write_bytes(b"\7" * start + raw + b"tail")
    proto = onnx.TensorProto(name="w", data_type=DataType.of(array.dtype), dims=array.shape)
    proto.data_location = onnx.TensorProto.EXTERNAL
    known = {"location": "w.bin", "offset": str(start), "length": str(len(raw))}
    for key, text in {**known, **entries}.items():
        proto.external_data.add(key=key, value=text)
    return proto


@pytest.mark.parametrize("dtype", NUMBERS)
@pytest.mark.parametrize("offset", [0, 12, 4096, 5000])
def test_external(tmp_path: Path, dtype: DataType, offset: int) -> None:
    array = numbers_of(dtype, 15).reshape(5, 3)
    tensor = Tensor.from_proto(external(tmp_path, array, offset), tmp_path)
    assert tensor.is_external and tensor.nbytes == len(proto_of(array).raw_data)
    assert bits(tensor.numpy()) == bits(array) and tensor.numpy().shape == (5, 3)
    assert not tensor.numpy().flags.writeable
    assert tensor.digest() == Tensor(array).digest()
    assert tensor.to_proto("w") == proto_of(array, "w")


def test_external_of_nothing(tmp_path: Path) -> None:
    tensor = Tensor.from_proto(external(tmp_path, np.zeros((0, 3), np.float32)), tmp_path)
    assert tensor.numpy().shape == (0, 3)


def test_external_data_is_mapped_not_read(tmp_path: Path) -> None:
    tensor = Tensor.from_proto(external(tmp_path, np.arange(8, dtype=np.int64)), tmp_path)
    first = tensor.numpy()
    assert first.base is not None and first[3] == 3
    with (tmp_path / "w.bin").open("r+b") as file:
        file.seek(24)
        file.write(b"\x63")
    assert first[3] == 0x63


def test_external_without_length_or_offset(tmp_path: Path) -> None:
    array = np.arange(4, dtype=np.float32)
    proto = external(tmp_path, array)
    del proto.external_data[1:]
    assert np.array_equal(Tensor.from_proto(proto, tmp_path).numpy(), array)


ARRAY = np.arange(8, dtype=np.float32)


@pytest.mark.parametrize(
    "entries, message",
    [
        ({"location": ""}, "outside the model's folder"),
        ({"location": "../outside.bin"}, r"'\.\./outside.bin', outside the model's folder"),
        ({"location": "sub/../../outside.bin"}, "outside the model's folder"),
        ({"location": "link.bin"}, "'link.bin', outside the model's folder"),
        ({"location": "folder/outside.bin"}, "outside the model's folder"),
        ({"location": "absent.bin"}, "'absent.bin', which is not there"),
        ({"location": "sub"}, "'sub', which is not there"),
        ({"location": "n" * 300}, "n', which is not there"),
        ({"location": "a\0b"}, "which is not there"),
        ({"offset": "8"}, "needs 32 bytes at offset 8 of 'w.bin', which holds 36"),
        ({"offset": "-4"}, "at offset -4"),
        ({"offset": "99999999999999999999"}, "the data file is damaged"),
        ({"length": "31"}, "the data file is damaged"),
        ({"length": "x"}, "the data file is damaged"),
    ],
)
def test_external_data_that_cannot_be_used(
    tmp_path: Path, entries: dict[str, str], message: str
) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.bin").write_bytes(bytes(64))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "folder").symlink_to(tmp_path)
    proto = external(folder, ARRAY, **entries)
    with pytest.raises(InputError, match=message) as caught:
        Tensor.from_proto(proto, folder)
    assert str(caught.value).startswith("tensor 'w' ")


def test_external_path_that_is_absolute(tmp_path: Path) -> None:
    proto = external(tmp_path, ARRAY, location=str(tmp_path / "w.bin"))
    with pytest.raises(InputError, match="outside the model's folder"):
        Tensor.from_proto(proto, tmp_path)


def test_external_data_without_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"in the file 'w.bin', but the model was not read from"):
        Tensor.from_proto(external(tmp_path, ARRAY))


def test_external_file_that_changes_after_loading(tmp_path: Path) -> None:
    tensor = Tensor.from_proto(external(tmp_path, ARRAY), tmp_path)
    (tmp_path / "w.bin").write_bytes(b"short")
    with pytest.raises(InputError, match=r"w\.bin' has changed since the model was loaded"):
        tensor.numpy()
    (tmp_path / "w.bin").unlink()
    with pytest.raises(InputError, match=r"w\.bin' cannot be read any more"):
        tensor.digest()


@pytest.mark.parametrize("dtype", NUMBERS)
def test_written_as_external_data(tmp_path: Path, dtype: DataType) -> None:
    array = numbers_of(dtype, 8193)
    graph = Graph("g")
    constant = graph.constant(array, "w")
    graph.add_output(graph.add("Identity", [constant], outputs=["y"], types=[constant.type]).output)
    save(graph, tmp_path / "m.onnx", external_data=True)
    tensor = load(tmp_path / "m.onnx").values["w"].data
    assert tensor is not None and tensor.is_external
    assert bits(tensor.numpy()) == bits(array)
    # The onnx package reads the same from the file.
    (read,) = onnx.load(tmp_path / "m.onnx").graph.initializer
    assert bits(numpy_helper.to_array(read)) == bits(array)


PACKED = [d for d in NUMBERS if d.bits in (2, 4)]


@pytest.mark.parametrize("dtype", PACKED)
@pytest.mark.parametrize("shape", [(15,), (3, 5), (4, 8), (1,), (), (0, 3)])
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("short", [False, True])
def test_packed_bytes_are_the_same_tensor(
    dtype: DataType,
    shape: tuple[int, ...],
    large: bool,
    short: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = Tensor(numbers_of(dtype, int(np.prod(shape))).reshape(shape))
    packed = np.frombuffer(plain.to_proto("t").raw_data, np.uint8)
    monkeypatch.setattr(tensor_module, "SPILL_MINIMUM", 0 if large else 1 << 20)
    monkeypatch.setattr(tensor_module, "MEMORY_FOR_LARGE", -1 if short else 1 << 27)
    tensor = Tensor.from_packed(packed, dtype, shape)
    assert (tensor._stored is not None) == (large and short)
    assert (tensor.dtype, tensor.shape, tensor.nbytes) == (dtype, shape, plain.nbytes)
    found = tensor.numpy()
    assert (found.dtype, found.shape) == (dtype.numpy, shape)
    assert bits(found) == bits(plain.numpy()) and not found.flags.writeable
    assert (tensor.numpy() is found) == (not large)
    for size in (1, 3, 1 << 22):
        assert b"".join(tensor.pieces(size)) == packed.tobytes()
        assert b"".join(plain.pieces(size)) == packed.tobytes()
    assert tensor.digest() == plain.digest()
    assert tensor.to_proto("t") == plain.to_proto("t")


def test_packed_bytes_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="3 bytes are no packed INT4"):
        Tensor.from_packed(np.zeros(3, np.uint8), DataType.INT4, (7,))
    with pytest.raises(ValueError, match="are no packed INT8"):
        Tensor.from_packed(np.zeros(7, np.uint8), DataType.INT8, (7,))


def test_packed_bytes_in_memory_count_as_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_module, "SPILL_MINIMUM", 10)
    before = tensor_module._Share.held
    tensor = Tensor.from_packed(np.zeros(20, np.uint8), DataType.INT4, (40,))
    assert tensor_module._Share.held == before + 20
    del tensor
    assert tensor_module._Share.held == before

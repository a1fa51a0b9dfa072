from __future__ import annotations

import gc
import os
import tempfile
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxq.errors import InputError
from onnxq.ir import Graph, Tensor, load, save
from onnxq.ir import stored as stored_module
from onnxq.ir import tensor as tensor_module
from onnxq.ir.stored import Spilled, spill

DESCRIPTORS = Path("/proc/self/fd")


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Arrays from 64 bytes on go to a file when 100 bytes of them are in memory."""
    monkeypatch.setattr(tensor_module, "SPILL_MINIMUM", 64)
    monkeypatch.setattr(tensor_module, "MEMORY_FOR_LARGE", 100)
    monkeypatch.setattr(tensor_module._Share, "held", 0)
    monkeypatch.setattr(stored_module, "_newest", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def is_spilled(tensor: Tensor) -> bool:
    return isinstance(tensor._stored, Spilled)


def open_descriptors() -> int:
    if not DESCRIPTORS.is_dir():
        pytest.skip("this system does not list a process's descriptors")
    gc.collect()
    return len(list(DESCRIPTORS.iterdir()))


def test_only_what_memory_is_short_for_is_spilled(little_memory: Path) -> None:
    small = Tensor(np.arange(15, dtype=np.float32))
    first, second = (Tensor(np.arange(20, dtype=np.float32) + n) for n in (1, 2))
    assert [is_spilled(t) for t in (small, first, second)] == [False, False, True]
    # The place of one that is gone is free again.
    del first
    assert not is_spilled(Tensor(np.arange(20, dtype=np.float32)))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(60, dtype=np.float32),
        np.arange(60, dtype=np.float64).reshape(3, 4, 5).transpose(2, 0, 1),
        np.arange(90, dtype=np.int16)[::-2],
        np.arange(120, dtype=np.uint8).reshape(2, 60)[:, ::2].T,
        np.tile(np.arange(-8, 8), 9).astype(ml_dtypes.int4),
        np.linspace(-3, 3, 99).astype(ml_dtypes.bfloat16),
        np.zeros((0, 9), np.float32),
        np.array([True, False] * 70),
    ],
    ids=str,
)
def test_spilled_numbers_are_the_same(little_memory: Path, array: np.ndarray) -> None:
    plain = Tensor(array)
    plain_bytes, plain_digest = b"".join(plain.pieces()), plain.digest()
    tensor_module._Share.held = 1000
    spilled = Tensor(array)
    assert is_spilled(spilled) == (array.nbytes >= 64)
    read = spilled.numpy()
    assert read.dtype == array.dtype and read.shape == array.shape
    assert read.tobytes() == array.tobytes()
    assert b"".join(spilled.pieces(7)) == plain_bytes
    assert spilled.digest() == plain_digest
    wanted, found = plain.to_proto("w"), spilled.to_proto("w")
    assert onnx.numpy_helper.to_array(found).tobytes() == array.tobytes()
    assert (found.name, found.dims, found.data_type) == ("w", wanted.dims, wanted.data_type)


def test_several_in_one_file_do_not_mix(little_memory: Path) -> None:
    tensor_module._Share.held = 1000
    arrays = [np.arange(n, dtype=np.float32) * n for n in range(16, 60)]
    tensors = [Tensor(array) for array in arrays]
    assert len({id(t._stored._file) for t in tensors}) == 1  # type: ignore[union-attr]
    for array, tensor in zip(arrays, tensors, strict=True):
        assert np.array_equal(tensor.numpy(), array)


def test_a_full_file_gets_a_successor(little_memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored_module, "_SEGMENT_BYTES", 100)
    parts = [spill([bytes([n]) * 100], 100) for n in range(3)]
    assert len({id(part._file) for part in parts}) == 3
    assert [next(part.pieces())[:1] for part in parts] == [b"\0", b"\1", b"\2"]


def test_nothing_is_left_behind(little_memory: Path) -> None:
    before = open_descriptors()
    tensor_module._Share.held = 1000
    tensors = [Tensor(np.ones(1000)) for _ in range(20)]
    assert not list(little_memory.iterdir())
    assert open_descriptors() == before + 1
    view = tensors[0].numpy()
    del tensors
    # What was given out stays good, without the tensor it came from.
    assert view.sum() == 1000
    del view
    assert open_descriptors() == before


def test_descriptors_do_not_grow_with_views(tmp_path: Path) -> None:
    graph = Graph("g")
    for n in range(50):
        graph.constant(np.full((30, 20), n, np.float32), f"w{n}")
    save(graph, tmp_path / "m.onnx", external_data=True)
    loaded = load(tmp_path / "m.onnx")
    before = open_descriptors()
    turned = [Tensor(value.numpy().T) for value in loaded.initializers()]
    assert open_descriptors() <= before + 1
    for n, tensor in enumerate(turned):
        assert tensor.shape == (20, 30) and (tensor.numpy() == n).all()


def test_repeated_elements_take_no_room(little_memory: Path) -> None:
    tensor_module._Share.held = 1000
    tensor = Tensor(np.broadcast_to(np.float32(3), (1 << 20, 1 << 12)))
    assert not is_spilled(tensor) and tensor.numpy().strides == (0, 0)


def test_full_disk_keeps_numbers_in_memory(
    little_memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor_module._Share.held = 1000

    def full(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored_module._Segment, "write", full)
    tensor = Tensor(np.arange(100.0))
    assert not is_spilled(tensor) and np.array_equal(tensor.numpy(), np.arange(100.0))


def test_failed_write_leaves_the_others_alone(little_memory: Path) -> None:
    def breaking() -> object:
        yield b"x" * 10_000
        raise OSError(28, "No space left on device")

    first = spill([b"1" * 100], 100)
    with pytest.raises(OSError, match="No space"):
        spill(breaking(), 20_000)  # type: ignore[arg-type]
    second = spill([b"2" * 100], 100)
    assert second._file is first._file
    assert (b"".join(first.pieces()), b"".join(second.pieces())) == (b"1" * 100, b"2" * 100)


def test_threads_spill_at_once(little_memory: Path) -> None:
    tensor_module._Share.held = 1000
    made: dict[int, Tensor] = {}

    def work(number: int) -> None:
        for at in range(20):
            made[number * 100 + at] = Tensor(np.full(5000, number * 100 + at))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 80
    assert all((tensor.numpy() == number).all() for number, tensor in made.items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_process_writes_a_file_of_its_own(little_memory: Path) -> None:
    mine = spill([b"parent" * 20], 120)
    child = os.fork()
    if not child:
        ok = b"".join(mine.pieces()) == b"parent" * 20
        theirs = spill([b"child!" * 20], 120)
        ok &= theirs._file is not mine._file
        ok &= b"".join(theirs.pieces()) == b"child!" * 20
        os._exit(0 if ok else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    again = spill([b"again!" * 20], 120)
    assert b"".join(again.pieces()) == b"again!" * 20
    assert b"".join(mine.pieces()) == b"parent" * 20


def test_saving_over_the_file_that_is_read(tmp_path: Path) -> None:
    graph = Graph("g")
    graph.constant(np.arange(1000, dtype=np.float32), "w")
    save(graph, tmp_path / "m.onnx", external_data=True)
    loaded = load(tmp_path / "m.onnx")
    loaded.constant(np.ones(5000, np.float32), "more")
    save(loaded, tmp_path / "m.onnx", external_data=True)
    # The loaded graph reads what it was loaded from, the file holds both.
    assert np.array_equal(loaded.values["w"].numpy(), np.arange(1000))
    again = load(tmp_path / "m.onnx")
    assert np.array_equal(again.values["w"].numpy(), np.arange(1000))
    assert again.values["more"].numpy().sum() == 5000


def test_data_file_that_shrinks_under_a_reader(tmp_path: Path) -> None:
    graph = Graph("g")
    graph.constant(np.arange(4096, dtype=np.float32), "w")
    save(graph, tmp_path / "m.onnx", external_data=True)
    tensor = load(tmp_path / "m.onnx").values["w"].data
    assert tensor is not None
    pieces = tensor.pieces(64)
    next(pieces)
    os.truncate(tmp_path / "m.onnx.data", 64)
    with pytest.raises(InputError, match="became shorter while it was read"):
        next(pieces)


@pytest.mark.parametrize("way", ["system", "refused", "absent", "in part", "nothing"])
def test_bytes_are_copied_to_a_file(
    little_memory: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(stored_module, "_MOST_SENT", 300)
    monkeypatch.setattr(stored_module, "PIECE", 77)
    sends = []

    def send(out: int, source: int, offset: int, count: int) -> int:
        sends.append(count)
        if way == "refused" or (way == "in part" and len(sends) > 2):
            raise OSError(22, "Invalid argument")
        if way == "nothing":
            return 0
        return os.pwrite(out, os.pread(source, count, offset), os.lseek(out, 0, 1)) and (
            os.lseek(out, count, 1) and count
        )

    if way == "absent":
        monkeypatch.delattr(os, "sendfile", raising=False)
    elif way != "system":
        monkeypatch.setattr(os, "sendfile", send, raising=False)
    tensor_module._Share.held = 1000
    array = np.random.default_rng(0).random(1000)
    tensor = Tensor(array)
    assert is_spilled(tensor)
    with (little_memory / "out").open("wb") as file:
        file.write(b"head")
        file.seek(64)
        tensor.copy_to(file)
        assert file.tell() == 64 + array.nbytes
        file.write(b"tail")
    wanted = b"head" + bytes(60) + array.tobytes() + b"tail"
    assert (little_memory / "out").read_bytes() == wanted
    assert bool(sends) == (way in ("refused", "in part", "nothing"))

"""Data and models at addresses: fetched once a version, with what belongs to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.data import read
from onnxq.data.places import at_hand
from onnxq.errors import InputError
from onnxq.ir import save, to_proto
from onnxq.runtime import Session
from tests.networks import chain, inputs, load

fsspec = pytest.importorskip("fsspec")
memory = pytest.importorskip("fsspec.implementations.memory")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "cache"))


def _put(path: Path, address: str) -> None:
    fsspec.filesystem("memory").pipe(address, path.read_bytes())


def test_a_model_comes_with_its_external_data(tmp_path: Path) -> None:
    save(chain(), tmp_path / "m.onnx", external_data=True)
    for name in ("m.onnx", "m.onnx.data"):
        _put(tmp_path / name, f"/models/{name}")
    at_hand("memory://models/m.onnx")
    found = load(at_hand("memory://models/m.onnx", model=True))
    assert to_proto(found).SerializeToString() == to_proto(chain()).SerializeToString()


def test_samples_are_those_of_the_file_there_now(tmp_path: Path) -> None:
    graph = chain()
    specs = Session(to_proto(graph)).inputs
    for seed in (0, 1):
        arrays = {n: a + np.float32(seed) for n, a in inputs(graph, 5).items()}
        np.savez(tmp_path / "d.npz", **arrays)
        fsspec.filesystem("memory").rm("/data", recursive=True) if seed else None
        _put(tmp_path / "d.npz", "/data/d.npz")
        data = read("memory://data/d.npz", specs)
        assert np.array_equal(next(data.batches()).feeds["x"], arrays["x"])
        assert data.origin is not None


class Unversioned(memory.MemoryFileSystem):  # type: ignore[misc, name-defined]
    """As one of HTTP: the key of an address is the same whatever is there."""

    protocol = "unversioned"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("unversioned://", "memory://")))

    def ukey(self, path: str) -> str:
        return path


def test_what_changes_in_place_is_fetched_again() -> None:
    fsspec.register_implementation("unversioned", Unversioned, clobber=True)
    for content in (b"one", b"two"):
        for system in ("memory", "unversioned"):
            fsspec.filesystem(system).pipe("/images/0/a.png", content)
            assert (at_hand(f"{system}://images") / "0" / "a.png").read_bytes() == content
            assert at_hand(f"{system}://images/0/a.png").read_bytes() == content


def test_what_is_not_there_is_told_in_a_sentence() -> None:
    with pytest.raises(InputError, match=r"cannot read 'memory://no/such\.npz'"):
        at_hand("memory://no/such.npz")
    with pytest.raises(InputError, match=r"cannot read 'nosuch://x': .*nosuch"):
        at_hand("nosuch://x")

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from onnxq.errors import InputError
from onnxq.ir import Graph
from onnxq.ir.collector import collector_paused

TEXT = '<ir_version: 10, opset_import: ["": 21]> g (float[2] x) => (y) { y = Neg(x) }'


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """The collector runs before and after each test."""
    gc.enable()
    yield
    gc.enable()


def test_paused_inside_only() -> None:
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_runs_again_after_an_error() -> None:
    with pytest.raises(KeyError), collector_paused():
        raise KeyError
    assert gc.isenabled()


def test_stays_switched_off_if_it_was() -> None:
    gc.disable()
    with collector_paused():
        pass
    assert not gc.isenabled()


def test_loading_and_copying_leave_it_as_it_was() -> None:
    for wanted in (True, False):
        if not wanted:
            gc.disable()
        Graph.from_text(TEXT).copy()
        assert gc.isenabled() is wanted
        with pytest.raises(InputError):
            Graph.from_text(TEXT.replace("Neg(x)", "Neg(z)"))
        assert gc.isenabled() is wanted

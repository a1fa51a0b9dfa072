"""Files appear whole or not at all, and always the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from onnxq.errors import InputError
from onnxq.ir import Graph, load, save, to_proto
from onnxq.ir.saving import check_writable, replacing
from tests.ir.loading import full_model


def a_graph() -> Graph:
    return load(full_model())


def test_saving_is_deterministic(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save(a_graph(), tmp_path / f"{name}.onnx")
        save(a_graph().copy(), tmp_path / f"{name}.copy.onnx")
    assert len({p.read_bytes() for p in tmp_path.iterdir()}) == 1
    assert len(list(tmp_path.iterdir())) == 4


def test_the_order_in_which_values_were_made_leaves_no_trace() -> None:
    graph = a_graph()
    a, kind = graph.values["a"], graph.values["y"].type
    late = graph.add("Relu", [a], outputs=["late"], types=[kind]).output
    late.declared = True
    graph.rename(a, "early")
    graph.make_constant(graph.values["o"])
    written = to_proto(graph)
    assert {"early", "late"} <= {entry.name for entry in written.graph.value_info}
    assert to_proto(load(written)) == written


def test_saved_files_have_the_usual_permissions(tmp_path: Path) -> None:
    usual = tmp_path / "usual"
    usual.touch()
    save(a_graph(), tmp_path / "m.onnx")
    assert (tmp_path / "m.onnx").stat().st_mode == usual.stat().st_mode


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among its files")
def test_unwritable_outputs_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    for path, part in (
        (tmp_path / "missing" / "m.onnx", "does not exist; create it"),
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "pipe", "it is a device or a pipe; name a file"),
        (tmp_path / "file" / "m.onnx", "is a file; name a folder"),
        (tmp_path / ("n" * 300), "cannot write"),
    ):
        for external in (False, True):
            with pytest.raises(InputError, match=part) as caught:
                save(a_graph(), path, external_data=external)
            assert "\n" not in str(caught.value) and str(path) in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before
        assert (tmp_path / "pipe").is_fifo()
    for path, part in (
        (tmp_path / "missing" / "m.onnx", "does not exist"),
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "pipe", "it is a device or a pipe; name a file"),
        (tmp_path / "file" / "m.onnx", "is a file; name a folder"),
    ):
        with pytest.raises(InputError, match=part):
            check_writable(path)
    check_writable(tmp_path / "fine.onnx")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("a defect")])
def test_failure_while_writing_keeps_the_old_file(tmp_path: Path, error: Exception) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"old")
    with (
        pytest.raises(InputError if isinstance(error, OSError) else ValueError) as caught,
        replacing(path) as file,
    ):
        file.write(b"new")
        raise error
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["m.onnx"]
    assert not isinstance(error, OSError) or "No space left on device" in str(caught.value)

"""What cannot be optimized is refused in one sentence, and leaves no file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.errors import InputError
from onnxq.ir import Graph, to_proto
from onnxq.verify import Reference
from tests.networks import computed
from tests.optimizing import (
    FAST,
    data,
    kept,
    listed,
    model,
    optimize,
    samples,
    short_timing,
)

__all__ = ["computed", "data", "model", "short_timing"]

pytestmark = pytest.mark.usefixtures("computed")

Change = Callable[[Path, dict[str, np.ndarray], Path], dict[str, object]]


def _missing(model: Path, data: object, folder: Path) -> dict[str, object]:
    return {"model": folder / "none.onnx"}


def _no_model(model: Path, data: object, folder: Path) -> dict[str, object]:
    (folder / "text.onnx").write_text("This is no model.")
    return {"model": folder / "text.onnx"}


def _cut_off(model: Path, data: object, folder: Path) -> dict[str, object]:
    whole = model.read_bytes()
    (folder / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    return {"model": folder / "cut.onnx"}


def _changed(**arrays: object) -> Change:
    def change(model: Path, data: dict[str, np.ndarray], folder: Path) -> dict[str, object]:
        return {"data": {**data, **arrays}}

    return change


def _with(**options: object) -> Change:
    return lambda model, data, folder: options


def _nan(model: Path, data: dict[str, np.ndarray], folder: Path) -> dict[str, object]:
    x = data["x"].copy()
    x[5, 0, 0, 0] = np.nan
    return {"data": {**data, "x": x}}


def _nameless(model: Path, data: dict[str, np.ndarray], folder: Path) -> dict[str, object]:
    return {"data": {"image": data["x"]}}


def _empty(model: Path, data: dict[str, np.ndarray], folder: Path) -> dict[str, object]:
    return {"data": {"x": data["x"][:0]}}


def _no_labels(model: Path, data: dict[str, np.ndarray], folder: Path) -> dict[str, object]:
    return {"data": {"x": data["x"]}, "metric": "sqnr", "max_drop": 0.01}


def _no_decisions(model: Path, data: dict[str, np.ndarray], folder: Path) -> dict[str, object]:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) <float[3, 3, 1, 1] w = {1,1,1,1,1,1,1,1,1}>
        { y = Conv(x, w) }""")
    return {"model": to_proto(graph), "data": {"x": data["x"]}, "min_agreement": 0.9}


def test_the_first_look_at_the_outputs_keeps_the_memory_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Reference] = []

    def look(*_: object, reference: Reference) -> object:
        seen.append(reference)
        raise InputError("looked")

    monkeypatch.setattr("onnxq.optimization.compare_files", look)
    given = _no_decisions(tmp_path, {"x": samples()}, tmp_path)
    with pytest.raises(InputError, match="looked"):
        onnxq.optimize(**given, memory_limit=1 << 30)  # type: ignore[arg-type]
    assert [reference.room for reference in seen] == [1 << 28]


def _nowhere(model: Path, data: object, folder: Path) -> dict[str, object]:
    return {"output": folder / "nowhere" / "q.onnx"}


def _a_folder(model: Path, data: object, folder: Path) -> dict[str, object]:
    return {"output": folder}


def _nothing_to_quantize(model: Path, data: object, folder: Path) -> dict[str, object]:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y) { y = Exp(x) }""")
    return {"model": to_proto(graph), "data": {"x": samples()}}


def _infinite(model: Path, data: object, folder: Path) -> dict[str, object]:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 2] y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}>
        { h = Log(x) y = MatMul(h, w) }""")
    return {"model": to_proto(graph), "data": {"x": np.zeros((8, 4), np.float32)}}


def _partly_overridable(model: Path, data: object, folder: Path) -> dict[str, object]:
    return listed(
        "float[2, 1] w = {1, 2}) => (float[N, 1] y) <float[1, 1] v = {4}, int64[1] j = {0}>"
    )


BAD: dict[str, tuple[Change, str]] = {
    "missing file": (_missing, r"none.onnx' does not exist"),
    "no ONNX": (_no_model, r"text.onnx' is not an ONNX model"),
    "cut off": (_cut_off, r"cut.onnx' is not an ONNX model or is cut off"),
    "no bytes": (_with(model=b""), "the serialized model is empty"),
    "wrong name": (_nameless, "no array for the model's input 'x'; its arrays are: image"),
    "wrong shape": (_changed(x=np.zeros((48, 3, 9, 9), np.float32)), "does not fit .* x float32"),
    "text": (_changed(x=np.full((48, 3, 8, 8), "a")), "cannot stand for the model's input x"),
    "NaN": (_nan, "holds nan in sample 5; remove or replace NaN and infinity"),
    "empty": (_empty, "no samples"),
    "no such data": (_with(data="none.npz"), "'none.npz': no such file"),
    "no such evaluation data": (_with(eval_data="none.npz"), "'none.npz': no such file"),
    "one sample": (_with(data={"x": samples(1)}), "one sample, which cannot serve both"),
    "output nowhere": (_nowhere, r"cannot write '.*q.onnx': the folder .* does not exist"),
    "output a folder": (_a_folder, "it is a folder"),
    "unknown metric": (_with(metric="beauty"), "there is no metric 'beauty'"),
    "unknown target": (_with(target="toaster"), "there is no target 'toaster'"),
    "unknown recipe": (_with(recipe="int7"), "there is no recipe 'int7'"),
    "unknown opset": (_with(opset=999), "opset 999 is not known"),
    "drop without labels": (_no_labels, "a largest drop needs a metric"),
    "agreement of numbers": (_no_decisions, "needs decisions, and none are recognised"),
    "labels no class": (_changed(labels=np.full(48, 9)), "label 9 is beyond the model's 4 classes"),
    "no calibration": (_with(samples=0), "at least 1, not 0"),
    "node unknown": (
        _with(recipe=kept("stem", "heads")),
        "keeps 'heads' in float",
    ),
    "all in float": (
        _with(recipe=kept("stem", "inner", "head")),
        "nothing in the model can be quantized: kept in float by request",
    ),
    "nothing to quantize": (_nothing_to_quantize, "it has no Conv, Gemm, MatMul$"),
    "infinite values": (_infinite, "nothing in the model can be quantized: 'h' has infinite"),
    "weights as inputs": (
        _partly_overridable,
        "callers may override; if none does, make them constants: `onnxq rewrite -p constant-init",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_no_file(
    case: str, model: Path, data: dict[str, np.ndarray], tmp_path: Path
) -> None:
    change, message = BAD[case]
    arguments: dict[str, object] = {"model": model, "data": data, "output": tmp_path / "q.onnx"}
    arguments |= FAST | change(model, data, tmp_path)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=message) as found:
        optimize(**arguments)  # type: ignore[arg-type]
    assert "\n" not in str(found.value)
    assert set(tmp_path.rglob("*")) == before

"""Backends: the registry, and onnxruntime in whatever package it comes."""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort
import pytest

from onnxq import registry
from onnxq.benchmark import bench
from onnxq.errors import InputError
from onnxq.ir import load
from onnxq.runtime import (
    NodeTime,
    Session,
    backend,
    bare,
    integer_operators,
    load_backend,
    optimized_operators,
)
from onnxq.runtime.providers import on_processor, provider_arguments, with_options
from onnxq.verify.facts import model_facts, versions

openvino = pytest.mark.skipif(
    "OpenVINOExecutionProvider" not in ort.get_available_providers(),
    reason="no provider that compiles nodes: needs onnxruntime-openvino",
)
MODEL_BYTES = onnx.parser.parse_model(
    '<ir_version: 8, opset_import: ["" : 19]> g (float[2] x) => (float[2] y) { y = Relu(x) }'
).SerializeToString()
MODULE = importlib.import_module("onnxq.runtime.onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    text = "g (float[2, 4] x) => (float[2, 4] y) { a = Relu(x) y = Softmax(a) }"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 19]> {text}'), path)
    return path


@pytest.fixture
def abacus(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint("abacus", "tests.runtime.abacus", backend.ENTRY_POINT_GROUP)
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [entry] if group == entry.group else []
    )


@pytest.mark.usefixtures("abacus")
def test_a_backend_of_another_package_measures_and_reports(model: Path) -> None:
    runs = load_backend("abacus")
    assert (runs.missing("wood"), runs.missing("cpu")) == ("", "there are no beads of cpu")
    rows = bench([model, model], backend="abacus", providers=("wood",), seconds=0.01)
    assert [(row.provider, row.runs >= 5) for row in rows] == [("wood", True)] * 2
    facts = model_facts(load(model), model, "wood", "abacus")
    assert (facts.integer_operators, facts.compiled) == ({"Beads": 3}, 2)
    assert versions("abacus") == {**versions(), "abacus": "7"}


def test_an_unknown_backend_is_told_with_those_there_are(abacus: None) -> None:
    names = "abacus, onnx.reference, onnxruntime, onnxruntime-web"
    with pytest.raises(InputError, match=f"no backend 'sundial'; available: {names}$"):
        load_backend("sundial")


def test_backends_are_found_without_what_extras_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dask", "distributed", "playwright"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [n for n in sys.modules if n.startswith("onnxq.runtime.cluster")]:
        monkeypatch.delitem(sys.modules, name)
    assert {"onnxruntime", "onnxruntime-web"} <= set(backend.available_backends())


def test_onnxruntime_is_there_without_anything_installed() -> None:
    runs = load_backend("onnxruntime")
    assert runs.missing("cpu") == "" and "'wood'" in runs.missing("wood")
    assert runs.version.startswith(ort.__version__)
    assert type(runs.session(MODEL_BYTES)) is Session


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        ({"onnxruntime": "onnxruntime"}, ""),
        ({"onnxruntime": "onnxruntime", "onnx": "onnx"}, ""),
        ({"onnxruntime-openvino": "onnxruntime"}, " (onnxruntime-openvino)"),
        (
            {"onnxruntime-gpu": "onnxruntime", "onnxruntime": "onnxruntime"},
            " (onnxruntime, onnxruntime-gpu)",
        ),
        ({"onnx": "onnx", "other": None}, ""),
    ],
)
def test_the_version_names_the_package_that_brings_the_module(
    packages: dict[str, str | None], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [
        SimpleNamespace(metadata={"Name": name}, read_text=lambda file, modules=modules: modules)
        for name, modules in packages.items()
    ]
    monkeypatch.setattr(bare, "distributions", lambda: found)
    MODULE._version.cache_clear()
    try:
        assert versions()["onnxruntime"] == f"{ort.__version__}{said}"
    finally:
        MODULE._version.cache_clear()


def test_profiles_name_every_operator_that_ran(model: Path) -> None:
    feeds = {"x": np.ones((2, 4), np.float32)}
    (times,) = load_backend("onnxruntime").profile([model], feeds, rounds=4)
    assert sorted(time.op_type for time in times) == ["Relu", "Softmax"]
    assert all(time.ms >= 0 for time in times)


def test_the_cpu_provider_leaves_nothing(model: Path) -> None:
    assert load_backend("onnxruntime").left(model) == (2, {})


def test_what_onnx_says_is_computed_and_never_timed(model: Path) -> None:
    runs = load_backend("onnx.reference")
    x = {"x": np.arange(8, dtype=np.float32).reshape(2, 4) - 4}
    found = runs.session(model).run(x)["y"]
    np.testing.assert_allclose(found, Session(model).run(x)["y"], rtol=1e-6)
    assert (runs.version, runs.missing("cpu")) == (onnx.__version__, "")
    assert runs.profile([model], x) == [[]]
    assert "no provider 'cuda'" in runs.missing("cuda")
    with pytest.raises(InputError, match=r"onnx\.reference cannot run"):
        runs.session(model).run({})


def test_what_a_loop_runs_is_timed_in_all_iterations(tmp_path: Path) -> None:
    event = {"cat": "Node", "name": "add_kernel_time", "args": {"op_name": "Add"}, "dur": 2000}
    once = {**event, "name": "neg_kernel_time", "args": {"op_name": "Neg"}}
    (tmp_path / "profile.json").write_text(json.dumps([event] * 12 + [once] * 4))
    found = MODULE._node_times(tmp_path / "profile.json", 4)
    assert found == [NodeTime("add", "Add", 6.0), NodeTime("neg", "Neg", 2.0)]


class Compiled:
    """Stands in for onnxruntime with a provider that compiles: nothing can be written."""

    class Node:
        def __init__(self, domain: str, op_type: str) -> None:
            self.domain, self.op_type = domain, op_type

    class Part:
        def __init__(self, ep_name: str, *nodes: Compiled.Node) -> None:
            self.ep_name, self._nodes = ep_name, nodes

        def get_nodes(self) -> tuple[Compiled.Node, ...]:
            return self._nodes

    def __init__(self, source: object, options: ort.SessionOptions, **_: object) -> None:
        if options.optimized_model_filepath:
            raise RuntimeError("Unable to serialize model as it contains compiled nodes.")
        recorded = options.get_session_config_entry("session.record_ep_graph_assignment_info")
        assert recorded == "1"

    def get_providers(self) -> list[str]:
        return ["OpenVINOExecutionProvider", "CPUExecutionProvider"]

    def get_inputs(self) -> list[object]:
        return []

    get_outputs = get_inputs

    def get_provider_graph_assignment_info(self) -> list[Part]:
        relu, mine = self.Node("", "Relu"), self.Node("com.microsoft", "Gelu")
        return [
            self.Part("OpenVINOExecutionProvider", relu, self.Node("ai.onnx", "Relu")),
            self.Part("CPUExecutionProvider", mine, self.Node("", "QLinearConv")),
        ]


def test_what_a_provider_compiled_is_counted_apart(
    monkeypatch: pytest.MonkeyPatch, model: Path
) -> None:
    names = ["OpenVINOExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort, "get_available_providers", lambda: names)
    monkeypatch.setattr(ort, "InferenceSession", Compiled)
    counts = {"compiled:Relu": 2, "com.microsoft:Gelu": 1, "QLinearConv": 1}
    assert optimized_operators(model, provider="openvino") == counts
    assert integer_operators(model, provider="openvino") == {"QLinearConv": 1}
    left = load_backend("onnxruntime").left(model, provider="openvino")
    assert left == (2, {"com.microsoft:Gelu": 1, "QLinearConv": 1})
    facts = model_facts(load(model), model, "openvino")
    assert (facts.compiled, facts.integer_operators) == (2, {"QLinearConv": 1})


def test_a_provider_is_told_how_many_threads_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    assert provider_arguments("cpu", 3) == ("CPUExecutionProvider", {})
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["OpenVINOExecutionProvider"])
    full, told = provider_arguments("openvino", 3)
    assert (full, told) == ("OpenVINOExecutionProvider", {"num_of_threads": "3"})
    assert provider_arguments("OpenVINO", 0) == (full, {})
    assert provider_arguments("openvino{num_of_threads=2}", 3) == (full, {"num_of_threads": "2"})


def test_options_are_part_of_a_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["OpenVINOExecutionProvider"])
    shapes = {"device_type": "GPU.0", "shapes": "x:[1,3], y:'z'", "empty": ""}
    text = with_options("openvino{device_type=CPU}", [f"{k}={v}" for k, v in shapes.items()])
    assert provider_arguments(text, 0) == ("OpenVINOExecutionProvider", shapes)
    assert with_options("openvino", ()) == "openvino"
    for wrong in ("device_type", "=GPU"):
        with pytest.raises(InputError, match="write KEY=VALUE"):
            with_options("openvino", [wrong])
    with pytest.raises(InputError, match="CPU provider takes no options, but is given a"):
        with_options("cpu", ["a=b"])
    for wrong in ("openvino{a}", "openvino{", ""):
        with pytest.raises(InputError, match="provider"):
            provider_arguments(wrong, 1)


def test_one_thread_of_openvino_is_the_calling_one() -> None:
    one = {"num_of_threads": "1"}
    assert on_processor("OpenVINOExecutionProvider", one)
    assert on_processor("CPUExecutionProvider", {})
    assert not on_processor("OpenVINOExecutionProvider", {**one, "device_type": "GPU"})
    assert not on_processor("OpenVINOExecutionProvider", {})
    assert not on_processor("CUDAExecutionProvider", one)


@openvino
def test_openvino_runs_and_counts_what_it_compiled(model: Path) -> None:
    assert optimized_operators(model, provider="openvino") == {
        "compiled:Relu": 1,
        "compiled:Softmax": 1,
    }
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    compiled, plain = (Session(model, provider=p).run({"x": x})["y"] for p in ("openvino", "cpu"))
    np.testing.assert_allclose(compiled, plain, rtol=1e-5)
    assert Session(model, provider="openvino").runs_in_caller
    with pytest.raises(InputError, match=r"does not take its options.*nonsense"):
        load_backend("onnxruntime").check("openvino{nonsense=1}")
    rows = bench([model], providers=("cpu", "openvino"), seconds=0.01)
    assert [row.provider for row in rows] == ["cpu", "openvino"]
    # No operator of its own is left in the profile.
    (times,) = load_backend("onnxruntime").profile([model], {"x": x}, provider="openvino")
    assert [time.op_type for time in times if time.op_type in ("Relu", "Softmax")] == []

"""Cost tables: computed by hand, kept on disk, read back equal, refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxq.cost import Costs, Measurements, flops_costs, machine, measure_costs, size_costs
from onnxq.cost.cache import FILE
from onnxq.cost.measure import by_node
from onnxq.errors import InputError
from onnxq.ir import Context, Graph, infer_types, raise_opset
from onnxq.ir.saving import constant_bytes
from onnxq.passes.notes import node_name
from onnxq.passes.static.placement import place
from onnxq.passes.weights.quantize_weights import QuantizeWeights
from onnxq.plan.apply import apply_precisions
from onnxq.precision import Given, parse_precision
from onnxq.runtime import NodeTime
from onnxq.targets import load_target
from tests.networks import (
    CHANNELS,
    CLASSES,
    PIXELS,
    branches,
    chain,
    inputs,
    recurrent,
    residual_products,
    shared,
)

GRAPH = chain(3)
PLACED = place(GRAPH, load_target("cpu-x64"))
NODES = [node for node in GRAPH.nodes() if node.op_type != "Relu"]

TABLE = Costs(
    "latency",
    "abc",
    {"processor": "one"},
    {"a": {"float32": 2.0, "int8": 0.5}, "b": {"float32": 1.0}},
    {"x": (0.25, 0.125)},
)


def test_round_trip(tmp_path: Path) -> None:
    TABLE.save(tmp_path / "c.json")
    assert Costs.load(tmp_path / "c.json") == TABLE
    assert (TABLE.of("a", "int8"), TABLE.of("b", "int8"), TABLE.of("z", "int8")) == (0.5, 0.0, 0.0)
    assert (TABLE.border("x"), TABLE.border("y")) == ((0.25, 0.125), (0.0, 0.0))


def _changed(**entries: object) -> str:
    return json.dumps(json.loads(TABLE.to_json()) | entries)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "cost table .* is not valid JSON"),
        ("3", "takes a table, not 3"),
        (
            _changed(schema="onnxq/report/1"),
            "schema 'onnxq/report/1', not 'onnxq/costs/1'; measure again",
        ),
        (_changed(nodes={"a": {"int8": -1}}), "'nodes.a.int8' of .* is -1.0, no finite number"),
        (_changed(nodes={"a": {"int8": "fast"}}), "'nodes.a.int8' of .* a number, not 'fast'"),
        (_changed(nodes={"a": 3}), "'nodes.a' of .* takes a table, not 3"),
        (_changed(borders={"x": [1.0]}), "'borders.x' of .* takes a list of 2"),
        (_changed(borders={"x": [1.0, "1e999"]}), r"'borders.x\[1\]' of .* takes a number"),
        (_changed(borders={"x": [1.0, "inf"]}), r"'borders.x\[1\]' of .* is inf, no finite"),
    ],
)
def test_other_files_are_refused(text: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(InputError, match=part) as found:
        Costs.load(tmp_path / "c.json")
    assert "c.json" in str(found.value) and "\n" not in str(found.value)


def test_bytes_are_those_of_the_weights() -> None:
    few = "static-bits{weight=int3}"
    found = size_costs(NODES, ["int8", "int8-weight", "int4-weight", few], load_target("cpu-x64"))
    elements = CHANNELS * CHANNELS * 9
    assert found.nodes["conv1"] == {
        "float32": elements * 4,
        "int8": elements + 4 * CHANNELS,
        "int8-weight": elements + 4 * CHANNELS,
        # An output of a convolution has a scale, and a zero-point of 4 bits.
        "int4-weight": elements / 2 + CHANNELS * 4.5,
        few: elements / 2 + 4 * CHANNELS,
    }
    assert found.nodes["head"]["float32"] == CHANNELS * CLASSES * 4
    assert found.nodes["residual"]["float32"] == 0
    assert not found.borders and found.kind == "size"


@pytest.mark.parametrize("precision", [*load_target("cpu-x64").small[:6], "float16"])
@pytest.mark.parametrize("make", [chain, shared, residual_products], ids=lambda make: make.__name__)
def test_bytes_are_those_of_the_file(make: Callable[[], Graph], precision: str) -> None:
    graph, target, parsed = make(), load_target("cpu-x64"), parse_precision(precision)
    graph = raise_opset(graph, parsed.needed_opset(target))
    placed = place(graph, target)
    nodes = [node for node in graph.nodes() if not parsed.refusal(node, placed)]
    costs = size_costs(nodes, [precision], target).nodes.values()
    made = graph.copy()
    apply_precisions(made, dict.fromkeys(map(node_name, nodes), precision), Given(target))
    saved = sum(c["float32"] - c[precision] for c in costs)
    assert saved > 0
    left = constant_bytes(made) - (constant_bytes(graph) - saved)
    # 16-bit floats halve biases, too.
    assert left == 0 or (precision == "float16" and -200 < left < 0)


def test_operations_are_counted() -> None:
    found = flops_costs(NODES, PLACED, ["int8"])
    pixels = PIXELS * PIXELS
    assert found.nodes["conv0"]["float32"] == CHANNELS * pixels * 2 * 9
    assert found.nodes["conv1"]["float32"] == CHANNELS * pixels * CHANNELS * 9
    assert found.nodes["head"]["float32"] == CHANNELS * CLASSES
    assert found.nodes["residual"]["float32"] == CHANNELS * pixels
    assert found.nodes["conv1"]["int8"] < found.nodes["conv1"]["float32"]
    quantize, dequantize = found.borders["x"]
    assert quantize == dequantize > 0


def test_operations_by_precision() -> None:
    precisions = ["int8", "int16-act", "int8-dynamic", "int8-weight", "int4-weight"]
    found = flops_costs(NODES, PLACED, precisions).nodes["conv1"]
    shares = {precision: found[precision] / found["float32"] for precision in precisions}
    assert shares["int8"] < shares["int8-dynamic"] < shares["int16-act"] < 1
    # The product of weights that are only stored in integers is one of floats.
    assert shares["int8-weight"] == shares["int4-weight"] == 1


def test_measured_times_are_of_every_node_and_border(tmp_path: Path) -> None:
    what = (GRAPH, NODES, PLACED, {}, inputs(GRAPH, 1))
    known = Measurements(tmp_path)
    found = measure_costs(*what, model_sha256="abc", measurements=known)
    assert (found.kind, found.model_sha256) == ("latency", "abc")
    assert set(found.nodes) == {"conv0", "conv1", "conv2", "residual", "pool", "flat", "head"}
    assert all(found.nodes[f"conv{n}"]["float32"] > 0 for n in range(3))
    assert set(found.borders) == {value.name for value in PLACED.roots}
    assert all(q > 0 and d > 0 for q, d in found.borders.values())
    again = measure_costs(*what, model_sha256="abc", measurements=Measurements(tmp_path))
    assert again == found, "what is on disk is not measured again"


def test_borders_are_timed_at_the_sizes_that_feeds_give_open_axes(tmp_path: Path) -> None:
    graph = Graph.from_text(
        """<ir_version: 8, opset_import: ["": 13]>
        g (float[N, 1, H, W] x) => (float[N, 2, H, W] y)
        <float[2, 1, 1, 1] u = {1, 2}, float[2, 2, 1, 1] v = {1, 2, 3, 4}>
        { c = Conv(x, u) y = Conv(c, v) }"""
    )
    infer_types(graph)
    placed = place(graph, load_target("cpu-x64"))
    feeds = {"x": np.zeros((1, 1, 24, 40), np.float32)}
    measure_costs(graph, graph.nodes(), placed, {}, feeds, measurements=Measurements(tmp_path))
    # Its keys stand in the file as they are.
    assert b"[1, 2, 24, 40]" in (tmp_path / FILE).read_bytes()


def test_restoring_stored_weights_is_part_of_what_a_node_costs(tmp_path: Path) -> None:
    graph, feeds = recurrent("GRU")
    placed = place(graph, load_target("cpu-x64"))
    stored = raise_opset(graph, 21).copy()
    QuantizeWeights(format="int8").run(stored, Context())

    what = (graph, [*graph.nodes()], placed, {"int8-weight": stored}, feeds)
    found = measure_costs(*what, measurements=Measurements(tmp_path))
    assert found.of("cell", "int8-weight") > 0
    restoring = [n.name for n in stored.nodes() if n.is_op("DequantizeLinear")]
    assert restoring == ["cell/restoring", "cell/restoring_1"]
    times = [
        NodeTime("cell", "GRU", 2.0),
        *(NodeTime(n, "DequantizeLinear", 1.0) for n in restoring),
    ]
    spent = by_node(graph, [*times, NodeTime("d_3", "DequantizeLinear", 9.0)])
    assert spent == {"cell": 4.0, "": 9.0}


def test_nodes_of_bodies_are_timed_where_they_stand(tmp_path: Path) -> None:
    graph = branches()
    placed = place(graph, load_target("cpu-x64"))
    feeds = {**inputs(graph, 1), "wide": np.array(True)}
    known = Measurements(tmp_path)
    found = measure_costs(graph, list(placed.nodes), placed, {}, feeds, measurements=known)
    spent = {name: costs["float32"] for name, costs in found.nodes.items()}
    assert spent["then_conv0"] > 0 and spent["then_gemm"] > 0
    assert spent["else_conv0"] == spent["else_gemm"] == 0, "no sample takes that branch"


def test_repeated_blocks_cost_what_they_do_on_average(tmp_path: Path) -> None:
    """Convolutions 1, 2 and 3 of the chain are alike and stand between cuts; the first is not."""
    graph = chain(4, planted=0)
    nodes = [node for node in graph.nodes() if node.op_type != "Relu"]

    class Remembering(Measurements):
        def get(self, signature: str) -> dict[str, float] | None:
            if '"profiles in turn"' not in signature:
                return super().get(signature)
            return {
                json.dumps([0, node.name, node.op_type]): 2.0**at for at, node in enumerate(nodes)
            }

    placed = place(graph, load_target("cpu-x64"))
    known = Remembering(tmp_path)
    found = measure_costs(graph, nodes, placed, {}, inputs(graph, 1), measurements=known)
    spent = [found.of(node.name, "float32") for node in nodes]
    assert spent == pytest.approx([1.0, 14 / 3, 14 / 3, 14 / 3, *(2.0**n for n in range(4, 7))])


# The memory of measurements


def test_measurements_outlive_the_run(tmp_path: Path) -> None:
    Measurements(tmp_path / "new").put("one", {"a": 0.1 + 0.2})
    other = Measurements(tmp_path / "new")
    assert other.get("one") == {"a": 0.1 + 0.2}
    assert other.get("two") is None
    other.put("one", {"a": 2.0})
    assert Measurements(tmp_path / "new").get("one") == {"a": 2.0}


def test_a_folder_that_cannot_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    known = Measurements(tmp_path / "file" / "folder")
    known.put("one", {"a": 1.0})
    assert known.get("one") == {"a": 1.0}
    assert Measurements(tmp_path / "file" / "folder").get("one") is None


def test_a_damaged_memory_is_as_good_as_none(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"This is no database. " * 100)
    known = Measurements(tmp_path)
    assert known.get("one") is None
    known.put("one", {"a": 1.0})
    assert known.get("one") == {"a": 1.0}


def test_the_place_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONNXQ_CACHE", str(tmp_path / "own"))
    Measurements().put("one", {})
    assert (tmp_path / "own" / FILE).exists()


def test_the_machine_says_what_latency_depends_on() -> None:
    assert machine("cpu", 1) != machine("cpu", 2)
    assert machine("cpu", 1) != machine("cuda", 1)
    assert machine("cpu", 1)["processor"]

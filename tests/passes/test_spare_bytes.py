"""Names and zero-points that models of few bits do without."""

from __future__ import annotations

import numpy as np

from onnxq.ir import DataType, Graph, to_proto
from onnxq.passes.spare_bytes import spare_bytes, value_names
from onnxq.plan.apply import apply_precisions
from onnxq.precision import Given
from onnxq.targets import load_target
from tests.helpers import assert_same_outputs, random_feeds, run
from tests.networks import chain
from tests.quantization import observed_bounds


def applied(graph: Graph, precision: str) -> Graph:
    """The chain with two convolutions in a precision."""
    feeds = random_feeds(graph, other_dims=4)
    given = Given(load_target("cpu-x64"), observed_bounds(graph, feeds))
    found = graph.copy()
    apply_precisions(found, {"conv1": precision, "conv2": precision}, given)
    return found


def test_what_is_added_has_short_names_where_bytes_count() -> None:
    graph = chain()
    graph.rename(graph.inputs[0], "1")
    before = value_names(graph)
    small, plain = (applied(graph, p) for p in ("static-bits{outer=}", "int8"))
    added = value_names(small) - before
    assert len(added) > 10 and max(map(len, added)) == 1 and "1" not in added
    assert value_names(small) & before == value_names(plain) & before
    assert any(name.endswith("_zero_point") for name in value_names(plain))
    assert to_proto(small) == to_proto(applied(graph, "static-bits{outer=}"))


def test_it_computes_the_same() -> None:
    graph = chain()
    feeds, wanted = random_feeds(graph, other_dims=4), applied(graph, "int8")
    found = wanted.copy()
    spare_bytes(found, value_names(graph))
    assert value_names(found) != value_names(wanted)
    assert [v.name for v in found.outputs] == ["y"]
    found.check()
    assert_same_outputs(run(wanted, feeds), run(found, feeds))


def test_biases_have_no_zero_point_of_zero() -> None:
    graph = chain()
    biased = next(node for node in graph.nodes() if node.name == "conv1")
    biased.set_input(2, graph.constant(np.ones(8, np.float32), "b"))
    zeros = {}
    for precision in ("static-bits{outer=}", "int8"):
        reads = [n for n in applied(graph, precision).nodes() if n.is_op("DequantizeLinear")]
        biases = [n for n in reads if n.inputs[0] and n.inputs[0].dtype is DataType.INT32]
        assert len(biases) == 1
        zeros[precision] = biases[0].input(2)
        assert all(n.input(2) for n in reads if n not in biases)
    assert zeros["int8"] is not None and zeros["static-bits{outer=}"] is None


def test_names_go_on_behind_one_digit() -> None:
    graph = chain()
    for number in range(40):
        graph.constant(np.zeros(1, np.float32), f"added{number}")
    kept = frozenset(n for n in value_names(graph) if not n.startswith("added"))
    spare_bytes(graph, kept)
    assert {"0", "9", "a", "z", "10", "13"} <= value_names(graph)

from __future__ import annotations

import numpy as np
import onnx
import onnx.shape_inference
import pytest

from onnxq.ir import DataType, Graph, OpaqueType, Tensor, TensorType, infer_types, to_proto
from onnxq.ir.types import type_from_proto
from tests.helpers import random_feeds, run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'

MODELS = {
    "convolution": """g (float[N, 3, 8, 8] x) => (y) <float[4, 3, 3, 3] w = {0}>
        { a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w)  b = Relu(a)
          c = GlobalAveragePool(b)  y = Flatten(c) }""",
    "broadcast": """g (float[N, 1] x, float[3] z) => (y)
        { a = Add(x, z)  b = Cast<to = 7>(a)  y = Mul(b, b) }""",
    "shape arithmetic": """g (float[2, 3, N] x) => (y)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] rest = {-1}>
        { s = Shape(x)  a = Gather(s, zero)  b = Gather(s, one)  n = Mul(a, b)
          t = Concat<axis = 0>(n, rest)  y = Reshape(x, t) }""",
    "sequence": """g (float[N, 2] x) => (y)
        { s = SequenceConstruct(x, x)  zero = Constant<value_int = 0>()
          y = SequenceAt(s, zero) }""",
    "subgraph": """g (bool q, float[N, 2] x) => (y)
        { a = Neg(x)  y = If(q) <
            then_branch = then () => (t) { b = Abs(a)  t = Sqrt(b) },
            else_branch = other () => (e) { c = Exp(a)  e = Log(c) }> }""",
}


def untyped(text: str) -> onnx.ModelProto:
    """A model of which only the inputs have types; data of the weights is made up."""
    model = onnx.parser.parse_model(HEAD + text)
    for tensor in model.graph.initializer:
        if tensor.name == "w":
            tensor.ClearField("float_data")
            tensor.raw_data = np.ones(tuple(tensor.dims), np.float32).tobytes()
    return model


def graph_types(graph: Graph) -> dict[str, object]:
    return {name: v.type for g in graph.all_graphs() for name, v in g.values.items()}


def proto_types(graph: onnx.GraphProto) -> dict[str, object]:
    """What a message says of its values, those of subgraphs included."""
    found = {
        v.name: type_from_proto(v.type) for v in (*graph.input, *graph.output, *graph.value_info)
    }
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found |= proto_types(attribute.g)
    return found


@pytest.mark.parametrize("case", MODELS)
def test_finds_what_onnx_finds(case: str) -> None:
    model = untyped(MODELS[case])
    graph = Graph.from_text(HEAD + MODELS[case])
    for value in graph.initializers():
        if value.name == "w":
            value.data = Tensor(np.ones((4, 3, 3, 3), np.float32))
    wanted = proto_types(onnx.shape_inference.infer_shapes(model, data_prop=True).graph)
    changed = infer_types(graph)
    found = graph_types(graph)
    assert changed > 0
    assert {n: found[n] for n in wanted} == wanted
    assert all(t is not None for t in found.values())
    # Nothing is left to find, and the graph still stands.
    assert infer_types(graph) == 0
    graph.check()


@pytest.mark.parametrize("case", ["convolution", "broadcast", "shape arithmetic", "subgraph"])
def test_types_are_those_of_the_numbers(case: str) -> None:
    graph = Graph.from_text(HEAD + MODELS[case])
    for value in graph.initializers():
        if value.name == "w":
            value.data = Tensor(np.ones((4, 3, 3, 3), np.float32))
    infer_types(graph)
    for value in list(graph.values.values()):
        if value.producer is not None and not value.is_output:
            graph.add_output(value)
    feeds = random_feeds(graph, dims={"N": 5})
    for name, array in run(graph, feeds).items():
        known = graph.values[name].type
        assert isinstance(known, TensorType) and known.shape is not None
        assert known.dtype.numpy == array.dtype
        assert len(known.shape) == array.ndim
        assert all(
            d == n for d, n in zip(known.shape, array.shape, strict=True) if isinstance(d, int)
        )


def test_nothing_declared_is_overridden() -> None:
    graph = Graph.from_text(
        HEAD
        + """g (float[N, 3] x) => (float[M, K] y) <float[B, 3] a, float[] c>
        { a = Neg(x)  b = Abs(a)  c = ReduceSum<keepdims = 0>(b)  y = Exp(b) }"""
    )
    declared = {n: graph.values[n].type for n in ("x", "a", "c", "y")}
    infer_types(graph)
    assert graph.values["y"].type == TensorType(DataType.FLOAT, ("M", 3))
    assert graph.values["a"].type == declared["a"] == TensorType(DataType.FLOAT, ("B", 3))
    assert declared["c"] == TensorType(DataType.FLOAT)
    assert graph.values["c"].type == TensorType(DataType.FLOAT, ())
    assert graph.values["b"].type == TensorType(DataType.FLOAT, ("B", 3))


def test_a_wrong_declaration_stays_and_breaks_nothing() -> None:
    graph = Graph.from_text(
        HEAD + """g (float[2] x) => (float[3] y) <int64[7, 7] a> { a = Neg(x)  y = Abs(a) }"""
    )
    before = graph_types(graph)
    infer_types(graph)
    assert graph_types(graph) == before


@pytest.mark.parametrize(
    "node", ["MatMul(x, x)", "Add(x, z)", "Concat(x, x)", "SequenceAt(x, x)", "NoSuchOperator(x)"]
)
def test_operator_used_against_its_definition(node: str) -> None:
    graph = Graph.from_text(
        HEAD + f"g (float[2, 3] x, int64[2] z) => (y, n) {{ n = Neg(x)  y = {node} }}"
    )
    infer_types(graph)
    assert graph.values["y"].type is None
    assert graph.values["n"].type == TensorType(DataType.FLOAT, (2, 3))


def test_model_on_which_inference_stops() -> None:
    graph = Graph.from_text(
        """<ir_version: 10, opset_import: ["com.acme": 1]>
        g (float[2] x) => (y) { a = com.acme.Thing(x)  y = Neg(x) }"""
    )
    with pytest.raises(onnx.shape_inference.InferenceError):
        onnx.shape_inference.infer_shapes(to_proto(graph))
    assert infer_types(graph) == 0


def test_unknown_operators_stop_nothing() -> None:
    graph = Graph.from_text(
        """<ir_version: 10, opset_import: ["": 21, "com.acme": 1]>
        g (float[2] x) => (y, z) { a = com.acme.Thing(x)  y = Neg(a)  z = Neg(x) }"""
    )
    infer_types(graph)
    assert graph.values["a"].type is None
    assert graph.values["z"].type == TensorType(DataType.FLOAT, (2,))


def test_types_that_are_no_tensors() -> None:
    graph = Graph.from_text(HEAD + MODELS["sequence"])
    infer_types(graph)
    known = graph.values["s"].type
    assert isinstance(known, OpaqueType) and str(known) == "sequence"
    assert graph.values["y"].type == TensorType(DataType.FLOAT, ("N", 2))


def test_model_local_functions() -> None:
    graph = Graph.from_text(
        """<ir_version: 10, opset_import: ["": 21, "local": 1]>
        g (float[N, 2] x) => (y) { y = local.twice(x) }
        <domain: "local", opset_import: ["": 21]> twice (p) => (r) { r = Add(p, p) }"""
    )
    infer_types(graph)
    assert graph.values["y"].type == TensorType(DataType.FLOAT, ("N", 2))


def huge_graph() -> Graph:
    """A product with a weight of 3 GB, whose numbers take no memory."""
    graph = Graph("huge")
    x = graph.add_input("x", TensorType(DataType.FLOAT, ("N", 30_000)))
    weight = graph.constant(np.broadcast_to(np.float32(1), (30_000, 25_000)), "w")
    graph.add_output(graph.add("MatMul", [x, weight], outputs=["y"]).output)
    return graph


def test_large_constants_take_part_with_their_shape_only() -> None:
    graph = huge_graph()
    assert infer_types(graph) == 1
    assert graph.values["y"].type == TensorType(DataType.FLOAT, ("N", 25_000))


def test_graph_is_left_alone_otherwise() -> None:
    graph = Graph.from_text(HEAD + MODELS["subgraph"])
    names = [n.label for n in graph.all_nodes()]
    infer_types(graph)
    assert [n.label for n in graph.all_nodes()] == names
    assert not any(v.declared for g in graph.all_graphs() for v in g.values.values())
    # What was inferred is not written: it is the reader's to infer.
    assert not to_proto(graph).graph.value_info

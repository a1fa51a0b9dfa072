from __future__ import annotations

import onnx
import pytest

from onnxq.ir import Graph, attribute_value
from onnxq.ir.operators import is_deterministic, is_inference_dropout, lacks_identity, schema_of


def graph_of(nodes: str, opset: int = 21, more: str = "", inputs: str = "float[2] x") -> Graph:
    return Graph.from_text(
        f"""<ir_version: 10, opset_import: ["": {opset}, "local": 1, "com.acme": 1]>
        g ({inputs}) => (y) <bool off = {{0}}, bool on = {{1}}, float half = {{0.5}}>
        {{ {nodes} }} {more}"""
    )


@pytest.mark.parametrize("opset", [7, 11, 13, 21])
def test_schema_is_that_of_the_models_opset(opset: int) -> None:
    (node,) = graph_of("y = Softmax(x)", opset).nodes()
    wanted = onnx.defs.get_schema("Softmax", opset)
    found = schema_of(node)
    assert found is not None and found.since_version == wanted.since_version


@pytest.mark.parametrize(
    "node", ["local.twice(x)", "com.acme.Thing(x)", "NoSuch(x)", "other.Softmax(x)"]
)
def test_operators_that_onnx_does_not_define(node: str) -> None:
    function = '<domain: "local", opset_import: ["": 21]> twice (p) => (r) { r = Add(p, p) }'
    (call,) = graph_of(f"y = {node}", more=function).nodes()
    assert schema_of(call) is None and not is_deterministic(call)


def test_function_that_hides_an_operator() -> None:
    function = '<domain: "", opset_import: ["": 21]> Elu (p) => (r) { r = Neg(p) }'
    for nodes, given in (("y = Elu(x)", None), ("y = Elu<alpha = 2.0>(x)", 2.0)):
        (call,) = graph_of(nodes, more=function).nodes()
        assert schema_of(call) is None and attribute_value(call, "alpha") == given
    (node,) = graph_of("y = Elu(x)").nodes()
    assert attribute_value(node, "alpha") == 1.0


@pytest.mark.parametrize(
    "node, steady",
    [
        ("Relu(x)", True),
        ("RandomNormal<shape = [2]>()", False),
        ("RandomUniformLike(x)", False),
        ("Bernoulli(x)", False),
        ("Dropout(x)", True),
        ("Dropout(x, half, off)", True),
        ("Dropout(x, half, on)", False),
        ("Dropout(x, half, fed)", False),
        (
            """If(off) <then_branch = t () => (a) { a = Relu(x) },
            else_branch = e () => (b) { b = Neg(x) }>""",
            True,
        ),
        (
            """If(off) <then_branch = t () => (a) { a = Relu(x) },
            else_branch = e () => (b) { b = RandomNormalLike(x) }>""",
            False,
        ),
    ],
)
def test_what_gives_the_same_every_time(node: str, steady: bool) -> None:
    (found,) = graph_of(f"y = {node}", inputs="float[2] x, bool fed").nodes()
    assert is_deterministic(found) == steady


@pytest.mark.parametrize(
    "opset, attributes, drops_nothing",
    [(6, "<is_test = 1>", True), (6, "<is_test = 0>", False), (6, "", False), (10, "", True)],
)
def test_old_dropouts(opset: int, attributes: str, drops_nothing: bool) -> None:
    (node,) = graph_of(f"y = Dropout{attributes}(x)", opset).nodes()
    assert is_inference_dropout(node) == drops_nothing


@pytest.mark.parametrize(
    "dtype, lacking",
    [("int4", True), ("uint4", True), ("float8e8m0", True), ("int8", False), ("string", False)],
)
def test_types_without_an_identity(dtype: str, lacking: bool) -> None:
    graph = graph_of("y = Identity(x)", inputs=f"{dtype}[2] x")
    assert lacks_identity(graph.values["x"]) == lacking
    assert not lacks_identity(graph.values["y"])

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.ir import Graph, load, to_proto
from tests.helpers import assert_same_graph, difference

HEAD = '<ir_version: 10, opset_import: ["": 21, "local": 1, "com.acme": 1]>'

EVERYTHING = (
    HEAD
    + """main (bool q, float[N, 3] x, seq(float[K]) s) => (float[N, 3] y, z, u)
    <float[3] c = {1, 2, 3}, int8[12] big = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11},
    string[2] names = {"a", "b"}>
    {
        [add] a = Add(x, c)
        [if] y = If(q) <
            then_branch = then () => (float[N, 3] t) { t = Mul(a, c) },
            else_branch = other () => (float[N, 3] e) { e = Neg(a) }>
        z, , w = com.acme.Thing<k = 1, f = 0.5, list = [1, 2], name = "two words">(a, , c)
        v = Constant<value = float[2] {1, 2}>()
        u = local.twice<n = 2>(v)
    }
    <domain: "local", opset_import: ["": 21]> twice <n> (p) => (r) { r = Add(p, p) }"""
)


def test_print() -> None:
    graph = Graph.from_text(EVERYTHING)
    assert str(graph) == "\n".join(
        [
            "main (%q: bool[], %x: float[N, 3], %s: sequence) => (%y: float[N, 3], %z, %u) {",
            "    %c: float[3] = [1., 2., 3.]",
            "    %big: int8[12] = ... 12 bytes",
            "    %names: string[2] = ['a', 'b']",
            "    %a = Add(%x, %c)  # add",
            "    %y: float[N, 3] = If(%q)  # if",
            "      then_branch:",
            "        then () => (%t: float[N, 3]) {",
            "            %t: float[N, 3] = Mul(%a, %c)",
            "        }",
            "      else_branch:",
            "        other () => (%e: float[N, 3]) {",
            "            %e: float[N, 3] = Neg(%a)",
            "        }",
            "    %z, _, %w = com.acme.Thing<k=1, f=0.5, list=(1, 2), name='two words'>(%a, _, %c)",
            "    %v = Constant<value=Tensor(float[2]) [1., 2.]>()",
            "    %u = local.twice<n=2>(%v)",
            "}",
        ]
    )


def test_onnx_text_reads_back() -> None:
    graph = Graph.from_text(EVERYTHING)
    again = Graph.from_text(graph.to_text())
    assert_same_graph(again, graph)
    assert again.to_text() == graph.to_text()
    assert to_proto(again).functions == to_proto(graph).functions


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=4),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=4),
)
def test_onnx_text_keeps_every_bit(floats: list[float], integers: list[int]) -> None:
    graph = Graph("g")
    for name, dtype, numbers in (("f", np.float32, floats), ("i", np.int64, integers)):
        value = graph.constant(np.array(numbers, dtype=dtype), name)
        made = graph.add("Identity", [value], outputs=[f"{name}_out"])
        graph.add_output(made.output)
    assert_same_graph(Graph.from_text(graph.to_text()), graph)


@pytest.mark.slow
def test_onnx_text_of_the_corpus_reads_back(corpus: Path) -> None:
    files = sorted((corpus / "zoo").glob("*.onnx"))
    assert files
    for file in files:
        graph = load(file)
        assert str(graph)
        reason = difference(Graph.from_text(graph.to_text()), graph)
        assert not reason, f"{file.name}: {reason}"


def test_long_attributes_are_cut() -> None:
    graph = Graph("g")
    graph.add("Thing", [], {"note": "word " * 1000, "lines": "a\nb"}, domain="com.acme")
    (line,) = [line for line in str(graph).splitlines() if "Thing" in line]
    assert len(line) < 400


def test_parameter_of_a_function() -> None:
    body = Graph.from_text(HEAD + "g (float[2] x) => (float[2] y) { y = Neg(x) }")
    (node,) = body.nodes()
    attribute = onnx.AttributeProto(name="k", type=onnx.AttributeProto.INT, ref_attr_name="n")
    proto = to_proto(body)
    proto.graph.node[0].attribute.append(attribute)
    from onnxq.ir import load

    assert "Neg<k=@n>(%x)" in str(load(proto))
    assert to_proto(load(proto)).graph.node[0].attribute[0] == attribute
    assert node.op_type == "Neg"


def test_unnamed_graph_prints() -> None:
    assert str(Graph("")) == "graph () => () {\n}"


def test_text_says_what_the_parser_reads() -> None:
    graph = Graph.from_text(EVERYTHING)
    # onnx's own printer writes it, onnx's parser and then this package read it.
    again = Graph.from_text(onnx.printer.to_text(to_proto(graph)))
    assert_same_graph(again, graph)
    assert again.model.functions == graph.model.functions
    assert np.array_equal(again.values["c"].numpy(), [1, 2, 3])


@pytest.mark.parametrize(
    "text", ["", "no model", HEAD + "g (float[2] x) => (float[2] y) { y = Neg(x ", HEAD]
)
def test_text_that_does_not_parse(text: str) -> None:
    with pytest.raises(InputError, match="the text is not in ONNX text syntax: ") as caught:
        Graph.from_text(text)
    assert "\n" not in str(caught.value)


def test_text_of_an_invalid_graph() -> None:
    with pytest.raises(InputError, match="reads 'lost', which nothing produces"):
        Graph.from_text(HEAD + "g (float[2] x) => (float[2] y) { y = Neg(lost) }")

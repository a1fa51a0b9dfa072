from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Tensor, default_passes, load, to_proto
from onnxq.passes.cleanup.inline_functions import InlineFunctions
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21, "local": 1, "ai.onnx.ml": 3]>'
FUNCTIONS = """
<domain: "local", opset_import: ["": 21]> Scale <factor> (x) => (y)
{ k = Constant<value_float: float = @factor>()  y = Mul(x, k) }
<domain: "local", opset_import: ["": 21, "local": 1]> Twice (x) => (y)
{ a = local.Scale<factor = 2.0>(x)  y = local.Scale<factor = 3.0>(a) }
"""


def inline(before: Graph) -> tuple[Graph, int]:
    """The rewritten graph and the rewrites made; a second run must find nothing."""
    after = before.copy()
    made = InlineFunctions().run(after, Context())
    after.check()
    assert InlineFunctions().run(after, Context()) == 0
    return after, made


def test_calls_in_functions_and_subgraphs() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (bool c, float[2] x) => (float[2] y)
        {{ a = local.Twice(x)  y = If(c) <
            then_branch = t () => (float[2] p) {{ p = local.Scale<factor = 0.5>(a) }},
            else_branch = e () => (float[2] q) {{ q = Neg(a) }}> }} {FUNCTIONS}"""
    )
    after, made = inline(before)
    assert made == 2
    assert not after.model.functions
    assert after.model.opset_imports == {"": 21, "ai.onnx.ml": 3}
    kinds = [n.op_type for n in after.all_nodes() if n.op_type != "Constant"]
    assert kinds == ["Mul", "Mul", "If", "Mul", "Neg"]
    for flag in (True, False):
        feeds = {"c": np.array(flag), "x": np.array([1, -2], np.float32)}
        assert_equivalent(before, after, feeds=feeds)


def test_everything_else_stays() -> None:
    text = f"""{HEAD} g (float[400] x, float[400] o) => (float[400] y)
    <float[1] small = {{5}}> {{ a = local.Twice(x)  b = Add(a, o)  c = Mul(b, small)
    y = Add(c, large) }} {FUNCTIONS}""".replace(
        "float[1] small", "float[400] large = {%s}, float[1] small"
    )
    before = Graph.from_text(text % ", ".join(map(str, range(400))))
    before.model.metadata["key"] = "value"
    before.model.producer_name = "someone"
    before.doc_string = "a graph"
    before.values["o"].data = Tensor(np.arange(400, dtype=np.float32))
    after, made = inline(before)
    assert made == 2
    assert after.model.metadata == {"key": "value"}
    assert after.model.producer_name == "someone"
    assert after.doc_string == "a graph"
    assert [v.name for v in after.inputs] == ["x", "o"]
    assert not after.values["o"].is_constant
    # Large constants are not copied.
    for name in ("large", "o"):
        assert after.values[name].data is before.values[name].data
    assert to_proto(after).graph.initializer[0].doc_string == ""
    x = np.linspace(-1, 1, 400).astype(np.float32)
    assert_equivalent(before, after, feeds={"x": x})


def test_constants_of_subgraphs() -> None:
    numbers = ", ".join(map(str, range(400)))
    before = Graph.from_text(
        f"""{HEAD} g (bool c, float[400] x) => (float[400] y) {{ a = local.Twice(x)  y = If(c) <
        then_branch = t () => (float[400] p) <float[400] k = {{{numbers}}}> {{ p = Add(a, k) }},
        else_branch = e () => (float[400] q) <float[400] l = {{{numbers}}}> {{ q = Sub(a, l) }}> }}
        {FUNCTIONS}"""
    )
    after, made = inline(before)
    assert made == 2
    for flag in (True, False):
        feeds = {"c": np.array(flag), "x": np.ones(400, np.float32)}
        assert_equivalent(before, after, feeds=feeds)


def test_function_of_another_operator_set_stays() -> None:
    before = Graph.from_text(
        """<ir_version: 10, opset_import: ["": 21, "local": 1]> g (float[2] x) => (float[2] y)
        { y = local.F(x) } <domain: "local", opset_import: ["": 12]> F (x) => (y)
        { y = Neg(x) }"""
    )
    after, made = inline(before)
    assert made == 0
    assert_same_graph(after, before)


def test_function_that_calls_itself() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21, "local": 1]> g (float[2] x) => (float[2] y)
        { y = Neg(x) } <domain: "local", opset_import: ["": 21, "local": 1]> F (x) => (y)
        { y = local.F(x) }"""
    )
    graph = Graph.from_text(HEAD + "g (float[2] x) => (float[2] y) { y = Neg(x) }")
    graph.model.functions = list(model.functions)
    with pytest.raises(InputError, match="cannot be inlined"):
        InlineFunctions().run(graph, Context())


def test_without_functions_nothing_happens_and_only_by_request() -> None:
    graph = Graph.from_text(HEAD + "g (float[2] x) => (float[2] y) { y = Neg(x) }")
    assert InlineFunctions().run(graph, Context()) == 0
    assert graph.model.opset_imports["local"] == 1
    assert not any(isinstance(p, InlineFunctions) for p in default_passes())


def test_zoo_model_of_nested_functions(corpus: Path) -> None:
    before = load(corpus / "zoo" / "nested_local_function.onnx")
    after, made = inline(before)
    assert made
    assert not after.model.functions
    assert not {n.domain for n in after.all_nodes()} - set(after.model.opset_imports)

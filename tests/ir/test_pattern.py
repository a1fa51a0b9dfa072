from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.ir import (
    Builder,
    Context,
    DataType,
    FormPass,
    Graph,
    Match,
    Node,
    Rule,
    TensorType,
    Value,
    attribute_value,
    infer_types,
    parse_passes,
    raise_opset,
    remove_unused,
    rewrite,
)
from onnxq.ir.pattern import Either, Operator, PatternBuilder, Variable
from tests.helpers import assert_equivalent, assert_same_graph

HEAD = '<ir_version: 10, opset_import: ["": 21, "com.acme": 1]>'


def graph_of(text: str) -> Graph:
    return Graph.from_text(HEAD + text)


def of_type(graph: Graph, op_type: str) -> Node:
    return next(n for n in graph.all_nodes() if n.op_type == op_type)


def matches(pattern: Any, graph: Graph, root: str, condition: Any = None) -> Match | None:
    return Rule(pattern, lambda op, match: match["x"], condition).match(of_type(graph, root))


# Matching


def test_values_nodes_and_root_of_a_match() -> None:
    graph = graph_of(
        """g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { n = Neg(x)  y = Sub(n, c) }"""
    )

    def pattern(op: PatternBuilder, x: Variable, c: Variable) -> Operator:
        return op.Sub(op.Neg(x, bind="inner"), c, bind="outer")

    match = matches(pattern, graph, "Sub")
    assert match is not None and match.graph is graph
    neg, sub = of_type(graph, "Neg"), of_type(graph, "Sub")
    assert match.root is sub and match.nodes == [sub, neg]
    assert match.node("inner") is neg and match.node("outer") is sub
    assert match["x"] is graph.values["x"] and match["c"] is graph.values["c"]
    assert match.get("x") is match["x"] and match.get("nothing") is None
    assert matches(pattern, graph, "Neg") is None


@pytest.mark.parametrize("operator, both", [("Add", True), ("Mul", True), ("Sub", False)])
def test_commutative_operators_match_either_way(operator: str, both: bool) -> None:
    def pattern(op: PatternBuilder, x: Variable, c: Variable) -> Operator:
        return op(operator)(op.Neg(x), op.constant(c))

    for inputs, found in (("n, c", True), ("c, n", both)):
        graph = graph_of(
            f"""g (float[2] x) => (float[2] y) <float[2] c = {{1, 2}}>
            {{ n = Neg(x)  y = {operator}({inputs}) }}"""
        )
        assert (matches(pattern, graph, operator) is not None) == found


def test_commutative_operators_inside_one_another() -> None:
    """Every assignment is tried, also when an inner choice turns out wrong later."""

    def pattern(op: PatternBuilder, x: Variable, z: Variable) -> Operator:
        return op.Add(op.Mul(x, z), op.Sub(z, x))

    for product in ("a, b", "b, a"):
        for order in ("m, s", "s, m"):
            graph = graph_of(
                f"""g (float[2] a, float[2] b) => (float[2] y)
                {{ m = Mul({product})  s = Sub(a, b)  y = Add({order}) }}"""
            )
            match = matches(pattern, graph, "Add")
            assert match is not None
            assert (match["z"].name, match["x"].name) == ("a", "b")


def test_a_variable_is_one_value_wherever_it_appears() -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        return op.Mul(x, op.Sigmoid(x))

    for argument, found in (("x", True), ("z", False)):
        graph = graph_of(
            f"""g (float[2] x, float[2] z) => (float[2] y)
            {{ s = Sigmoid({argument})  y = Mul(x, s) }}"""
        )
        assert (matches(pattern, graph, "Mul") is not None) == found


@pytest.mark.parametrize(
    "constant, found",
    [
        ("float c = {0.5}", True),
        ("float[1] c = {0.5}", True),
        ("double[1, 1] c = {0.5}", True),
        ("float c = {0.5000001}", True),
        ("float c = {0.51}", False),
        ("float[2] c = {0.5, 0.5}", False),
        ('string c = {"0.5"}', False),
        ("int64 c = {0}", False),
    ],
)
def test_numbers(constant: str, found: bool) -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        return op.Mul(x, 0.5)

    graph = graph_of(f"g (float[2] x) => (y) <{constant}> {{ y = Mul(c, x) }}")
    assert (matches(pattern, graph, "Mul") is not None) == found


def test_a_number_is_no_input() -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        return op.Mul(x, 1)

    graph = graph_of("g (float[2] x, float[1] c) => (float[2] y) { y = Mul(x, c) }")
    assert matches(pattern, graph, "Mul") is None


def test_constants_are_what_nobody_can_override() -> None:
    def pattern(op: PatternBuilder, x: Variable, c: Variable) -> Operator:
        return op.Div(x, op.constant(c))

    graph = graph_of("g (float[2] x) => (float[2] y) <float[2] c = {1, 2}> { y = Div(x, c) }")
    assert matches(pattern, graph, "Div") is not None
    graph.values["c"].is_input = True
    assert matches(pattern, graph, "Div") is None


@pytest.mark.parametrize(
    "node, plain, optional",
    [
        ("Clip(x, lo, hi)", True, True),
        ("Clip(x, , hi)", False, True),
        ("Clip(x, lo)", False, True),
        ("Clip(x)", False, True),
    ],
)
def test_optional_inputs(node: str, plain: bool, optional: bool) -> None:
    def every(op: PatternBuilder, x: Variable, lo: Variable, hi: Variable) -> Operator:
        return op.Clip(x, lo, hi)

    def some(op: PatternBuilder, x: Variable, lo: Variable, hi: Variable) -> Operator:
        return op.Clip(x, op.optional(op.constant(lo)), op.constant(op.optional(hi)))

    graph = graph_of(f"g (float[2] x) => (y) <float lo = {{0}}, float hi = {{1}}> {{ y = {node} }}")
    assert (matches(every, graph, "Clip") is not None) == plain
    match = matches(some, graph, "Clip")
    assert (match is not None) == optional
    if match is not None and "lo" not in node:
        assert match.get("lo") is None
        with pytest.raises(KeyError, match="lo"):
            match["lo"]


def test_more_inputs_than_the_pattern_says() -> None:
    def pattern(op: PatternBuilder, x: Variable, lo: Variable) -> Operator:
        return op.Clip(x, lo)

    graph = graph_of("g (float[2] x, float a, float b) => (y) { y = Clip(x, a, b) }")
    assert matches(pattern, graph, "Clip") is None


@pytest.mark.parametrize(
    "wanted, node, found",
    [
        ({"axis": -1}, "Softmax(x)", True),
        ({"axis": -1}, "Softmax<axis = -1>(x)", True),
        ({"axis": -1}, "Softmax<axis = 1>(x)", False),
        ({"axis": 1}, "Softmax(x)", False),
        ({"no_such": None}, "Softmax(x)", True),
        ({"no_such": 1}, "Softmax(x)", False),
        ({"perm": (1, 0)}, "Transpose<perm = [1, 0]>(x)", True),
        ({"perm": [1, 0]}, "Transpose<perm = [1, 0]>(x)", True),
        ({"perm": [0, 1]}, "Transpose<perm = [1, 0]>(x)", False),
        ({"perm": (1, 0)}, "Transpose(x)", False),
        ({"approximate": "tanh"}, 'Gelu<approximate = "tanh">(x)', True),
        ({"approximate": "none"}, "Gelu(x)", True),
    ],
)
def test_attributes_count_with_their_default(
    wanted: dict[str, Any], node: str, found: bool
) -> None:
    operator = node.split("<")[0].split("(")[0]

    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        return op(operator)(x, **wanted)

    graph = graph_of(f"g (float[2, 2] x) => (float[2, 2] y) {{ y = {node} }}")
    assert (matches(pattern, graph, operator) is not None) == found


def test_attribute_values() -> None:
    graph = graph_of(
        """g (float[2, 2] x, int64[4] p) => (a, b, c, d) {
        a = Softmax(x)  b = Pad<mode = "edge">(x, p)  c = Transpose(x)  d = com.acme.Softmax(x) }"""
    )
    softmax, pad, transpose, strange = graph.nodes()
    assert attribute_value(softmax, "axis") == -1
    assert attribute_value(pad, "mode") == "edge"
    assert attribute_value(transpose, "perm") is None
    assert attribute_value(strange, "axis") is None
    graph.set_attribute(pad, "mode", None)
    assert attribute_value(pad, "mode") == "constant"


def test_several_operator_types_and_domains() -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        return op("Relu", "Neg")(op("Thing", domain="com.acme")(x))

    for outer, inner, found in (
        ("Relu", "com.acme.Thing", True),
        ("Neg", "com.acme.Thing", True),
        ("Abs", "com.acme.Thing", False),
        ("Relu", "Thing", False),
        ("com.acme.Relu", "com.acme.Thing", False),
    ):
        graph = graph_of(f"g (float[2] x) => (y) {{ t = {inner}(x)  y = {outer}(t) }}")
        root = outer.rsplit(".", maxsplit=1)[-1]
        assert (matches(pattern, graph, root) is not None) == found


def test_only_the_first_output_of_an_operator_counts() -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        return op.Neg(op.Split(x))

    for output, found in (("a", True), ("b", False)):
        graph = graph_of(
            f"g (float[2] x) => (y) {{ a, b = Split<num_outputs = 2>(x)  y = Neg({output}) }}"
        )
        assert (matches(pattern, graph, "Neg") is not None) == found


NEG_OF_ABS = """t = Abs(x)  y = Neg(t)"""


@pytest.mark.parametrize(
    "outputs, more, found",
    [
        ("float[2] y", "", True),
        ("float[2] y, float[2] z", "z = Exp(t)", False),
        ("float[2] y, float[2] t", "", False),
        (
            "float[2] y, float[2] z",
            """z = If(q) <then_branch = a () => (float[2] m) { m = Exp(t) },
            else_branch = b () => (float[2] n) { n = Exp(x) }>""",
            False,
        ),
    ],
    ids=["alone", "read", "output", "captured"],
)
def test_inner_node_that_serves_something_else(outputs: str, more: str, found: bool) -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        return op.Neg(op.Abs(x))

    graph = graph_of(f"g (bool q, float[2] x) => ({outputs}) {{ {NEG_OF_ABS}  {more} }}")
    assert (matches(pattern, graph, "Neg") is not None) == found


def test_root_whose_other_outputs_are_used() -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        return op.MaxPool(x)

    for outputs, found in (("y", True), ("y, i", False)):
        graph = graph_of(
            f"g (float[1, 1, 4] x) => ({outputs}) {{ y, i = MaxPool<kernel_shape = [2]>(x) }}"
        )
        assert (matches(pattern, graph, "MaxPool") is not None) == found


def test_patterns_end_at_the_border_of_a_graph() -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        return op.Neg(op.Abs(x))

    graph = graph_of(
        """g (bool q, float[2] x) => (float[2] y) { a = Abs(x)  y = If(q) <
            then_branch = t () => (float[2] m) { m = Neg(a) },
            else_branch = e () => (float[2] n) { b = Abs(x)  n = Neg(b) }> }"""
    )
    inner, both = [n for n in graph.all_nodes() if n.op_type == "Neg"]
    rule = Rule(pattern, lambda op, match: match["x"])
    assert rule.match(inner) is None and rule.match(both) is not None


def test_an_operator_that_appears_twice_is_one_node() -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        shared = op.Abs(x)
        return op.Add(shared, op.Neg(shared))

    for second, found in (("a", True), ("b", False)):
        graph = graph_of(
            f"""g (float[2] x) => (float[2] y)
            {{ a = Abs(x)  b = Abs(x)  n = Neg({second})  y = Add(a, n) }}"""
        )
        assert (matches(pattern, graph, "Add") is not None) == found


def test_condition_may_refuse() -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        return op.Neg(x)

    graph = graph_of("g (float[2] x) => (float[2] y) { y = Neg(x) }")
    assert matches(pattern, graph, "Neg", lambda match: match["x"].name == "x") is not None
    assert matches(pattern, graph, "Neg", lambda match: False) is None


def test_condition_refusing_one_way_tries_the_other() -> None:
    def pattern(op: PatternBuilder, x: Variable, z: Variable) -> Operator:
        return op.Add(x, z)

    graph = graph_of("g (float[2] a, float[2] b) => (float[2] y) { y = Add(a, b) }")
    match = matches(pattern, graph, "Add", lambda match: match["x"].name == "b")
    assert match is not None and match["z"].name == "a"


# Alternatives


@pytest.mark.parametrize(
    "inner, bound",
    [("Exp(x)", "exp"), ("Neg(x)", "neg"), ("Mul(x, half)", ""), ("Mul(half, x)", "")],
)
def test_either_of_several_operators(inner: str, bound: str) -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        either = op.either(op.Exp(x, bind="exp"), op.Neg(x, bind="neg"), op.Mul(x, 0.5))
        return op.Relu(either)

    graph = graph_of(
        f"""g (float[2] x) => (float[2] y) <float half = {{0.5}}> {{ a = {inner}  y = Relu(a) }}"""
    )
    match = matches(pattern, graph, "Relu")
    assert match is not None and match["x"] is graph.values["x"]
    assert list(match.bound) == ([bound] if bound else [])
    assert [n.op_type for n in match.nodes] == ["Relu", inner.partition("(")[0]]


def test_what_none_of_the_alternatives_stands_for() -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        return op.Relu(op.either(op.Exp(x), op.Neg(x)))

    graph = graph_of("g (float[2] x) => (float[2] y) { a = Abs(x)  y = Relu(a) }")
    assert matches(pattern, graph, "Relu") is None


def test_a_part_that_may_be_missing() -> None:
    def pattern(op: PatternBuilder, x: Variable, c: Variable) -> Operator:
        return op.Relu(op.either(op.Add(x, op.constant(c)), x))

    for inner, found in (("Add(x, k)", "k"), ("Add(k, x)", "k"), ("Add(x, z)", None)):
        graph = graph_of(
            f"""g (float[2] x, float[2] z) => (float[2] y) <float[2] k = {{1, 2}}>
            {{ a = {inner}  y = Relu(a) }}"""
        )
        match = matches(pattern, graph, "Relu")
        assert match is not None
        assert match.get("c") is (graph.values[found] if found else None)
        assert match["x"].name == ("x" if found else "a")


def test_the_other_alternative_where_the_first_fails_later() -> None:
    """What a failed alternative has bound does not stay bound."""

    def pattern(op: PatternBuilder, x: Variable, z: Variable) -> Operator:
        first = op.Sub(op.Neg(x, bind="first"), z)
        return op.Add(op.either(first, op.Sub(z, x)), x)

    graph = graph_of(
        """g (float[2] a, float[2] b) => (float[2] y)
        { n = Neg(a)  s = Sub(n, b)  y = Add(s, b) }"""
    )
    match = matches(pattern, graph, "Add")
    assert match is not None
    assert (match["z"].name, match["x"].name) == ("n", "b")
    assert not match.bound and [n.op_type for n in match.nodes] == ["Add", "Sub"]


def test_the_other_alternative_where_the_condition_refuses_the_first() -> None:
    def pattern(op: PatternBuilder, x: Variable, c: Variable) -> Operator:
        return op.Relu(op.either(op.Mul(x, op.constant(c)), x))

    graph = graph_of(
        """g (float[2] x) => (float[2] y) <float[2] k = {1, 2}> { a = Mul(x, k)  y = Relu(a) }"""
    )
    match = matches(pattern, graph, "Relu", lambda found: found.get("c") is None)
    assert match is not None and match["x"].name == "a" and match.values.keys() == {"x"}


def test_an_alternative_used_twice_is_one_value() -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        inner = op.either(op.Neg(x), x)
        return op.Sub(inner, op.Exp(inner))

    text = "g (float[2] x) => (float[2] y) {{ n = Neg(x)  e = Exp({})  y = Sub({}, e) }}"
    for read, minuend, found in (("n", "n", "x"), ("x", "x", "x"), ("n", "x", ""), ("x", "n", "")):
        match = matches(pattern, graph_of(text.format(read, minuend)), "Sub")
        assert (match["x"].name if match else "") == found


def test_alternatives_at_the_end_take_in_all_that_is_there() -> None:
    def pattern(op: PatternBuilder, x: Variable, c: Variable) -> Either:
        exp = op.Exp(op.either(op.Neg(x), op.Abs(x)))
        scaled = op.Mul(exp, op.constant(c))
        return op.either(op.Relu(op.either(scaled, exp)), scaled, exp)

    rule = Rule(pattern, lambda op, match: op.Sign(match["x"]), what="is a Sign")
    assert rule.roots == {"Relu", "Mul", "Exp"}
    for tail, left in (
        ("y = Exp(n)", ["Sign"]),
        ("e = Exp(n)  y = Mul(e, k)", ["Sign"]),
        ("e = Exp(n)  y = Relu(e)", ["Sign"]),
        ("e = Exp(n)  m = Mul(e, k)  y = Relu(m)", ["Sign"]),
        ("e = Exp(n)  m = Mul(e, x)  y = Relu(m)", ["Sign", "Mul", "Relu"]),
    ):
        graph = graph_of(
            f"g (float[2] x) => (float[2] y) <float[2] k = {{1, 2}}> {{ n = Neg(x)  {tail} }}"
        )
        assert rewrite(graph, [rule], Context(), last_first=True) == 1
        assert [n.op_type for n in graph.nodes()] == left


def test_a_pattern_that_ends_in_no_operator() -> None:
    with pytest.raises(TypeError, match="a pattern is an operator, or alternatives that all are"):
        Rule(lambda op, x: op.either(op.Neg(x), x), lambda op, match: match["x"])


# Rewriting


def _double(op: PatternBuilder, x: Variable) -> Operator:
    return op.Add(x, x)


def _times_two(op: Builder, match: Match) -> Value:
    return op.Mul(match["x"], op.constant(np.array(2, np.float32), "two"))


DOUBLE = Rule(_double, _times_two, what="a sum of equals is a product")


def test_apply_keeps_names_outputs_and_types() -> None:
    before = graph_of(
        """g (float[2] x) => (float[2] y, float[2] t) <float[2] t>
        { [first] t = Add(x, x)  [second] y = Add(t, t) }"""
    )
    after = before.copy()
    told: list[str] = []
    assert rewrite(after, [DOUBLE], Context(debug=2, log=told.append)) == 2
    after.check()
    assert [n.name for n in after.nodes()] == ["first", "second"]
    assert [v.name for v in after.outputs] == ["y", "t"]
    assert after.values["t"].type == TensorType(DataType.FLOAT, (2,))
    assert told == [
        "    'first' (Add): a sum of equals is a product",
        "    'second' (Add): a sum of equals is a product",
    ]
    assert_same_graph(
        after,
        graph_of(
            """g (float[2] x) => (float[2] y, float[2] t) <float two = {2}>
            { t = Mul(x, two)  y = Mul(t, two) }"""
        ),
    )
    assert_equivalent(before, after)
    assert rewrite(after, [DOUBLE], Context()) == 0


def test_apply_where_nothing_fits() -> None:
    graph = graph_of("g (float[2] x, float[2] z) => (float[2] y) { y = Add(x, z) }")
    assert not DOUBLE.apply(of_type(graph, "Add"))
    assert [n.op_type for n in graph.nodes()] == ["Add"]


def test_name_of_an_intermediate_stays() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y) { [d] t = Add(x, x)  y = Neg(t) }")
    rewrite(graph, [DOUBLE], Context())
    assert graph.values["t"].producer is of_type(graph, "Mul")
    assert of_type(graph, "Mul").name == "d"


def test_in_subgraphs_and_unused_constants() -> None:
    def pattern(op: PatternBuilder, x: Variable, c: Variable) -> Operator:
        return op.Neg(op.Mul(x, op.constant(c)))

    def replacement(op: Builder, match: Match) -> Value:
        return op.Mul(match["x"], op.constant(-match["c"].numpy(), "negated"))

    before = graph_of(
        """g (bool q, float[2] x) => (float[2] y, float[2] z)
        <float[2] own = {1, 2}, float[2] shared = {3, 4}>
        { m = Mul(x, own)  z = Neg(m)  y = If(q) <
            then_branch = t () => (float[2] b) { a = Mul(x, shared)  b = Neg(a) },
            else_branch = e () => (float[2] d) { d = Mul(x, shared) }> }"""
    )
    after = before.copy()
    assert rewrite(after, [Rule(pattern, replacement)], Context()) == 2
    after.check()
    assert [n.op_type for n in after.all_nodes()] == ["If", "Mul", "Mul", "Mul"]
    assert "own" not in after.values and "shared" in after.values
    x = np.array([1, -2], np.float32)
    for q in (True, False):
        assert_equivalent(before, after, feeds={"q": np.array(q), "x": x})


def test_first_rule_that_fits_wins() -> None:
    def to_relu(op: Builder, match: Match) -> Value:
        return op("Relu", match["x"], attributes={"note": 1})

    graph = graph_of("g (float[2] x) => (float[2] y) { y = Add(x, x) }")
    never = Rule(_double, _times_two, lambda match: False)
    assert rewrite(graph, [never, Rule(_double, to_relu), DOUBLE], Context()) == 1
    assert [n.op_type for n in graph.nodes()] == ["Relu"]
    assert of_type(graph, "Relu").get("note") == 1


def test_replacement_by_a_value_that_is_there() -> None:
    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        return op.Neg(op.Neg(x))

    before = graph_of(
        """g (float[2] x) => (float[2] y, float[2] z)
        { a = Abs(x)  b = Neg(a)  y = Neg(b)  c = Neg(x)  z = Neg(c) }"""
    )
    after = before.copy()
    assert rewrite(after, [Rule(pattern, lambda op, match: match["x"])], Context()) == 2
    assert sorted(n.op_type for n in after.nodes()) == ["Abs", "Identity"]
    assert_equivalent(before, after)


def test_replacement_that_changes_a_node_of_the_match() -> None:
    """The node stays, with its name; the root goes."""

    def pattern(op: PatternBuilder, x: Variable) -> Operator:
        return op.Cast(op.Cast(x, bind="inner"), bind="outer")

    def replacement(op: Builder, match: Match) -> Value:
        inner = match.node("inner")
        op.graph.set_attribute(inner, "to", match.node("outer").get("to"))
        inner.output.type = None
        return inner.output

    before = graph_of(
        """g (float[2] x) => (float[2] y)
        { [in] a = Cast<to = 11>(x)  [out] b = Cast<to = 1>(a)  y = Neg(b) }"""
    )
    after = before.copy()
    assert rewrite(after, [Rule(pattern, replacement)], Context()) == 1
    assert [(n.name, n.op_type) for n in after.nodes()] == [("in", "Cast"), ("", "Neg")]
    assert "b" in after.values and "a" not in after.values
    assert_equivalent(before, after)


def test_custom_domain_in_a_replacement() -> None:
    def replacement(op: Builder, match: Match) -> Value:
        return op.Thing(match["x"], domain="com.acme", k=3)

    graph = graph_of("g (float[2] x) => (float[2] y) { y = Add(x, x) }")
    assert rewrite(graph, [Rule(_double, replacement)], Context()) == 1
    (node,) = graph.nodes()
    assert node.is_op("Thing", domain="com.acme") and node.get("k") == 3


def test_remove_unused() -> None:
    graph = graph_of(
        """g (float[2] x) => (float[2] y) <float[2] c = {1, 2}, float[2] d = {1, 2}>
        { a = Add(x, c)  b = Mul(a, d)  y = Sub(x, d) }"""
    )
    add, mul, sub = (of_type(graph, t) for t in ("Add", "Mul", "Sub"))
    remove_unused(graph, [add])
    assert add.in_graph
    remove_unused(graph, [sub, mul, add, mul])
    assert not add.in_graph and not mul.in_graph and sub.in_graph
    assert set(graph.values) == {"x", "y", "d"}
    graph.check()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 99), st.integers(0, 99)), max_size=12))
def test_rewriting_keeps_the_outputs_of_any_graph(plan: list[tuple[int, int, int]]) -> None:
    """x + x to 2 x, -(-x) to x, and x * a + x * b to x * (a + b), over random graphs."""

    def negated_twice(op: PatternBuilder, x: Variable) -> Operator:
        return op.Neg(op.Neg(x))

    def common_factor(op: PatternBuilder, x: Variable, a: Variable, b: Variable) -> Operator:
        return op.Add(op.Mul(x, a), op.Mul(x, b))

    def factored(op: Builder, match: Match) -> Value:
        return op.Mul(match["x"], op.Add(match["a"], match["b"]))

    before = Graph("g", model=graph_of("g () => () {}").model)
    values = [before.add_input("x", TensorType(DataType.FLOAT, (3,)))]
    values.append(before.constant(np.array([1, -2, 0.5], np.float32)))
    for operator, first, second in plan:
        pair = [values[first % len(values)], values[second % len(values)]]
        op_type = ("Add", "Mul", "Neg", "Add")[operator]
        read = pair[:1] if op_type == "Neg" else pair
        values.append(before.add(op_type, read, types=[values[0].type]).output)
    output = before.add("Identity", [values[-1]], outputs=["y"], types=[values[0].type]).output
    before.add_output(output)
    after = before.copy()
    rules = [
        DOUBLE,
        Rule(negated_twice, lambda op, match: match["x"]),
        Rule(common_factor, factored),
    ]
    while rewrite(after, rules, Context()):
        after.check()
    assert_equivalent(before, after, exact=False)


def _is_double_of_rank_one(match: Match) -> bool:
    return match["x"].rank == 1


@dataclass(frozen=True)
class Doubles(FormPass):
    """Sums of a value with itself are products; those of vectors only in a newer opset."""

    name = "doubles"
    rules = (
        Rule(_double, _times_two, _is_double_of_rank_one, "a product", opset=22),
        Rule(_double, _times_two, lambda match: match["x"].rank == 2, "a product"),
    )


FORMS = """g (float[2] v, float[2, 2] x) => (float[2] w, float[2, 2] y)
{ w = Add(v, v) a = Add(x, x) b = Add(a, a) y = Add(b, b) }"""


def test_a_form_spares_the_regions_that_are_named() -> None:
    before = graph_of(FORMS)
    infer_types(before)
    after, context = before.copy(), Context()
    assert Doubles(without=("b", "absent")).run(after, context) == 2
    assert [n.op_type for n in after.nodes()] == ["Add", "Mul", "Add", "Mul"]
    assert context.regions == {"doubles": ["a", "y"]}
    assert Doubles(without=("b", "absent")).run(after, context) == 0
    assert_equivalent(before, after)
    assert parse_passes("fuse-gelu{without=('b', 'c')}")[0].without == ("b", "c")  # type: ignore[attr-defined]


def test_opsets_at_which_more_would_be_found() -> None:
    graph = graph_of(FORMS)
    assert graph.opset < 22
    assert Doubles().higher_opsets(graph) == {22}
    assert not Doubles().higher_opsets(raise_opset(graph, 22))
    assert not Doubles().higher_opsets(graph_of("g (float[2] v) => (float[2] y) { y = Neg(v) }"))

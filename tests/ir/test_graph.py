from __future__ import annotations

from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import InvariantError
from onnxq.ir import DataType, Graph, Node, Tensor, TensorType, Use, Value, to_proto
from onnxq.ir.copying import assign, extract_nodes, reads
from tests.helpers import assert_same_graph, run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'
FLOATS = TensorType(DataType.FLOAT, (2,))

CHAIN = """g (float[2] x) => (float[2] y) <float[2] c = {1, 2}>
    { [add] a = Add(x, c)  [neg] n = Neg(a)  [mul] y = Mul(n, a) }"""

NESTED = """g (bool q, float[2] x) => (float[2] y) <float[2] c = {1, 2}>
    { [add] a = Add(x, c)
      [if] y = If(q) <
        then_branch = then () => (float[2] t) { [inner] t = Mul(a, c) },
        else_branch = other () => (float[2] e) {
            [nested] e = If(q) <
                then_branch = deep () => (float[2] d) { d = Neg(a) },
                else_branch = flat () => (float[2] f) { f = Neg(x) }> }> }"""


def graph_of(text: str) -> Graph:
    return Graph.from_text(HEAD + text)


def node_of(graph: Graph, name: str) -> Node:
    return next(n for n in graph.all_nodes() if n.name == name)


def operators(graph: Graph) -> list[str]:
    return [n.op_type for n in graph.nodes()]


def edges(graph: Graph) -> set[tuple[str, str, str, int]]:
    return {
        (a.name, b.name, use.node.name, use.slot) for a, b, use in graph.networkx.edges(keys=True)
    }


# Reading


def test_values_know_their_type_producer_and_uses() -> None:
    graph = graph_of(CHAIN)
    a, c, x = (graph.values[n] for n in "acx")
    add, mul = node_of(graph, "add"), node_of(graph, "mul")
    assert a.producer is add and a.slot == 0
    assert set(a.uses) == {Use(node_of(graph, "neg"), 0), Use(mul, 1)}
    assert c.is_constant and not c.is_input and np.array_equal(c.numpy(), [1, 2])
    assert x.is_input and not x.is_constant and x.producer is None
    assert (x.dtype, x.shape, x.rank) == (DataType.FLOAT, (2,), 1)
    assert (a.dtype, a.shape, a.rank, a.type) == (None, None, None, None)
    assert graph.values["y"].is_output and not a.is_output
    assert a.is_used and graph.values["y"].is_used
    with pytest.raises(ValueError, match="'x' is not constant"):
        x.numpy()


def test_overridable_initializer_is_no_constant() -> None:
    graph = graph_of(CHAIN)
    graph.values["x"].data = Tensor(np.zeros(2, np.float32))
    assert not graph.values["x"].is_constant
    assert list(graph.initializers()) == [graph.values["x"], graph.values["c"]]
    with pytest.raises(ValueError, match="not constant"):
        graph.values["x"].numpy()


def test_nodes_know_their_inputs_outputs_and_attributes() -> None:
    graph = graph_of(
        """g (float[2, 3] x) => (float[3, 2] y) {
        y = com.acme.Thing<perm = [1, 0], mode = "fast", alpha = 0.5>(x, , x) }"""
    )
    (node,) = graph.nodes()
    assert node.inputs == (graph.values["x"], None, graph.values["x"])
    assert node.input(1) is None and node.input(7) is None
    assert node.get("perm") == (1, 0) and node.get("mode") == "fast" and node.get("no", 3) == 3
    assert node.is_op("Thing", domain="com.acme") and not node.is_op("Thing")
    assert node.label == "Thing making 'y'" and repr(node) == "<Thing making 'y'>"
    assert graph.networkx.number_of_edges() == 0
    assert node in graph and len(graph) == 1


def test_node_outside_a_graph() -> None:
    node = Node("Neg", name="n")
    assert not node.in_graph and node.label == "'n' (Neg)"
    with pytest.raises(ValueError, match=r"'n' \(Neg\) belongs to no graph"):
        _ = node.graph
    with pytest.raises(ValueError, match="has no first output"):
        _ = node.output


def test_order_is_topological_and_otherwise_as_added() -> None:
    graph = graph_of(CHAIN)
    assert [n.name for n in graph.nodes()] == ["add", "neg", "mul"]
    # A node that comes late and is read early stands right before its first reader.
    late = graph.add("Relu", [graph.values["a"]], name="late")
    node_of(graph, "neg").set_input(0, late.output)
    assert [n.name for n in graph.nodes()] == ["add", "late", "neg", "mul"]
    graph.check()


def test_names_resolve_in_outer_scopes() -> None:
    graph = graph_of(NESTED)
    then, other = node_of(graph, "if").subgraphs()
    assert then.find("a") is graph.values["a"] and then.find("t") is then.values["t"]
    assert graph.find("t") is None and other.find("nothing") is None
    assert [g.name for g in graph.all_graphs()] == ["g", "then", "other", "deep", "flat"]
    assert [n.op_type for n in graph.all_nodes()] == ["Add", "If", "Mul", "If", "Neg", "Neg"]


def test_captured_values_are_edges_to_the_node_that_holds_the_subgraph() -> None:
    graph = graph_of(NESTED)
    assert edges(graph) == {("add", "if", "inner", 0), ("add", "if", "", 0)}
    assert graph.consumers(graph.values["a"]) == [node_of(graph, "if")]
    other = list(node_of(graph, "if").subgraphs())[1]
    assert other.consumers(graph.values["a"]) == [node_of(graph, "nested")]
    assert {len(graph.values[n].uses) for n in "acq"} == {2}
    with pytest.raises(InvariantError, match=r"'add'.*'a' is in use"):
        graph.remove(node_of(graph, "add"))


def test_removing_the_holder_frees_what_its_subgraphs_read() -> None:
    graph = graph_of(NESTED)
    add, holder = node_of(graph, "add"), node_of(graph, "if")
    graph.replace_uses(graph.values["y"], graph.add("Identity", [graph.values["x"]]).output)
    graph.remove(holder)
    assert not graph.values["a"].is_used and not graph.values["q"].is_used
    assert edges(graph) == set()
    graph.remove(add)
    assert not graph.values["c"].is_used
    graph.check()


# Verbs


def test_add_names_types_and_optional_outputs() -> None:
    graph = graph_of(CHAIN)
    x = graph.values["x"]
    named = graph.add("Neg", [x], name="add", types=[FLOATS])
    assert named.name == "add_1" and named.output.name == "add_output"
    assert named.output.type == FLOATS
    several = graph.add("Split", [x], {"num_outputs": 3}, outputs=["p", None, "q"])
    assert [None if v is None else (v.name, v.slot) for v in several.outputs] == [
        ("p", 0),
        None,
        ("q", 2),
    ]
    assert [v.name for v in graph.add("Split", [x], outputs=2).outputs if v is not None] == [
        "split_output",
        "split_output_1",
    ]
    custom = graph.add("Thing", [None, x, None, None], domain="com.acme")
    assert custom.is_op("Thing", domain="com.acme") and custom.name == ""
    assert custom.inputs == (None, x)
    graph.check()


def test_what_add_refuses_leaves_the_graph_as_it_was() -> None:
    graph = graph_of(NESTED)
    before = to_proto(graph).SerializeToString(deterministic=True)
    x, inner = graph.values["x"], node_of(graph, "inner").graph
    for names, wrong in ((["new", "a"], "a"), (["new", "new"], "new")):
        with pytest.raises(InvariantError, match=f"two values of graph 'g' are called '{wrong}'"):
            graph.add("Split", [x], outputs=names)
    with pytest.raises(InvariantError, match=r"Neg in graph 'g' cannot read 't'.*graph 'then'"):
        graph.add("Neg", [inner.values["t"]])
    with pytest.raises(InvariantError, match="Neg in graph 'then' cannot read 'f'"):
        inner.add("Neg", [list(graph.all_graphs())[-1].values["f"]])
    with pytest.raises(InvariantError, match="Add in graph 'g' cannot read 't'"):
        node_of(graph, "add").set_input(0, inner.values["t"])
    with pytest.raises(InvariantError, match="subgraph 'other' of If in graph 'g'"):
        graph.add("If", [x], {"then_branch": Graph("other", outer=inner)})
    with pytest.raises(TypeError, match="no attribute type"):
        graph.add("Neg", [x], {"note": object()})
    graph.check()
    assert to_proto(graph).SerializeToString(deterministic=True) == before


def test_names_are_fresh_in_the_whole_model() -> None:
    graph = graph_of(NESTED)
    assert graph.fresh_name("new") == "new"
    assert graph.fresh_name("d") == "d_1"
    deep = node_of(graph, "nested").attributes["then_branch"].value
    made = deep.add("Neg", [graph.values["x"]], name="add")
    assert made.name == "add_1"
    made_outside = graph.constant(np.zeros(1), made.output.name)
    assert made_outside.name != made.output.name
    graph.check()


def test_a_name_is_free_again_after_removal() -> None:
    graph = graph_of(CHAIN)
    node = graph.add("Neg", [graph.values["x"]], name="n2", outputs=["z"])
    graph.remove(node)
    assert graph.fresh_name("z") == "z"
    assert graph.add("Neg", [graph.values["x"]], name="n2", outputs=["z"]).name == "n2"


def test_remove() -> None:
    graph = graph_of(CHAIN)
    x = graph.values["x"]
    with pytest.raises(InvariantError, match=r"'mul' \(Mul\).*its output 'y' is in use"):
        graph.remove(node_of(graph, "mul"))
    graph.set_outputs([x])
    removed = node_of(graph, "mul")
    graph.remove(removed)
    assert not removed.in_graph and "y" not in graph.values and removed not in graph
    assert graph.values["n"].uses == () and edges(graph) == {("add", "neg", "neg", 0)}
    graph.check()


def test_set_input_changes_links_and_length() -> None:
    graph = graph_of(CHAIN)
    mul, a, c = node_of(graph, "mul"), graph.values["a"], graph.values["c"]
    mul.set_input(1, c)
    assert mul.inputs[1] is c and Use(mul, 1) in c.uses and Use(mul, 1) not in a.uses
    mul.set_input(4, a)
    assert mul.inputs[2:] == (None, None, a)
    graph.check()
    mul.set_input(4, None)
    assert mul.inputs == (graph.values["n"], c)
    graph.check()


def test_set_constant() -> None:
    graph = graph_of(NESTED)
    add, inner, x = node_of(graph, "add"), node_of(graph, "inner"), graph.values["x"]
    ones, twos = np.ones(2, np.float32), np.full(2, 2, np.float32)
    graph.set_constant(add, 1, ones)
    assert add.inputs[1] is graph.values["c_1"] and inner.inputs[1] is graph.values["c"]
    inner.graph.set_constant(inner, 1, twos)
    assert "c" not in graph.values and inner.inputs[1] is inner.graph.values["c"]
    graph.set_constant(add, 1, twos)
    assert add.inputs == (x, graph.values["c_1"]) and np.array_equal(add.inputs[1].numpy(), twos)
    graph.set_constant(add, 0, ones, "in")
    graph.set_constant(add, 3, Tensor(ones), "bias")
    names = [None if v is None else v.name for v in add.inputs]
    assert names == ["in", "c_1", None, "bias"] and graph.inputs[1] is x
    graph.check()


def test_set_attribute() -> None:
    graph = graph_of(NESTED)
    holder = node_of(graph, "if")
    graph.set_attribute(holder, "note", "hello")
    assert holder.get("note") == "hello"
    graph.set_attribute(holder, "note", None)
    graph.set_attribute(holder, "absent", None)
    assert set(holder.attributes) == {"then_branch", "else_branch"}
    body = Graph("new", outer=graph)
    body.add_output(body.add("Relu", [graph.values["a"]], outputs=["r"], types=[FLOATS]).output)
    graph.set_attribute(holder, "else_branch", body)
    assert [g.name for g in graph.all_graphs()] == ["g", "then", "new"]
    assert len(graph.values["a"].uses) == 2 and len(graph.values["q"].uses) == 1
    graph.check()
    x = np.array([3, -4], np.float32)
    assert np.array_equal(run(graph, {"q": np.array(False), "x": x})["y"], [4, 0])
    stranger = Graph("stranger", outer=graph_of(CHAIN))
    with pytest.raises(InvariantError, match=r"'stranger' of If in graph 'g' .*another graph"):
        graph.set_attribute(holder, "else_branch", stranger)
    assert holder.attributes["else_branch"].value is body
    graph.check()


def test_replace_uses_everywhere_and_where() -> None:
    graph = graph_of(NESTED)
    a, x = graph.values["a"], graph.values["x"]
    graph.replace_uses(a, a)
    graph.replace_uses(a, x, where=lambda use: use.node.name == "inner")
    assert node_of(graph, "inner").inputs[0] is x and len(a.uses) == 1
    graph.replace_uses(a, x)
    assert a.uses == ()
    assert edges(graph) == set()
    graph.check()


def test_replaced_output_keeps_name_order_and_type() -> None:
    graph = graph_of(
        """g (float[2] x) => (float[2] y, float[2] z, float[2] y2) {
        y = Neg(x)  z = Abs(y)  y2 = Relu(z) }"""
    )
    y = graph.values["y"]
    y.doc_string, y.metadata, y.annotation = "doc", {"k": "v"}, {"SCALE_TENSOR": "s"}
    new = graph.add("Sqrt", [graph.values["x"]]).output
    graph.replace_uses(y, new)
    assert [v.name for v in graph.outputs] == ["y", "z", "y2"]
    assert graph.outputs[0] is new and new.type == FLOATS
    assert (new.doc_string, new.metadata, new.annotation) == (
        "doc",
        {"k": "v"},
        {"SCALE_TENSOR": "s"},
    )
    assert not y.is_output and y.name == "y_replaced"
    assert y.producer is not None
    graph.remove(y.producer)
    graph.check()


@pytest.mark.parametrize("replacement", ["x", "c", "z"])
def test_output_replaced_by_what_cannot_take_its_name(replacement: str) -> None:
    graph = graph_of(
        """g (float[2] x) => (float[2] y, float[2] z) <float[2] c = {5, 6}>
        { y = Neg(x)  z = Abs(x) }"""
    )
    wanted = {"x": [-3, 4], "c": [5, 6], "z": [3, 4]}[replacement]
    graph.replace_uses(graph.values["y"], graph.values[replacement])
    assert [v.name for v in graph.outputs] == ["y", "z"]
    assert graph.outputs[0].producer is not None
    assert graph.outputs[0].producer.op_type == "Identity"
    graph.check()
    found = run(graph, {"x": np.array([-3, 4], np.float32)})
    assert np.array_equal(found["y"], wanted) and np.array_equal(found["z"], [3, 4])


def test_value_that_is_an_output_twice() -> None:
    graph = graph_of("g (float[2] x) => (float[2] y, float[2] y) { y = Neg(x) }")
    new = graph.add("Abs", [graph.values["x"]]).output
    graph.replace_uses(graph.values["y"], new)
    assert graph.outputs == (new, new) and new.name == "y"
    graph.check()


def test_input_that_is_an_output_stays_one() -> None:
    graph = graph_of("g (float[2] x) => (float[2] x, float[2] y) { y = Neg(x) }")
    new = graph.add("Abs", [graph.values["x"]]).output
    graph.replace_uses(graph.values["x"], new, where=lambda use: use.node.op_type == "Neg")
    graph.replace_uses(graph.values["x"], new, where=lambda use: False)
    assert graph.outputs[0] is graph.values["x"]
    assert operators(graph) == ["Abs", "Neg"]
    graph.check()


def test_constant_and_discard() -> None:
    graph = graph_of(CHAIN)
    first = graph.constant(np.arange(6, dtype=np.int64).reshape(2, 3))
    second = graph.constant(Tensor(np.float32(1) * np.ones(())), "c")
    assert first.name == "constant" and second.name == "c_1"
    assert first.type == TensorType(DataType.INT64, (2, 3)) and second.shape == ()
    graph.discard(first)
    assert "constant" not in graph.values
    for name in ("c", "x", "a", "y"):
        with pytest.raises(InvariantError, match=f"'{name}' cannot be discarded"):
            graph.discard(graph.values[name])
    graph.check()


def test_inputs_and_outputs() -> None:
    graph = Graph("made")
    x = graph.add_input("x", FLOATS)
    graph.add_output(graph.add("Neg", [x], outputs=["y"], types=[FLOATS]).output)
    graph.add_output(x)
    assert [v.name for v in graph.outputs] == ["y", "x"] and graph.inputs == (x,)
    graph.check()
    graph.set_outputs([x])
    assert not graph.values["y"].is_output and graph.outputs == (x,)
    with pytest.raises(InvariantError, match="called 'x'"):
        graph.add_input("x", None)
    with pytest.raises(InvariantError):
        graph.add_input("", None)
    assert repr(graph) == "<Graph 'made': 1 nodes>"


def test_inputs_that_become_constants_or_go() -> None:
    graph = graph_of("g (float[2] x, float[2] o, float[2] u) => (float[2] y) { y = Add(x, o) }")
    x, o, u = graph.inputs
    for value in (x, graph.values["y"]):
        with pytest.raises(InvariantError, match=f"'{value.name}' is no input with data"):
            graph.make_constant(value)
    o.data = Tensor(np.ones(2, np.float32))
    graph.make_constant(o)
    assert o.is_constant and graph.inputs == (x, u)
    for value in (x, o, graph.values["y"]):
        with pytest.raises(InvariantError, match=f"'{value.name}' is no input, or one"):
            graph.remove_input(value)
    graph.remove_input(u)
    assert graph.inputs == (x,) and "u" not in graph.values
    graph.check()
    assert repr(x) == "%x: float[2]" and repr(graph.constant(np.ones(()))) == "%constant: double[]"


def test_rename() -> None:
    graph = graph_of(NESTED)
    a = graph.values["a"]
    graph.rename(a, "a")
    graph.rename(a, "b")
    assert a.name == "b" and graph.values["b"] is a and "a" not in graph.values
    assert graph.fresh_name("a") == "a"
    graph.check()
    inner = node_of(graph, "inner").graph
    for scope, name in ((graph, "x"), (inner, "x")):
        value = scope.values["t"] if scope is inner else a
        with pytest.raises(InvariantError, match=f"'{value.name}' cannot be called 'x'"):
            scope.rename(value, name)


def test_a_name_of_a_nested_scope_is_taken() -> None:
    """A value of that name would be hidden from the readers there."""
    graph = graph_of(NESTED)
    for refused in (
        lambda: graph.rename(graph.values["a"], "d"),
        lambda: graph.add("Neg", [graph.values["x"]], outputs=["t"]),
        lambda: graph.add_input("f", FLOATS),
    ):
        with pytest.raises(InvariantError, match=r"'[dtf]'"):
            refused()
    then, other = node_of(graph, "if").subgraphs()
    then.rename(then.values["t"], "e")
    assert then.values["e"].is_output and other.values["e"].is_output
    graph.check()


def test_what_belongs_to_another_graph_is_refused_before_anything_changes() -> None:
    graph, other = graph_of(NESTED), graph_of(NESTED)
    before = to_proto(other).SerializeToString(deterministic=True)
    unused = other.add("Identity", [other.values["x"]], name="unused")
    spare = other.constant(np.zeros(1), "spare")
    inner = node_of(graph, "inner")
    for refused in (
        lambda: graph.remove(unused),
        lambda: graph.set_attribute(unused, "note", 1),
        lambda: graph.rename_node(unused, "n"),
        lambda: graph.set_constant(unused, 0, np.zeros(1)),
        lambda: graph.rename(spare, "s"),
        lambda: graph.discard(spare),
        lambda: graph.set_attribute(inner, "note", 1),
    ):
        with pytest.raises(InvariantError, match="belongs to another graph"):
            refused()
    other.check()
    other.remove(unused)
    other.discard(spare)
    assert to_proto(other).SerializeToString(deterministic=True) == before
    with pytest.raises(InvariantError, match=r"'unused'.* or to none, not to 'g'"):
        other.remove(unused)


def test_rename_node() -> None:
    graph = graph_of(CHAIN)
    neg = node_of(graph, "neg")
    graph.rename_node(neg, "mul")
    assert neg.name == "mul_1"
    graph.rename_node(neg, "")
    assert neg.name == "" and neg.label == "Neg making 'n'"
    graph.rename_node(neg, "neg")
    assert neg.name == "neg"


# Copies


def test_copy_is_equal_and_independent() -> None:
    graph = graph_of(NESTED)
    graph.doc_string, graph.metadata = "doc", {"k": "v"}
    graph.values["a"].annotation = {"SCALE_TENSOR": "c"}
    before = to_proto(graph).SerializeToString(deterministic=True)
    other = graph.copy()
    assert to_proto(other).SerializeToString(deterministic=True) == before
    assert other.values["c"].data is graph.values["c"].data
    other.check()
    inner = node_of(other, "inner")
    inner.set_input(0, other.values["x"])
    other.model.metadata["new"] = "1"
    other.model.opset_imports["com.acme"] = 1
    other.set_attribute(node_of(other, "if"), "note", 1)
    other.values["a"].annotation["ZERO_POINT_TENSOR"] = "c"
    assert to_proto(graph).SerializeToString(deterministic=True) == before
    with pytest.raises(InvariantError, match="'then' can only be copied with its owner"):
        node_of(graph, "inner").graph.copy()


def test_extract() -> None:
    graph = graph_of(CHAIN)
    part = graph.extract([graph.values["a"]], [graph.values["y"]])
    part.check()
    assert [v.name for v in part.inputs] == ["a"] and operators(part) == ["Neg", "Mul"]
    assert "c" not in part.values
    assert np.array_equal(part.model.opset_imports[""], 21)
    part.inputs[0].type = FLOATS
    assert np.array_equal(run(part, {"a": np.array([2, 3], np.float32)})["y"], [-4, -9])
    # Inputs that are needed and not named come along, constants too.
    whole = graph.extract([], [graph.values["n"], graph.values["a"]])
    assert [v.name for v in whole.inputs] == ["x"] and operators(whole) == ["Add", "Neg"]
    assert whole.values["c"].data is graph.values["c"].data
    assert [v.name for v in whole.outputs] == ["n", "a"]
    whole.check()
    graph.check()
    assert operators(graph) == ["Add", "Neg", "Mul"]


def test_extract_takes_what_subgraphs_read() -> None:
    graph = graph_of(NESTED)
    part = graph.extract([graph.values["a"]], [graph.values["y"]])
    part.check()
    assert [v.name for v in part.inputs] == ["a", "q", "x"]
    assert operators(part) == ["If"]
    inner = node_of(graph, "inner")
    with pytest.raises(InvariantError, match="belongs to another graph"):
        graph.extract([], [inner.output])
    with pytest.raises(InvariantError, match=r"'[ac]' belongs to another graph"):
        inner.graph.extract([], [inner.output])


def test_extract_of_an_overridable_initializer() -> None:
    graph = graph_of(CHAIN)
    graph.values["x"].data = Tensor(np.ones(2, np.float32))
    part = graph.extract([graph.values["x"]], [graph.values["a"]])
    assert part.values["x"].is_input and part.values["x"].data is not None
    assert_same_graph(part, graph.extract([], [graph.values["a"]]))


def test_extract_of_nodes_alone() -> None:
    graph = graph_of(
        """g (bool q, float[2] x) => (float[2] y) <float[2] c = {1, 2}, bool on = {1}>
        { a = Neg(c)  b = If(on) <
            then_branch = t () => (float[2] d) { d = Mul(a, c) },
            else_branch = e () => (float[2] f) { f = Neg(c) }>  y = Add(x, b) }"""
    )
    graph.model.opset_imports["com.acme"] = 1
    neg, branch, _ = graph.nodes()
    assert {v.name for v in reads(branch)} == {"on", "a", "c"}
    part = extract_nodes([neg, branch], [branch.output, neg.output])
    part.check()
    assert part.inputs == () and part.model.opset_imports == {"": 21}
    part.outputs[0].type = part.outputs[1].type = FLOATS
    found = run(part, {})
    assert np.array_equal(found["b"], [-1, -4]) and np.array_equal(found["a"], [-1, -2])


def test_assign() -> None:
    graph, other = graph_of(NESTED), graph_of(CHAIN)
    wanted = to_proto(other).SerializeToString(deterministic=True)
    assign(graph, other)
    assert to_proto(graph).SerializeToString(deterministic=True) == wanted
    graph.check()
    graph.model.metadata["new"] = "1"
    graph.remove(graph.add("Neg", [graph.values["x"]], name="if", outputs=["e"]))
    assert to_proto(other).SerializeToString(deterministic=True) == wanted


# Checking

Breaking = Callable[[Graph], object]


def _output_of_another(graph: Graph) -> None:
    stranger = graph_of(CHAIN).values["a"]
    graph._outputs.append(stranger)


def _subgraph(graph: Graph) -> Graph:
    return next(node_of(graph, "if").subgraphs())


def _name_taken_around(graph: Graph) -> None:
    body = Graph("body", outer=graph)
    for scope in (body, graph):
        scope.add_input("new", FLOATS)
    graph.set_attribute(node_of(graph, "if"), "body", body)


def _value(graph: Graph, name: str, **changes: object) -> None:
    for key, new in changes.items():
        setattr(graph.values[name], key, new)


BREAKS: dict[str, tuple[Breaking, str]] = {
    "name": (lambda g: _value(g, "a", _name="b"), "'b' is filed under 'a'"),
    "scope": (lambda g: _value(g, "a", _graph=Graph()), "'a' is filed under 'a'"),
    "producer": (
        lambda g: _value(g, "a", producer=Node("Neg", name="lost")),
        "'a' is made by 'lost' \\(Neg\\), which was removed",
    ),
    "slot": (lambda g: _value(g, "a", _slot=3), "'a' is not an output of its producer 'add'"),
    "fed": (lambda g: _value(g, "a", is_input=True), "'a' is made by 'add' .* also fed"),
    "constant": (
        lambda g: _value(g, "a", data=Tensor(np.ones(1))),
        "'a' is made by 'add' .* also fed or constant",
    ),
    "nothing": (lambda g: _value(g, "c", data=None), "'c' is made by no node"),
    "foreign output": (_output_of_another, "output 'a' of graph 'g' is out of scope"),
    "count": (lambda g: _value(g, "y", _output_count=0), "'y' miscounts the graph outputs"),
    "reader": (
        lambda g: g.values["c"]._uses.pop(Use(node_of(g, "add"), 1)),
        "'c' does not know its reader 'add'",
    ),
    "no reader": (
        lambda g: g.values["c"]._uses.update({Use(node_of(g, "if"), 0): None}),
        "'c' counts a use that node 'if' \\(If\\) does not make",
    ),
    "removed reader": (
        lambda g: g.values["c"]._uses.update({Use(Node("Neg", name="gone"), 0): None}),
        "'c' counts a use that node 'gone' \\(Neg\\) does not make",
    ),
    "stranger read": (
        lambda g: node_of(g, "add")._inputs.__setitem__(1, graph_of(CHAIN).values["c"]),
        "node 'add' \\(Add\\) reads 'c', which is out of scope",
    ),
    "output": (
        lambda g: node_of(g, "add")._outputs.append(g.values["c"]),
        "'c' does not know its producer 'add'",
    ),
    "no graph": (
        lambda g: setattr(node_of(g, "add"), "_graph", None),
        "'add' \\(Add\\) does not know its graph 'g'",
    ),
    "owner": (
        lambda g: setattr(_subgraph(g), "owner", None),
        "'then' does not know its owner, node 'if'",
    ),
    "left subgraph": (
        lambda g: Graph("body", outer=g).add("Neg", [g.values["x"]], name="left"),
        "'x' counts a use that node 'left' \\(Neg\\) does not make",
    ),
    "shadow": (
        _name_taken_around,
        "'new' of graph 'body' is the name of a value around it",
    ),
    "in a subgraph": (
        lambda g: setattr(_subgraph(g).values["t"], "_slot", 1),
        "'t' is not an output of its producer 'inner'",
    ),
    "subgraph that reads into another": (
        lambda g: _subgraph(g)._outputs.append(node_of(g, "nested").output),
        "output 'e' of graph 'then' is out of scope",
    ),
}


@pytest.mark.parametrize("case", BREAKS)
def test_check_names_what_is_broken(case: str) -> None:
    graph = graph_of(NESTED)
    graph.check()
    breaking, message = BREAKS[case]
    breaking(graph)
    with pytest.raises(InvariantError, match=message):
        graph.check()


def test_check_finds_a_cycle() -> None:
    graph = graph_of(CHAIN)
    node_of(graph, "add").set_input(0, graph.values["n"])
    with pytest.raises(InvariantError, match=r"graph 'g' has a cycle through node '(add|neg)'"):
        graph.check()


def test_cycle_through_a_subgraph() -> None:
    graph = graph_of(NESTED)
    node_of(graph, "add").set_input(0, graph.values["y"])
    with pytest.raises(InvariantError, match="cycle"):
        graph.check()


# Random editing


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    number = st.integers(0, 10**6)
    return draw(st.lists(st.tuples(st.integers(0, 5), number, number), max_size=25))


@settings(max_examples=60)
@given(edits())
def test_links_stay_right_under_any_editing(plan: list[tuple[int, int, int]]) -> None:
    """Whatever the verbs do, the graph's own check and an outside view of it agree."""
    graph = graph_of(NESTED)
    for verb, first, second in plan:
        nodes, values = graph.nodes(), list(graph.values.values())
        value = values[first % len(values)]
        after = [n for n in nodes if value.producer is None or n is not value.producer]
        if verb == 0:
            graph.add("Relu", [value])
        elif verb == 1:
            uses, made = set(value.uses), graph.add("Neg", [value]).output
            graph.replace_uses(value, made, where=uses.__contains__)
        elif verb == 2 and nodes:
            node = nodes[first % len(nodes)]
            if not any(v is not None and v.is_used for v in node.outputs):
                graph.remove(node)
        elif verb == 3 and after:
            node = after[second % len(after)]
            made = {v for v in nx.descendants(graph.networkx, node)} | {node}
            if value.producer not in made and node.op_type != "If":
                node.set_input(second % 2, value)
        elif verb == 4:
            earlier = values[second % len(values)]
            below = (
                set()
                if value.producer is None
                else nx.descendants(graph.networkx, value.producer) | {value.producer}
            )
            if earlier.producer not in below and not value.is_input and value.data is None:
                graph.replace_uses(value, earlier)
        elif value.name != "y":
            graph.rename(value, graph.fresh_name(value.name))
    graph.check()
    assert [v.name for v in graph.outputs] == ["y"]
    found: dict[Value, list[Use]] = {}
    for node in graph.all_nodes():
        for slot, read in enumerate(node.inputs):
            if read is not None:
                found.setdefault(read, []).append(Use(node, slot))
    for nested in graph.all_graphs():
        for value in nested.values.values():
            assert set(value.uses) == set(found.get(value, []))
    order = {n: at for at, n in enumerate(graph.nodes())}
    assert {(a, b, use) for a, b, use in graph.networkx.edges(keys=True)} == {
        (v.producer, graph.holder(u.node), u)
        for v in graph.values.values()
        if v.producer is not None
        for u in v.uses
    }
    assert all(order[a] < order[b] for a, b in graph.networkx.edges())
    assert nx.is_directed_acyclic_graph(graph.networkx)

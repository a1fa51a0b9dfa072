from __future__ import annotations

import numpy as np
import onnx
import onnx.shape_inference
import pytest

from onnxq.ir import DataType, Graph, OpaqueType, TensorType, infer_types, to_proto
from onnxq.ir.types import type_from_proto
from tests.helpers import random_feeds, run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'

ONES = ", ".join(["1"] * 108)

MODELS = {
    "convolution": f"""g (float[N, 3, 8, 8] x) => (y) <float[4, 3, 3, 3] w = {{{ONES}}}>
        {{ a = Conv<pads = [1, 1, 1, 1], strides = [2, 2]>(x, w)  b = Relu(a)
          c = GlobalAveragePool(b)  y = Flatten(c) }}""",
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
    """A model of which only the inputs have types."""
    return onnx.parser.parse_model(HEAD + text)


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


def states(found: object, wanted: object) -> bool:
    """Whether a type says what another does; symbols that ONNX made up may be known better."""
    if not isinstance(found, TensorType) or not isinstance(wanted, TensorType):
        return found == wanted
    pairs = zip(found.shape or (), wanted.shape or (), strict=True)
    return found.dtype == wanted.dtype and all(
        one == other or str(other).startswith("unk__") for one, other in pairs
    )


@pytest.mark.parametrize("case", MODELS)
def test_finds_what_onnx_finds(case: str) -> None:
    model = untyped(MODELS[case])
    graph = Graph.from_text(HEAD + MODELS[case])
    wanted = proto_types(onnx.shape_inference.infer_shapes(model, data_prop=True).graph)
    changed = infer_types(graph)
    found = graph_types(graph)
    assert changed > 0
    assert all(states(found[n], wanted[n]) for n in wanted)
    assert all(t is not None for t in found.values())
    # Nothing is left to find, and the graph still stands.
    assert infer_types(graph) == 0
    graph.check()


@pytest.mark.parametrize("case", ["convolution", "broadcast", "shape arithmetic", "subgraph"])
def test_types_are_those_of_the_numbers(case: str) -> None:
    graph = Graph.from_text(HEAD + MODELS[case])
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
    "node",
    [
        "MatMul(x, x)",
        "Add(x, z)",
        "Concat<axis = 9>(x, x)",
        "SequenceAt(x, x)",
        "NoSuchOperator(x)",
    ],
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


def assert_holds(graph: Graph, *but: str, **sizes: int) -> None:
    """What is known of the graph's own tensors is so when the model runs, but for some."""
    known = {v.name: v.type for v in graph.values.values()}
    for value in list(graph.values.values()):
        if value.producer is not None and not value.is_output:
            graph.add_output(value)
    met: dict[str, int] = {}
    for name, array in run(graph, random_feeds(graph, dims=sizes)).items():
        found = known[name]
        if not isinstance(found, TensorType) or found.shape is None or name in but:
            continue
        assert len(found.shape) == array.ndim, name
        for dim, real in zip(found.shape, array.shape, strict=True):
            wanted = met.setdefault(dim, real) if isinstance(dim, str) else dim
            assert wanted in (None, real), (name, found, array.shape)


LOOP = """g (float[N, 3] x, float[3, 3] w, float[0, 3] none, int64 n) => (a, b, c, d)
    {{ yes = Constant<value = bool {{1}}>()
       a, b, c, d = Loop(n, yes, x, none, {third}) <body = body (int64 i, bool q, p, s, t)
            => (bool r, p2, s2, t2, e) {{
         r = Identity(q)  p2 = MatMul(p, w)  e = Neg(p2)  s2 = Concat<axis = 0>(s, p)
         t2 = {changed} }}> }}"""


@pytest.mark.parametrize(
    "third, changed, shape",
    [
        ("w", "Abs(t)", (3, 3)),
        ("x", "Exp(t)", ("N", 3)),
        # Only the second dimension stays.
        ("x", "Concat<axis = 0>(t, t)", (None, 3)),
        # Not even the number of dimensions stays.
        ("x", "Flatten<axis = 0>(t)", None),
    ],
)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_what_a_loop_carries(
    third: str, changed: str, shape: tuple[object, ...] | None, count: int
) -> None:
    graph = Graph.from_text(HEAD + LOOP.format(third=third, changed=changed))
    infer_types(graph)
    types = graph_types(graph)
    assert types["a"] == types["p"] == TensorType(DataType.FLOAT, ("N", 3))
    assert types["b"] == TensorType(DataType.FLOAT, (None, 3))
    if shape is None and changed.startswith("Flatten"):
        shape = (None, None)
    assert types["c"] == TensorType(DataType.FLOAT, shape)  # type: ignore[arg-type]
    assert infer_types(graph) == 0
    graph.replace_uses(graph.values["n"], graph.constant(np.array(count)))
    graph.remove_input(graph.values["n"])
    # Of what a body that never ran would have collected, runtimes make up the sizes.
    assert_holds(graph, *([] if count else ["d"]), N=2)


def test_a_loop_that_swaps_what_it_carries() -> None:
    graph = Graph.from_text(
        HEAD
        + """g (float[2, 4] x, float[3, 4] z, int64 n) => (a, b)
        { yes = Constant<value = bool {1}>()
          a, b = Loop(n, yes, x, z) <body = body (int64 i, bool q, p, s) => (bool r, s2, p2) {
            r = Identity(q)  p2 = Neg(p)  s2 = Neg(s) }> }"""
    )
    infer_types(graph)
    for name in ("a", "b", "p", "s"):
        assert graph_types(graph)[name] == TensorType(DataType.FLOAT, (None, 4)), name


def branches(count: int) -> str:
    """A chain of Ifs with a Reshape to computed sizes and a tensor of unknown length in each."""
    text = "x0 = Neg(x) "
    for n in range(count):
        text += f"""
          s{n} = Shape(x{n})  b{n} = Gather(s{n}, zero)  u{n} = Unsqueeze(b{n}, axis)
          t{n} = Concat<axis = 0>(u{n}, rest)  f{n} = Reshape(x{n}, t{n})
          n{n} = NonZero(f{n})  h{n} = Cast<to = 1>(n{n})
          i{n} = If(q) <then_branch = then{n} () => (y{n}) {{ y{n} = Abs(f{n}) }},
                        else_branch = else{n} () => (z{n}) {{ z{n} = Reshape(f{n}, t{n}) }}>
          x{n + 1} = Add(i{n}, f{n})"""
    return (
        HEAD
        + "g (bool q, float[N, 2, 3] x) => (y) <int64 zero = {0}, int64[1] axis = {0}, "
        + f"int64[2] rest = {{3, 2}}> {{ {text}  y = Neg(x{count}) }}"
    )


@pytest.mark.parametrize("size", [1, 4, 7, 1000])
def test_parts_of_a_graph_with_many_subgraphs(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph.from_text(branches(6))
    monkeypatch.setattr("onnxq.ir.infer._MAX_COPIES", 0)
    monkeypatch.setattr("onnxq.ir.infer._PART_NODES", size)
    assert infer_types(graph) > 0
    for n in range(6):
        for name in (f"f{n}", f"i{n}", f"x{n + 1}", f"y{n}", f"z{n}"):
            assert graph_types(graph)[name] == TensorType(DataType.FLOAT, ("N", 3, 2)), name
    # Lengths that nobody knows are not taken for equal.
    lengths = [graph.values[f"n{n}"].shape for n in range(6)]
    assert all(length is not None and length[0] == 3 for length in lengths)
    assert len({length[1] for length in lengths if length is not None}) == 6
    assert all(graph.values[f"h{n}"].shape == lengths[n] for n in range(6))
    assert infer_types(graph) == 0
    graph.check()
    assert_holds(graph, N=5)


def test_parts_of_an_old_model() -> None:
    text = """<ir_version: 3, opset_import: ["": 9]> g (float[2, 6] x) => (y)
        <float[6] w = {1, 2, 3, 4, 5, 6}, int64[2] s = {3, -1}>
        { a = Add(x, w)  b = Reshape(a, s)  y = Neg(b) }"""
    whole, parts = Graph.from_text(text), Graph.from_text(text)
    infer_types(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("onnxq.ir.infer._MAX_COPIES", -1)
        patch.setattr("onnxq.ir.infer._PART_NODES", 1)
        infer_types(parts)
    assert graph_types(whole) == graph_types(parts)
    assert parts.values["b"].type == TensorType(DataType.FLOAT, (3, 4))


def test_large_constants_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxq.ir.infer._MAX_COPIES", -1)
    test_large_constants_take_part_with_their_shape_only()


def test_symbols_that_turn_out_to_be_known_are_replaced_everywhere() -> None:
    graph = Graph.from_text(
        HEAD
        + """g (float[N, 6] x) => (y) <int64 zero = {0}, int64[1] axis = {0}, int64[2] r = {2, 3}>
        { s = Shape(x)  b = Gather(s, zero)  u = Unsqueeze(b, axis)
          t = Concat<axis = 0>(u, r)  f = Reshape(x, t)  g = Add(f, f)  y = Neg(g) }"""
    )
    graph.values["f"].type = TensorType(DataType.FLOAT, ("unk__0", 2, 3))
    graph.values["g"].type = TensorType(DataType.FLOAT, ("unk__1", 2, 3))
    infer_types(graph)
    for name in ("f", "g", "y"):
        assert graph.values[name].type == TensorType(DataType.FLOAT, ("N", 2, 3)), name

from __future__ import annotations

import numpy as np
import onnx
import pytest

from onnxq.errors import InputError
from onnxq.ir import Attribute, Context, Graph, ModelInfo, Node, Pipeline, Tensor, Value, to_proto
from onnxq.passes.cleanup import fold_constants
from onnxq.passes.cleanup.eliminate_dead import EliminateDead
from onnxq.passes.cleanup.fold_constants import FoldConstants
from tests.helpers import assert_equivalent, assert_same_graph, random_feeds, run

HEAD = '<ir_version: 10, opset_import: ["": 21]>'


def fold(before: Graph, **options: int) -> tuple[Graph, int]:
    """The folded graph and the rewrites made; a second run must find nothing.

    What folding leaves without readers is removed, as it is in every pipeline.
    """
    after = before.copy()
    pipeline = Pipeline((FoldConstants(**options), EliminateDead()))
    made = pipeline.run(after)[0].rewrites
    assert pipeline.run(after)[0].rewrites == 0
    after.check()
    return after, made


def operators(graph: Graph) -> list[str]:
    return [node.op_type for node in graph.all_nodes()]


PAIRS = {
    "a region becomes one constant": (
        """g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[2] b = {3, 4}>
        { s = Add(a, b)  m = Mul(s, a)  n = Neg(m)  y = Add(x, n) }""",
        """g (float[2] x) => (float[2] y) <float[2] n = {-4, -12}> { y = Add(x, n) }""",
        3,
    ),
    "several outputs of a region": (
        """g (float[1] x) => (float[1] y, float[1] z) <float[2] a = {1, 2}>
        { p, q = Split<axis = 0, num_outputs = 2>(a)  y = Add(x, p)  z = Mul(x, q) }""",
        """g (float[1] x) => (float[1] y, float[1] z) <float[1] p = {1}, float[1] q = {2}>
        { y = Add(x, p)  z = Mul(x, q) }""",
        1,
    ),
    "a graph output becomes an Identity": (
        """g (float[2] x) => (float[2] y, float[2] z) <float[2] a = {1, 2}>
        { y = Neg(a)  z = Add(x, y) }""",
        """g (float[2] x) => (float[2] y, float[2] z) <float[2] a = {-1, -2}>
        { y = Identity(a)  z = Add(x, a) }""",
        1,
    ),
    "shape arithmetic of known dimensions": (
        """g (float[2, 3, N] x) => (float[6, M] y)
        <int64[1] one = {1}, int64[1] zero = {0}, int64[1] two = {2}, int64[1] rest = {-1}>
        { s = Shape(x)  a = Gather(s, zero)  b = Slice(s, one, two)  n = Mul(a, b)
          t = Concat<axis = 0>(n, rest)  y = Reshape(x, t) }""",
        """g (float[2, 3, N] x) => (float[6, M] y) <int64[2] t = {6, -1}> { y = Reshape(x, t) }""",
        4,
    ),
    "Shape with start and end": (
        """g (float[N, 3, 4] x) => (int64[2] y, float[N, 3, 4] z)
        { s = Shape<start = -2>(x)  y = Neg(s)  z = Relu(x) }""",
        """g (float[N, 3, 4] x) => (int64[2] y, float[N, 3, 4] z)
        <int64[2] s = {-3, -4}> { y = Identity(s)  z = Relu(x) }""",
        2,
    ),
    "Size of known dimensions": (
        """g (float[2, 3] x) => (float[2, 3] y)
        { n = Size(x)  f = Cast<to = 1>(n)  y = Div(x, f) }""",
        """g (float[2, 3] x) => (float[2, 3] y) <float f = {6}> { y = Div(x, f) }""",
        2,
    ),
    "ConstantOfShape of a small result": (
        """g (float[3] x) => (float[3] y) <int64[1] n = {3}>
        { c = ConstantOfShape<value = float[1] {2}>(n)  y = Add(x, c) }""",
        """g (float[3] x) => (float[3] y) <float[3] c = {2, 2, 2}> { y = Add(x, c) }""",
        1,
    ),
    "QuantizeLinear of a constant, but not DequantizeLinear": (
        """g (float[2] x) => (float[2] y) <float[2] w = {0.5, 1}, float s = {0.5}, int8 z = {0}>
        { q = QuantizeLinear(w, s, z)  d = DequantizeLinear(q, s, z)  y = Add(x, d) }""",
        """g (float[2] x) => (float[2] y) <int8[2] q = {1, 2}, float s = {0.5}, int8 z = {0}>
        { d = DequantizeLinear(q, s, z)  y = Add(x, d) }""",
        1,
    ),
    "in a subgraph, from its own and outer constants": (
        """g (bool c, float[2] x) => (float[2] y) <float[2] a = {1, 2}> {
          y = If(c) <
            then_branch = t () => (float[2] p) <float[2] b = {3, 4}>
              { k = Mul(a, b)  p = Add(x, k) },
            else_branch = e () => (float[2] q) { n = Neg(a) m = Exp(n) l = Log(m) q = Add(x, l) }
          > }""",
        """g (bool c, float[2] x) => (float[2] y) {
          y = If(c) <
            then_branch = t () => (float[2] p) <float[2] k = {3, 8}> { p = Add(x, k) },
            else_branch = e () => (float[2] q) <float[2] l = {-1, -2}> { q = Add(x, l) }
          > }""",
        4,
    ),
    "an If on a constant that captures only constants": (
        """g (float[2] x) => (float[2] y) <bool c = {1}, float[2] a = {1, 2}> {
          i = If(c) <then_branch = t () => (float[2] p) { p = Neg(a) },
                     else_branch = e () => (float[2] q) { q = Exp(a) }>
          y = Add(x, i) }""",
        """g (float[2] x) => (float[2] y) <float[2] i = {-1, -2}> { y = Add(x, i) }""",
        1,
    ),
    "sequences between folded operators": (
        """g (float[2] x) => (float[2] y) <float[2] a = {1, 2}, int64 k = {0}>
        { s = SequenceConstruct(a, a)  e = SequenceAt(s, k)  n = Neg(e)  y = Add(x, n) }""",
        """g (float[2] x) => (float[2] y) <float[2] n = {-1, -2}> { y = Add(x, n) }""",
        3,
    ),
    "integer division by a harmless constant": (
        """g (int64[2] x) => (int64[2] y) <int64[2] a = {-7, 8}, int64 d = {2}>
        { q = Div(a, d)  r = Mod(a, d)  s = Concat<axis = 0>(q, r)  t = ReduceSum(s)
          y = Add(x, t) }""",
        """g (int64[2] x) => (int64[2] y) <int64[1] t = {2}> { y = Add(x, t) }""",
        4,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_folds(name: str) -> None:
    before, after, rewrites = PAIRS[name]
    graph = Graph.from_text(HEAD + before)
    folded, made = fold(graph)
    assert_same_graph(folded, Graph.from_text(HEAD + after), rtol=1e-6)
    assert made == rewrites
    assert_equivalent(graph, folded)


LEFT = {
    "random operators": """g (float[2] x) => (float[2] y)
        { r = RandomNormal<shape = [2]>()  y = Add(x, r) }""",
    "what depends on random operators": """g (float[2] x) => (float[2] y) <float[2] a = {1, 2}>
        { r = RandomUniformLike(a)  n = Neg(r)  y = Add(x, n) }""",
    "dropout in training": """g (float[2] x) => (float[2] y)
        <float[2] a = {1, 2}, float r = {0.5}, bool t = {1}>
        { d = Dropout(a, r, t)  y = Add(x, d) }""",
    "dequantized weights": """g (float[2] x) => (float[2] y) <int8[2] q = {1, 2}, float s = {0.5}>
        { d = DequantizeLinear(q, s)  n = Neg(d)  y = Add(x, n) }""",
    "large results of small constants": """g (float[200, 200] x) => (float[200, 200] y)
        <int64[2] n = {200, 200}> { c = ConstantOfShape(n)  y = Add(x, c) }""",
    "results of unlimited size": """g (float[N] x) => (float[N] y)
        <int64[3] n = {100000, 100000, 100000}>
        { c = ConstantOfShape(n)  s = ReduceMax<keepdims = 0>(c)  y = Add(x, s) }""",
    "unknown dimensions": """g (float[N, 3] x) => (int64[2] y) { s = Shape(x)  y = Neg(s) }""",
    "gather of an unknown dimension": """g (float[N, 3] x) => (int64[1] y) <int64[1] i = {0}>
        { s = Shape(x)  d = Gather(s, i)  y = Neg(d) }""",
    "an identity that makes an output": """g (float[2] x) => (float[2] y, float[2] z)
        <float[2] a = {1, 2}> { y = Identity(a)  z = Relu(x) }""",
    "a Constant that makes an output": """g (float[2] x) => (float[2] y, float[2] z)
        { y = Constant<value = float[2] {1, 2}>()  z = Relu(x) }""",
    "a subgraph that captures an input": """g (float[2] x) => (float[2] y) <bool c = {1}>
        { y = If(c) <then_branch = t () => (float[2] p) { p = Neg(x) },
                     else_branch = e () => (float[2] q) { q = Exp(x) }> }""",
    "a loop of unknown length": """g (float[2] x) => (float[2] y)
        <float[2] a = {1, 2}, bool c = {1}>
        { l = Loop(, c, a) <body = b (int64 i, bool k, float[2] s) => (bool m, float[2] t)
              <float h = {99}> { t = Add(s, s)  r = ReduceSum<keepdims = 0>(t)  m = Less(r, h) }>
          y = Add(x, l) }""",
    "packed integers that make an output": """g (float[1] x) => (int4[1] y, float[1] z)
        <float[1] w = {0.5}, float s = {0.5}, int4 o = {0}>
        { y = QuantizeLinear(w, s, o)  z = Neg(x) }""",
    "a sequence that is read from outside": """g (int64 x) => (float[2] y) <float[2] a = {1, 2}>
        { s = SequenceConstruct(a, a)  y = SequenceAt(s, x) }""",
}


@pytest.mark.parametrize("name", LEFT)
def test_leaves(name: str) -> None:
    graph = Graph.from_text(HEAD + LEFT[name])
    folded, made = fold(graph)
    assert made == 0
    assert_same_graph(folded, graph)


@pytest.mark.parametrize("operator", ["Div", "Mod"])
@pytest.mark.parametrize("divisor", [-1, 0])
def test_integer_division_that_may_end_the_process_is_left(operator: str, divisor: int) -> None:
    graph = Graph.from_text(
        f"""{HEAD} g (int64[1] x) => (int64[1] y) <int64[1] a = {{-9223372036854775808}},
        int64[1] d = {{{divisor}}}> {{ q = {operator}(a, d)  y = Add(x, q) }}"""
    )
    assert fold(graph)[1] == 0


def test_unknown_domains_and_model_functions_are_left() -> None:
    graph = Graph.from_text(
        """<ir_version: 10, opset_import: ["": 21, "local": 1, "com.microsoft": 1]>
        g (float[2] x) => (float[2] y) <float[2] a = {1, 2}>
        { f = local.Twice(a)  m = com.microsoft.Gelu(a)  s = Add(f, m)  y = Add(x, s) }
        <domain: "local", opset_import: ["": 21]> Twice (v) => (w) { w = Add(v, v) }"""
    )
    assert fold(graph)[1] == 0


def test_a_function_may_have_the_name_of_an_operator() -> None:
    graph = Graph.from_text(
        f"""{HEAD} g (float[2] x) => (float[2] y) <float[2] a = {{1, 2}}>
        {{ n = Neg(a)  y = Add(x, n) }}
        <domain: "", opset_import: ["": 21]> Neg (v) => (w) {{ w = Exp(v) }}"""
    )
    assert fold(graph)[1] == 0


def test_overridable_initializers_are_no_constants() -> None:
    graph = Graph.from_text(
        f"{HEAD} g (float[2] x, float[2] a = {{1, 2}}) => (float[2] y)"
        "{ n = Neg(a)  y = Add(x, n) }"
    )
    assert graph.values["a"].data is not None
    assert fold(graph)[1] == 0


def test_initializers_of_old_files_are_constants() -> None:
    """Before IR version 4 every initializer had to be an input too, and none could be fed."""
    proto = to_proto(
        Graph.from_text(
            """<ir_version: 3, opset_import: ["": 9]> g (float[2] x) => (float[2] y)
            <float[2] a = {1, 2}> { n = Neg(a)  y = Add(x, n) }"""
        )
    )
    onnx.checker.check_model(proto)
    assert [i.name for i in proto.graph.input] == ["x", "a"]
    before = Graph.from_text(onnx.printer.to_text(proto))
    folded, made = fold(before)
    assert made == 1
    onnx.checker.check_model(to_proto(folded))
    assert_equivalent(before, folded)


HELD = {
    "value": (Attribute.of(np.array([[1.5, 2]], np.float64)), np.array([[1.5, 2]], np.float64)),
    "value_float": (Attribute.of(0.1), np.float32(0.1)),
    "value_floats": (Attribute.of([0.1, 2.0]), np.array([0.1, 2], np.float32)),
    "value_int": (Attribute.of(-7), np.int64(-7)),
    "value_ints": (
        Attribute(onnx.AttributeProto.INTS, ()),
        np.array([], np.int64),
    ),
    "value_string": (Attribute.of("ä"), np.array("ä", object)),
    "value_strings": (Attribute.of(["a", ""]), np.array(["a", ""], object)),
    "sparse_value": (
        Attribute(
            onnx.AttributeProto.SPARSE_TENSOR,
            onnx.helper.make_sparse_tensor(
                onnx.numpy_helper.from_array(np.array([3.0], np.float32)),
                onnx.numpy_helper.from_array(np.array([2], np.int64)),
                [4],
            ),
        ),
        np.array([0, 0, 3, 0], np.float32),
    ),
}


@pytest.mark.parametrize("name", HELD)
def test_constants_of_every_attribute_become_initializers(name: str) -> None:
    attribute, wanted = HELD[name]
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    node = graph.add("Constant", [], {name: attribute}, outputs=["c"])
    graph.add_output(graph.add("Size", [node.output], outputs=["y"]).output)
    made = FoldConstants(limit=-(1 << 40)).run(graph, Context())
    assert made == 1 and operators(graph) == ["Size"]
    found = graph.values["c"].numpy()
    assert found.dtype == wanted.dtype and found.shape == wanted.shape
    assert (found == wanted).all()


def test_limit_counts_what_is_freed() -> None:
    """Transposing a weight frees the weight; widening it to float32 takes twice its bytes."""
    text = f"""{HEAD} g (float[8, 2] x) => (float[8, 4] y) <float16[4, 2] w = {{1,2,3,4,5,6,7,8}}>
    {{ t = Transpose<perm = [1, 0]>(w)  c = Cast<to = 1>(t)  y = MatMul(x, c) }}"""
    assert operators(fold(Graph.from_text(text), limit=15)[0]) == ["Cast", "MatMul"]
    assert operators(fold(Graph.from_text(text), limit=16)[0]) == ["MatMul"]


def test_a_constant_is_freed_only_when_all_its_readers_fold() -> None:
    slices = """a = Slice(w, zero, one)  b = Slice(w, one, two)  s = Add(x, a)  y = Add(s, b)"""
    head = f"""{HEAD} g (float[1, 4] x) => (float[1, 4] y, float[2, 4] z)
    <float[2, 4] w = {{1,2,3,4,5,6,7,8}}, int64[1] zero = {{0}}, int64[1] one = {{1}},
    int64[1] two = {{2}}>"""
    shared = Graph.from_text(f"{head} {{ {slices}  z = Add(x, w) }}")
    alone = Graph.from_text(f"{head} {{ {slices}  z = Concat<axis = 0>(x, y) }}")
    assert operators(fold(shared, limit=0)[0]) == ["Slice", "Slice", "Add", "Add", "Add"]
    assert operators(fold(alone, limit=0)[0]) == ["Add", "Add", "Concat"]


def test_folding_never_grows_a_file_beyond_the_limit() -> None:
    rng = np.random.default_rng(0)
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    values = [
        graph.constant(rng.standard_normal((4, 4)).astype(np.float32), f"c{i}") for i in (1, 2)
    ]
    for _ in range(60):
        chosen = [values[i] for i in rng.integers(0, len(values), 2)]
        axis = {"axis": 0}
        values.append(graph.add("Concat", chosen, axis).output)
    graph.add_output(graph.add("Identity", [values[-1]], outputs=["y"]).output)
    before = run(graph, {})
    limit = 300
    nodes = len(graph)
    FoldConstants(limit=limit).run(graph, Context())
    graph.check()
    held = sum(v.data.nbytes for v in graph.initializers() if v.data is not None)
    assert held <= 128 + nodes * limit
    assert run(graph, {})["y"].tobytes() == before["y"].tobytes()


@pytest.mark.parametrize("dtype", ["int4", "uint4"])
def test_packed_integers_fold(dtype: str) -> None:
    text = f"""{HEAD} g (float[3] x) => (float[3] y)
    <float[3] w = {{0.5, 3.5, 2}}, float s = {{0.5}}, {dtype} z = {{0}}>
    {{ q = QuantizeLinear(w, s, z)  d = DequantizeLinear(q, s, z)  y = Add(x, d) }}"""
    before = Graph.from_text(text)
    folded, made = fold(before)
    assert made == 1 and operators(folded) == ["DequantizeLinear", "Add"]
    assert folded.values["q"].numpy().astype(int).tolist() == [1, 7, 4]
    assert_equivalent(before, folded)


def test_bfloat16_folds() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float[2] x) => (float[2] y) <float[2] a = {{1.003, -2}}>
        {{ b = Cast<to = 16>(a)  t = Transpose(b)  c = Cast<to = 1>(t)  y = Add(x, c) }}"""
    )
    folded, made = fold(before)
    assert made == 3
    assert_equivalent(before, folded)


def test_operators_without_a_kernel_go_to_the_reference() -> None:
    """onnxruntime has Acosh of float32 only."""
    graph = Graph.from_text(
        f"""{HEAD} g (double[2] x) => (double[2] y) <double[2] a = {{1.5, 2}}>
        {{ c = Acosh(a)  n = Neg(c)  y = Add(x, n) }}"""
    )
    with pytest.raises(InputError, match="Could not find an implementation"):
        run(graph, random_feeds(graph))
    folded, made = fold(graph)
    assert made == 2
    assert folded.values["n"].numpy() == pytest.approx(-np.arccosh([1.5, 2]), rel=1e-12)


def test_what_cannot_be_computed_stays_and_the_rest_folds() -> None:
    before = Graph.from_text(
        f"""{HEAD} g (float[2] x) => (float[2] y, float[1] z)
        <float[2] a = {{1, 2}}, int64[1] out = {{9}}>
        {{ n = Neg(a)  e = Exp(n)  y = Add(x, e)  g = Gather(n, out)  z = Add(g, g) }}"""
    )
    folded, made = fold(before)
    assert made == 2
    assert operators(folded) == ["Add", "Gather", "Add"]


def test_one_operator_that_cannot_be_computed_costs_few_sessions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = _counted_sessions(monkeypatch)
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    vector, index = graph.constant(np.ones(2, np.float32)), graph.constant(np.array([5]))
    for at in range(64):
        operator, inputs = ("Gather", [vector, index]) if at == 40 else ("Neg", [vector])
        value = graph.add(operator, inputs, types=[vector.type]).output
        graph.add_output(graph.add("Abs", [value], types=[vector.type]).output)
    FoldConstants().run(graph, Context())
    assert operators(graph).count("Identity") == 63
    assert operators(graph).count("Gather") == operators(graph).count("Abs") == 1
    assert len(calls) <= 2 * 7 + 2


def test_a_region_takes_one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted_sessions(monkeypatch)
    graph = Graph("g", model=ModelInfo(10, {"": 21}))
    value = graph.constant(np.ones(4, np.float32))
    for _ in range(300):
        value = graph.add("Sin", [value], types=[value.type]).output
    graph.add_output(graph.add("Neg", [value], outputs=["y"], types=[value.type]).output)
    FoldConstants().run(graph, Context())
    assert calls == [301]
    assert operators(graph) == ["Identity"]


def _counted_sessions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of operators in every session that folding opens from now on."""
    calls: list[int] = []
    evaluate = fold_constants.evaluate

    def counted(nodes: list[Node], outputs: list[Value], *, reference: bool) -> dict[Value, Tensor]:
        calls.append(len(nodes))
        return evaluate(nodes, outputs, reference=reference)

    monkeypatch.setattr(fold_constants, "evaluate", counted)
    return calls

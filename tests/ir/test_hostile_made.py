"""Files made by hand to break a reader, see test_hostile.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import AttributeProto, ModelProto, helper

from tests.ir.hostile import (
    EITHER,
    REFUSED,
    TAKEN,
    Case,
    assert_none_wrong,
    attempt,
    graph,
    sparse_and_strings,
    text,
)


def _changed(model: ModelProto, change: Callable[[ModelProto], object]) -> ModelProto:
    change(model)
    return model


def _deep(levels: int) -> bytes:
    """A graph in a node in a graph ..., which only bytes can hold."""

    def field(number: int, data: bytes) -> bytes:
        length, size = len(data), bytearray()
        while True:
            size.append(length & 127 | (128 if length > 127 else 0))
            length >>= 7
            if not length:
                return bytes([number << 3 | 2]) + bytes(size) + data

    inner = b""
    for _ in range(levels):
        inner = field(1, field(5, field(6, inner)))
    return bytes([8, 10]) + field(8, bytes([16, 21])) + field(7, inner)


def _bomb(levels: int) -> ModelProto:
    """Functions each of which calls the next twice: 2 to the power of the levels when inlined."""
    model = text("g (float[4] x) => (float[4] y) { y = my.F0(x) }")
    for level in range(levels):
        nodes = [
            helper.make_node(f"F{level + 1}", ["a"], ["b"], domain="my"),
            helper.make_node(f"F{level + 1}", ["b"], ["c"], domain="my"),
        ]
        imports = [helper.make_opsetid("", 21), helper.make_opsetid("my", 1)]
        model.functions.append(
            helper.make_function("my", f"F{level}", ["a"], ["c"], nodes, imports)
        )
    last = [helper.make_node("Neg", ["a"], ["c"])]
    model.functions.append(
        helper.make_function("my", f"F{levels}", ["a"], ["c"], last, [helper.make_opsetid("", 21)])
    )
    return model


def _recursive(*names: str) -> ModelProto:
    model = text(f"g (float[4] x) => (float[4] y) {{ y = my.{names[0]}(x) }}")
    for name, called in zip(names, (*names[1:], names[0]), strict=True):
        node = helper.make_node(called, ["a"], ["b"], domain="my")
        imports = [helper.make_opsetid("my", 1)]
        model.functions.append(helper.make_function("my", name, ["a"], ["b"], [node], imports))
    return model


def _long(values: list[int]) -> np.ndarray:
    return np.array(values, np.int64)


HUGE = 1 << 40
FLOAT = np.ones(1, np.float32)
MADE: dict[str, tuple[str, Callable[[], ModelProto | bytes]]] = {
    "cycle": (REFUSED, lambda: graph("a = Neg(b)  b = Abs(a)  y = Add(x, b)")),
    "cycle of one node": (REFUSED, lambda: graph("y = Add(x, y)")),
    "cycle through a branch": (
        REFUSED,
        lambda: text(
            """g (bool q, float[4] x) => (float[4] y) { y = If(q) <then_branch = t ()
            => (float[4] a) { a = Neg(y) }, else_branch = e () => (float[4] b) { b = Neg(x) }> }"""
        ),
    ),
    "missing input": (REFUSED, lambda: graph("y = Add(x, lost)")),
    "missing output": (REFUSED, lambda: graph("z = Neg(x)")),
    "missing input of a branch": (
        REFUSED,
        lambda: text(
            """g (bool q, float[4] x) => (float[4] y) { y = If(q) <then_branch = t ()
            => (float[4] a) { a = Neg(lost) }, else_branch = e () => (float[4] b) { b = Neg(x) }>
            }"""
        ),
    ),
    "required input left out": (REFUSED, lambda: graph("y = Add(x, )")),
    "no inputs": (REFUSED, lambda: graph("y = Add()")),
    "too many inputs": (REFUSED, lambda: graph("y = Neg(x, x, x)")),
    "required attribute left out": (REFUSED, lambda: graph("y = Concat(x, x)")),
    "attribute of another type": (REFUSED, lambda: graph("y = Concat<axis = 0.5>(x, x)")),
    "negative size of an input": (
        TAKEN,
        lambda: _changed(
            graph("y = Neg(x)"),
            lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", -5),
        ),
    ),
    "negative size of a constant": (
        REFUSED,
        lambda: _changed(
            graph("y = Add(x, w)", w=FLOAT), lambda m: m.graph.initializer[0].dims.append(-1)
        ),
    ),
    "huge constant without data": (
        REFUSED,
        lambda: _changed(
            graph("y = Add(x, w)", w=FLOAT),
            lambda m: m.graph.initializer[0].dims.extend([HUGE, HUGE, HUGE]),
        ),
    ),
    "huge constant of nothing": (
        EITHER,
        lambda: _changed(
            graph("y = Add(x, w)", w=np.ones((0, 2), np.float32)),
            lambda m: m.graph.initializer[0].dims.__setitem__(1, HUGE),
        ),
    ),
    "huge input": (
        TAKEN,
        lambda: _changed(
            graph("a = Shape(x)  y = Reshape(x, a)"),
            lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", HUGE),
        ),
    ),
    "huge sparse constant": (
        REFUSED,
        lambda: _changed(
            sparse_and_strings(),
            lambda m: m.graph.sparse_initializer[0].dims.__setitem__(0, HUGE),
        ),
    ),
    "sparse indices outside": (
        REFUSED,
        lambda: _changed(
            sparse_and_strings(), lambda m: m.graph.sparse_initializer[0].dims.__setitem__(0, 1)
        ),
    ),
    "function that calls itself": (REFUSED, lambda: _recursive("F")),
    "functions that call each other": (REFUSED, lambda: _recursive("F", "G", "H")),
    "functions that double 40 times": (REFUSED, lambda: _bomb(40)),
    "graphs 20 deep": (REFUSED, lambda: _deep(20)),
    "graphs 1000 deep": (REFUSED, lambda: _deep(1000)),
    # What constant folding might compute.
    "huge ConstantOfShape": (
        TAKEN,
        lambda: graph("c = ConstantOfShape(s)  y = Add(x, c)", s=_long([HUGE])),
    ),
    "large ConstantOfShape": (
        TAKEN,
        lambda: graph("c = ConstantOfShape(s)  d = Neg(c)  y = Add(x, d)", s=_long([1 << 30])),
    ),
    "large and small again": (
        TAKEN,
        lambda: graph(
            "c = ConstantOfShape(s)  d = Neg(c)  r = ReduceSum(d)  y = Add(x, r)",
            s=_long([1 << 30]),
        ),
    ),
    "negative ConstantOfShape": (
        TAKEN,
        lambda: graph("c = ConstantOfShape(s)  y = Add(x, c)", s=_long([-4])),
    ),
    "huge Expand": (
        TAKEN,
        lambda: graph("c = Expand(w, s)  y = Add(x, c)", w=FLOAT, s=_long([HUGE])),
    ),
    "huge Tile": (
        TAKEN,
        lambda: graph("c = Tile(w, s)  y = Add(x, c)", w=FLOAT, s=_long([HUGE])),
    ),
    "negative Tile": (
        TAKEN,
        lambda: graph("c = Tile(w, s)  y = Add(x, c)", w=FLOAT, s=_long([-2])),
    ),
    "huge Pad": (
        TAKEN,
        lambda: graph("c = Pad(w, s)  y = Add(x, c)", w=FLOAT, s=_long([HUGE, HUGE])),
    ),
    "huge Range in a shape computation": (
        TAKEN,
        lambda: graph("r = Range(a, b, c)  g = Gather(r, i)  y = Expand(x, g)",
                       a=np.array(0), b=np.array(HUGE), c=np.array(1), i=_long([3])),
    ),
    "huge vector in a shape computation": (
        TAKEN,
        lambda: _changed(
            graph("g = Gather(x, i)  y = ConstantOfShape(g)", "(int64[4] x) => (float[A] y)",
                   i=_long([3])),
            lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", HUGE),
        ),
    ),
    "keys of unknown type": (
        TAKEN,
        lambda: text(
            """g (float[4] x) => (y) { h = com.acme.Unknown(x)
            y = ai.onnx.ml.LabelEncoder<keys_int64s = [1], values_floats = [2.0]>(h) }"""
        ),
    ),
    "tree that reads nothing": (
        REFUSED,
        lambda: _changed(
            text("g (float[4] x) => (y) { y = ai.onnx.ml.TreeEnsemble(x) }"),
            lambda m: m.opset_import.add(domain="ai.onnx.ml", version=5),
        ),
    ),
    "axis beyond 32 bits": (
        REFUSED,
        lambda: graph(f"y = LayerNormalization<axis = {(1 << 63) - 1}>(x, x)"),
    ),
    "fewer than no batch dimensions": (
        REFUSED,
        lambda: graph("y = GatherND<batch_dims = -64>(x, i)", i=_long([[0]])),
    ),
    "pool with a huge kernel": (
        TAKEN,
        lambda: graph(
            f'c = LpPool<auto_pad = "SAME_UPPER", kernel_shape = [{HUGE}, 2]>(w)  y = Add(x, c)',
            w=np.ones((1, 1, 32, 32), np.float32),
        ),
    ),
    "text of unknown type in a function": (
        TAKEN,
        lambda: text("""g (float[4] x) => (bool[4] y) { h = com.acme.Unknown(x)  y = my.F(h) }
            <domain: "my", opset_import: ["": 21]> F (a) => (b)
            { b = RegexFullMatch<pattern = "a">(a) }"""),
    ),
    "huge Range": (
        TAKEN,
        lambda: graph(
            "r = Range(a, b, c)  f = Cast<to = 1>(r)  y = Add(x, f)",
            a=np.array(0), b=np.array(HUGE), c=np.array(1),
        ),
    ),
    "Range without a step": (
        TAKEN,
        lambda: graph(
            "r = Range(a, b, c)  f = Cast<to = 1>(r)  y = Add(x, f)",
            a=np.array(0), b=np.array(9), c=np.array(0),
        ),
    ),
    "huge OneHot": (
        TAKEN,
        lambda: graph("c = OneHot(i, d, v)  y = Add(x, c)", i=_long([0]), d=np.array(HUGE),
                       v=np.ones(2, np.float32)),
    ),
    "huge Resize": (
        TAKEN,
        lambda: graph("c = Resize(w, , s)  y = Add(x, c)", w=FLOAT, s=np.array([1e9], np.float32)),
    ),
    "huge Upsampling to sizes": (
        TAKEN,
        lambda: graph("c = Resize(w, , , s)  y = Add(x, c)", w=FLOAT, s=_long([HUGE])),
    ),
    "huge EyeLike": (
        TAKEN,
        lambda: graph("e = ConstantOfShape(s)  c = EyeLike(e)  d = Gather(c, i)  y = Add(x, d)",
                       s=_long([1 << 20, 1 << 20]), i=np.array(0)),
    ),
    "division by nothing": (
        TAKEN,
        lambda: graph("c = Div(a, b)  f = Cast<to = 1>(c)  y = Add(x, f)", a=_long([1]),
                       b=_long([0])),
    ),
    "the least integer by -1": (
        TAKEN,
        lambda: graph("c = Div(a, b)  m = Mod(a, b)  d = Add(c, m)  f = Cast<to = 1>(d) "
                       " y = Add(x, f)", a=_long([-(1 << 63)]), b=_long([-1])),
    ),
    "Gather outside": (
        TAKEN,
        lambda: graph("c = Gather(w, i)  y = Add(x, c)", w=FLOAT, i=_long([1 << 40])),
    ),
    "GatherND outside": (
        TAKEN,
        lambda: graph("c = GatherND(w, i)  y = Add(x, c)", w=FLOAT, i=_long([[1 << 40]])),
    ),
    "Scatter outside": (
        TAKEN,
        lambda: graph("c = ScatterElements(w, i, w)  y = Add(x, c)", w=FLOAT, i=_long([1 << 40])),
    ),
    "Slice backwards": (
        TAKEN,
        lambda: graph("c = Slice(w, a, b, , d)  y = Add(x, c)", w=FLOAT, a=_long([1 << 62]),
                       b=_long([-(1 << 63)]), d=_long([-(1 << 63)])),
    ),
    "Slice without a step": (
        TAKEN,
        lambda: graph("c = Slice(x, a, b, , d)  y = Neg(c)", a=_long([0]), b=_long([3]),
                       d=_long([0])),
    ),
    "TopK of more": (
        TAKEN,
        lambda: graph("c, i = TopK(w, k)  y = Add(x, c)", w=FLOAT, k=_long([HUGE])),
    ),
    "Conv of huge padding": (
        TAKEN,
        lambda: graph(f"c = Conv<pads = [{HUGE}, {HUGE}]>(w, v)  y = Add(x, c)",
                       w=np.ones((1, 1, 4), np.float32), v=np.ones((1, 1, 2), np.float32)),
    ),
    "ConvTranspose of huge strides": (
        TAKEN,
        lambda: graph(f"c = ConvTranspose<strides = [{HUGE}]>(w, v)  y = Add(x, c)",
                       w=np.ones((1, 1, 4), np.float32), v=np.ones((1, 1, 2), np.float32)),
    ),
    "pool with a kernel of nothing": (
        TAKEN,
        lambda: graph("c = MaxPool<kernel_shape = [0], strides = [0]>(w)  y = Add(x, c)",
                       w=np.ones((1, 1, 4), np.float32)),
    ),
    "axes far outside": (
        TAKEN,
        lambda: graph(f"c = Softmax<axis = {HUGE}>(x)  d = Concat<axis = -{HUGE}>(c, x) "
                       f"t = Transpose<perm = [{HUGE}]>(d)  y = Flatten<axis = -{HUGE}>(t)"),
    ),
    "Transpose of the same axis": (
        TAKEN,
        lambda: graph("a = Transpose<perm = [0, 0]>(x)  y = Transpose<perm = [0, 0]>(a)",
                       "(float[2, 2] x) => (float[A, B] y)"),
    ),
    "Reshape to several unknown": (
        TAKEN,
        lambda: graph("a = Reshape(x, s)  y = Reshape(a, s)", s=_long([-1, -1, HUGE])),
    ),
    "Loop without end": (
        TAKEN,
        lambda: graph("""c = Loop(n, t, w) <body = l (int64 i, bool g, float[1] k)
            => (bool h, float[1] m) { h = Identity(g)  m = Add(k, k) }>  y = Add(x, c)""",
                       n=np.array((1 << 63) - 1), t=np.array(True), w=FLOAT),
    ),
    "Loop that grows": (
        TAKEN,
        lambda: graph("""c = Loop(n, t, w) <body = l (int64 i, bool g, float[K] k)
            => (bool h, float[L] m) { h = Identity(g)  m = Concat<axis = 0>(k, k) }>
            y = Add(x, c)""", n=np.array(900), t=np.array(True), w=FLOAT),
    ),
    "Loop without trips": (
        TAKEN,
        lambda: graph("""c = Loop(, t, w) <body = l (int64 i, bool g, float[1] k)
            => (bool h, float[1] m) { h = Identity(g)  m = Add(k, k) }>  y = Add(x, c)""",
                       t=np.array(True), w=FLOAT),
    ),
    "Einsum of many axes": (
        TAKEN,
        lambda: graph('c = Einsum<equation = "a,b,c,d,e,f->abcdef">(w, w, w, w, w, w) '
                       "d = ReduceSum(c)  y = Add(x, d)", w=np.ones(64, np.float32)),
    ),
    "Einsum of nonsense": (
        TAKEN,
        lambda: graph('c = Einsum<equation = "->,,..->..ij-">(w, w)  y = Add(x, c)', w=FLOAT),
    ),
    "regular expression that explodes": (
        EITHER,
        lambda: graph('c = RegexFullMatch<pattern = "(a*)*b">(s)  f = Cast<to = 1>(c) '
                       "y = Add(x, f)", s=np.array(["a" * 40], object)),
    ),
    "text of unknown type": (
        TAKEN,
        lambda: graph('h = com.acme.Unknown(x)  y = RegexFullMatch<pattern = "a">(h)'),
    ),
    "zero scale": (
        TAKEN,
        lambda: graph("q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)",
                       s=np.array(0, np.float32), z=np.array(0, np.uint8)),
    ),
    "opset of tomorrow": (
        REFUSED,
        lambda: _changed(graph("y = Neg(x)"),
                         lambda m: m.opset_import[0].__setattr__("version", 1 << 40)),
    ),
    "opset below nothing": (
        REFUSED,
        lambda: _changed(graph("y = Neg(x)"),
                         lambda m: m.opset_import[0].__setattr__("version", -3)),
    ),
    "attribute that is none": (
        REFUSED,
        lambda: _changed(graph("y = Neg(x)"),
                         lambda m: m.graph.node[0].attribute.append(AttributeProto(name="a"))),
    ),
    "names of control characters": (
        TAKEN,
        lambda: _changed(graph("y = Neg(x)"),
                         lambda m: m.graph.node[0].__setattr__("name", "a\n\x1b[2Jb\0c")),
    ),
}  # fmt: skip


def test_files_made_by_hand(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    cases = []
    for name, (_, make) in MADE.items():
        path = folder / f"{name.replace(' ', '_')}.onnx"
        made = make()
        path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
        cases.append(Case(path.stem, path))
    found = attempt(cases, tmp_path)
    assert_none_wrong(found)
    for name, (wanted, _) in MADE.items():
        assert found[name.replace(" ", "_")].startswith(wanted), (name, found)

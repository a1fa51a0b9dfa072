"""Files made to break a reader: each is refused in one sentence or rewritten into a valid model.

No file may end the process, take over 10 seconds or over 1 GB, or make it read a file outside the
model's folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper

from tests.ir import hostile_worker

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Case:
    """A file and what is changed about it before it is tried (`hostile_worker.changed`)."""

    name: str
    path: Path
    change: str = ""


def attempt(cases: Iterable[Case], folder: Path) -> dict[str, str]:
    """What becomes of each case; those that end the process, however, are named too."""
    left = {case.name: case for case in cases}
    found: dict[str, str] = {}
    while left:
        said, end = _run_worker(list(left.values()), folder)
        begun = ""
        for line in said.splitlines():
            word, name, *verdict = line.split(" ", 2)
            begun = name if word == "start" else ""
            if word == "done":
                found[name] = verdict[0]
                del left[name]
        if begun:
            found[begun] = f"WRONG: ends the process: {end}"
            del left[begun]
        elif left and not said:
            pytest.fail(f"the worker does not start: {end}")
    return found


def _run_worker(cases: list[Case], folder: Path) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.ir.hostile_worker", str(folder)],
        input="".join(f"{c.name}\t{c.path}\t{c.change}\n" for c in cases),
        capture_output=True,
        text=True,
        cwd=HERE.parents[1],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
        check=False,
    )
    return done.stdout, f"exit code {done.returncode}, {done.stderr[-1500:]}"


def assert_none_wrong(found: dict[str, str]) -> None:
    wrong = {name: verdict for name, verdict in found.items() if verdict.startswith("WRONG")}
    assert not wrong, "\n".join(f"{name}: {verdict}" for name, verdict in wrong.items())


# The files that get damaged


def _text(text: str, opset: int = 21) -> ModelProto:
    head = f'<ir_version: 10, opset_import: ["": {opset}, "my": 1, "com.acme": 1]>'
    return onnx.parser.parse_model(head + text)


def _initializer(model: ModelProto, **arrays: np.ndarray) -> ModelProto:
    model.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    return model


def convolutions() -> ModelProto:
    model = _text(
        """net (float[N, 3, 8, 8] x) => (float[N, M] y) {
        p = Pad(x, pads)  c = Conv<strides = [2, 2]>(p, w)  n = BatchNormalization(c, v, v, v, v)
        r = Relu(n)  d = Conv<group = 4, pads = [1, 1, 1, 1]>(r, depth)  m = Clip(d, low, high)
        t = Transpose<perm = [0, 2, 3, 1]>(m)  u = Transpose<perm = [0, 3, 1, 2]>(t)
        z = Resize<mode = "nearest">(u, , s)  g = GlobalAveragePool(z)  s2 = Shape(g)
        n0 = Gather(s2, zero)  k = Concat<axis = 0>(n0, rest)  f = Reshape(g, k)
        a = MatMul(f, e)  y = Add(a, b) }"""
    )
    weights = {
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "w": np.ones((4, 3, 3, 3), np.float32),
        "v": np.ones(4, np.float32),
        "depth": np.ones((4, 1, 3, 3), np.float32),
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
        "s": np.array([1, 1, 2, 2], np.float32),
        "zero": np.array([0]),
        "rest": np.array([-1]),
        "e": np.ones((4, 2), np.float32),
        "b": np.ones(2, np.float32),
    }
    return _initializer(model, **weights)


def control_flow() -> ModelProto:
    return _text(
        """net (bool q, float[N, 3] x, int64 n) => (float[A, B] y, seq(float[N, 3]) s, float[3] z)
        <float[3] c = {1, 2, 3}> {
        a = Add(x, c)  b = my.twice(a)  yes = Constant<value = bool {1}>()
        y = If(q) <then_branch = t () => (float[N, 3] h) <float[3] d = {7, 8, 9}> { h = Mul(a, d) },
            else_branch = e () => (float[N, 3] i) { j = Neg(b)  i = com.acme.Mystery<k = 2>(j) }>
        s = SequenceConstruct(a, y)
        z = Loop(n, yes, c) <body = l (int64 i0, bool go, float[3] k) => (bool go1, float[3] k1)
            { go1 = Identity(go)  k1 = Add(k, c) }> }
        <domain: "my", opset_import: ["": 21]> twice (p) => (r) { two = Constant<value_float: float
        = 2.0>()  r = Mul(p, two) }"""
    )


def constants() -> ModelProto:
    """Nearly all of it folds."""
    model = _text(
        """net (float[4] x) => (float[A] y, int64[B] w) {
        c = ConstantOfShape<value = float[1] {0.5}>(four)  t = Tile(c, two)
        s = Slice(t, zero, four)
        e = Expand(one, four)  r = Range(i0, i4, i1)  g = Gather(s, r)  o = OneHot(r, i4, pair)
        m = ReduceSum(o, ax)  p = Pad(g, pads)  u = Add(p, e)  h = Cast<to = 10>(u)
        f = Cast<to = 1>(h)  v, k = TopK(f, four)  l = CumSum(v, i0)  d = Div(r, r1)
        w = Where(eq, d, r)  eq = Equal(d, r)  j = Add(l, m)  y = Add(x, j) }"""
    )
    weights: dict[str, np.ndarray] = {
        "four": np.array([4]),
        "two": np.array([2]),
        "zero": np.array([0]),
        "one": np.array([1], np.float32),
        "i0": np.array(0),
        "i4": np.array(4),
        "i1": np.array(1),
        "pair": np.array([0, 1], np.float32),
        "ax": np.array([1]),
        "pads": np.array([0, 0]),
        "r1": np.array([1, 1, 2, 2]),
    }
    return _initializer(model, **weights)


def quantized() -> ModelProto:
    model = _text(
        """net (float[N, 4] x) => (float[N, 4] y) {
        a = QuantizeLinear(x, s, z)  b = DequantizeLinear(a, s, z)
        w = DequantizeLinear<axis = 0, block_size = 2>(wq, ws, wz)  m = MatMul(b, w)
        q = QuantizeLinear(m, s, z)  t = Transpose<perm = [0, 1]>(q)  y = DequantizeLinear(t, s, z)
        }"""
    )
    return _initializer(
        model,
        s=np.array(0.1, np.float32),
        z=np.array(3, np.uint8),
        wq=np.ones((4, 4), helper.tensor_dtype_to_np_dtype(TensorProto.INT4)),
        ws=np.ones((2, 4), np.float32),
        wz=np.zeros((2, 4), helper.tensor_dtype_to_np_dtype(TensorProto.INT4)),
    )


def sparse_and_strings() -> ModelProto:
    model = _text(
        """net (float[4] x, string[2] t) => (float[4] y, string[4] u, bool[2] f)
        <string[2] k = {"a", "b"}> {
        c = Constant<sparse_value = float[4] {0, 1, 2, 0}>()  y = Add(x, sparse)
        u = Concat<axis = 0>(t, k)  f = RegexFullMatch<pattern = "a.*">(t) }""".replace(
            "c = Constant<sparse_value = float[4] {0, 1, 2, 0}>()", ""
        )
    )
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(
            numpy_helper.from_array(np.ones(2, np.float32), "sparse"),
            numpy_helper.from_array(np.array([0, 2])),
            [4],
        )
    )
    return model


BASES = (convolutions, control_flow, constants, quantized, sparse_and_strings)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Sound models of every kind, as files."""
    folder = tmp_path_factory.mktemp("bases")
    paths = [folder / f"{base.__name__}.onnx" for base in BASES]
    for base, path in zip(BASES, paths, strict=True):
        path.write_bytes(base().SerializeToString())
    return paths


def _cuts(bases: list[Path]) -> list[Case]:
    return [
        Case(f"{path.stem}-cut-{1 << bit}", path, f"cut {1 << bit}")
        for path in bases
        for bit in range(path.stat().st_size.bit_length())
    ]


def _flips(bases: list[Path], seeds: range) -> list[Case]:
    return [
        Case(f"{path.stem}-{seed}", path, f"flip {seed}")
        for seed in seeds
        for path in [bases[seed % len(bases)]]
    ]


SEEDS = range(100)


@pytest.fixture(scope="module")
def verdicts(bases: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """On sound files, and on these cut and with flipped bits: by one process, which starts slowly.

    What it holds grows from case to case, so an end by one of them shows here as well.
    """
    sound = [Case(path.stem, path) for path in bases]
    cases = [*sound, *_cuts(bases), *_flips(bases, SEEDS)]
    return attempt(cases, tmp_path_factory.mktemp("damaged"))


def test_sound_files_are_taken(bases: list[Path], verdicts: dict[str, str]) -> None:
    assert [verdicts[path.stem] for path in bases] == ["ok"] * len(BASES)


def test_truncated_at_every_power_of_two(bases: list[Path], verdicts: dict[str, str]) -> None:
    found = {case.name: verdicts[case.name] for case in _cuts(bases)}
    assert_none_wrong(found)
    assert found and "ok" not in found.values()


def _assert_flips(found: dict[str, str], seeds: range) -> None:
    assert_none_wrong(found)
    counted = Counter(verdict.partition(":")[0] for verdict in found.values())
    # Both ends of the property are reached.
    assert counted["ok"] > len(seeds) / 20 and counted["refused"] > len(seeds) / 4, counted
    assert counted.total() == len(seeds)


def test_flipped_bits(bases: list[Path], verdicts: dict[str, str]) -> None:
    _assert_flips({case.name: verdicts[case.name] for case in _flips(bases, SEEDS)}, SEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 2100, 1000))
def test_many_flipped_bits(bases: list[Path], first: int, tmp_path: Path) -> None:
    seeds = range(first, first + 1000)
    _assert_flips(attempt(_flips(bases, seeds), tmp_path), seeds)


# Files made by hand


def _graph(nodes: str, interface: str = "(float[4] x) => (float[A] y)", **arrays: np.ndarray):
    return _initializer(_text(f"g {interface} {{ {nodes} }}"), **arrays)


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
    model = _text("g (float[4] x) => (float[4] y) { y = my.F0(x) }")
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
    model = _text(f"g (float[4] x) => (float[4] y) {{ y = my.{names[0]}(x) }}")
    for name, called in zip(names, (*names[1:], names[0]), strict=True):
        node = helper.make_node(called, ["a"], ["b"], domain="my")
        imports = [helper.make_opsetid("my", 1)]
        model.functions.append(helper.make_function("my", name, ["a"], ["b"], [node], imports))
    return model


def _long(values: list[int]) -> np.ndarray:
    return np.array(values, np.int64)


HUGE = 1 << 40
FLOAT = np.ones(1, np.float32)
TAKEN = "ok"
REFUSED = "refused"
EITHER = ""

MADE: dict[str, tuple[str, Callable[[], ModelProto | bytes]]] = {
    "cycle": (REFUSED, lambda: _graph("a = Neg(b)  b = Abs(a)  y = Add(x, b)")),
    "cycle of one node": (REFUSED, lambda: _graph("y = Add(x, y)")),
    "cycle through a branch": (
        REFUSED,
        lambda: _text(
            """g (bool q, float[4] x) => (float[4] y) { y = If(q) <then_branch = t ()
            => (float[4] a) { a = Neg(y) }, else_branch = e () => (float[4] b) { b = Neg(x) }> }"""
        ),
    ),
    "missing input": (REFUSED, lambda: _graph("y = Add(x, lost)")),
    "missing output": (REFUSED, lambda: _graph("z = Neg(x)")),
    "missing input of a branch": (
        REFUSED,
        lambda: _text(
            """g (bool q, float[4] x) => (float[4] y) { y = If(q) <then_branch = t ()
            => (float[4] a) { a = Neg(lost) }, else_branch = e () => (float[4] b) { b = Neg(x) }>
            }"""
        ),
    ),
    "required input left out": (REFUSED, lambda: _graph("y = Add(x, )")),
    "no inputs": (REFUSED, lambda: _graph("y = Add()")),
    "too many inputs": (REFUSED, lambda: _graph("y = Neg(x, x, x)")),
    "required attribute left out": (REFUSED, lambda: _graph("y = Concat(x, x)")),
    "attribute of another type": (REFUSED, lambda: _graph("y = Concat<axis = 0.5>(x, x)")),
    "negative size of an input": (
        TAKEN,
        lambda: _changed(
            _graph("y = Neg(x)"),
            lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", -5),
        ),
    ),
    "negative size of a constant": (
        REFUSED,
        lambda: _changed(
            _graph("y = Add(x, w)", w=FLOAT), lambda m: m.graph.initializer[0].dims.append(-1)
        ),
    ),
    "huge constant without data": (
        REFUSED,
        lambda: _changed(
            _graph("y = Add(x, w)", w=FLOAT),
            lambda m: m.graph.initializer[0].dims.extend([HUGE, HUGE, HUGE]),
        ),
    ),
    "huge constant of nothing": (
        EITHER,
        lambda: _changed(
            _graph("y = Add(x, w)", w=np.ones((0, 2), np.float32)),
            lambda m: m.graph.initializer[0].dims.__setitem__(1, HUGE),
        ),
    ),
    "huge input": (
        TAKEN,
        lambda: _changed(
            _graph("a = Shape(x)  y = Reshape(x, a)"),
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
        lambda: _graph("c = ConstantOfShape(s)  y = Add(x, c)", s=_long([HUGE])),
    ),
    "large ConstantOfShape": (
        TAKEN,
        lambda: _graph("c = ConstantOfShape(s)  d = Neg(c)  y = Add(x, d)", s=_long([1 << 30])),
    ),
    "large and small again": (
        TAKEN,
        lambda: _graph(
            "c = ConstantOfShape(s)  d = Neg(c)  r = ReduceSum(d)  y = Add(x, r)",
            s=_long([1 << 30]),
        ),
    ),
    "negative ConstantOfShape": (
        TAKEN,
        lambda: _graph("c = ConstantOfShape(s)  y = Add(x, c)", s=_long([-4])),
    ),
    "huge Expand": (
        TAKEN,
        lambda: _graph("c = Expand(w, s)  y = Add(x, c)", w=FLOAT, s=_long([HUGE])),
    ),
    "huge Tile": (
        TAKEN,
        lambda: _graph("c = Tile(w, s)  y = Add(x, c)", w=FLOAT, s=_long([HUGE])),
    ),
    "negative Tile": (
        TAKEN,
        lambda: _graph("c = Tile(w, s)  y = Add(x, c)", w=FLOAT, s=_long([-2])),
    ),
    "huge Pad": (
        TAKEN,
        lambda: _graph("c = Pad(w, s)  y = Add(x, c)", w=FLOAT, s=_long([HUGE, HUGE])),
    ),
    "huge Range in a shape computation": (
        TAKEN,
        lambda: _graph("r = Range(a, b, c)  g = Gather(r, i)  y = Expand(x, g)",
                       a=np.array(0), b=np.array(HUGE), c=np.array(1), i=_long([3])),
    ),
    "huge vector in a shape computation": (
        TAKEN,
        lambda: _changed(
            _graph("g = Gather(x, i)  y = ConstantOfShape(g)", "(int64[4] x) => (float[A] y)",
                   i=_long([3])),
            lambda m: m.graph.input[0].type.tensor_type.shape.dim[0].__setattr__("dim_value", HUGE),
        ),
    ),
    "keys of unknown type": (
        TAKEN,
        lambda: _text(
            """g (float[4] x) => (y) { h = com.acme.Unknown(x)
            y = ai.onnx.ml.LabelEncoder<keys_int64s = [1], values_floats = [2.0]>(h) }"""
        ),
    ),
    "tree that reads nothing": (
        REFUSED,
        lambda: _changed(
            _text("g (float[4] x) => (y) { y = ai.onnx.ml.TreeEnsemble(x) }"),
            lambda m: m.opset_import.add(domain="ai.onnx.ml", version=5),
        ),
    ),
    "axis beyond 32 bits": (
        REFUSED,
        lambda: _graph(f"y = LayerNormalization<axis = {(1 << 63) - 1}>(x, x)"),
    ),
    "fewer than no batch dimensions": (
        REFUSED,
        lambda: _graph("y = GatherND<batch_dims = -64>(x, i)", i=_long([[0]])),
    ),
    "pool with a huge kernel": (
        TAKEN,
        lambda: _graph(
            f'c = LpPool<auto_pad = "SAME_UPPER", kernel_shape = [{HUGE}, 2]>(w)  y = Add(x, c)',
            w=np.ones((1, 1, 32, 32), np.float32),
        ),
    ),
    "text of unknown type in a function": (
        TAKEN,
        lambda: _text("""g (float[4] x) => (bool[4] y) { h = com.acme.Unknown(x)  y = my.F(h) }
            <domain: "my", opset_import: ["": 21]> F (a) => (b)
            { b = RegexFullMatch<pattern = "a">(a) }"""),
    ),
    "huge Range": (
        TAKEN,
        lambda: _graph(
            "r = Range(a, b, c)  f = Cast<to = 1>(r)  y = Add(x, f)",
            a=np.array(0), b=np.array(HUGE), c=np.array(1),
        ),
    ),
    "Range without a step": (
        TAKEN,
        lambda: _graph(
            "r = Range(a, b, c)  f = Cast<to = 1>(r)  y = Add(x, f)",
            a=np.array(0), b=np.array(9), c=np.array(0),
        ),
    ),
    "huge OneHot": (
        TAKEN,
        lambda: _graph("c = OneHot(i, d, v)  y = Add(x, c)", i=_long([0]), d=np.array(HUGE),
                       v=np.ones(2, np.float32)),
    ),
    "huge Resize": (
        TAKEN,
        lambda: _graph("c = Resize(w, , s)  y = Add(x, c)", w=FLOAT, s=np.array([1e9], np.float32)),
    ),
    "huge Upsampling to sizes": (
        TAKEN,
        lambda: _graph("c = Resize(w, , , s)  y = Add(x, c)", w=FLOAT, s=_long([HUGE])),
    ),
    "huge EyeLike": (
        TAKEN,
        lambda: _graph("e = ConstantOfShape(s)  c = EyeLike(e)  d = Gather(c, i)  y = Add(x, d)",
                       s=_long([1 << 20, 1 << 20]), i=np.array(0)),
    ),
    "division by nothing": (
        TAKEN,
        lambda: _graph("c = Div(a, b)  f = Cast<to = 1>(c)  y = Add(x, f)", a=_long([1]),
                       b=_long([0])),
    ),
    "the least integer by -1": (
        TAKEN,
        lambda: _graph("c = Div(a, b)  m = Mod(a, b)  d = Add(c, m)  f = Cast<to = 1>(d) "
                       " y = Add(x, f)", a=_long([-(1 << 63)]), b=_long([-1])),
    ),
    "Gather outside": (
        TAKEN,
        lambda: _graph("c = Gather(w, i)  y = Add(x, c)", w=FLOAT, i=_long([1 << 40])),
    ),
    "GatherND outside": (
        TAKEN,
        lambda: _graph("c = GatherND(w, i)  y = Add(x, c)", w=FLOAT, i=_long([[1 << 40]])),
    ),
    "Scatter outside": (
        TAKEN,
        lambda: _graph("c = ScatterElements(w, i, w)  y = Add(x, c)", w=FLOAT, i=_long([1 << 40])),
    ),
    "Slice backwards": (
        TAKEN,
        lambda: _graph("c = Slice(w, a, b, , d)  y = Add(x, c)", w=FLOAT, a=_long([1 << 62]),
                       b=_long([-(1 << 63)]), d=_long([-(1 << 63)])),
    ),
    "Slice without a step": (
        TAKEN,
        lambda: _graph("c = Slice(x, a, b, , d)  y = Neg(c)", a=_long([0]), b=_long([3]),
                       d=_long([0])),
    ),
    "TopK of more": (
        TAKEN,
        lambda: _graph("c, i = TopK(w, k)  y = Add(x, c)", w=FLOAT, k=_long([HUGE])),
    ),
    "Conv of huge padding": (
        TAKEN,
        lambda: _graph(f"c = Conv<pads = [{HUGE}, {HUGE}]>(w, v)  y = Add(x, c)",
                       w=np.ones((1, 1, 4), np.float32), v=np.ones((1, 1, 2), np.float32)),
    ),
    "ConvTranspose of huge strides": (
        TAKEN,
        lambda: _graph(f"c = ConvTranspose<strides = [{HUGE}]>(w, v)  y = Add(x, c)",
                       w=np.ones((1, 1, 4), np.float32), v=np.ones((1, 1, 2), np.float32)),
    ),
    "pool with a kernel of nothing": (
        TAKEN,
        lambda: _graph("c = MaxPool<kernel_shape = [0], strides = [0]>(w)  y = Add(x, c)",
                       w=np.ones((1, 1, 4), np.float32)),
    ),
    "axes far outside": (
        TAKEN,
        lambda: _graph(f"c = Softmax<axis = {HUGE}>(x)  d = Concat<axis = -{HUGE}>(c, x) "
                       f"t = Transpose<perm = [{HUGE}]>(d)  y = Flatten<axis = -{HUGE}>(t)"),
    ),
    "Transpose of the same axis": (
        TAKEN,
        lambda: _graph("a = Transpose<perm = [0, 0]>(x)  y = Transpose<perm = [0, 0]>(a)",
                       "(float[2, 2] x) => (float[A, B] y)"),
    ),
    "Reshape to several unknown": (
        TAKEN,
        lambda: _graph("a = Reshape(x, s)  y = Reshape(a, s)", s=_long([-1, -1, HUGE])),
    ),
    "Loop without end": (
        TAKEN,
        lambda: _graph("""c = Loop(n, t, w) <body = l (int64 i, bool g, float[1] k)
            => (bool h, float[1] m) { h = Identity(g)  m = Add(k, k) }>  y = Add(x, c)""",
                       n=np.array((1 << 63) - 1), t=np.array(True), w=FLOAT),
    ),
    "Loop that grows": (
        TAKEN,
        lambda: _graph("""c = Loop(n, t, w) <body = l (int64 i, bool g, float[K] k)
            => (bool h, float[L] m) { h = Identity(g)  m = Concat<axis = 0>(k, k) }>
            y = Add(x, c)""", n=np.array(900), t=np.array(True), w=FLOAT),
    ),
    "Loop without trips": (
        TAKEN,
        lambda: _graph("""c = Loop(, t, w) <body = l (int64 i, bool g, float[1] k)
            => (bool h, float[1] m) { h = Identity(g)  m = Add(k, k) }>  y = Add(x, c)""",
                       t=np.array(True), w=FLOAT),
    ),
    "Einsum of many axes": (
        TAKEN,
        lambda: _graph('c = Einsum<equation = "a,b,c,d,e,f->abcdef">(w, w, w, w, w, w) '
                       "d = ReduceSum(c)  y = Add(x, d)", w=np.ones(64, np.float32)),
    ),
    "Einsum of nonsense": (
        TAKEN,
        lambda: _graph('c = Einsum<equation = "->,,..->..ij-">(w, w)  y = Add(x, c)', w=FLOAT),
    ),
    "regular expression that explodes": (
        EITHER,
        lambda: _graph('c = RegexFullMatch<pattern = "(a*)*b">(s)  f = Cast<to = 1>(c) '
                       "y = Add(x, f)", s=np.array(["a" * 40], object)),
    ),
    "text of unknown type": (
        TAKEN,
        lambda: _graph('h = com.acme.Unknown(x)  y = RegexFullMatch<pattern = "a">(h)'),
    ),
    "zero scale": (
        TAKEN,
        lambda: _graph("q = QuantizeLinear(x, s, z)  y = DequantizeLinear(q, s, z)",
                       s=np.array(0, np.float32), z=np.array(0, np.uint8)),
    ),
    "opset of tomorrow": (
        REFUSED,
        lambda: _changed(_graph("y = Neg(x)"),
                         lambda m: m.opset_import[0].__setattr__("version", 1 << 40)),
    ),
    "opset below nothing": (
        REFUSED,
        lambda: _changed(_graph("y = Neg(x)"),
                         lambda m: m.opset_import[0].__setattr__("version", -3)),
    ),
    "attribute that is none": (
        REFUSED,
        lambda: _changed(_graph("y = Neg(x)"),
                         lambda m: m.graph.node[0].attribute.append(AttributeProto(name="a"))),
    ),
    "names of control characters": (
        TAKEN,
        lambda: _changed(_graph("y = Neg(x)"),
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


# External data

SECRET = hostile_worker.SECRET

PLACES: dict[str, tuple[str, dict[str, str]]] = {
    "inside": (TAKEN, {"location": "weights.bin"}),
    "inside a folder": (TAKEN, {"location": "more/weights.bin"}),
    "from a byte on": (TAKEN, {"location": "weights.bin", "offset": "4"}),
    "one folder up": (REFUSED, {"location": "../outside/secret.bin"}),
    "down and up": (REFUSED, {"location": "more/../../outside/secret.bin"}),
    "up and back": (EITHER, {"location": "../model/weights.bin"}),
    "absolute": (REFUSED, {"location": "{outside}/secret.bin"}),
    "symlink to a file": (REFUSED, {"location": "link.bin"}),
    "symlink to a folder": (REFUSED, {"location": "linked/secret.bin"}),
    "symlink to itself": (REFUSED, {"location": "loop.bin"}),
    "a folder": (REFUSED, {"location": "more"}),
    "the folder": (REFUSED, {"location": "."}),
    "nothing": (REFUSED, {"location": ""}),
    "no place": (REFUSED, {"offset": "0"}),
    "not there": (REFUSED, {"location": "lost.bin"}),
    "a name of zero": (REFUSED, {"location": "wei\0ghts.bin"}),
    "a very long name": (REFUSED, {"location": "w" * 5000}),
    "a pipe": (REFUSED, {"location": "pipe"}),
    "beyond the end": (REFUSED, {"location": "weights.bin", "offset": "1000"}),
    "over the end": (REFUSED, {"location": "weights.bin", "offset": "56"}),
    "before the start": (REFUSED, {"location": "weights.bin", "offset": "-4"}),
    "far beyond": (REFUSED, {"location": "weights.bin", "offset": str(1 << 70)}),
    "no number": (REFUSED, {"location": "weights.bin", "offset": "four"}),
    "too short": (REFUSED, {"location": "weights.bin", "length": "3"}),
    "too long": (EITHER, {"location": "weights.bin", "length": str(1 << 50)}),
    "negative length": (REFUSED, {"location": "weights.bin", "length": "-16"}),
}


def _external(entries: dict[str, str], outside: Path) -> ModelProto:
    model = _graph("a = Neg(w)  y = Add(x, a)", w=np.ones(5, np.float32))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value.replace("{outside}", str(outside)))
    return model


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A model's folder with all kinds of files in it and beside it; gives the folder."""
    folder, outside = tmp_path / "model", tmp_path / "outside"
    (folder / "more").mkdir(parents=True)
    outside.mkdir()
    for path in (folder / "weights.bin", folder / "more" / "weights.bin"):
        path.write_bytes(np.arange(16, dtype=np.float32).tobytes())
    (outside / "secret.bin").write_bytes(SECRET * 4)
    (folder / "link.bin").symlink_to(outside / "secret.bin")
    (folder / "linked").symlink_to(outside)
    (folder / "loop.bin").symlink_to("loop.bin")
    os.mkfifo(folder / "pipe")
    return folder


def test_external_data(places: Path, tmp_path: Path) -> None:
    cases = []
    for name, (_, entries) in PLACES.items():
        path = places / f"{name.replace(' ', '_')}.onnx"
        path.write_bytes(_external(entries, tmp_path / "outside").SerializeToString())
        cases.append(Case(path.stem, path))
    cases.append(Case("attribute", places / "attribute.onnx"))
    cases[-1].path.write_bytes(_external_attribute().SerializeToString())
    found = attempt(cases, tmp_path)
    assert_none_wrong(found)
    for name, (wanted, _) in PLACES.items():
        assert found[name.replace(" ", "_")].startswith(wanted), (name, found)
    assert found["attribute"].startswith(REFUSED)


def _external_attribute() -> ModelProto:
    """Has a constant whose numbers lie outside the model's folder."""
    model = _graph("a = Constant<value = float[1] {1}>()  y = Add(x, a)")
    outside = _external(PLACES["one folder up"][1], Path()).graph.initializer[0]
    model.graph.node[0].attribute[0].t.CopyFrom(outside)
    return model


# The watchman is watched


@pytest.mark.slow
def test_a_crash_a_hang_and_a_leak_would_be_noticed(
    bases: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(
        """import ctypes, os, sys, time
import numpy
import tests.ir.hostile_worker as worker
from pathlib import Path

worker.SECONDS = 1
taken = worker.main

def main(arguments):
    name = sys.modules["__main__"].current
    if name == "crash":
        ctypes.string_at(0)
    if name == "hang":
        time.sleep(60)
    if name == "memory":
        numpy.ones(3 << 27).sum()
    if name == "outside":
        open(Path(arguments[2]).parents[1] / "outside" / "secret.bin").close()
    if name == "defect":
        print("Traceback", file=sys.stderr)
        return 70
    return taken(arguments)

def verdict(path, output):
    sys.modules["__main__"].current = path.stem
    return really(path, output)

current = ""
worker.main, really, worker.verdict = main, worker.verdict, verdict
worker.run(Path(sys.argv[1]))
"""
    )
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.bin").write_bytes(SECRET)
    (tmp_path / "model").mkdir()
    cases = []
    for name in ("crash", "hang", "memory", "outside", "defect", "sound"):
        path = tmp_path / "model" / f"{name}.onnx"
        path.write_bytes(bases[0].read_bytes())
        cases.append(Case(name, path))
    run = subprocess.run
    monkeypatch.setattr(
        subprocess, "run", lambda command, **k: run([command[0], str(worker), command[3]], **k)
    )
    found = attempt(cases, tmp_path)
    assert {name: verdict.partition(":")[0] for name, verdict in found.items()} == {
        **dict.fromkeys(("crash", "hang", "memory", "outside", "defect"), "WRONG"),
        "sound": "ok",
    }

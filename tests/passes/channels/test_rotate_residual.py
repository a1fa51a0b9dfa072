from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, infer_types
from onnxq.passes.channels.rotate_residual import RotateResidual, find_streams, rotation
from tests.helpers import assert_equivalent
from tests.passes.rewriting import operators

SIZE = 12
SIGNS = np.random.default_rng(0).choice([-1.0, 1.0], SIZE)
STEP = RotateResidual({"x": SIGNS})


def numbers(name: str, *shape: int, seed: int) -> str:
    values = np.random.default_rng(seed).normal(size=int(np.prod(shape))).round(3)
    dims = ", ".join(map(str, shape))
    return f"float[{dims}] {name} = {{{', '.join(map(str, values))}}}"


CONSTANTS = ", ".join(
    [
        numbers("t", 16, SIZE, seed=1),
        *(numbers(f"w{i}", SIZE, SIZE, seed=2 + i) for i in range(6)),
        *(numbers(f"g{i}", SIZE, seed=20 + i) for i in range(3)),
        numbers("b", SIZE, seed=30),
        "float eps = {1e-6}, float two = {2}, int64[1] last = {-1}, float half = {0.5}",
    ]
)


def rotated(before: Graph) -> Graph:
    infer_types(before)
    after = before.copy()
    assert STEP.run(after, Context()) == 1
    after.check()
    return after


def norm(x: str, name: str, gain: str) -> str:
    return (
        f"{name}q = Pow({x}, two) {name}v = ReduceMean({name}q, last) {name}e = Add({name}v, eps) "
        f"{name}s = Sqrt({name}e) {name}r = Reciprocal({name}s) {name}n = Mul({x}, {name}r) "
        f"{name} = Mul({gain}, {name}n) "
    )


BLOCKS = (
    norm("x", "a", "g0") + "p = MatMul(a, w0) p1 = MatMul(a, w1) u = Mul(p, p1) "
    "o = MatMul(u, w2) x1 = Add(x, o) "
    + norm("x1", "c", "g1")
    + "d = MatMul(c, w3) f = Relu(d) h = MatMul(f, w4) k = Add(h, b) m = Mul(k, half) "
    "x2 = Add(x1, m) " + norm("x2", "z", "g2")
)


def model(
    end: str = "y = MatMul(z, w5)", *, start: str = "x = Gather(t, i)", opset: int = 20
) -> str:
    return (
        f'<ir_version: 10, opset_import: ["": {opset}]> g (int64[N] i) => (float[N, {SIZE}] y) '
        f"<{CONSTANTS}> {{ x = Gather(t, i) {BLOCKS} {end} }}"
    )


@pytest.mark.parametrize("size", [1, 2, 3, 12, 48, 64, 576])
def test_the_matrix_is_orthogonal_and_even(size: int) -> None:
    signs = np.random.default_rng(3).choice([-1.0, 1.0], size)
    matrix = rotation(signs)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    odd = size // (size & -size)
    assert np.abs(matrix).max() <= np.sqrt(2 * odd / size) * np.sqrt(1 / odd) + 1e-12
    np.testing.assert_array_equal(np.sign(matrix[:, 0]), signs)


def test_rotations_go_into_weights() -> None:
    before = Graph.from_text(model())
    after = rotated(before)
    assert_equivalent(before, after, exact=False, seeds=(0, 1))
    # One product with the rotation behind the table; the gains are gone.
    assert operators(after).count("MatMul") == operators(before).count("MatMul") + 1
    assert operators(after).count("Mul") == operators(before).count("Mul") - 3
    names = {value for node in after.nodes() for value in (node.output.name,)}
    assert names & {"x1", "x2", "an", "cn", "zn", "o", "h", "m"} == set()
    assert {"x", "u", "d", "y"} <= names


def test_what_others_read_is_restored() -> None:
    end = "wt = Transpose<perm = [1, 0]>(w5) y0 = MatMul(z, wt) y1 = Sigmoid(x2) y = Add(y0, y1)"
    before = Graph.from_text(model(end))
    after = rotated(before)
    assert_equivalent(before, after, exact=False, seeds=(0, 1))
    assert operators(after).count("MatMul") == operators(before).count("MatMul") + 3
    restored = {node.output.name for node in after.nodes() if node.is_op("MatMul")}
    assert {"x2", "zn"} <= restored


def test_what_the_graph_gives_is_restored() -> None:
    before = Graph.from_text(model("").replace("] y)", "] x2)"))
    after = rotated(before)
    assert [value.name for value in after.outputs] == ["x2"]
    assert_equivalent(before, after, exact=False, seeds=(0, 1))


def test_the_operator_gets_ones_as_its_scale() -> None:
    text = model(opset=23)
    for name, x, gain in (("a", "x", "g0"), ("c", "x1", "g1"), ("z", "x2", "g2")):
        text = text.replace(norm(x, name, gain), f"{name} = RMSNormalization({x}, {gain}) ")
    before = Graph.from_text(text)
    after = rotated(before)
    assert_equivalent(before, after, exact=False, seeds=(0, 1))
    scales = [node.input(1) for node in after.nodes() if node.is_op("RMSNormalization")]
    assert len(scales) == 3
    assert all(scale is not None and (scale.numpy() == 1).all() for scale in scales)


def test_outliers_are_spread() -> None:
    before = Graph.from_text(model())
    infer_types(before)
    after = before.copy()
    table = np.ones((16, SIZE), np.float32)
    table[:, 5] = 100
    gather = next(node for node in after.nodes() if node.is_op("Gather"))
    after.set_constant(gather, 0, table)
    assert STEP.run(after, Context()) == 1
    (matrix,) = (v.numpy() for v in after.initializers() if v.name == "rotation")
    assert np.abs(table @ matrix).max() < 60


@pytest.mark.parametrize(
    "text",
    [
        model().replace("Pow(x1, two)", "Pow(x1, half)").replace("Pow(x2, two)", "Pow(x2, half)"),
        model().replace("ReduceMean(cq, last)", "ReduceMax(cq, last)").replace(
            "ReduceMean(zq, last)", "ReduceMax(zq, last)"
        ),
    ],
    ids=["another power", "another reduction"],
)  # fmt: skip
def test_other_normalizations_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="'x' cannot be rotated: it is in no residual stream"):
        rotated(Graph.from_text(text))


def test_a_stream_that_needs_many_products_is_refused() -> None:
    body = " ".join(f"s{i} = Sigmoid(x{i % 2 + 1}) s{i}a = Sigmoid(an)" for i in range(2))
    end = f"{body} ca = Sigmoid(cn) za = Sigmoid(zn) y = MatMul(z, w5)"
    graph = Graph.from_text(model(end))
    infer_types(graph)
    assert not find_streams(graph)
    assert [stream.tensor for stream in find_streams(rotatable())] == ["x"]


def rotatable() -> Graph:
    graph = Graph.from_text(model())
    infer_types(graph)
    return graph


@pytest.mark.parametrize("signs", [np.ones(SIZE + 1), np.full(SIZE, 0.5)])
def test_wrong_signs_are_refused(signs: np.ndarray) -> None:
    with pytest.raises(InputError, match="need 12 numbers that are 1 or -1"):
        RotateResidual({"x": signs}).run(rotatable(), Context())

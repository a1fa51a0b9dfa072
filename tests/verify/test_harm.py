"""Which error within a candidate harms its outputs."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.data import Dataset, read
from onnxq.ir import Graph, infer_types, to_proto
from onnxq.runtime import Session
from onnxq.runtime.files import ModelFiles
from onnxq.verify.harm import Wrong, first_harmful
from tests.helpers import run

HEAD = """<ir_version: 8, opset_import: ["": 17]>
    g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z)
    <float a = {{{a}}}, float b = {{{b}}}, float low = {{-0.5}}, float high = {{0.5}}>"""
BODY = "{{ t = Mul(x, a)  u = Clip(t, low, high)  v = Mul(u, b)  y = Neg(v)  z = Mul(x, b) }}"
SAMPLES = 3 + np.random.default_rng(0).random((8, 4), np.float32)


def model(a: float = 1.0, b: float = 1.0) -> Graph:
    graph = Graph.from_text((HEAD + BODY).format(a=a, b=b))
    infer_types(graph)
    return graph


MAKES_NAN = Graph.from_text(
    (HEAD + BODY.replace("y = Neg(v)", "w = Sub(v, v)  y = Div(w, w)")).format(a=1.0, b=1.5)
)
infer_types(MAKES_NAN)


def first(candidate: Graph, *wrong: str) -> int | None:
    original = model()
    shown = original.copy()
    shown.set_outputs([shown.values[name] for name in ("t", "u", "v", "y", "z")])
    values = run(shown, {"x": SAMPLES})
    data: Dataset = read({"x": SAMPLES}, Session(to_proto(original)).inputs, batch_size=8)
    with ModelFiles.temporary() as files:
        return first_harmful(
            candidate,
            [[Wrong(name, name, False)] for name in wrong],
            ["y", "z"],
            data,
            lambda number, name: values[name],
            files,
        )


@pytest.mark.parametrize(
    ("candidate", "wrong", "wanted"),
    [
        pytest.param(model(a=2), ("t",), None, id="clipped away behind it"),
        pytest.param(model(a=2, b=1.5), ("t", "v"), 1, id="the second"),
        pytest.param(model(b=1.5), ("v", "z"), 0, id="one of two outputs"),
        pytest.param(model(b=1.5), ("z",), 0, id="an output itself"),
        pytest.param(model(), ("t", "v"), None, id="nothing is wrong"),
        pytest.param(MAKES_NAN, ("z",), 0, id="another output stays NaN"),
    ],
)
def test_it_is_the_first_that_brings_the_outputs_nearer(
    candidate: Graph, wrong: tuple[str, ...], wanted: int | None
) -> None:
    assert first(candidate, *wrong) == wanted


@pytest.mark.parametrize("less", [1.0, 0.1], ids=["alone", "beside what is put right later"])
def test_of_many_that_harm_only_together_it_is_the_first(less: float) -> None:
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y)
        <float one = {{{0}}}, float less = {{{1}}}, float more = {{{2}}}>
        {{ u = Mul(x, less) v = Mul(u, more) {3} y = Sum(v, {4}) }}"""
    names = [f"t{number}" for number in range(12)]
    lines = " ".join(f"{n} = Mul(x, one)" for n in names), ", ".join(names)
    parts = [text.format(k, by, 1 / by, *lines) for k, by in ((1.0, 1.0), (1.5, less))]
    original, candidate = map(Graph.from_text, parts)
    data = read({"x": SAMPLES}, Session(to_proto(original)).inputs, batch_size=8)
    values = {**dict.fromkeys(["u", *names], SAMPLES), "y": run(original, {"x": SAMPLES})["y"]}
    wrong = [[Wrong(name, name, False)] for name in names]

    def found(wrong: list[list[Wrong]]) -> int | None:
        with ModelFiles.temporary() as files:
            return first_harmful(
                candidate, wrong, ["y"], data, lambda number, name: values[name], files
            )

    assert found(wrong) == 0
    assert found(wrong[:1]) is None
    if less < 1:
        assert found([[Wrong("u", "u", False)], *wrong]) == 1


def test_a_wrong_value_counts_whose_pair_errs_as_well() -> None:
    candidate = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] y) <float two = {2}, float step = {0.05}, int8 zero = {0}>
        { t = Mul(x, two) q = QuantizeLinear(t, step, zero) d = DequantizeLinear(q, step, zero)
          y = Neg(d) }""")
    infer_types(candidate)
    values = {"t": SAMPLES, "y": -SAMPLES}
    data = read({"x": SAMPLES}, Session(to_proto(candidate)).inputs, batch_size=8)
    wrong = [[Wrong("t", "t", False)], [Wrong("d", "t", True, 0.05)]]
    with ModelFiles.temporary() as files:
        kept = lambda number, name: values[name]  # noqa: E731
        assert first_harmful(candidate, wrong, ["y"], data, kept, files) == 0


def test_what_a_pair_quantizes_takes_the_place_of_what_it_gives() -> None:
    candidate = Graph.from_text("""<ir_version: 8, opset_import: ["": 17]>
        g (float[N, 4] x) => (float[N, 4] y, float[N, 4] z) <float step = {0.01}, int8 zero = {0}>
        { t = Abs(x) q = QuantizeLinear(t, step, zero) z = DequantizeLinear(q, step, zero)
          y = Neg(z) }""")
    infer_types(candidate)
    values = {"y": -SAMPLES, "z": SAMPLES}
    data = read({"x": SAMPLES}, Session(to_proto(candidate)).inputs, batch_size=8)
    with ModelFiles.temporary() as files:
        pair = [Wrong("z", "t", True)]
        kept = lambda number, name: values[name]  # noqa: E731
        assert first_harmful(candidate, [pair], ["y", "z"], data, kept, files) == 0
        assert first_harmful(candidate, [pair], ["z"], data, kept, files) == 0
        # Where nothing is cut off, rounding alone is no harm.
        fine = SAMPLES / 4
        data = read({"x": fine}, Session(to_proto(candidate)).inputs, batch_size=8)
        values |= {"y": -fine, "z": fine}
        rounded = [Wrong("z", "t", True, 0.01)]
        assert first_harmful(candidate, [rounded], ["y", "z"], data, kept, files) is None
        assert first_harmful(candidate, [pair], ["y", "z"], data, kept, files) == 0


def test_values_of_one_layer_are_put_right_together() -> None:
    """Neither is harm enough alone, and a value behind them makes up for it."""
    text = """<ir_version: 8, opset_import: ["": 17]> g (float[N, 4] x) => (float[N, 4] y)
        <float k = {{{}}}, float l = {{{}}}, float m = {{{}}}>
        {{ t = Mul(x, k) u = Mul(x, k) v = Mul(x, l) w = Mul(x, m) y = Sum(t, u, v, w) }}"""
    original, candidate = (
        Graph.from_text(text.format(*of)) for of in ((1, 1, 1), (1.1, 0.85, 2.15))
    )
    data = read({"x": SAMPLES}, Session(to_proto(original)).inputs, batch_size=8)
    t, u, v = ([Wrong(name, name, False)] for name in "tuv")
    right = {**dict.fromkeys("tuv", SAMPLES), "y": run(original, {"x": SAMPLES})["y"]}
    with ModelFiles.temporary() as files:
        others = ["y"], data, lambda number, name: right[name], files
        assert first_harmful(candidate, [t, v], *others) is None
        assert first_harmful(candidate, [[*t, *u], v], *others) == 0

"""Equalization against its equations, and by what it is for: weights that share one scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq.data import read
from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Node, infer_types, save, to_proto
from onnxq.observe import observe
from onnxq.passes.channels.lift_clips import LiftClips
from onnxq.passes.channels.scale_channels import ScaleChannels
from onnxq.planning import apply_plan, make_plan
from onnxq.precision import parse_precision
from onnxq.runtime import Session
from onnxq.targets import load_target
from onnxq.tune import Change, Subject
from onnxq.tune.equalization import Equalization
from tests.helpers import assert_equivalent, run
from tests.networks import chain, inputs

TABLE = '{extends}\n[weight]\nformat = "int8"\nscheme = "absmax"\nper_channel = {by_channel}\n'
HEAD = '<ir_version: 8, opset_import: ["": 17]>'


@pytest.fixture
def per_tensor(tmp_path: Path) -> str:
    """A target without scales by channel."""
    path = tmp_path / "tensor.toml"
    path.write_text(TABLE.format(extends='extends = "cpu-x64"', by_channel="false"))
    return str(path)


def network(text: str, **weights: np.ndarray) -> Graph:
    """A graph that reads constants of these names as inputs in its text."""
    graph = Graph.from_text(HEAD + text)
    for name, numbers in weights.items():
        value = graph.values[name]
        constant = graph.constant(numbers.astype(np.float32), name)
        graph.replace_uses(value, constant)
        graph.remove_input(value)
        graph.rename(constant, name)
    for number, node in enumerate(graph.nodes()):
        graph.rename_node(node, f"{node.op_type}{number}")
    infer_types(graph)
    return graph


def equalized(graph: Graph, target: str, text: str = "int8", seed: int = 1) -> list[Change]:
    subject = Subject(
        graph,
        load_target(target),
        {node.name: [parse_precision(text)] for node in graph.nodes()},
    )
    method = Equalization()
    if method.refusal(subject):
        return []
    data = read(inputs(graph, 8), Session(to_proto(graph)).inputs)
    seen = observe(graph, data, method.needs(subject), threads=1)
    return [*method.transform(subject, seen)]


def after(graph: Graph, changes: list[Change]) -> Graph:
    made = graph.copy()
    for kind in (LiftClips, ScaleChannels):
        kind({c.tensor: c.numbers for c in changes if c.kind == kind.name}).run(made, Context())
        infer_types(made)
    return made


def ranges(node: Node, axes: tuple[int, ...]) -> np.ndarray:
    return np.asarray(np.abs(node.inputs[1].numpy()).max(axis=axes))  # type: ignore[union-attr]


RNG = np.random.default_rng(0)
LOUD = np.exp(RNG.normal(0, 2, 6))


def two_readers() -> Graph:
    rng = np.random.default_rng(1)
    return network(
        """g (float[N, 4] x, float[4, 6] a, float[6, 5] b, float[3, 6] c)
        => (float[N, 5] y, float[N, 3] z)
        { p = MatMul(x, a)  q = Relu(p)  y = MatMul(q, b)  z = Gemm<transB = 1>(q, c) }""",
        a=rng.normal(size=(4, 6)) * LOUD,
        b=rng.normal(size=(6, 5)) / LOUD[:, None],
        c=rng.normal(size=(3, 6)) / LOUD,
    )


def test_factors_are_those_of_the_equation(per_tensor: str) -> None:
    graph = two_readers()
    (change,) = equalized(graph, per_tensor)
    assert (change.kind, change.tensor) == ("scale-channels", "p") and change.gain_db > 3
    a, b, c = (graph.values[name].numpy() for name in "abc")
    made = np.abs(a).max(axis=0)
    read = np.maximum(np.abs(b).max(axis=1), np.abs(c).max(axis=0))
    np.testing.assert_allclose(change.numbers, np.sqrt(made * read) / read, rtol=1e-5)
    assert (equalized(graph, per_tensor)[0].numbers == change.numbers).all()


def depthwise(activation: str = "Relu(p)") -> Graph:
    rng = np.random.default_rng(2)
    return network(
        f"""g (float[N, 3, 5, 5] x, float[6, 3, 1, 1] a, float[6, 1, 3, 3] b, float[6] k,
        float[4, 6, 1, 1] c) => (float[N, 4, 5, 5] y)
        <float zero = {{0}}, float bound = {{2}}>
        {{ p = Conv(x, a)  q = {activation}  r = Conv<group = 6, pads = [1, 1, 1, 1]>(q, b, k)
           s = Relu(r)  y = Conv(s, c) }}""",
        a=rng.normal(size=(6, 3, 1, 1)) * 0.1,
        b=rng.normal(size=(6, 1, 3, 3)) * LOUD[:, None, None, None],
        k=rng.normal(size=6) * LOUD,
        c=rng.normal(size=(4, 6, 1, 1)) / LOUD[:, None, None],
    )


def test_a_chain_with_a_depthwise_convolution_converges(per_tensor: str) -> None:
    graph = depthwise()
    changes = equalized(graph, per_tensor)
    assert [change.tensor for change in changes] == ["p", "r"]
    made = after(graph, changes)
    first, middle, last = (node for node in made.nodes() if node.is_op("Conv"))
    inside = ranges(middle, (1, 2, 3))
    np.testing.assert_allclose(ranges(first, (1, 2, 3)), inside, rtol=2e-3)
    np.testing.assert_allclose(inside, ranges(last, (0, 2, 3)), rtol=2e-3)
    assert_equivalent(graph, made, exact=False, rtol=1e-5)


def test_a_clip_is_lifted_where_it_cuts_off_little(per_tensor: str) -> None:
    changes = equalized(depthwise("Clip(p, zero, bound)"), per_tensor)
    assert [(c.kind, c.tensor) for c in changes] == [
        *(("lift-clips", "q"), ("scale-channels", "p"), ("scale-channels", "r"))
    ]
    assert changes[0].numbers.tolist() == [2] and changes[0].nodes == ("Clip1",)
    tight = depthwise("Clip(p, zero, bound)")
    clip = next(node for node in tight.nodes() if node.is_op("Clip"))
    tight.set_constant(clip, 2, np.array(0.05, np.float32))
    assert [c.tensor for c in equalized(tight, per_tensor)] == []


def test_scales_by_channel_and_other_precisions_need_none(per_tensor: str) -> None:
    graph = two_readers()
    assert not equalized(graph, "cpu-x64")
    assert not equalized(graph, per_tensor, "int8-weight")
    assert [c.tensor for c in equalized(graph, "qnn")] == ["p"], "its products have one scale"


def test_in_the_chain_the_error_falls(per_tensor: str, tmp_path: Path) -> None:
    graph = chain(4, planted=1)
    save(graph, tmp_path / "m.onnx")
    data = inputs(graph, 16)
    options = {"recipe": "int8", "target": per_tensor}
    plans = [
        make_plan(tmp_path / "m.onnx", data, methods=(m,), **options)  # type: ignore[arg-type]
        for m in ("none", "equalization")
    ]
    assert not plans[0].transformations and plans[1].transformations
    exact = run(graph, data)["y"]
    errors = [
        np.square(run(apply_plan(tmp_path / "m.onnx", plan), data)["y"] - exact).sum()
        for plan in plans
    ]
    assert errors[1] < errors[0] / 30
    with pytest.raises(InputError, match="none of the methods equalization is for a node"):
        make_plan(tmp_path / "m.onnx", data, recipe="int8", methods=("equalization",))

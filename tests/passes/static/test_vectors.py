from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from onnxq import optimize
from onnxq.ir import Context, Graph, Node, infer_types, save, to_proto
from onnxq.passes.notes import node_name
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.passes.static.vectors import fill_vectors
from onnxq.quant import ABSMAX, INT8, per_channel, weight_qparams
from onnxq.runtime import Session
from tests.helpers import assert_equivalent

GATE = (
    "p = GlobalAveragePool(d) q = Conv(p, down) r = Relu(q) s = Conv(r, up, c) "
    "t = HardSigmoid(s) u = Mul(d, t) "
)


def model(body: str, channels: int = 12, output: str = "float[N, 4, H, W] y") -> Graph:
    generator = np.random.default_rng(0)
    shapes = {
        "a": (channels, 3, 1, 1),
        "b": (channels, 1, 3, 3),
        "z": (4, channels, 1, 1),
        "down": (5, channels, 1, 1),
        "up": (channels, 5, 1, 1),
        "c": (channels,),
        "each": (channels, 1, 1),
    }
    constants = ", ".join(
        f"float{list(shape)} {name} = {{{', '.join(map(str, _numbers(generator, shape)))}}}"
        for name, shape in shapes.items()
    )
    graph = Graph.from_text(
        f'<ir_version: 8, opset_import: ["": 14]> g (float[N, 3, 6, 6] x) => ({output}) '
        f"<{constants}, float two = {{2}}> {{ {body} }}"
    )
    infer_types(graph)
    return graph


def depthwise(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes() if node.get("group", 1) > 1]


def _numbers(generator: np.random.Generator, shape: tuple[int, ...]) -> list[float]:
    return [float(n) for n in generator.standard_normal(int(np.prod(shape))).astype(np.float32)]


def block(channels: int = 12, gate: str = "") -> str:
    last = "u" if gate else "d"
    return (
        f"m = Conv(x, a, c) h = HardSwish(m) e = Conv<group = {channels}, pads = [1, 1, 1, 1]>"
        f"(h, b, c) d = Relu(e) {gate} y = Conv({last}, z)"
    )


@pytest.mark.parametrize(("channels", "wanted"), [(12, 16), (17, 32)])
@pytest.mark.parametrize("gate", ["", GATE, "t = Mul(d, two) u = Add(t, h) "])
def test_channels_are_padded(channels: int, wanted: int, gate: str) -> None:
    before = model(block(channels, gate), channels)
    after = before.copy()
    (padded,) = fill_vectors(after, depthwise(after), ())
    assert padded.output.name == "e" and not fill_vectors(after, depthwise(after), ())
    after.check()
    assert_equivalent(before, after, exact=False, seeds=(0, 1))
    assert padded.get("group") == wanted
    first, last = (n.inputs[1] for n in (after.nodes()[0], after.nodes()[-1]))
    assert first is not None and first.shape == (wanted, 3, 1, 1)
    assert last is not None and last.shape == (4, wanted, 1, 1)


@pytest.mark.parametrize(
    "graph",
    [
        model(block(16), 16),
        model("m = Conv(x, a, c) y = Conv(m, z)"),
        model("m = Conv(x, a) e = Conv<group = 12>(m, b) f = Mul(e, each) y = Conv(f, z)"),
        model("m = Conv(x, a) y = Conv<group = 12>(m, b)", output="float[N, 12, H, W] y"),
        model("m = Conv(x, a) e = Conv<group = 12>(m, b) s = Softmax<axis = 1>(e) y = Conv(s, z)"),
        model("m = Conv(x, a) e = Conv<group = 12>(m, b) s = Concat<axis = 1>(e, e) "
              "l, r = Split<axis = 1>(s) y = Conv(l, z)"),
        model("m = Conv(x, a) e = Conv<group = 12>(m, b) s = Sum(e, e) y = Conv(s, z)"),
    ],
    ids=["whole", "none", "numbers by channel", "output", "softmax", "concat", "unknown"],
)  # fmt: skip
def test_kept(graph: Graph) -> None:
    assert fill_vectors(graph, depthwise(graph), ()) == []


def test_what_is_not_to_change_is_left() -> None:
    graph = model(block())
    assert fill_vectors(graph, (), ()) == []
    assert fill_vectors(graph, depthwise(graph), graph.nodes()[:1]) == []


PLAIN = """extends = "cpu-x64"
description = "without vectors"
[operators]
Conv = { role = "compute", activations = [0], weight = 1, bias = 2, channel_axis = 0 }
"""


@pytest.mark.parametrize("gate", ["", GATE])
def test_integers_have_them_where_the_target_says_so(gate: str, tmp_path: Path) -> None:
    before = model(block(gate=gate))
    ranges = dict.fromkeys(before.values, (-6.0, 6.0))
    (tmp_path / "plain.toml").write_text(PLAIN, encoding="utf-8")
    feeds = {"x": np.random.default_rng(1).standard_normal((2, 3, 6, 6)).astype(np.float32)}
    found = {}
    for target in ("cpu-x64", str(tmp_path / "plain.toml")):
        graph = before.copy()
        InsertQdq(ranges, target).run(graph, Context())
        (convolution,) = depthwise(graph)
        found[convolution.get("group")] = Session(to_proto(graph)).run(feeds)["y"]
    np.testing.assert_array_equal(found[16], found[12])
    assert len(np.unique(found[16])) > 10


def test_of_values_with_added_channels_those_of_before_are_compared(tmp_path: Path) -> None:
    save(model(block()), tmp_path / "m.onnx")
    feeds = {"x": np.random.default_rng(1).standard_normal((8, 3, 6, 6)).astype(np.float32)}
    promise = {"min_sqnr": 0, "min_speedup": 0, "output": None}
    made = optimize(tmp_path / "m.onnx", feeds, recipe="int8", target="cpu-x64", **promise)  # type: ignore[arg-type]
    assert [node.get("group") for node in depthwise(made.graph)] == [16]
    compared = [layer.sqnr_db for layer in made.report.layers if layer.op_type == "Conv"]
    assert len(compared) == 3 and all(sqnr is not None and sqnr > 20 for sqnr in compared)


def test_weights_that_were_tuned_keep_their_shape() -> None:
    graph = model(block())
    (convolution,) = depthwise(graph)
    (weight,) = (v for v in graph.initializers() if v.name == "b")
    params = weight_qparams(weight.numpy(), INT8, ABSMAX, per_channel(0))
    tensors = {"scale": params.scale, "zero_point": params.zero_point}
    ranges = dict.fromkeys(graph.values, (-6.0, 6.0))
    InsertQdq(ranges, "cpu-x64", tuned={node_name(convolution): tensors}).run(graph, Context())
    (convolution,) = depthwise(graph)
    assert convolution.get("group") == 12

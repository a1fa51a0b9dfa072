"""The precision of every operator, read off graphs as onnxq and others write them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onnxq.ir import Context, Graph, infer_types
from onnxq.passes.notes import LEFT_IN_FLOAT_KEY, left_in_float
from onnxq.passes.weights.quantize_dynamic import QuantizeDynamic
from onnxq.passes.weights.quantize_weights import QuantizeWeights
from onnxq.verify.precision import counts, describe
from tests.passes.weights.stored import with_constants
from tests.quantization import quantized

HEAD = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>'


def _graph(interface: str, constants: str, nodes: str) -> Graph:
    graph = Graph.from_text(f"{HEAD} g {interface} <{constants}> {{ {nodes} }}")
    infer_types(graph)
    return graph


def _precisions(graph: Graph) -> dict[str, str]:
    return {f"{layer.op_type} {layer.node}": layer.precision for layer in describe(graph)}


def test_a_network_of_onnxq() -> None:
    before = _graph(
        "(float[1, 1, 4, 4] x) => (float[N, M] y)",
        "float[1, 1, 1, 1] w = {1}, float k = {2}, float[16, 2] m = {"
        + ", ".join(["1"] * 32)
        + "}, float[2] b = {1, 2}, float[4] sizes = {1, 1, 1, 1}, int64[2] shape = {1, 16}",
        """c = Conv(x, w) r = Relu(c) a = Add(r, k) f = Relu(a)
           z = Resize<mode = "nearest">(f, , sizes) p = MaxPool<kernel_shape = [1, 1]>(z)
           s = Reshape(p, shape) g = Gemm(s, m, b) e = Exp(g) q = Relu(e) y = MatMul(q, m2)
        """.replace("MatMul(q, m2)", "Softmax(q)"),
    )
    after = quantized(before)
    assert _precisions(after) == {
        **dict.fromkeys(
            ["Conv c", "Relu r", "Add a", "Relu f", "Resize z", "MaxPool p", "Reshape s", "Gemm g"],
            "int8",
        ),
        **dict.fromkeys(["Exp e", "Relu q", "Softmax y"], "float32"),
    }
    reasons = {layer.node: layer.reason for layer in describe(after) if layer.reason}
    assert reasons == {
        "e": "target cpu-x64 does not quantize Exp",
        "q": "not between integer operators",
        "y": "target cpu-x64 does not quantize Softmax",
    }
    assert counts(describe(after)) == {"int8": 8, "float32": 3}
    assert list(counts(describe(after))) == ["int8", "float32"]


@pytest.mark.parametrize("target", ["tensorrt", "openvino", "qnn"])
def test_a_bias_in_float_takes_no_precision_away(target: str) -> None:
    before = _graph(
        "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)",
        "float[1, 1, 1, 1] w = {1}, float[1] b = {1}",
        "y = Conv(x, w, b)",
    )
    assert list(_precisions(quantized(before, target=target)).values()) == ["int8"]


def test_what_a_pair_means_is_up_to_the_target_the_model_was_made_for() -> None:
    interface = "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)"
    after = quantized(_graph(interface, "float k = {1}", "e = Exp(x) y = Neg(e)"), target="qnn")
    assert list(_precisions(after).values()) == ["int8", "int8"]
    after.model.metadata.clear()
    assert list(_precisions(after).values()) == ["float32", "float32"]


def test_a_float_network() -> None:
    graph = _graph(
        "(float[2, 2] x, int64[2] i) => (float[2, 2] y, int64[2] j, double[2, 2] d)",
        "float[2, 2] m = {1, 2, 3, 4}",
        "h = MatMul(x, m) y = Relu(h) j = Add(i, i) d = Cast<to = 11>(x)",
    )
    assert _precisions(graph) == {
        "MatMul h": "float32",
        "Relu y": "float32",
        "Add j": "int64",
        "Cast d": "float64",
    }
    assert {layer.reason for layer in describe(graph)} == {""}


PAIR = "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)"
STORED = "w = DequantizeLinear<axis = 1>(wq, s, wz)"
SCALES = "float s = {1}, uint8 z = {0}, int8 wz = {0}"


@pytest.mark.parametrize(
    ("nodes", "wanted"),
    [
        # Weights alone, activations alone, and both.
        (f"{STORED} y = MatMul(x, w)", {"MatMul y": "int8-weight"}),
        (f"{PAIR} y = MatMul(d, m)", {"MatMul y": "float32"}),
        (f"{PAIR} {STORED} y = MatMul(d, w)", {"MatMul y": "int8"}),
        # What follows is on integers only if its result is.
        (f"{PAIR} y = Sigmoid(d)", {"Sigmoid y": "float32"}),
        (
            f"{PAIR} h = Sigmoid(d) hq = QuantizeLinear(h, s, z) y = DequantizeLinear(hq, s, z)",
            {"Sigmoid h": "int8"},
        ),
        (
            f"{PAIR} h = Add(d, m) hq = QuantizeLinear(h, s, z) y = DequantizeLinear(hq, s, z)",
            {"Add h": "float32"},
        ),
        (
            f"{PAIR} h = Exp(d) hq = QuantizeLinear(h, s, z) y = DequantizeLinear(hq, s, z)",
            {"Exp h": "float32"},
        ),
        (
            f"{PAIR} h = Mul(d, d) r = Relu(h) c = Clip(r) hq = QuantizeLinear(c, s, z)"
            " y = DequantizeLinear(hq, s, z)",
            {"Mul h": "int8", "Relu r": "int8", "Clip c": "int8"},
        ),
        # A Relu behind a float operator or in front of one.
        (
            "h = Exp(x) r = Relu(h) hq = QuantizeLinear(r, s, z) y = DequantizeLinear(hq, s, z)",
            {"Exp h": "float32", "Relu r": "float32"},
        ),
        (f"{PAIR} y = Relu(d)", {"Relu y": "float32"}),
        ("r = Relu(x) y = Exp(r)", {"Relu r": "float32", "Exp y": "float32"}),
        (f"{STORED} y = Gather(w, at)", {"Gather y": "int8-weight"}),
    ],
)
def test_pairs_of_others(nodes: str, wanted: dict[str, str]) -> None:
    constants = f"{SCALES}, int8[2, 2] wq = {{1, 2, 3, 4}}, float[2, 2] m = {{1, 2, 3, 4}}"
    graph = _graph(
        "(float[2, 2] x) => (float[N, M] y)", f"{constants}, int64[2] at = {{0, 1}}", nodes
    )
    assert _precisions(graph) == wanted


@pytest.mark.parametrize(
    ("dtype", "data", "wanted"),
    [
        # Two elements to a byte.
        ("int4", "33, 67", "int4-weight"),
        ("uint16", "1, 2, 3, 4", "int16-weight"),
        ("int8", "1, 2, 3, 4", "int8-weight"),
    ],
)
def test_the_width_of_stored_weights_counts(dtype: str, data: str, wanted: str) -> None:
    graph = _graph(
        "(float[2, 2] x) => (float[2, 2] y)",
        f"{dtype}[2, 2] wq = {{{data}}}, float s = {{1}}, {dtype} z = {{0}}",
        "w = DequantizeLinear(wq, s, z) y = MatMul(x, w)",
    )
    assert _precisions(graph)["MatMul y"] == wanted


def test_activations_of_sixteen_bits() -> None:
    graph = _graph(
        "(float[2, 2] x) => (float[2, 2] y)",
        "float s = {1}, uint16 z = {0}, int8 wz = {0}, int8[2, 2] wq = {1, 2, 3, 4}",
        f"""{PAIR} w = DequantizeLinear(wq, s, wz) p = MatMul(d, w) r = Relu(p)
            rq = QuantizeLinear(r, s, z) e = DequantizeLinear(rq, s, z)
            h = Add(e, d) hq = QuantizeLinear(h, s, z) y = DequantizeLinear(hq, s, z)""",
    )
    assert _precisions(graph) == dict.fromkeys(("MatMul p", "Relu r", "Add h"), "int16-act")


def test_operators_that_say_it_themselves() -> None:
    graph = _graph(
        "(uint8[2, 2] x, float[2, 2] f) => (uint8[2, 2] y, int32[2, 2] i, float[2, 2] n)",
        f"{SCALES}, uint8[2, 2] wq = {{1, 2, 3, 4}}, uint8[2, 1, 1] b = {{1, 2}}, "
        "float[2] bs = {1, 1}",
        """y = QLinearMatMul(x, s, z, wq, s, z, s, z) i = MatMulInteger(x, wq)
           n = com.microsoft.MatMulNBits<K = 2, N = 2, bits = 8, block_size = 16>(f, b, bs)""",
    )
    assert _precisions(graph) == {
        "QLinearMatMul y": "int8",
        "MatMulInteger i": "int8-dynamic",
        "MatMulNBits n": "int8-weight",
    }


def test_what_nobody_knows() -> None:
    graph = Graph.from_text("""<ir_version: 10, opset_import: ["": 21, "custom": 1]>
        g (float[1] x) => (float[1] y) { h = custom.A() k = custom.B(h) y = Relu(x) }""")
    assert _precisions(graph) == {"A h": "unknown", "B k": "unknown", "Relu y": "float32"}


@pytest.mark.parametrize(
    "text", ["", "no json", "[1]", '"text"', '{"reason": 3}', '{"reason": null}']
)
def test_metadata_of_others_is_no_reason_to_fail(text: str) -> None:
    graph = _graph("(float[1] x) => (float[1] y)", SCALES, "y = Exp(x)")
    graph.model.metadata[LEFT_IN_FLOAT_KEY] = text
    assert left_in_float(graph) == {}
    assert describe(graph)[0].reason == ""


def test_what_was_left_in_float_is_float_even_between_integers() -> None:
    nodes = f"{PAIR} h = Add(d, d) hq = QuantizeLinear(h, s, z) y = DequantizeLinear(hq, s, z)"
    graph = _graph("(float[2, 2] x) => (float[2, 2] y)", SCALES, nodes)
    assert _precisions(graph) == {"Add h": "int8"}
    graph.model.metadata[LEFT_IN_FLOAT_KEY] = json.dumps({"by request": ["h"]})
    assert _precisions(graph) == {"Add h": "float32"}


def test_reasons_belong_to_names() -> None:
    graph = _graph("(float[1] x) => (float[1] y)", SCALES, "h = Exp(x) y = Exp(h)")
    graph.rename_node(graph.nodes()[0], "first")
    graph.model.metadata[LEFT_IN_FLOAT_KEY] = json.dumps({"why": ["first"], "so": ["y"]})
    assert [(layer.node, layer.reason) for layer in describe(graph)] == [
        ("first", "why"),
        ("y", "so"),
    ]


def _products(format: str, block: int, operators: str) -> dict[str, str]:
    weight = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    graph = with_constants(
        "(float[M, 64] x, int64[I] i) => (float[M, 32] y, float[I, 32] e)",
        {"w": weight},
        "y = MatMul(x, w) e = Gather(w, i)",
        '<ir_version: 13, opset_import: ["": 25]>',
    )
    step = QuantizeWeights(
        format=format, block_size=block, operators=operators, gather="blocks", only=("y", "e")
    )
    infer_types(graph)
    assert step.run(graph, Context()) == 2
    infer_types(graph)
    return {layer.op_type: layer.precision for layer in describe(graph)}


@pytest.mark.parametrize(
    ("format", "wanted"),
    [
        ("int8", "int8-weight"),
        ("uint8", "int8-weight"),
        ("int4", "int4-weight"),
        ("uint4", "int4-weight"),
        ("q4_0", "int4-weight"),
        ("int2", "int2-weight"),
        ("ternary", "int2-weight"),
        ("int16", "int16-weight"),
        ("float8e4m3fn", "float8e4m3fn-weight"),
        ("float8e5m2", "float8e5m2-weight"),
    ],
)
def test_weights_alone(format: str, wanted: str) -> None:
    blocks = (32,) if format.startswith("q") else (0, 32)
    for block in blocks:
        assert _products(format, block, "standard") == {"MatMul": wanted, "Gather": wanted}
    if format.startswith(("int4", "int8", "uint", "int2", "q", "ternary")):
        found = _products(format, 32, "contrib")
        assert found == {"MatMulNBits": wanted, "GatherBlockQuantized": wanted}


@pytest.mark.parametrize("contrib", [False, True])
def test_dynamic_integers(contrib: bool) -> None:
    generator = np.random.default_rng(0)
    shapes = {
        "t": (9, 4), "w": (4, 3), "k": (2, 3, 3), "lw": (1, 8, 2), "lr": (1, 8, 2), "gw": (1, 6, 2),
        "gr": (1, 6, 2),
    }  # fmt: skip
    graph = with_constants(
        "(int64[2, 5] i) => (float[S, D, B, H] y)",
        {n: generator.standard_normal(s).astype(np.float32) for n, s in shapes.items()},
        """e = Gather(t, i) m = MatMul(e, w) turned = Transpose<perm = [0, 2, 1]>(m)
        c = Conv(turned, k) steps = Transpose<perm = [0, 2, 1]>(c)
        l, last = LSTM<hidden_size = 2>(steps, lw, lr) y = GRU<hidden_size = 2>(last, gw, gr)""",
    )
    infer_types(graph)
    assert QuantizeDynamic(convolutions=True, contrib=contrib).run(graph, Context()) == 5
    infer_types(graph)
    wanted = {
        "Gather": "int8-weight",
        "MatMulInteger": "int8-dynamic",
        "ConvInteger": "int8-dynamic",
        "GRU": "int8-weight",
        **({"DynamicQuantizeLSTM": "int8-dynamic"} if contrib else {"LSTM": "int8-weight"}),
    }
    found: dict[str, list[str]] = {}
    for layer in describe(graph):
        found.setdefault(layer.op_type, []).append(layer.precision)
    assert {name: found[name][0] for name in wanted} == wanted


def test_gathering_integers_is_no_quantization() -> None:
    graph = _graph(
        "(int64[2] i) => (int8[2] y, float[2] f)",
        "int8[3] a = {1, 2, 3}, int64[3] b = {1, 2, 3}",
        "y = Gather(a, i) n = Gather(b, i) f = Cast<to = 1>(n)",
    )
    assert _precisions(graph) == {"Gather y": "int8", "Gather n": "int64", "Cast f": "float32"}

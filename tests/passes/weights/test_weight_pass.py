"""What every pass that stores weights does alike: asking first, choosing nodes, tuned tensors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Node, infer_types, to_proto
from onnxq.passes.layout.unflatten_gemm import UnflattenGemm
from onnxq.passes.notes import BY_REQUEST, LEFT_IN_FLOAT_KEY, UNRELATED, left_in_float, node_name
from onnxq.passes.weights.quantize_dynamic import QuantizeDynamic
from onnxq.passes.weights.quantize_weights import QuantizeWeights
from onnxq.passes.weights.weight_pass import WeightPass
from onnxq.quant import ABSMAX, fake_quantize, per_block, weight_qparams
from tests.passes.weights.stored import NEWEST, dequantizers, normal, quantized, with_constants

PASSES = [
    QuantizeDynamic(),
    QuantizeDynamic(convolutions=True, contrib=True),
    QuantizeWeights(),
    QuantizeWeights(format="q4_0"),
    QuantizeWeights(format="uint4", scheme="zero-point", operators="contrib"),
]
CONSTANTS = {
    "w": normal(64, 40),
    "v": normal(40, 64, seed=1),
    "k": normal(8, 8, 3, 3, seed=2),
    "gates": normal(1, 20, 64, seed=3),
    "again": normal(1, 20, 5, seed=4),
    "nan": np.full((64, 64), np.nan, np.float32),
    "flat": normal(64, seed=5),
    "u": normal(64, 40, seed=6),
}


def everything() -> Graph:
    """Every operator the passes know, some of which cannot be quantized, two in a subgraph."""
    graph = with_constants(
        "(float[64, 64] x, float[1, 8, 5, 5] i, float[3, 2, 64] s, int64[2] n, bool c)"
        " => (float[64, 64] y, float[1, 8, 3, 3] j, float[3, 1, 2, 5] r, float[2, 40] g,"
        " float[64, 64] o, float[64] f, float[64, 40] b)",
        CONSTANTS,
        """[one] h = MatMul(x, w) [two] t = Gemm<alpha = -0.5, transB = 1>(h, w)
           [both] y = MatMul(x, t) [conv] j = Conv(i, k) [lstm] r = LSTM<hidden_size = 5>(s, gates,
           again) [rows] g = Gather(w, n) [not] o = MatMul(x, nan) [row] f = MatMul(x, flat)
           b = If(c) <then_branch = t1 () => (float[64, 40] p) { p = MatMul(x, u) },
           else_branch = e1 () => (float[64, 40] q) { d = Transpose(v) q = MatMul(x, d) }>""",
        NEWEST,
    )
    infer_types(graph)
    return graph


def nodes(graph: Graph) -> dict[str, Node]:
    return {node_name(n): n for g in graph.all_graphs() for n in g.nodes()}


@pytest.mark.parametrize("step", PASSES, ids=str)
def test_asking_gives_what_running_does(step: WeightPass) -> None:
    graph = everything()
    before = to_proto(graph).SerializeToString()
    reasons = {name: step.reason(n) for name, n in nodes(graph).items() if step.takes(n)}
    assert to_proto(graph).SerializeToString() == before, "asking changes nothing"
    static = {name: reason.text for name, reason in reasons.items() if reason is not None}
    made = step.run(graph, Context())
    assert left_in_float(graph) == {**static, "not": "its weight has infinite or NaN values"}
    assert made == len(reasons) - len(static) - 1 > 3


@pytest.mark.parametrize("step", PASSES, ids=str)
def test_naming_all_nodes_is_naming_none(step: WeightPass) -> None:
    """Those in subgraphs too; without the nodes that cannot be quantized only the note is less."""
    alone, named, fitting = everything(), everything(), everything()
    step.run(alone, Context())
    taken = tuple(name for name, n in nodes(named).items() if step.takes(n))
    assert {"p", "q"} < set(taken)
    replace(step, only=taken).run(named, Context())
    wanted = to_proto(alone).SerializeToString()
    assert to_proto(named).SerializeToString() == wanted
    names = tuple(name for name, n in nodes(fitting).items() if step.reason(n) is None)
    replace(step, only=names).run(fitting, Context())
    assert set(left_in_float(fitting)) == {"not"}
    fitting.model.metadata[LEFT_IN_FLOAT_KEY] = alone.model.metadata[LEFT_IN_FLOAT_KEY]
    assert to_proto(fitting).SerializeToString() == wanted


def test_nodes_that_a_pass_is_not_for() -> None:
    found, step = nodes(everything()), QuantizeWeights(only=("one", "two"), keep_float=("two",))
    assert [name for name, n in found.items() if step.takes(n)] == ["one", "two"]
    reasons = {name: step.reason(n) for name, n in found.items()}
    assert reasons["one"] is None and reasons["two"] == BY_REQUEST
    for other in ("d", "b", "rows"):
        assert reasons[other] is not None and reasons[other].kind == UNRELATED


def test_dynamic_integers_of_named_gemms_between_reshapes() -> None:
    def graph() -> Graph:
        made = with_constants(
            "(float[2, 5, 64] x) => (float[2, 5, 64] y)",
            {"w": normal(64, 64), "v": normal(64, 64, seed=1)},
            """r = Constant<value_ints = [-1, 64]>() s = Constant<value_ints = [2, 5, 64]>()
               m = Reshape(x, r) p = Gemm(m, w) h = Reshape(p, s) n = Reshape(h, r)
               [two] q = Gemm<transB = 1>(n, v) y = Reshape(q, s)""",
        )
        infer_types(made)
        return made

    made = []
    for only in ((), ("p", "two")):
        after = graph()
        assert UnflattenGemm(only=only).run(after, Context()) == 2
        infer_types(after)
        assert QuantizeDynamic(only=only).run(after, Context()) == 2
        assert not any(n.is_op("Transpose", "MatMul") for n in after.nodes())
        made.append(to_proto(after).SerializeToString())
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("options", "elements"),
    [
        ({"format": "int4"}, 1 << 20),
        ({"format": "int4"}, 700),
        ({"format": "int8", "block_size": 0}, 700),
        ({"format": "int3", "copies": True}, 1 << 20),
        ({"format": "uint2", "scheme": "zero-point", "operators": "contrib"}, 700),
        ({"format": "binary"}, 700),
        ({"format": "float8e4m3fn"}, 1 << 20),
    ],
    ids=str,
)
def test_tuned_as_the_search_does_is_the_search(
    options: dict[str, Any], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxq.passes.weights.stored_weights.SLICE", elements)
    searched, tuned = everything(), everything()
    step = QuantizeWeights(search="mse", **options)
    tensors = {name: step.tune(n) for name, n in nodes(tuned).items() if step.takes(n)}
    assert not tensors["not"] and set(tensors["lstm"]) >= {"scale", "recurrence_scale"}
    step.run(searched, Context())
    plain = QuantizeWeights(tuned={n: t for n, t in tensors.items() if t}, **options)
    assert str(plain) == str(QuantizeWeights(**options)), "data is no option"
    plain.run(tuned, Context())
    assert to_proto(tuned).SerializeToString() == to_proto(searched).SerializeToString()


def test_tuned_tensors_lie_like_the_weight_of_the_float_model() -> None:
    """Rounded up instead of to the nearest, as no search does."""
    graph = everything()
    node, step = nodes(graph)["two"], QuantizeWeights(format="int4", only=("two",))
    ((weight, layout),) = step.weights(node)
    assert layout.own_granularity == per_block(1, 32) and weight.value.name == "w"
    numbers = CONSTANTS["w"] * np.float32(layout.factor)
    scale = np.abs(numbers.reshape(64, -1)).max(axis=1, keepdims=True).repeat(2, axis=1) / 7
    values = np.minimum(np.ceil(numbers / scale.repeat(32, axis=1)[:, :40]), 7)
    tensors = {"scale": scale, "zero_point": np.zeros((64, 2), np.int8), "values": values}
    after = quantized(replace(step, tuned={"two": tensors}), graph, 1)
    (integers,) = (after.values[n] for n in dequantizers(after))
    np.testing.assert_array_equal(integers.numpy().astype(np.float32), values.T)


@pytest.mark.parametrize("values", [False, True])
def test_tuned_weights_under_dynamic_integers(values: bool) -> None:
    step = QuantizeDynamic(only=("one", "two", "rows"), reduced_range=True)
    tuned = {}
    for name in ("one", "two", "rows"):
        found = step.tune(nodes(everything())[name])
        tuned[name] = {**found, "scale": found["scale"] * np.float32(2)}
        if values:
            tuned[name]["values"] = np.full((64, 40), -3)
    after = quantized(replace(step, tuned=tuned), everything(), 3)
    stored = [v.numpy() for v in after.initializers() if v.name.startswith("w_q")]
    scales = [v.numpy() for v in after.initializers() if v.name.startswith("w_scale")]
    assert len(stored) == len(scales) == 3
    for integers in stored:
        assert (integers == -3).all() if values else np.abs(integers).max() <= 64
    assert sorted(s.size for s in scales) == sorted([40, 64, 64])
    with pytest.raises(InputError, match="zero_point of node 'rows' is not 0"):
        tuned["rows"]["zero_point"] = np.ones((64, 1), np.int8)
        replace(step, tuned=tuned).run(everything(), Context())


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_integers_of_few_bits_are_stored_in_a_wider_type(bits: int) -> None:
    step = QuantizeWeights(format=f"int{bits}", only=("one",))
    after = quantized(step, everything(), 1)
    (integers,) = (after.values[n] for n in dequantizers(after))
    assert integers.dtype is not None and integers.dtype.bits == (4 if bits == 3 else 8)
    numbers = integers.numpy().astype(np.float32)
    assert numbers.min() >= -(2 ** (bits - 1)) and numbers.max() == 2 ** (bits - 1) - 1
    params = weight_qparams(CONSTANTS["w"], step.stored_format, ABSMAX, per_block(0, 32))
    restored = fake_quantize(CONSTANTS["w"], params)
    np.testing.assert_array_equal(numbers * params.scale.repeat(32, axis=0), restored)

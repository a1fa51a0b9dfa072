"""insert-qdq: activations of 16 bits, of few bits, and of several formats in one graph."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.ir import Context, DataType, Graph, to_proto
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.runtime import optimized_operators
from tests.helpers import assert_same_graph, random_feeds, run
from tests.passes.static.pairs import (
    AROUND,
    IMAGE,
    between,
    newest,
    numbers,
    scales,
)
from tests.quantization import observed_bounds, quantized, run_optimized, run_reference

BOTH = (-514.0, 15869.75)
"""A range that both uint8 (scale 64.25, zero-point 8) and uint16 (0.25, 2056) represent exactly."""

NARROW = "float s8 = {64.25}, uint8 z8 = {8}"
WIDE = "float s16 = {0.25}, uint16 z16 = {2056}"
WEIGHT_1X1 = f"int8[1, 1, 1, 1] wq = {{127}}, {scales('w', 'int8', 1, 0.5)}"


def pair_of(bits: int, source: str, result: str) -> str:
    return (
        f"{result}_q = QuantizeLinear({source}, s{bits}, z{bits}) "
        f"{result} = DequantizeLinear({result}_q, s{bits}, z{bits})"
    )


DEQUANTIZED = "w_d = DequantizeLinear<axis = 0>(wq, ws, wz)"


def test_activations_of_sixteen_bits() -> None:
    before = newest(
        IMAGE, f"{AROUND[0]}, float[1] b = {{1.5}}", "c = Conv(x, w, b) r = Relu(c) y = Conv(r, w)"
    )
    after = newest(
        IMAGE,
        f"{WIDE}, {WEIGHT_1X1}, int32[1] bq = {{12}}, {scales('b', 'int32', 1, 0.125)}",
        pair_of(16, "x", "x_d"),
        DEQUANTIZED,
        "b_d = DequantizeLinear<axis = 0>(bq, bs, bz)",
        "c = Conv(x_d, w_d, b_d) r = Relu(c)",
        pair_of(16, "r", "r_d"),
        "p = Conv(r_d, w_d)",
        pair_of(16, "p", "y"),
    )
    assert_same_graph(quantized(before, dict.fromkeys("xry", BOTH), activations="uint16"), after)
    formats = dict.fromkeys("cry", "uint16")
    assert_same_graph(quantized(before, dict.fromkeys("xry", BOTH), formats=formats), after)


def test_a_reader_of_another_format_reads_through_a_second_pair() -> None:
    before = newest(
        IMAGE,
        f"{AROUND[0]}, float[1] b = {{1.5}}",
        "c = Conv(x, w) r = Relu(c) d = Conv(r, w, b) y = Conv(d, w)",
    )
    after = newest(
        IMAGE,
        f"{NARROW}, {WIDE}, {WEIGHT_1X1}, int32[1] bq = {{12}}, {scales('b', 'int32', 1, 0.125)}",
        pair_of(8, "x", "x_d"),
        DEQUANTIZED,
        "c = Conv(x_d, w_d) r = Relu(c)",
        pair_of(8, "r", "r_d"),
        pair_of(16, "r_d", "r_wide"),
        # The bias has the scale of the input as it is read.
        "b_d = DequantizeLinear<axis = 0>(bq, bs, bz)",
        "d = Conv(r_wide, w_d, b_d)",
        pair_of(16, "d", "d_d"),
        pair_of(8, "d_d", "d_narrow"),
        "p = Conv(d_narrow, w_d)",
        pair_of(8, "p", "y"),
    )
    made = quantized(before, dict.fromkeys("xrdy", BOTH), formats={"d": "uint16"})
    assert_same_graph(made, after)


def test_a_value_given_as_float_has_a_pair_for_each_format_it_is_read_in() -> None:
    interface = "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y, float[1, 1, 4, 4] e)"
    before = newest(interface, AROUND[0], "y = Conv(x, w) e = Conv(x, w)")
    after = newest(
        interface,
        f"{NARROW}, {WIDE}, {WEIGHT_1X1}",
        pair_of(8, "x", "x_narrow"),
        pair_of(16, "x", "x_wide"),
        DEQUANTIZED,
        "c = Conv(x_narrow, w_d)",
        pair_of(8, "c", "y"),
        "d = Conv(x_wide, w_d)",
        pair_of(16, "d", "e"),
    )
    made = quantized(before, dict.fromkeys("xye", BOTH), formats={"e": "uint16"})
    assert_same_graph(made, after)


@pytest.mark.parametrize("asked", [{}, {"t": "uint16"}])
def test_what_moves_values_has_the_format_that_it_reads(asked: dict[str, str]) -> None:
    before = newest(
        IMAGE, AROUND[0], "c = Conv(x, w) t = Transpose<perm = [0, 1, 3, 2]>(c) y = Conv(t, w)"
    )
    after = newest(
        IMAGE,
        f"{NARROW}, {WIDE}, {WEIGHT_1X1}",
        pair_of(8, "x", "x_d"),
        DEQUANTIZED,
        "c = Conv(x_d, w_d)",
        pair_of(8, "c", "c_d"),
        "t = Transpose<perm = [0, 1, 3, 2]>(c_d)",
        pair_of(8, "t", "t_d"),
        pair_of(16, "t_d", "t_wide"),
        "d = Conv(t_wide, w_d)",
        pair_of(16, "d", "y"),
    )
    made = quantized(before, dict.fromkeys("xcy", BOTH), formats={"y": "uint16", **asked})
    assert_same_graph(made, after)


def test_what_callers_get_has_the_format_of_the_node_that_gives_it() -> None:
    interface = "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] c, float[1, 1, 4, 4] y)"
    before = newest(interface, AROUND[0], "c = Conv(x, w) y = Conv(c, w)")
    after = quantized(before, dict.fromkeys("xcy", BOTH), formats={"c": "uint16"})
    types = [v.producer.inputs[0].dtype for v in after.outputs]
    assert types == [DataType.UINT16, DataType.UINT8]
    assert [v.name for v in after.outputs] == ["c", "y"]


@pytest.mark.parametrize("operator", ["HardSigmoid<alpha = 0.25>", "HardSwish"])
def test_gates_that_saturate_at_sixteen_bits(operator: str) -> None:
    """What they give is as fine as 16 bits are: finer than 8 bits can be."""
    before = newest(IMAGE, "float[1, 1, 1, 1] w = {1}", f"c = Conv(x, w) p = {operator}(c)"
                    " y = Conv(p, w)")  # fmt: skip
    bounds = {"x": (-6.0, 6.0), "c": (-6.0, 6.0), "p": (-1.0, 6.0), "y": (-1.0, 6.0)}
    feeds = {"x": np.linspace(-6, 6, 16, dtype=np.float32).reshape(1, 1, 4, 4)}
    wanted = run(before, feeds)["y"]
    errors = {}
    for format in ("uint8", "uint16"):
        after = quantized(before, bounds, activations=format)
        for found in (run_optimized(after, feeds), run_reference(after, feeds)):
            errors[format] = np.abs(found["y"] - wanted).max()
            assert errors[format] < 4 * 12 / (255 if format == "uint8" else 65535)
    stored = [v.numpy() for v in after.initializers() if v.dtype is DataType.FLOAT]
    assert any(array.shape == () and array == np.float32(1 / 65535) for array in stored)
    assert errors["uint16"] < errors["uint8"] / 50


def test_a_table_may_fix_ranges_for_sixteen_bits_alone() -> None:
    before = newest(IMAGE, AROUND[0], "c = Conv(x, w) y = Sigmoid(c)")
    bounds = dict.fromkeys("xcy", (0.0, 0.5))
    for format, scale in (("uint8", 0.5 / 255), ("uint16", 1 / 65536)):
        after = quantized(before, bounds, target="qnn", activations=format)
        (pair,) = (n for n in after.nodes() if n.output.is_output)
        assert float(pair.inputs[1].numpy()) == np.float32(scale)


MIXED = """c = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) d = Conv(r, v) a = Add(r, d)
    h = HardSwish(a) o = Concat<axis = 1>(h, r) m = MaxPool<kernel_shape = [2, 2]>(o)
    k = Conv(m, u) g = GlobalAveragePool(k) f = Flatten(g) y = Gemm(f, n, e)"""


def _mixed() -> Graph:
    rng = np.random.default_rng(4)
    shapes = {"w": (4, 3, 3, 3), "b": (4,), "v": (4, 4, 1, 1), "u": (6, 8, 3, 3), "n": (6, 5),
              "e": (5,)}  # fmt: skip
    constants = ", ".join(
        f"float[{','.join(map(str, shape))}] {name} = "
        f"{{{numbers(rng.standard_normal(shape).astype(np.float32) / 2)}}}"
        for name, shape in shapes.items()
    )
    return newest("(float[1, 3, 6, 6] x) => (float[N, M] y)", constants, MIXED)


NODES = ("c", "d", "a", "h", "o", "m", "k", "g", "f", "y")


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(*[st.booleans()] * len(NODES)),
    st.sampled_from(["cpu-x64", "qnn", "qnn-a16", "openvino"]),
)
def test_graphs_of_both_widths_are_the_same_in_both_runtimes(
    wide: tuple[bool, ...], target: str
) -> None:
    before = _mixed()
    feeds = random_feeds(before)
    bounds = observed_bounds(before.copy(), feeds, target)
    formats = {n: "uint16" if w else "uint8" for n, w in zip(NODES, wide, strict=True)}
    after = quantized(before, bounds, target=target, formats=formats)
    fast, slow = run_optimized(after, feeds)["y"], run_reference(after, feeds)["y"]
    # A difference in the last bit may be a whole step after the next rounding.
    step = np.ptp(slow) / 255
    assert np.abs(fast - slow).max() <= 1.01 * step
    wanted = run(before, feeds)["y"]
    assert np.abs(fast - wanted).max() < 0.08 * np.abs(wanted).max()


def test_more_bits_of_activations_are_closer_to_float() -> None:
    before = _mixed()
    # Weights that 8 bits hold, so that all noise is that of activations.
    for value in [v for v in before.initializers() if len(v.shape or ()) > 1]:
        largest = np.abs(value.numpy()).max()
        (use,) = value.uses
        steps = np.round(value.numpy() / largest * 127)
        steps[(0,) if use.node.is_op("Gemm") else (slice(None), *[0] * (steps.ndim - 1))] = 127
        before.set_constant(use.node, use.slot, np.float32(steps * largest / 127))
    feeds = random_feeds(before)
    bounds = observed_bounds(before.copy(), feeds)
    wanted = run(before, feeds)["y"].astype(np.float64)
    noise = {}
    for format in ("uint8", "uint16"):
        after = quantized(before, bounds, activations=format)
        # onnxruntime computes the last product in 8 bits, whatever it reads.
        noise[format] = np.square(run_reference(after, feeds)["y"] - wanted).sum()
    assert 0 < noise["uint16"] < noise["uint8"] / 1000


def test_biases_that_sixteen_bits_leave_no_room_for_raise_the_scale_of_their_weight() -> None:
    constants = "float[2, 2] w = {1e-4, 2, 0, 1}, float[2] b = {30, 4}"
    before = newest("(float[1, 2] x) => (float[1, 2] y)", constants, "y = Gemm(x, w, b)")
    after = quantized(before, {"x": (0, 1.0)}, activations="uint16")
    found = run_optimized(after, {"x": np.ones((1, 2), np.float32)})["y"]
    np.testing.assert_allclose(found, [[30, 7]], rtol=0.01)
    (bias,) = (
        v.numpy() for v in after.initializers() if v.dtype is DataType.INT32 and v.numpy().any()
    )
    assert 1 << 29 <= bias.max() <= 1 << 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": "uint16"}, "cpu-x64 with these activations needs opset 21 .* has 17"),
        ({"formats": {"p": "uint16"}}, "needs opset 21 and the model has 17"),
        ({"activations": "int4x"}, "cannot have the format 'int4x'; use one of int8, uint8"),
        ({"formats": {"p": "float16"}}, "cannot have the format 'float16'"),
    ],
)
def test_activations_that_cannot_be(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        InsertQdq({}, "cpu-x64", **options).run(between("p = Relu(c)"), Context())


def test_the_opset_that_formats_need() -> None:
    assert InsertQdq(target="cpu-x64").needed_opset == 13
    assert InsertQdq(target="qnn-a16").needed_opset == 21
    assert InsertQdq(target="cpu-x64", activations="int16").needed_opset == 21
    assert InsertQdq(target="cpu-x64", formats={"a": "uint8"}).needed_opset == 13
    assert InsertQdq(target="cpu-x64", formats={"a": "uint16"}).needed_opset == 21


CLIPPED = "uint8 low = {0}, uint8 high = {15}"


def clipped_pair(source: str, result: str, scale: str) -> str:
    return (
        f"{source}_n = QuantizeLinear({source}, {scale}, z) "
        f"{source}_k = Clip({source}_n, low, high) "
        f"{result} = DequantizeLinear({source}_k, {scale}, z)"
    )


def test_activations_of_few_bits_are_clipped_as_integers() -> None:
    ranges = {name: (0.0, 3.75) for name in "xry"}
    before = newest(IMAGE, AROUND[0], "c = Conv(x, w) r = Relu(c) y = Conv(r, w)")
    after = newest(
        IMAGE,
        f"float n = {{0.25}}, uint8 z = {{0}}, {CLIPPED}, {WEIGHT_1X1}",
        clipped_pair("x", "x_d", "n"),
        DEQUANTIZED,
        "c = Conv(x_d, w_d) r = Relu(c)",
        clipped_pair("r", "r_d", "n"),
        "p = Conv(r_d, w_d)",
        clipped_pair("p", "y", "n"),
    )
    made = quantized(before, ranges, activations="uint4")
    assert_same_graph(made, after)
    feeds = {"x": np.linspace(-1, 6, 16, dtype=np.float32).reshape(1, 1, 4, 4)}
    found = run_optimized(made, feeds)["y"]
    np.testing.assert_array_equal(found, run_reference(made, feeds)["y"])
    assert found.max() == 3.75
    kinds = {name.rpartition(":")[2] for name in optimized_operators(to_proto(made))}
    assert "QLinearConv" in kinds and "Conv" not in kinds


def test_a_value_has_the_format_that_all_its_readers_want() -> None:
    ranges = {name: (0.0, 3.75) for name in "xmrsy"}
    before = newest(
        IMAGE,
        AROUND[0],
        "m = Conv(x, w) r = MaxPool<kernel_shape = [1, 1]>(m) s = Conv(r, w) y = Conv(s, w)",
    )
    formats = {"r": "uint8", "s": "uint4", "y": "uint4"}
    made = quantized(before, ranges, formats=formats)
    assert sum(node.is_op("QuantizeLinear") for node in made.nodes()) == 5
    clipped = [node for node in made.nodes() if node.is_op("Clip")]
    assert len(clipped) == 4, "all but what the first reads"

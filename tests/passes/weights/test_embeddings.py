"""Tables that are gathered from: what is stored, once where it is multiplied with as well."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import Graph, to_proto
from onnxq.passes.notes import left_in_float
from onnxq.passes.weights.quantize_dynamic import QuantizeDynamic
from onnxq.passes.weights.quantize_weights import QuantizeWeights
from onnxq.passes.weights.weight_formats import SCHEMES
from onnxq.passes.weights.weight_pass import WeightPass
from onnxq.quant import FORMATS, INT8, per_block, quantize_weight
from onnxq.runtime.operators import optimized_operators
from onnxq.verify.precision import describe
from tests.helpers import RUNTIME, Feeds, run
from tests.passes.weights.stored import (
    assert_runtimes_agree,
    normal,
    quantized,
    sqnr,
    stored_bytes,
    with_constants,
)
from tests.quantization import run_optimized

ROWS, COLUMNS = 48, 96
TABLE = normal(ROWS, COLUMNS) * np.geomspace(0.01, 10, ROWS, dtype=np.float32)[:, None]


def embedding(dims: str = "B, S", columns: int = COLUMNS) -> Graph:
    """Rows of a table for indices of these dimensions."""
    given, made = f"[{dims}]" if dims else "", ", ".join(filter(None, [dims, str(columns)]))
    interface = f"(int64{given} i) => (float[{made}] y)"
    return with_constants(interface, {"t": TABLE[:, :columns]}, "y = Gather(t, i)")


def restored(format: str, block: int, scheme: str, table: np.ndarray = TABLE) -> np.ndarray:
    """The table as its integers stand for it."""
    return quantize_weight(
        table, FORMATS[format], SCHEMES[scheme], per_block(1, block)
    ).dequantize()


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("format", ["int4", "uint4", "int8", "uint8", "int16"])
@pytest.mark.parametrize("block", [32, 16, 0])
def test_rows_are_restored_exactly(format: str, scheme: str, block: int) -> None:
    before = embedding()
    step = QuantizeWeights(format=format, scheme=scheme, block_size=block)
    after = quantized(step, before, 1)
    indices = np.array([[0, 7, -1, 7], [ROWS - 1, -ROWS, 3, 20]])
    found = assert_runtimes_agree(after, {"i": indices}, 0)["y"]
    np.testing.assert_array_equal(found, restored(format, block or COLUMNS, scheme)[indices])
    np.testing.assert_array_equal(run_optimized(after, {"i": indices})["y"], found)
    bits = FORMATS[format].bits
    values, scales = ROWS * COLUMNS * bits // 8, 4 * ROWS * COLUMNS // (block or COLUMNS)
    assert 0 <= stored_bytes(after) - values - scales <= scales // 2 + 128
    # As onnxruntime runs it, all rows are bytes and nothing is restored that is not gathered.
    assert optimized_operators(to_proto(after))["DequantizeLinear"] == 0
    named = [layer.precision for layer in describe(after) if layer.op_type == "Gather"]
    assert named[0] == f"int{bits}-weight"


@pytest.mark.parametrize("dims", ["", "S", "A, B, C"])
@pytest.mark.parametrize("format", ["uint4", "int8"])
def test_indices_have_any_shape(dims: str, format: str) -> None:
    before = embedding(dims)
    step = QuantizeWeights(format=format, scheme="zero-point")
    indices = np.random.default_rng(0).integers(-ROWS, ROWS, (2, 5, 3)[: len(dims.split())])
    indices = np.asarray(5) if not dims else indices
    found = assert_runtimes_agree(quantized(step, before, 1), {"i": indices}, 0)["y"]
    np.testing.assert_array_equal(found, restored(format, 32, "zero-point")[indices])


def test_indices_may_have_any_number_of_axes() -> None:
    before = with_constants(
        f"(int64[N] i, int64[R] s) => (float[M, {COLUMNS}] y)",
        {"t": TABLE},
        f"""j = Reshape(i, s) e = Gather(t, j) whole = Constant<value_ints = [-1, {COLUMNS}]>()
            y = Reshape(e, whole)""",
    )
    after = quantized(QuantizeWeights(), before, 1)
    indices = np.arange(-12, 12)
    for shape in ([24], [2, 3, 4]):
        found = assert_runtimes_agree(after, {"i": indices, "s": np.array(shape)}, 0)["y"]
        np.testing.assert_array_equal(found, restored("int4", 32, "absmax")[indices])


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ({"format": "int2"}, COLUMNS),
        ({"format": "ternary"}, COLUMNS),
        ({"format": "float8e4m3fn"}, COLUMNS),
        ({"format": "int4", "gather": "int8"}, COLUMNS),
        ({"format": "int4"}, 90),
    ],
)
def test_other_rows_are_stored_in_8_bits(options: dict[str, str], columns: int) -> None:
    before = embedding(columns=columns)
    before.model.opset_imports[""] = 25
    after = quantized(QuantizeWeights(**options), before, 1)  # type: ignore[arg-type]
    assert stored_bytes(after) == ROWS * columns + ROWS * 4
    indices = np.arange(ROWS).reshape(4, -1)
    wanted = quantize_weight(
        TABLE[:, :columns], INT8, SCHEMES["absmax"], per_block(1, columns)
    ).dequantize()
    np.testing.assert_array_equal(run(after, {"i": indices})["y"], wanted[indices])


@pytest.mark.parametrize("axis", [1, -1])
def test_what_is_gathered_along_another_axis_stays(axis: int) -> None:
    before = with_constants(
        "(int64[S] i) => (float[A, S] y)", {"t": TABLE}, f"y = Gather<axis = {axis}>(t, i)"
    )
    for step in (QuantizeWeights(), QuantizeDynamic()):
        after = quantized(step, before, 0)
        assert set(left_in_float(after).values()) == {"it does not gather rows"}


def test_rows_are_gathered_in_subgraphs() -> None:
    before = with_constants(
        "(int64[S] i, bool c) => (float[S, 96] y)",
        {"t": TABLE},
        """y = If(c) <then_branch = a () => (float[S, 96] p) { p = Gather(t, i) },
           else_branch = b () => (float[S, 96] q) { n = Neg(i) q = Gather(t, n) }>""",
    )
    after = quantized(QuantizeDynamic(), before, 2)
    wanted = restored("int8", COLUMNS, "absmax")
    indices = np.array([3, 0, 47])
    for flag, read in ((True, indices), (False, -indices)):
        found = assert_runtimes_agree(after, {"i": indices, "c": np.array(flag)}, 0)["y"]
        np.testing.assert_array_equal(found, wanted[read])


# Tied tables

TIED = {
    "transposed": "e = Gather(t, i) w = Transpose(t) y = MatMul(e, w)",
    "gemm": "e = Gather(t, i) y = Gemm<transB = 1>(e, t)",
    "several": "e = Gather(t, i) u = Gather(t, j) s = Add(e, u) w = Transpose(t) y = MatMul(s, w)",
}


def tied(form: str) -> Graph:
    second = ", int64[S] j" if form == "several" else ""
    interface = f"(int64[S] i{second}) => (float[S, {ROWS}] y)"
    return with_constants(interface, {"t": TABLE}, TIED[form])


def feeds(graph: Graph) -> Feeds:
    rng = np.random.default_rng(1)
    return {v.name: rng.integers(-ROWS, ROWS, 7) for v in graph.inputs}


@pytest.mark.parametrize("form", TIED)
@pytest.mark.parametrize(
    ("step", "stored", "product"),
    [
        (QuantizeWeights(), ROWS * (COLUMNS // 2 + 3 * 4), "com.microsoft:MatMulNBits"),
        (
            QuantizeWeights(format="uint4", scheme="zero-point", block_size=16),
            ROWS * (COLUMNS // 2 + 6 * 4 + 3),
            "com.microsoft:MatMulNBits",
        ),
        (
            QuantizeWeights(operators="contrib"),
            ROWS * (COLUMNS // 2 + 3 * 4),
            "com.microsoft:MatMulNBits",
        ),
        (
            QuantizeWeights(format="uint8", scheme="zero-point", operators="contrib"),
            ROWS * (COLUMNS + 3 * 5),
            "com.microsoft:MatMulNBits",
        ),
        (QuantizeWeights(format="int8", block_size=0), ROWS * (COLUMNS + 4), ""),
        (QuantizeDynamic(), ROWS * (COLUMNS + 4), "com.microsoft:DynamicQuantizeMatMul"),
    ],
    ids=lambda given: str(given) if isinstance(given, WeightPass) else "",
)
def test_a_tied_table_is_stored_once(
    form: str, step: WeightPass, stored: int, product: str
) -> None:
    before = tied(form)
    after = quantized(step, before, 3 if form == "several" else 2)
    assert 0 <= stored_bytes(after) - stored < 150, "shapes and axes come on top"
    given = feeds(before)
    made = run(after, given)["y"]
    if not isinstance(step, QuantizeWeights) or step.operators == "standard":
        assert_runtimes_agree(after, given, 1e-5)
    assert sqnr(run(before, given)["y"], made) > 14
    found = optimized_operators(to_proto(after))
    assert found["Transpose"] == 0
    if product and RUNTIME >= (1, 32):
        assert found[product] == 1


@pytest.mark.parametrize("step", [QuantizeWeights(), QuantizeDynamic()], ids=str)
def test_a_table_is_stored_once_where_its_product_comes_first(step: WeightPass) -> None:
    before = with_constants(
        f"(float[S, {COLUMNS}] x, int64[S] i) => (float[S, {ROWS}] y, float[S, {COLUMNS}] e)",
        {"t": TABLE},
        "y = Gemm<transB = 1>(x, t) e = Gather(t, i)",
    )
    bits = 4 if isinstance(step, QuantizeWeights) else 8
    assert stored_bytes(quantized(step, before, 2)) < 1.5 * ROWS * COLUMNS * bits / 8


def test_a_tied_table_and_its_product_have_the_same_numbers() -> None:
    before = with_constants(
        f"(int64[S] i, float[M, {COLUMNS}] x) => (float[S, {COLUMNS}] e, float[M, {ROWS}] y)",
        {"t": TABLE},
        "e = Gather(t, i) w = Transpose(t) y = MatMul(x, w)",
    )
    tuned = {"y": {"scale": np.full((ROWS, 3), 0.25, np.float32)}}
    tuned["y"]["zero_point"] = np.zeros((ROWS, 3), np.int8)
    given = {"i": np.arange(ROWS), "x": np.eye(COLUMNS, dtype=np.float32)}
    for step in (
        QuantizeWeights(),
        QuantizeWeights(format="uint4", scheme="zero-point"),
        QuantizeWeights(tuned=tuned),
    ):
        after = quantized(step, before, 2)
        found = assert_runtimes_agree(after, given, 0)
        np.testing.assert_array_equal(found["e"], found["y"].T)


@pytest.mark.parametrize(
    ("nodes", "step"),
    [
        ("e = Gather(t, i) y = Gemm<transB = 1, alpha = 0.5>(e, t)", QuantizeWeights()),
        ("e = Gather(t, i) w = Transpose(t) y = MatMul(e, w)", QuantizeWeights(only=("e",))),
        (
            "e = Gather(t, i) w = Transpose(t) y = MatMul(e, w)",
            QuantizeDynamic(per_channel=False),
        ),
    ],
)
def test_what_differs_is_not_tied(nodes: str, step: WeightPass) -> None:
    interface = f"(int64[S] i) => (float[S, {ROWS}] y)"
    before = with_constants(interface, {"t": TABLE}, nodes)
    after = quantized(step, before, 1 if step.only else 2)
    given = feeds(before)
    assert sqnr(run(before, given)["y"], run(after, given)["y"]) > 14

"""Operator counts of the graph that onnxruntime runs."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state

from onnxq.errors import InputError
from onnxq.runtime import INTEGER_OPERATORS, integer_operators, optimized_operators

HEADER = '<ir_version: 8, opset_import: ["" : 13]>'


def qdq_matmul() -> onnx.ModelProto:
    """Return MatMul(x, w) with QDQ at x, w and y, which onnxruntime fuses to one operator."""
    model = onnx.parser.parse_model(
        f"""{HEADER} g (float[4, 8] x) => (float[4, 2] y) {{
            xq = QuantizeLinear(x, s, z)
            xd = DequantizeLinear(xq, s, z)
            wd = DequantizeLinear(w, s, wz)
            p = MatMul(xd, wd)
            pq = QuantizeLinear(p, s, z)
            y = DequantizeLinear(pq, s, z)
        }}"""
    )
    weight = np.arange(-8, 8, dtype=np.int8).reshape(8, 2)
    for name, value in {
        "s": np.float32(0.1),
        "z": np.uint8(128),
        "wz": np.int8(0),
        "w": weight,
    }.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name))
    return model


def test_qdq_around_matmul_becomes_an_integer_operator() -> None:
    counts = optimized_operators(qdq_matmul())
    assert counts == {"QuantizeLinear": 1, "QLinearMatMul": 1, "DequantizeLinear": 1}
    assert integer_operators(qdq_matmul()) == {"QLinearMatMul": 1}


def test_a_float_model_has_no_integer_operators() -> None:
    model = onnx.parser.parse_model(
        f"{HEADER} g (float[2, 2] x) => (float[2, 2] y) {{ y = MatMul(x, x) }}"
    )
    assert optimized_operators(model) == {"MatMul": 1}
    assert integer_operators(model) == {}


def test_operators_inside_subgraphs_count() -> None:
    model = onnx.parser.parse_model(
        f"""{HEADER} g (bool c, float[2] x) => (float[2] y) {{
            y = If(c) <then_branch = t () => (float[2] a) {{ a = Exp(x) }},
                       else_branch = e () => (float[2] b) {{ n = Neg(x) b = Exp(n) }}>
        }}"""
    )
    assert optimized_operators(model) == {"If": 1, "Exp": 2, "Neg": 1}


def test_foreign_domains_are_part_of_the_name() -> None:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 13, "com.microsoft" : 1]>
        g (float[2] x) => (float[2] y) { y = com.microsoft.Gelu(x) }"""
    )
    assert optimized_operators(model) == {"com.microsoft:Gelu": 1}


def test_every_integer_operator_exists_in_onnxruntime() -> None:
    schemas = {
        f"{schema.domain}:{schema.name}".removeprefix(":")
        for schema in onnxruntime_pybind11_state.get_all_operator_schema()
    }
    assert schemas >= INTEGER_OPERATORS
    # Written down once as a guard: a new onnxruntime that brings such operators fails here.
    unlisted = {
        name
        for name in schemas - INTEGER_OPERATORS
        if name.rpartition(":")[2].startswith(("QLinear", "QGemm", "QAtt", "QEmb", "QMoE"))
        or name.rpartition(":")[2].endswith("Integer")
    }
    assert unlisted == set()


def test_a_broken_model_is_an_input_error() -> None:
    with pytest.raises(InputError, match="cannot load"):
        optimized_operators(b"garbage")

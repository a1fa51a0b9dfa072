"""Turning MatMul and Add over many dimensions into a Gemm over two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.ir import Builder, DataType, FormPass, Match, Rule, Shape, TensorType, Value
from onnxq.ir.pattern import Operator, PatternBuilder, Variable

_OPSET = 7
"""Before it Gemm broadcasts by an attribute."""


def _pattern(op: PatternBuilder, x: Variable, w: Variable, b: Variable) -> Operator:
    return op.Add(op.MatMul(x, op.constant(w)), op.constant(b))


def _is_flat(match: Match) -> bool:
    shape = match["x"].shape
    weight, bias = match["w"].numpy(), match["b"].numpy()
    return (
        match["x"].dtype is DataType.FLOAT
        and shape is not None
        and len(shape) >= 3
        and 0 not in shape
        and sum(not isinstance(d, int) for d in shape[:-1]) <= 1
        and weight.ndim == 2
        and bias.ndim <= len(shape)
        and bias.shape[-1:] == weight.shape[1:]
        and bias.size == weight.shape[1]
    )


def _replacement(op: Builder, match: Match) -> Value:
    x, weight, bias = match["x"], match["w"], match["b"]
    rows, columns = weight.numpy().shape
    assert x.shape is not None
    if bias.rank != 1:
        bias = op.constant(bias.numpy().reshape(-1), bias.name)
    matrix = op.Reshape(x, _target(op, (-1, rows)))
    matrix.type = TensorType(DataType.FLOAT, (None, rows))
    product = op.Gemm(matrix, weight, bias)
    product.type = TensorType(DataType.FLOAT, (None, columns))
    return op.Reshape(product, _target(op, (*x.shape[:-1], columns)))


def _target(op: Builder, shape: Shape) -> Value:
    """A Reshape's target shape, its unknown dimension left to be inferred."""
    dims = [d if isinstance(d, int) else -1 for d in shape]
    return op.constant(np.array(dims, dtype=np.int64), "shape")


@dataclass(frozen=True)
class FlattenMatMulAdd(FormPass):
    """Write a MatMul with a bias over three or more dimensions as Reshape, Gemm, Reshape.

    In float this gains nothing, so the default pipeline leaves it alone. In integers it does:
    Gemm takes the bias into its int32 sums, where a MatMul needs an Add of its own. And where
    all dimensions are fixed, onnxruntime makes this very rewrite itself at session start, after
    which the bias is no integer any more and the integer kernel is lost (the language model in
    `models/` then runs at 0.7 times the speed of float instead of 1.6 times).

    Rewritten: ``Add(MatMul(x, w), b)`` with ``x`` float32 of rank 3 or more, ``w`` a constant
    matrix and ``b`` a constant with one number per column, the product read by the Add alone.

    Not rewritten: matrices (fuse-matmul-add does those), and an ``x`` with a dimension of size 0
    or with more than one unknown dimension, whose shape would have to be computed at run time.
    """

    name = "flatten-matmul-add"
    numerics = "reassociates"
    needs_types = True
    rules = (
        Rule(_pattern, _replacement, _is_flat, "MatMul and Add are one Gemm of matrices", _OPSET),
    )

"""Which of several products is at fault, where no value between them can be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from onnxq.ir import Graph, Node, Value
from onnxq.runtime.specs import Array

_DOUBTFUL_DB = 15.0
_ROUNDS = 5


def doubtful(products: Sequence[Node], reference: Graph) -> Node | None:
    """The product whose stored numbers contradict the float model or each other; None if none does.

    A weight is held against the float model's of the same name. Factors of rows and columns are
    fitted, as methods move such from one product to another; so a wrong scale does not show there,
    but an int32 bias has the product of the scales of input and weight, and contradicts it.
    """
    doubts = {node: _doubt(node, reference) for node in products}
    worst = min(products, key=doubts.__getitem__)
    return worst if doubts[worst] < _DOUBTFUL_DB else None


def _doubt(product: Node, reference: Graph) -> float:
    """SQNR in dB of a product's weight up to factors, -inf where its scales contradict its bias."""
    weight = product.input(1)
    stored = None if weight is None else _stored(weight)
    if weight is None or stored is None:
        return math.inf
    codes, scale, axis = stored
    if _contradicts_bias(product, scale):
        return -math.inf
    assert weight.producer is not None and weight.producer.input(0) is not None
    name = weight.producer.inputs[0].name.removesuffix("_q")  # type: ignore[union-attr]
    ours = reference.values.get(name)
    if ours is None or not ours.is_constant or ours.shape != codes.shape or codes.ndim < 2:
        return math.inf
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[axis] = -1
    return _fitted_db(ours.numpy().astype(np.float64), codes * scale.reshape(shape))


def _stored(value: Value) -> tuple[Array, Array, int] | None:
    """Codes less zero-points, scales and axis of a constant behind DequantizeLinear."""
    maker = value.producer
    if maker is None or not maker.is_op("DequantizeLinear") or maker.get("block_size", 0):
        return None
    codes, scale, zero = maker.input(0), maker.input(1), maker.input(2)
    if codes is None or scale is None or not (codes.is_constant and scale.is_constant):
        return None
    axis = maker.get("axis", 1)
    points = np.zeros(()) if zero is None or not zero.is_constant else zero.numpy()
    shape = [1] * len(codes.shape or ())
    if points.size > 1:
        shape[axis] = -1
    centred = codes.numpy().astype(np.float64) - points.astype(np.float64).reshape(shape)
    return centred, scale.numpy().astype(np.float64), axis


def _contradicts_bias(product: Node, weight_scale: Array) -> bool:
    read, bias = product.input(0), product.input(2)
    maker = None if read is None else read.producer
    stored = None if bias is None else _stored(bias)
    if stored is None or maker is None or not maker.is_op("DequantizeLinear"):
        return False
    scale = maker.input(1)
    if scale is None or not scale.is_constant:
        return False
    return not np.allclose(scale.numpy() * weight_scale, stored[1], rtol=1e-3, atol=0.0)


def _fitted_db(ours: Array, theirs: Array) -> float:
    rows = np.ones((len(ours), *[1] * (ours.ndim - 1)))
    columns = np.ones((1, ours.shape[1], *[1] * (ours.ndim - 2)))
    for _ in range(_ROUNDS):
        rows = _factors(ours * columns, theirs, 0)
        columns = _factors(ours * rows, theirs, 1)
    noise = float(np.square(theirs - ours * rows * columns).sum())
    signal = float(np.square(theirs).sum())
    return 10 * math.log10(signal / noise) if signal and noise else math.inf


def _factors(ours: Array, theirs: Array, axis: int) -> Array:
    axes = tuple(a for a in range(ours.ndim) if a != axis)
    power = np.square(ours).sum(axes, keepdims=True)
    fitted: Array = (ours * theirs).sum(axes, keepdims=True) / np.where(power > 0, power, 1.0)
    return fitted

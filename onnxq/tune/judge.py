"""How much of a product's error a way to round its weight leaves."""

from __future__ import annotations

import numpy as np

from onnxq.observe import GramMatrix
from onnxq.passes.notes import node_name
from onnxq.passes.tuned import Tensors, tuned_weight
from onnxq.quant import dequantize
from onnxq.tune.weight_matrix import WeightMatrix


def output_error(matrix: WeightMatrix, tensors: Tensors, seen: GramMatrix) -> float:
    """tr((W - Q)ᵀ H (W - Q)) / tr(Wᵀ H W), the relative squared error of what XW gives.

    Args:
        matrix: The weight W.
        tensors: What a tuner computed for it; rounded as its layout says without any.
        seen: H = XᵀX of what it is multiplied with.
    """
    numbers, layout, name = matrix.numbers(), matrix.layout, matrix.weight.value.name
    if "scale" in tensors:
        weight = tuned_weight(
            tensors,
            node_name(matrix.node),
            matrix.rounding.format,
            layout.own_granularity,
            numbers.shape,
            bounds=matrix.rounding.bounds,
            zero_point=layout.zero_point,
        )
        stored = weight.part((slice(None),) * numbers.ndim, numbers, name)
    else:
        stored = matrix.rounding(numbers, layout.own_granularity, name)
    lost = matrix.matrices(numbers - dequantize(stored.values, stored.qparams))
    whole = matrix.matrices(numbers)
    error, power = (
        sum(float(np.sum(part * (gram @ part))) for part, gram in zip(parts, grams, strict=True))
        for parts, grams in ((lost, seen.matrix), (whole, seen.matrix))
    )
    return error / power if power > 0 else 0.0

"""Models with a few channels of large activations, as large transformers grow them."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

FACTOR = 64.0
"""A power of two, so that not a bit of the outputs changes."""

CHANNELS = 4


def plant_outliers(model: onnx.ModelProto, seed: int = 0) -> int:
    """Make some channels of what each LayerNormalization gives larger, and weights smaller for it.

    The model computes the same. Only those are changed whose result nothing but products with
    weights of their own reads.

    Args:
        model: Changed in place.
        seed: Chooses the channels.

    Returns:
        How many LayerNormalizations have such channels now.
    """
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for slot, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, slot))
    given_out = {value.name for value in graph.output}
    rng = np.random.default_rng(seed)
    planted = 0
    for node in graph.node:
        own, products = list(node.input[1:]), readers.get(node.output[0] if node.output else "", [])
        multiplied = [product.input[1] for product, _ in products if product.op_type == "MatMul"]
        is_alone = all(
            len(readers[name]) == 1 and name in weights and name not in given_out
            for name in (*own, *multiplied)
        )
        if node.op_type != "LayerNormalization" or not products or not is_alone:
            continue
        if node.output[0] in given_out or len(multiplied) != len(products):
            continue
        size = weights[own[0]].dims[-1]
        factors = np.ones(size, np.float32)
        factors[rng.choice(size, CHANNELS, replace=False)] = FACTOR
        for name in own:
            _scale(weights[name], factors)
        for name in multiplied:
            _scale(weights[name], 1 / factors[:, None])
        planted += 1
    return planted


def _scale(weight: onnx.TensorProto, factors: np.ndarray) -> None:
    scaled = numpy_helper.to_array(weight) * factors
    weight.CopyFrom(numpy_helper.from_array(scaled, weight.name))

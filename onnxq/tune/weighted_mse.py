"""Scales of the least squared error, each error weighted with what it is multiplied with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxq.ir import Node
from onnxq.needs import ChannelsOf, Need
from onnxq.observe import Observations
from onnxq.passes.tuned import Tensors
from onnxq.passes.weights.stored_weights import SLICE, Layout, Rounding
from onnxq.passes.weights.weight_rewrites import ConstantWeight, products
from onnxq.precision.stored import StoredWeights
from onnxq.quant import FEW_RANGES, QParams, weight_qparams
from onnxq.tune.layer import Layer
from onnxq.tune.tuner import Tuner

_POWER = 0.75
"""Of the mean squares: with 1, few channels of large activations would decide alone, although
errors of several channels also cancel each other. Measured on SmolLM2-135M with 24 windows of text,
bits per token lost in blocks of 32 and of 128: 0.17 and 0.22; with 1, 0.16 and 0.27; with 1/2, 0.25
and 0.32; with 0, that is unweighted, 0.43 and 0.42; without a search 0.33 and 0.24."""


@dataclass(frozen=True)
class WeightedMse(Tuner):
    """Scales with the least sum of E[x²]^¾ (w - s q)², x the activation that a weight multiplies.

    The mean squares are those of the calibration data, one for each input of a product. Scales, and
    zero-points where the precision has them, are found as `onnxq.quant.search.FewRanges` does.
    `Gptq` loses less, but takes Gram matrices, which may not fit a memory limit.
    """

    name: ClassVar[str] = "weighted-mse"
    description: ClassVar[str] = "scales of weights with the least error of what products give"
    promise: ClassVar[float] = 4.0

    def refusal(self, layer: Layer) -> str:
        """See `Tuner`."""
        node, precision = layer.node, layer.precision
        if not node.is_op("MatMul", "Gemm") or not isinstance(precision, StoredWeights):
            return "it is for weights in few bits of products"
        found = precision.quantizing().weights(node)
        if not found or not isinstance(found[0][1].quantizer, Rounding):
            return "it is for weights that are rounded to few bits"
        weight, _ = found[0]
        if len(weight.shape) != 2:
            return "it is for matrices"
        if node.graph.outer is not None:
            return "it is for products outside of bodies"
        alone = products(weight.value) == [node]
        return "" if alone else "its weight is read by several products"

    def needs(self, layer: Layer) -> Sequence[Need]:
        """See `Tuner`."""
        return (_channels(layer.node),)

    def tune(self, layer: Layer, observations: Observations) -> Tensors:
        """See `Tuner`."""
        node, precision = layer.node, layer.precision
        assert isinstance(precision, StoredWeights)
        ((weight, layout),) = precision.quantizing().weights(node)
        seen = observations.get(_channels(node))
        if seen is None or not np.isfinite(seen.square).all() or not seen.square.any():
            return precision.quantizing().tune(node)
        importance = (seen.square / seen.square.max()) ** _POWER
        found = _qparams(weight, layout, importance.astype(np.float32))
        return {"scale": found.scale, "zero_point": found.zero_point}


def _channels(node: Node) -> ChannelsOf:
    x = node.input(0)
    assert x is not None
    return ChannelsOf(x.name, 0 if node.get("transA", 0) else -1)


def _qparams(
    weight: ConstantWeight, layout: Layout, importance: npt.NDArray[np.float32]
) -> QParams:
    """Qparams on the axes of the constant, found for some outputs at a time."""
    quantizer, granularity = layout.quantizer, layout.own_granularity
    assert isinstance(quantizer, Rounding)
    numbers = weight.value.numpy()
    inner = int(layout.transposed)
    along = importance if inner else importance[:, None]
    step = max(1, SLICE // numbers.shape[inner])
    parts = []
    for start in range(0, numbers.shape[1 - inner], step):
        cut = (slice(start, start + step), slice(None))
        found = weight_qparams(
            numbers[cut if inner else cut[::-1]] * np.float32(layout.factor),
            quantizer.format,
            quantizer.scheme,
            granularity,
            search=FEW_RANGES,
            importance=along,
            name=weight.value.name,
        )
        parts.append(found)
    at = 0 if granularity.block_size is None else 1 - inner
    scale, zero_point = (
        np.concatenate([getattr(p, name) for p in parts], axis=at)
        for name in ("scale", "zero_point")
    )
    return replace(parts[0], scale=scale, zero_point=zero_point)

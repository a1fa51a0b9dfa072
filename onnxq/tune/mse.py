"""Scales of the least squared error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxq.observe import Observations
from onnxq.passes.tuned import Tensors
from onnxq.passes.weights.stored_weights import Rounding
from onnxq.passes.weights.weight_pass import searched_tensors
from onnxq.quant import MSE
from onnxq.tune.layer import Layer
from onnxq.tune.tuner import Tuner


@dataclass(frozen=True)
class Mse(Tuner):
    """For each group of weights the scale with the least sum of (w - s q)² over w.

    The search over candidates of the scale s, with q the rounded and clipped w / s, is that of
    `onnxq.quant.search`. It needs no data.
    """

    name: ClassVar[str] = "mse"
    description: ClassVar[str] = "scales of weights with the least squared error"
    promise: ClassVar[float] = 3.0

    def refusal(self, layer: Layer) -> str:
        """See `Tuner`."""
        return "" if is_rounded(layer) else "it is for weights that are rounded"

    def tune(self, layer: Layer, observations: Observations) -> Tensors:
        """See `Tuner`."""
        return searched_tensors(layer.weights, MSE)


def is_rounded(layer: Layer) -> bool:
    """Whether a layer has weights that are rounded, with scales that may be searched."""
    weights = layer.weights
    return bool(weights) and all(isinstance(layout.quantizer, Rounding) for _, layout in weights)

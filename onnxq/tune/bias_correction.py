"""Bias correction: biases that make up for what quantization shifts on average."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.ir import Node
from onnxq.needs import DifferenceOf, Need
from onnxq.observe import Observations
from onnxq.passes.tuned import BIAS, Tensors
from onnxq.passes.weights.layer_biases import bias_of
from onnxq.tune.layer import Layer
from onnxq.tune.tuner import Tuner


@dataclass(frozen=True)
class BiasCorrection(Tuner):
    """Adds E[y] - E[ŷ] to the bias, for each output channel.

    y is what the layer gives in the float model, and ŷ what it gives with quantized weights and
    everything before it quantized and corrected (empirical bias correction: Nagel et al., Data-Free
    Quantization Through Weight Equalization and Bias Correction, 2019). The expectation is the mean
    over the calibration data.
    """

    name: ClassVar[str] = "bias-correction"
    description: ClassVar[str] = "biases that make up for the mean error of what layers give"
    promise: ClassVar[float] = 0.08
    is_sequential: ClassVar[bool] = True
    is_additional: ClassVar[bool] = True

    def refusal(self, layer: Layer) -> str:
        """See `Tuner`."""
        node, precision = layer.node, layer.precision
        if not node.is_op("Conv", "ConvTranspose", "Gemm", "MatMul") or precision.weight_bits > 8:
            return "it is for weights of layers in integers"
        return "" if bias_of(node) else "it is for layers that add a constant to each channel"

    def needs(self, layer: Layer) -> Sequence[Need]:
        """See `Tuner`."""
        return (_difference(layer.node),)

    def tune(self, layer: Layer, observations: Observations) -> Tensors:
        """See `Tuner`."""
        seen = observations.get(_difference(layer.node))
        if seen is None or not np.isfinite(seen.mean).all():
            return {}
        return {BIAS: seen.mean.astype(np.float32)}


def _difference(node: Node) -> DifferenceOf:
    return DifferenceOf(node.output.name, 1 if node.is_op("Conv", "ConvTranspose") else -1)

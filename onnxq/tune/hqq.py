"""HQQ: scales whose errors are small but for few, without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from onnxq.observe import Observations
from onnxq.passes.tuned import Tensors
from onnxq.passes.weights.weight_pass import searched_tensors
from onnxq.quant import HQQ
from onnxq.tune.layer import Layer
from onnxq.tune.mse import is_rounded
from onnxq.tune.tuner import Tuner


@dataclass(frozen=True)
class Hqq(Tuner):
    """For each group of weights the scale with a small sum of |w - s (q - z)|^0.7.

    See `onnxq.quant.half_quadratic.HalfQuadratic` (Badri & Shaji, 2023). It needs no data. Offsets
    are zero-points in integers, as all operators read them; the floats of the paper only
    onnxruntime's MatMulNBits reads, 0.05 to 0.12 times as fast as a float product (1.32).
    """

    name: ClassVar[str] = "hqq"
    description: ClassVar[str] = "scales of weights with few large errors"
    promise: ClassVar[float] = 1.2

    def refusal(self, layer: Layer) -> str:
        """See `Tuner`."""
        return "" if is_rounded(layer) else "it is for weights that are rounded"

    def tune(self, layer: Layer, observations: Observations) -> Tensors:
        """See `Tuner`."""
        return searched_tensors(layer.weights, HQQ)

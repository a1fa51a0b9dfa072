"""Scales of the least squared error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.ir import Node
from onnxq.observe import Observations
from onnxq.precision import Precision
from onnxq.precision.stored import StoredWeights
from onnxq.tune.tuner import Tuner


@dataclass(frozen=True)
class Mse(Tuner):
    """For each group of weights the scale with the least sum of (w - s q)² over w.

    The search over candidates of the scale s, with q the rounded and clipped w / s, is that of
    `onnxq.quant.search`. It needs no data.
    """

    name: ClassVar[str] = "mse"
    description: ClassVar[str] = "scales of weights with the least squared error"

    def refusal(self, node: Node, precision: Precision) -> str:
        """See `Tuner`."""
        stores = isinstance(precision, StoredWeights) and precision.quantizing().weights(node)
        return "" if stores else "it is for weights in few bits"

    def tune(
        self, node: Node, precision: Precision, observations: Observations
    ) -> Mapping[str, np.ndarray]:
        """See `Tuner`."""
        assert isinstance(precision, StoredWeights)
        return precision.quantizing(search="mse").tune(node)

"""What tuners tune."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.ir import Node
from onnxq.passes.weights.weight_pass import Weights
from onnxq.precision import Precision
from onnxq.targets import Target


@dataclass(frozen=True)
class Layer:
    """A node and what is to become of it.

    Attributes:
        node: The node of the float graph.
        precision: The precision that it is to have.
        target: Where the model is to run.
        memory_limit: Bytes that what is observed for it may take; None for any.
    """

    node: Node
    precision: Precision
    target: Target
    memory_limit: int | None = None

    @property
    def weights(self) -> Weights:
        """Its constant weights, each with how it will be stored; none if none will be."""
        return self.precision.weights(self.node, self.target)

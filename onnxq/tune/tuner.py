"""Methods that compute the weights of single nodes."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxq.needs import Need
from onnxq.observe import Observations
from onnxq.passes.tuned import Tensors
from onnxq.tune.layer import Layer
from onnxq.tune.method import Method


@dataclass(frozen=True)
class Tuner(Method):
    """A method that computes what the pass of a precision would otherwise compute by itself.

    Class variables:
        is_sequential: Whether it is to see what a node reads once the nodes before it are
            quantized, rather than in the float model. Such tuners are for nodes of the main graph.
        is_additional: Whether it adds to what another tuner computes for a node, or no tuner.
    """

    is_sequential: ClassVar[bool] = False
    is_additional: ClassVar[bool] = False

    @abstractmethod
    def refusal(self, layer: Layer) -> str:
        """Why it has nothing for a node in its precision; empty if it has."""

    def needs(self, layer: Layer) -> Sequence[Need]:
        """What has to be observed first."""
        return ()

    @abstractmethod
    def tune(self, layer: Layer, observations: Observations) -> Tensors:
        """The node's tensors; none where its weight cannot be stored at all."""

    def parts(self, layer: Layer) -> int:
        """Into how many parts a layer's work falls, which may be done in any order."""
        return 1

    def tune_part(self, layer: Layer, observations: Observations, number: int) -> Tensors:
        """What `joined` makes the node's tensors of: one part of it."""
        return self.tune(layer, observations)

    def joined(self, layer: Layer, tensors: Sequence[Tensors]) -> Tensors:
        """The node's tensors, of all parts in their order."""
        return tensors[0]

"""16-bit floats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxq.ir import Graph, Node, Pass
from onnxq.passes.halves.convert_float import ConvertFloat
from onnxq.passes.notes import UNRELATED, Reason
from onnxq.passes.static.placement import Placement
from onnxq.precision.precision import Given, Precision
from onnxq.targets import Target

_NO_FLOATS = Reason(UNRELATED, "it computes on no float32")


@dataclass(frozen=True)
class Halves(Precision):
    """Operators that compute in a 16-bit float."""

    order: ClassVar[int] = 2
    weight_bits: ClassVar[float] = 16
    activation_bits: ClassVar[int] = 16
    relative_time: ClassVar[float] = 0.5

    def refusal(self, node: Node, placed: Placement) -> Reason | None:
        """See `Precision`."""
        conversion = ConvertFloat(format=self.name)
        return conversion.reason(node) if conversion.takes(node) else _NO_FLOATS

    def passes(self, graph: Graph, nodes: Mapping[str, Precision], given: Given) -> Sequence[Pass]:
        """See `Precision`."""
        return (ConvertFloat(format=self.name, only=tuple(nodes), ranges=given.bounds),)

    def needed_opset(self, target: Target) -> int:
        """See `Precision`."""
        return ConvertFloat(format=self.name).needed_opset

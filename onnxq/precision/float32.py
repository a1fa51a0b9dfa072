"""The precision that every node starts from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxq.ir import Graph, Node, Pass
from onnxq.passes.notes import Reason
from onnxq.passes.static.placement import Placement
from onnxq.precision.precision import Given, Precision
from onnxq.targets import Target


@dataclass(frozen=True)
class Float32(Precision):
    """Float32, as the model came."""

    name: ClassVar[str] = "float32"
    description: ClassVar[str] = "as it is"

    def refusal(self, node: Node, placed: Placement) -> Reason | None:
        """See `Precision`."""
        return None

    def passes(self, graph: Graph, nodes: Mapping[str, Precision], given: Given) -> Sequence[Pass]:
        """See `Precision`."""
        return ()

    def needed_opset(self, target: Target) -> int:
        """See `Precision`."""
        return 0

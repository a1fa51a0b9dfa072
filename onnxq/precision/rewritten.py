"""A source of noise that is what a precision's own passes do to a node."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.ir import Context, Graph, Node
from onnxq.precision.parts import Part, Scene, twin
from onnxq.precision.precision import Given, Precision


@dataclass(frozen=True)
class Rewritten(Part):
    """All that the passes of a precision do to a node, whatever that is.

    Attributes:
        precision: The precision.
        kind: What it is called before the precision's name.
        op_types: The operators that have it; empty stands for all that can have the precision.
    """

    precision: Precision
    kind: str = "weights"
    op_types: tuple[str, ...] = ()

    @property
    def name(self) -> str:  # type: ignore[override]
        """See `Part`."""
        return f"{self.kind}:{self.precision}"

    def fits(self, node: Node, scene: Scene) -> bool:
        """See `Part`."""
        is_meant = not self.op_types or node.is_op(*self.op_types)
        return is_meant and not self.precision.refusal(node, scene.placed)

    def apply(self, graph: Graph, node: Node, scene: Scene) -> None:
        """See `Part`."""
        nodes = {twin(graph, node).name: self.precision}
        for step in self.precision.passes(graph, nodes, Given(scene.target)):
            step.run(graph, Context())

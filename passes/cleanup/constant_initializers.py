"""Turning overridable initializers into constants."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.ir import Context, Graph, Pass


@dataclass(frozen=True)
class ConstantInitializers(Pass):
    """Take the inputs that have a default value out of the interface, so that they are constants.

    An initializer that is also a graph input may be overridden by whoever runs the model, so
    nothing can be folded, fused or quantized with it. Older exporters list every weight like
    that. The interface changes, which is why this runs only by request.

    Not touched: inputs without a default, and initializers of subgraphs.
    """

    name = "constant-initializers"

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the inputs that are constants now."""
        overridable = [v for v in graph.inputs if v.data is not None]
        for value in overridable:
            graph.make_constant(value)
            ctx.rewrote(f"'{value.name}' is a constant")
        return len(overridable)

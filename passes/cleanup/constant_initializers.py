"""Turning overridable initializers into constants."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.ir import Context, Graph, Pass, Tensor, Value

_WEIGHTED = ("Conv", "ConvTranspose", "Gather", "Gemm", "GRU", "LSTM", "MatMul", "RNN", "Transpose")

AS_CONSTANTS = "`onnxq rewrite -p constant-initializers`"
"""The command that takes every default value out of the interface."""


@dataclass(frozen=True)
class ConstantInitializers(Pass):
    """Take the inputs that have a default value out of the interface, so that they are constants.

    An initializer that is also a graph input may be overridden by whoever runs the model, so
    nothing can be folded, fused or quantized with it. The interface changes, which is why the pass
    runs only by request; `settle_overridable` runs it where an exporter listed all weights so.

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


def settle_overridable(graph: Graph, ctx: Context, *, keep: bool = False) -> tuple[str, ...]:
    """Make the weights of a main graph constants where listing them as inputs is a mere habit.

    Older exporters list every initializer as an input. Nobody feeds all weights of a model, so
    where every weight is listed, all that have a default value become constants. Where only some
    are, somebody chose them, and they stay. A weight is a matrix or kernel that an operator such as
    Conv or MatMul reads; a model without any keeps its inputs.

    Args:
        graph: The graph, changed in place.
        ctx: What passes share.
        keep: Whether to leave all as they are.

    Returns:
        Sentences for the report, if anything was done. Of what was left, the nodes say it.
    """
    listed = [v for v in graph.inputs if v.data is not None]
    own = [v for v in graph.initializers() if not v.is_input]
    own += [node.output for node in graph.nodes() if node.is_op("Constant")]
    if keep or not any(map(_is_weight, listed)) or any(map(_is_weight, own)):
        return ()
    ConstantInitializers().run(graph, ctx)
    return (
        f"The model lists all its weights as inputs, which callers hardly mean to override: "
        f"{len(listed)} of them are constants now and no inputs any more; --keep-overridable "
        "keeps them.",
    )


def _is_weight(value: Value) -> bool:
    data = value.data if value.producer is None else value.producer.get("value")
    is_matrix = isinstance(data, Tensor) and data.dtype.is_float and len(data.shape) > 1
    return is_matrix and any(use.node.is_op(*_WEIGHTED) for use in value.uses)

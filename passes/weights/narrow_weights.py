"""narrow-weights: integers that fit in fewer bits than a byte are stored in these."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.ir import Context, DataType, Graph, Pass, TensorType, Value
from onnxq.quant.formats import INT2, INT4, UINT2, UINT4, Format

_FEWEST = 64
"""Integers of which at least there are so many: below, the Cast takes the bytes that it spares."""

_NARROWER = {DataType.INT8: (INT2, INT4), DataType.UINT8: (UINT2, UINT4)}


@dataclass(frozen=True)
class NarrowWeights(Pass):
    """Store constants of int8 and uint8 that DequantizeLinear reads in 2 or 4 bits, if they fit.

    A Cast to the type of the byte stands between. onnxruntime (1.24.1 and 1.32) computes it once
    when it loads the model, so that the kernels of 8 bits run at their speed: four convolutions of
    64 channels take 0.79 to 0.88 ms with weights in 8, 4 and 2 bits alike. Behind a
    DequantizeLinear that reads 4 bits itself they take 7.7 ms, as there is no kernel for those, and
    with 2 bits the model does not load.

    Rewritten: 64 numbers and more, in 4 bits from opset 21 on and in 2 bits from opset 25 on.

    Not rewritten: what something else reads, too, and constants that are graph inputs or outputs.
    """

    name = "narrow-weights"
    needs_types = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the constants."""
        stored = 0
        for scope in graph.all_graphs():
            for value in [*scope.initializers()]:
                format = _narrower(value, graph.opset)
                if format is not None:
                    _store(scope, value, format)
                    ctx.rewrote(f"'{value.name}' is stored in {format.bits} bits")
                    stored += 1
        return stored


def _narrower(value: Value, opset: int) -> Format | None:
    """The narrowest format that holds a constant, None for the one that it has."""
    formats = _NARROWER.get(value.dtype, ()) if value.dtype is not None else ()
    able = [format for format in formats if format.opset <= opset]
    uses = value.uses
    if not able or not value.is_constant or value.is_output or not uses:
        return None
    if any(not use.node.is_op("DequantizeLinear") or use.slot for use in uses):
        return None
    numbers = value.numpy()
    if numbers.size < _FEWEST:
        return None
    low, high = int(numbers.min()), int(numbers.max())
    return next((f for f in able if f.qmin <= low and high <= f.qmax), None)


def _store(graph: Graph, value: Value, format: Format) -> None:
    assert value.dtype is not None
    numbers = value.numpy().astype(format.storage)
    narrow = graph.constant(numbers, f"{value.name}_{format.name}")
    made = graph.add(
        "Cast",
        [narrow],
        {"to": value.dtype.value},
        outputs=[graph.fresh_name(f"{value.name}_byte")],
        types=[TensorType(value.dtype, value.shape)],
    ).output
    graph.replace_uses(value, made)
    graph.discard(value)

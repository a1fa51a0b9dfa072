"""Keeping onnxruntime from quantizing the weights of operators that are to stay in float."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.ir import Context, DataType, Graph, Node, Pass, Value, remove_unused
from onnxq.passes.nodes import made_by

_FIRST_OPSET = 13
"""The lowest in which DequantizeLinear takes a scale for each channel."""

_TAKEN = ("Conv", "ConvTranspose", "Gemm")
_CLIPPING = ("Relu", "Clip")


@dataclass(frozen=True)
class KeepFloatWeights(Pass):
    """Let a float operator between integers read its activation through scales for each channel.

    Where a Conv, ConvTranspose or Gemm reads a DequantizeLinear and gives to a QuantizeLinear,
    onnxruntime (1.24 to 1.32) takes it for one whose weight somebody forgot: at session start it
    quantizes the weight to int8 with a single scale and runs the integer kernel. An operator that a
    plan or a recipe left in float, because 8 bits are too few for it, would get fewer than that. It
    does so only behind a DequantizeLinear with one scale, so the operator gets one of its own,
    whose scale and zero-point are the same numbers, repeated for each channel: the same values.

    Rewritten, from opset 13 on: the activation of such an operator with a constant float32 weight,
    where the axis 1 of the activation has a known size.

    Not rewritten: operators whose result something else than a QuantizeLinear reads, if need be
    behind Relu and Clip. onnxruntime leaves those in float.

    It is for onnxruntime alone: other compilers want one scale for an activation.
    """

    name = "keep-float-weights"
    needs_types = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the operators that are kept in float."""
        if graph.opset < _FIRST_OPSET:
            return 0
        kept = 0
        for node in [*graph.all_nodes()]:
            value, pair = node.input(0), made_by(node.input(0), "DequantizeLinear")
            if value is not None and pair is not None and _is_taken_for_integer(node, value, pair):
                node.set_input(0, _by_channel(node.graph, value, pair))
                remove_unused(pair.graph, [pair])
                kept += 1
        return kept


def _is_taken_for_integer(node: Node, value: Value, pair: Node) -> bool:
    weight, scale = node.input(1), pair.input(1)
    channels = (value.shape or ())[1:2]
    return (
        node.is_op(*_TAKEN)
        and all(v is not None and v.is_constant for v in pair.inputs[1:])
        and scale is not None
        and scale.numpy().size == 1
        and weight is not None
        and weight.is_constant
        and weight.dtype is DataType.FLOAT
        and channels not in ((), (1,))
        and isinstance(channels[0], int)
        and _is_quantized(node)
    )


def _is_quantized(node: Node) -> bool:
    """Whether everything that reads a node's result, behind clipping too, quantizes it."""
    uses = node.output.uses
    return bool(uses) and all(
        use.node.is_op("QuantizeLinear")
        or (use.node.is_op(*_CLIPPING) and use.slot == 0 and _is_quantized(use.node))
        for use in uses
    )


def _by_channel(graph: Graph, value: Value, pair: Node) -> Value:
    """An activation out of another DequantizeLinear."""
    integers, *params = pair.inputs
    assert value.shape is not None and isinstance(value.shape[1], int)
    repeated = [
        graph.constant(np.repeat(p.numpy(), value.shape[1]), f"{p.name}_repeated")
        for p in params
        if p is not None
    ]
    made = graph.add("DequantizeLinear", [integers, *repeated], {"axis": 1}, types=[value.type])
    return made.output

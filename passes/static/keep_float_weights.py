"""Keeping onnxruntime from quantizing the weights of operators that are to stay in float."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.ir import Context, DataType, Graph, Node, Pass, Value, remove_unused

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
        for node in list(graph.nodes()):
            if _is_taken_for_integer(node):
                value = node.input(0)
                assert value is not None and value.producer is not None
                node.set_input(0, _by_channel(graph, value))
                remove_unused(graph, [value.producer])
                kept += 1
        return kept


def _is_taken_for_integer(node: Node) -> bool:
    if not node.is_op(*_TAKEN):
        return False
    value, weight = node.input(0), node.input(1)
    if value is None or weight is None or value.producer is None:
        return False
    pair = value.producer
    shape = value.shape or ()
    return (
        pair.is_op("DequantizeLinear")
        and all(v is not None and v.is_constant and v.data is not None for v in pair.inputs[1:])
        and pair.inputs[1] is not None
        and pair.inputs[1].numpy().size == 1
        and weight.is_constant
        and weight.dtype is DataType.FLOAT
        and len(shape) > 1
        and isinstance(shape[1], int)
        and shape[1] > 1
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


def _by_channel(graph: Graph, value: Value) -> Value:
    """An activation out of another DequantizeLinear."""
    assert value.producer is not None and value.shape is not None
    integers, *params = value.producer.inputs
    size = value.shape[1]
    assert isinstance(size, int)
    repeated = [
        graph.constant(np.full(size, p.numpy().reshape(()), p.numpy().dtype), f"{p.name}_repeated")
        for p in params
        if p is not None
    ]
    made = graph.add("DequantizeLinear", [integers, *repeated], {"axis": 1}, types=[value.type])
    return made.output

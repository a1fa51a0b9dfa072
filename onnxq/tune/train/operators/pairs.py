"""QuantizeLinear and what reads it as one function."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from onnxq.ir import Node, Value, attribute_value
from onnxq.tune.train.operators.quantization import ends_of, format_of, offset_of
from onnxq.tune.train.operators.registry import Run
from onnxq.tune.train.straight_through import fake_quantize


@dataclass(frozen=True)
class Pair:
    """A QuantizeLinear with the nodes behind it.

    Attributes:
        run: From what the QuantizeLinear reads to what each DequantizeLinear gives.
        gives: What these give.
        behind: They, and a Clip of integers before them.
    """

    run: Run
    gives: tuple[Value, ...]
    behind: tuple[Node, ...]


def folded(node: Node, kept: Collection[Value]) -> Pair | None:
    """The pair that begins with a node; None if it is none, or something else reads its integers.

    Args:
        node: Any node.
        kept: Values that are needed whatever reads them.
    """
    if not node.is_op("QuantizeLinear") or not _has_one_scale(node):
        return None
    dtype = format_of(node.input(2), node)
    if dtype.is_float:
        return None
    (low, high), behind, integers = ends_of(dtype), [], node.output
    first = next((use.node for use in integers.uses), None)
    if first is not None and first.is_op("Clip") and len(integers.uses) == 1:
        ends = [v for v in first.inputs[1:3] if v is not None and v.is_constant]
        if len(ends) < 2 or integers in kept:
            return None
        (low, high), behind, integers = [int(v.numpy()) for v in ends], [first], first.output
    ways = list(dict.fromkeys(use.node for use in integers.uses))
    if not ways or integers in kept or not all(_undoes(way, node) for way in ways):
        return None

    def run(x: Tensor, scale: Tensor, zero_point: Tensor | None = None) -> Any:
        offset = offset_of(zero_point, x, scale.dtype, 0, 0)
        y = fake_quantize(x.to(scale.dtype), scale.reshape(()), offset, low, high)
        return y if len(ways) == 1 else (y,) * len(ways)

    return Pair(run, tuple(way.output for way in ways), (*behind, *ways))


def _undoes(node: Node, quantizer: Node) -> bool:
    return (
        node.is_op("DequantizeLinear")
        and node.graph is quantizer.graph
        and node.inputs[1:] == quantizer.inputs[1:]
        and not attribute_value(node, "output_dtype")
    )


def _has_one_scale(node: Node) -> bool:
    scale = node.inputs[1]
    return scale is not None and scale.shape in ((), (1,))

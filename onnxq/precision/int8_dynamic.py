"""Integers of 8 bits whose scales for activations are found while the model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from onnxq.ir import Graph, Node, Pass
from onnxq.passes.layout.unflatten_gemm import UnflattenGemm
from onnxq.passes.notes import Reason
from onnxq.passes.static.placement import Placement
from onnxq.passes.weights.quantize_dynamic import QuantizeDynamic
from onnxq.precision.parts import DynamicActivations, Part, Weights8
from onnxq.precision.precision import Given, Precision
from onnxq.targets import Target


@dataclass(frozen=True)
class Int8Dynamic(Precision):
    """Products in 8 bits with dynamic activations; embeddings and recurrent weights stored so.

    Attributes:
        convolutions: Quantize convolutions, too.
        contrib: Use operators of onnxruntime's own where they pay.
    """

    name: ClassVar[str] = "int8-dynamic"
    description: ClassVar[str] = (
        "activations and weights in 8-bit integers, ranges found at run time"
    )
    order: ClassVar[int] = 0
    weight_bits: ClassVar[float] = 8
    activation_bits: ClassVar[int] = 8
    relative_time: ClassVar[float] = 0.3

    convolutions: bool = False
    contrib: bool = False

    def refusal(self, node: Node, placed: Placement) -> Reason | None:
        """See `Precision`."""
        return self._pass().reason(node)

    def passes(self, graph: Graph, nodes: Mapping[str, Precision], given: Given) -> Sequence[Pass]:
        """See `Precision`."""
        only, reduced = tuple(nodes), given.target.weight_scheme.reduced_range
        return (UnflattenGemm(only=only), self._pass(only=only, reduced_range=reduced))

    def needed_opset(self, target: Target) -> int:
        """See `Precision`."""
        return self._pass().needed_opset

    def parts(self) -> Sequence[Part]:
        """See `Precision`."""
        return (Weights8(), DynamicActivations())

    def _pass(self, **options: Any) -> QuantizeDynamic:
        return QuantizeDynamic(convolutions=self.convolutions, contrib=self.contrib, **options)

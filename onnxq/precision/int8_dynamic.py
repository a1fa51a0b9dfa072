"""Integers of 8 bits whose scales for activations are found while the model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from onnxq.ir import Graph, Node, Pass
from onnxq.passes.layout.unflatten_gemm import UnflattenGemm
from onnxq.passes.notes import Reason
from onnxq.passes.static.placement import Placement
from onnxq.passes.weights.quantize_dynamic import DYNAMIC_LSTM, QuantizeDynamic
from onnxq.passes.weights.weight_pass import RECURRENT, Weights
from onnxq.precision.parts import DynamicActivations, Part, Weights8
from onnxq.precision.precision import Given, Precision
from onnxq.precision.rewritten import Rewritten
from onnxq.targets import Target


@dataclass(frozen=True)
class Int8Dynamic(Precision):
    """Products in 8 bits with dynamic activations; embeddings and recurrent weights stored so.

    An LSTM becomes onnxruntime's DynamicQuantizeLSTM where the target has that. There is no such
    kernel for GRU and RNN (onnxruntime 1.24 to 1.32): their weights are stored in 8 bits and
    restored in each run, which makes the file smaller and nothing faster.

    Attributes:
        convolutions: Quantize convolutions, too.
    """

    name: ClassVar[str] = "int8-dynamic"
    description: ClassVar[str] = (
        "activations and weights in 8-bit integers, ranges found at run time"
    )
    order: ClassVar[int] = 0
    weight_bits: ClassVar[float] = 8
    activation_bits: ClassVar[int] = 8
    transformations: ClassVar[tuple[str, ...]] = ("smooth-quant",)
    relative_time: ClassVar[float] = 0.3

    convolutions: bool = False

    def refusal(self, node: Node, placed: Placement) -> Reason | None:
        """See `Precision`."""
        return QuantizeDynamic(convolutions=self.convolutions).reason(node)

    def passes(self, graph: Graph, nodes: Mapping[str, Precision], given: Given) -> Sequence[Pass]:
        """See `Precision`."""
        only = tuple(nodes)
        step = self._pass(given.target, only=only, tuned=given.tuned)
        return (UnflattenGemm(only=only), step)

    def needed_opset(self, target: Target) -> int:
        """See `Precision`."""
        return self._pass(target).needed_opset

    def weights(self, node: Node, target: Target) -> Weights:
        """See `Precision`."""
        return self._pass(target).weights(node)

    def parts(self) -> Sequence[Part]:
        """See `Precision`."""
        return (Weights8(), DynamicActivations(), Rewritten(self, "recurrence", RECURRENT))

    def _pass(self, target: Target, **options: Any) -> QuantizeDynamic:
        return QuantizeDynamic(
            convolutions=self.convolutions,
            reduced_range=target.weight_scheme.reduced_range,
            contrib=DYNAMIC_LSTM in target.contrib,
            **options,
        )

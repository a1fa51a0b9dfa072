"""Weights in few bits, activations in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from onnxq.ir import Graph, Node, Pass
from onnxq.passes.notes import Reason
from onnxq.passes.static.placement import Placement
from onnxq.passes.weights.quantize_weights import CONTRIB_GATHER, QuantizeWeights
from onnxq.passes.weights.weight_pass import Weights
from onnxq.precision.parts import Part
from onnxq.precision.precision import Given, Precision
from onnxq.precision.rewritten import Rewritten
from onnxq.targets import Target


@dataclass(frozen=True)
class StoredWeights(Precision):
    """Weights stored in a format, see `QuantizeWeights` for what becomes of which operator.

    Class variables:
        format: Name of the format.

    Attributes:
        block_size: Inputs that share a scale; 0 stands for one scale for each output channel.
        scheme: ``absmax``, ``signed-absmax`` or ``zero-point``. Scales below 0, which the second
            has, onnxruntime multiplies with as with any (1.32); TensorRT refuses them.
        operators: ``standard``, or ``contrib`` for onnxruntime's own.
        gather: ``rows``, ``int8``, ``blocks`` or ``contrib``; rows are ``contrib`` on targets that
            have GatherBlockQuantized.
        copies: Store shared weights once for each operator.
    """

    order: ClassVar[int] = 1
    format: ClassVar[str]

    block_size: int = 32
    scheme: str = "absmax"
    operators: str = "standard"
    gather: str = "rows"
    copies: bool = False

    def __post_init__(self) -> None:
        # The pass refuses options that make no sense.
        self.quantizing()

    def quantizing(self, **options: Any) -> QuantizeWeights:
        """The pass that stores weights so."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return QuantizeWeights(format=self.format, **{**own, **options})

    def refusal(self, node: Node, placed: Placement) -> Reason | None:
        """See `Precision`."""
        return self.quantizing().reason(node)

    @property
    def described(self) -> str:
        """See `Precision`: widths are those of what is stored."""
        return f"int{self.weight_bits:g}-weight"

    def passes(self, graph: Graph, nodes: Mapping[str, Precision], given: Given) -> Sequence[Pass]:
        """See `Precision`."""
        tuned = {name: given.tuned[name] for name in nodes if name in given.tuned}
        has_own = self.gather == "rows" and CONTRIB_GATHER in given.target.contrib
        gather = "contrib" if has_own else self.gather
        return (self.quantizing(only=tuple(nodes), tuned=tuned, gather=gather),)

    def needed_opset(self, target: Target) -> int:
        """See `Precision`."""
        return self.quantizing().needed_opset

    def weights(self, node: Node, target: Target) -> Weights:
        """See `Precision`."""
        return self.quantizing().weights(node)

    def parts(self) -> Sequence[Part]:
        """See `Precision`: what the pass makes is what is measured."""
        return (Rewritten(self),)

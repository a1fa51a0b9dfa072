"""Static integers: activations and weights in integers, ranges from calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxq.ir import Graph, Node, Pass
from onnxq.needs import Need, RangeOf
from onnxq.passes.notes import UNRELATED, Reason, node_name
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.passes.static.operands import reads_weight, weight_granularity
from onnxq.passes.static.placement import Placement
from onnxq.passes.weights.narrow_weights import NarrowWeights
from onnxq.passes.weights.quantize_dynamic import QuantizeDynamic
from onnxq.passes.weights.stored_weights import Layout, Quantizer, Rounding
from onnxq.passes.weights.weight_pass import Weights
from onnxq.passes.weights.weight_rewrites import ConstantWeight
from onnxq.precision.parts import Part, StaticActivations, Weights8
from onnxq.precision.precision import Bounds, Given, Precision
from onnxq.quant import INT8, Format
from onnxq.targets import Target

FEW_BITS = ("gptq", "mse", "bias-correction")
"""What weights in fewer than 8 bits are tuned by."""

_CLIPS = Reason(UNRELATED, "it goes with the node whose result it clips")


@dataclass(frozen=True)
class Static(Precision):
    """Static integers with activations of so many bits.

    Nodes of all widths are quantized together, last of all: what one gives as integers another may
    read, and what the passes before made counts as quantized already.
    """

    order: ClassVar[int] = 3
    weight_bits: ClassVar[float] = 8
    is_static: ClassVar[bool] = True

    def refusal(self, node: Node, placed: Placement) -> Reason | None:
        """See `Precision`: operators that clip go with the node whose result they clip.

        A Gather of a constant table computes nothing; its rows are stored in 8 bits.
        """
        rule = placed.nodes.get(node)
        if rule is not None and rule.role != "absorb":
            return None
        if stores_rows(node):
            return QuantizeDynamic().reason(node)
        return placed.left_in_float.get(node, _CLIPS)

    def passes(self, graph: Graph, nodes: Mapping[str, Precision], given: Given) -> Sequence[Pass]:
        """See `Precision`."""
        target, scheme = given.target, given.target.weight_scheme
        tables = tuple(node_name(n) for n in graph.all_nodes() if stores_rows(n))
        tables = tuple(name for name in tables if name in nodes)
        others = tuple(name for name in nodes if name not in tables)
        static = {name: p for name, p in nodes.items() if isinstance(p, Static)}
        bounds = _behind_casts(graph, given.bounds)
        tuned = given.tuned
        pairs = InsertQdq(
            bounds,
            target.name,
            only=others,
            formats={name: p.activation_format(target).name for name, p in static.items()},
            quantizers={name: p.quantizer(target) for name, p in static.items()},
            tuned=tuned,
        )
        rows = QuantizeDynamic(only=tables, reduced_range=scheme.reduced_range, tuned=tuned)
        narrow = any(p.stores_narrow for p in static.values())
        # Without names they would be for all nodes. Tables come last, when products that read one
        # have stored its integers.
        return (
            *((pairs,) if others else ()),
            *((NarrowWeights(),) if narrow else ()),
            *((rows,) if tables else ()),
        )

    def needed_opset(self, target: Target) -> int:
        """See `Precision`."""
        return max(target.opset, self.activation_format(target).opset)

    def activation_format(self, target: Target) -> Format:
        """Format of the activations that a node reads."""
        return target.activation_format_of(self.activation_bits)

    def quantizer(self, target: Target) -> Quantizer:
        """What quantizes weights, to integers of the type that kernels on the target read."""
        return Rounding(target.weight_format, target.weight_scheme)

    @property
    def stores_narrow(self) -> bool:
        """Whether weights that fit in fewer bits than a byte are stored in these."""
        return False

    def needs(self, nodes: Sequence[Node], placed: Placement) -> Sequence[Need]:
        """See `Precision`."""
        return [RangeOf(name) for name in placed.observed()]

    def weights(self, node: Node, target: Target) -> Weights:
        """See `Precision`: the weight of a node that computes on integers."""
        rule = target.operators.get(node.op_type) if not node.domain else None
        if rule is None or rule.role != "compute" or rule.weight is None:
            return ()
        if not reads_weight(node, rule):
            return ()
        value = node.inputs[rule.weight]
        assert value is not None
        layout = Layout(self.quantizer(target), weight_granularity(node, rule, target))
        return ((ConstantWeight(value), layout),)

    def tuners_on(self, target: Target) -> tuple[str, ...]:
        """See `Precision`: of itself, or those for few bits where the target's weights have these.

        Weights in 8 bits err so much less than activations that nothing is to be gained: with and
        without `mse`, `gptq`, `learned-rounding` or `bias-correction`, what
        `models/cifar_mobilenet.onnx` gives has a divergence of 0.0008 to 0.0010 bits.
        """
        is_few = 0 < target.weight_format.levels < INT8.levels
        return self.tuners or (FEW_BITS if is_few else ())

    def parts(self) -> Sequence[Part]:
        """See `Precision`."""
        return (Weights8(), StaticActivations(self.activation_bits))


def stores_rows(node: Node) -> bool:
    """Whether a node gathers from a constant table of floats: it needs no ranges."""
    return node.is_op("Gather") and QuantizeDynamic().takes(node)


def _behind_casts(graph: Graph, bounds: Bounds) -> dict[str, tuple[float, float]]:
    """Ranges that hold for what Casts restored of values in 16-bit floats, too."""
    found = dict(bounds)
    for node in graph.all_nodes():
        source = node.input(0)
        if node.is_op("Cast") and source is not None and source.name in found:
            found.setdefault(node.output.name, found[source.name])
    return found

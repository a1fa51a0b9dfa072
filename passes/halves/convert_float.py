"""convert-float: computing in float16 or bfloat16 instead of float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import Context, DataType, Graph, Node, Pass, Tensor, TensorType, Value, remove_unused
from onnxq.passes.halves.float_regions import (
    KEEP_REASONS,
    Choice,
    FloatRegions,
    changing_slots,
    constant_tensor,
    find_regions,
    number_reason,
    range_reason,
    round_to,
    static_reason,
    takes,
)
from onnxq.passes.nodes import added, made_by
from onnxq.passes.notes import Reason, node_name, note_left_in_float

_FORMATS = {"float16": DataType.FLOAT16, "bfloat16": DataType.BFLOAT16}
_CAST_OPSETS = {"float16": 6, "bfloat16": 13}

_CASTABLE = frozenset(d for d in DataType if d.bits >= 8 and d.numpy.kind in "iub") | {
    DataType.FLOAT16,
    DataType.BFLOAT16,
    DataType.DOUBLE,
}
"""Types from which every runtime casts to the small formats directly."""


@dataclass(frozen=True)
class ConvertFloat(Pass):
    """Let the operators of a float32 graph compute in float16 or bfloat16.

    Every operator whose ONNX definition takes the format is converted, in subgraphs too. A value
    that is needed in both types is cast once and shared; where a Cast of the model made it or
    reads it, that Cast is used instead of a second one behind it. Constants are stored in the
    format, rounded to nearest, and bounds of Clip beyond its range become its largest number.

    Left in float32, each with its reason in the model's metadata:

    - The operators of ``keep_operators``, by default those whose results overflow, that sum many
      numbers in the type they give, that count or place, and that draw random numbers; nodes named
      in ``keep_float``.
    - Operators that ONNX does not define with the format at the model's opset (bfloat16 is
      defined for arithmetic from opset 13, for convolution and pooling from 22), that it does not
      define at all (other domains, functions of the model), that state their type in an
      attribute, or of which a type is not known. What only has a place beside the data (scales of
      Resize, depth of OneHot, statistics of LayerNormalization) keeps its type while the operator
      is converted.
    - Operators that read a finite constant beyond the format's range (a mask of -1e38) or one of
      which all numbers vanish (an epsilon that guards a division), and those behind them as far
      as such numbers may reach, up to the Softmax or the division; operators that touch a tensor
      which calibration saw beyond half of the range.
    - If, Loop and Scan themselves: what crosses the border of a subgraph is float32.

    - Regions without a matrix product or a stored matrix that have no more operators than Casts
      at their border.

    Left alone without a note: quantized operators and what fuses with them, nodes not named in
    ``only``, and operators that only move activations between float32 neighbours. Initializers
    that callers may override stay float32 and are cast each time; the pass constant-initializers
    makes them constants.

    Attributes:
        format: ``float16`` or ``bfloat16``.
        only: Names of the nodes that may be converted; empty: all of them.
        keep_float: Names of nodes that stay in float32.
        keep_operators: Operators that stay in float32.
        interface: Convert the model's float32 inputs and outputs too, instead of casting them.
        ranges: Smallest and largest value of tensors, by name, as calibration saw them.
    """

    name = "convert-float"
    numerics = "approximates"
    needs_types = True

    format: str = "float16"
    only: tuple[str, ...] = ()
    keep_float: tuple[str, ...] = ()
    keep_operators: tuple[str, ...] = tuple(sorted(KEEP_REASONS))
    interface: bool = False
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict, repr=False)

    @property
    def needed_opset(self) -> int:
        """Lowest opset whose Cast knows the format."""
        return _CAST_OPSETS.get(self.format, 0)

    def takes(self, node: Node) -> bool:
        """Whether the pass is for a node: converts it, or notes why it stays in float32."""
        return takes(node, self._choice())

    def reason(self, node: Node) -> Reason | None:
        """Why a node that the pass takes cannot be converted, None if it could be.

        The numbers that it touches, and the Casts that it would need, may still speak against it.
        """
        return static_reason(node, self._choice())

    def run(self, graph: Graph, ctx: Context) -> int:
        """Convert; gives the number of operators that compute in the format now.

        Raises:
            InputError: there is no such format, or the model's opset has no Cast to it.
        """
        choice = self._choice()
        low = choice.low
        regions = find_regions(graph, choice)
        if regions.nodes:
            _require_cast(graph, low)
            _Conversion(graph, regions, choice).run()
        for node in regions.nodes:
            ctx.rewrote(f"{node.label} computes in {low.label}")
        note_left_in_float(graph, regions.left, map(node_name, regions.nodes))
        return len(regions.nodes)

    def _choice(self) -> Choice:
        low = _FORMATS.get(self.format)
        if low is None:
            raise InputError(
                f"convert-float has no format '{self.format}'; available: {', '.join(_FORMATS)}"
            )
        return Choice(
            low,
            frozenset(self.only),
            frozenset(self.keep_float),
            frozenset(self.keep_operators),
            self.ranges,
            self.interface,
        )


def _require_cast(graph: Graph, low: DataType) -> None:
    first = _CAST_OPSETS[low.label]
    if graph.opset < first:
        raise InputError(
            f"{low.label} needs opset {first} and the model has {graph.opset}; raise the model's "
            "opset first"
        )


class _Conversion:
    """Changes the graph as its regions say."""

    def __init__(self, graph: Graph, regions: FloatRegions, choice: Choice) -> None:
        self._graph = graph
        self._regions = regions
        self._low = regions.low
        given = [v for v in (*graph.inputs, *graph.outputs) if v.dtype is DataType.FLOAT]
        self._interface = {
            v
            for v in given
            if choice.interface and not range_reason(v, choice) and self._default_fits(v)
        }
        self._givers: dict[Value, list[Graph]] = {}
        for nested in graph.all_graphs():
            for value in dict.fromkeys(nested.outputs):
                self._givers.setdefault(value, []).append(nested)

    def run(self) -> None:
        for nested in list(self._graph.all_graphs()):
            for value in list(nested.values.values()):
                still_there = nested.values.get(value.name) is value
                if still_there and value.dtype is DataType.FLOAT:
                    self._convert(value)

    def _convert(self, value: Value) -> None:
        low_uses = [u for u in value.uses if self._regions.reads_low(u)]
        others = [u for u in value.uses if not self._regions.reads_low(u)]
        float_uses = [u for u in others if not self._regions.reads_either(u)]
        givers = self._givers.get(value, [])
        low_givers = [g for g in givers if g is self._graph and value in self._interface]
        float_givers = [g for g in givers if g not in low_givers]
        needs_low = bool(low_uses or low_givers)
        needs_float = bool(float_uses or float_givers)
        if self._made_low(value) or (needs_low and not needs_float and self._change_source(value)):
            self._retype(value)
            if needs_float:
                restored = self._cast(value, DataType.FLOAT)
                self._redirect(value, restored, float_uses, float_givers)
            self._drop_useless_casts(value)
        elif needs_low:
            self._redirect(value, self._lowered(value), low_uses, low_givers)
            if value.producer is not None:
                remove_unused(value.graph, [value.producer])

    def _made_low(self, value: Value) -> bool:
        return self._regions.gives_low(value) or (
            value.is_input and value in self._interface and self._change_default(value)
        )

    def _default_fits(self, value: Value) -> bool:
        return value.data is None or not number_reason(value.data.numpy(), "", self._low)

    def _change_default(self, value: Value) -> bool:
        """Store the default value of an input, if it has one, in the small format."""
        if value.data is not None:
            value.data = Tensor(round_to(value.data.numpy(), self._low))
        return True

    def _change_source(self, value: Value) -> bool:
        """Store a constant in the small format; False for a value that is none."""
        maker = value.producer
        tensor = constant_tensor(value)
        if tensor is not None:
            rounded = Tensor(round_to(tensor.numpy(), self._low))
            if maker is None:
                value.data = rounded
            else:
                for name in ("value_float", "value_floats"):
                    maker.graph.set_attribute(maker, name, None)
                maker.graph.set_attribute(maker, "value", rounded)
            return True
        if maker is None or not maker.is_op("ConstantOfShape"):
            return False
        if not changing_slots(maker, self._low).outputs:
            return False
        held = maker.get("value")
        numbers = held.numpy() if isinstance(held, Tensor) else np.zeros(1, np.float32)
        maker.graph.set_attribute(maker, "value", Tensor(round_to(numbers, self._low)))
        return True

    def _lowered(self, value: Value) -> Value:
        """A float32 value in the small format."""
        tensor = constant_tensor(value)
        if tensor is not None:
            rounded = round_to(tensor.numpy(), self._low)
            return value.graph.constant(rounded, f"{value.name}_{self._low.label}")
        for node in self._casts(value):
            if node.graph is value.graph:
                return node.output
        maker = made_by(value, "Cast")
        source = None if maker is None else maker.input(0)
        if source is not None:
            if source.dtype is self._low or self._regions.gives_low(source):
                return source
            if source.dtype in _CASTABLE:
                return self._cast(source, self._low, value)
        return self._cast(value, self._low)

    def _cast(self, value: Value, to: DataType, like: Value | None = None) -> Value:
        like = like or value
        name = f"{like.name}_{to.label}"
        return added(like.graph, "Cast", [value], name, to, like.shape, to=int(to))

    def _retype(self, value: Value) -> None:
        value.type = TensorType(self._low, value.shape)

    def _drop_useless_casts(self, value: Value) -> None:
        for node in self._casts(value):
            if node.output not in self._givers:
                node.graph.replace_uses(node.output, value)
                remove_unused(node.graph, [node])

    def _casts(self, value: Value) -> list[Node]:
        """The Casts of the model that make the small format of a value."""
        readers = [use.node for use in value.uses]
        return [n for n in readers if n.is_op("Cast") and n.get("to") == self._low]

    def _redirect(
        self, old: Value, new: Value, uses: Iterable[tuple[Node, int]], givers: Iterable[Graph]
    ) -> None:
        for node, slot in uses:
            node.set_input(slot, new)
        for graph in givers:
            if graph is self._graph:
                new = self._take_name(old, new)
            graph.set_outputs([new if v is old else v for v in graph.outputs])
            self._givers.setdefault(new, []).append(graph)

    def _take_name(self, old: Value, new: Value) -> Value:
        """The new value under the old one's name, which the caller of the model knows."""
        if new.is_input or new in self._givers:
            new = self._graph.add("Identity", [new], types=[new.type]).output
        name = old.name
        held = old.dtype.label if old.dtype is not None else "inner"
        self._graph.rename(old, self._graph.fresh_name(f"{name}_{held}"))
        self._graph.rename(new, name)
        new.doc_string, old.doc_string = old.doc_string, ""
        new.metadata, old.metadata = old.metadata, {}
        return new

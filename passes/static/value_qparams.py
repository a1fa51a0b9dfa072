"""Scale and zero-point of every value that is read or given as integers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.ir import Node, Value
from onnxq.passes.static.lines import Line, line_of
from onnxq.passes.static.placement import Placement, known_range
from onnxq.quant import ZERO_POINT, QParams, qparams_from_range
from onnxq.quant.formats import Format
from onnxq.targets import Target

_WIDENED = 1.25
"""How much wider a range may get so that a gate reads its integers: a third of a bit."""

_FIRST_OPSET = 12
"""From here on Clip takes integers."""

_FEWEST_STEPS = 8
"""Steps between 0 and where a gate closes. With fewer, making them whole widens the range by more
than an eighth."""


def few_bits(name: str, format: Format) -> str:
    """The name of the range that a value has in a format of few bits, beside that of its own."""
    return f"{name}:{format.name}"


@dataclass(frozen=True)
class ValueQParams:
    """The qparams of values that are read or given as integers.

    Attributes:
        placed: Where integers begin and end.
        bounds: Smallest and largest value of what was observed, by name or as `few_bits` names it.
        target: The table that is followed.
    """

    placed: Placement
    bounds: Mapping[str, tuple[float, float]]
    target: Target

    def of(self, value: Value, format: Format) -> QParams:
        """Qparams of a value in one of the formats that it is read in."""
        root = self.placed.roots[value]
        line, node = self.placed.lines.get(root), root.producer
        if line is not None:
            return self._along(line, self.of(line.source, format))
        if (
            node is not None
            and node in self.placed.nodes
            and self.placed.nodes[node].form == "clipped-line"
        ):
            gate = self.gate(node, format) if node.is_op("HardSigmoid") else None
            if gate is not None:
                return gate
        low, high = self._range(root, format)
        fitted = self._fitted(root, low, high, format)
        return fitted or self.from_range(low, high, format, root.name)

    def from_range(self, low: float, high: float, format: Format, name: str) -> QParams:
        """Qparams of a range in the target's scheme."""
        return qparams_from_range(low, high, format, self.target.scheme_of(format), name=name)

    def error(self, value: Value, format: Format) -> float:
        """How much larger a line is than what its integers say: at most half a step."""
        line = self.placed.lines[value]
        read, given = self.of(line.source, format), self.of(value, format)
        steps = int(read.zero_point) - int(given.zero_point)
        return line.offset - steps * float(given.scale)

    def gate(self, node: Node, format: Format) -> QParams | None:
        """Qparams with which the integers that a HardSigmoid or HardSwish reads are its gate.

        Clipped between the zero-point and `opened`, that is. None where the integers of what it
        reads do not hold the point at which it closes.
        """
        line = line_of(node)
        assert line is not None
        if (
            self.placed.roots.get(line.source) is not line.source
            or line.source in self.placed.lines
        ):
            return None
        low, high = self._range(line.source, format)
        read = self._fitted(line.source, low, high, format)
        return None if read is None else self._along(line, read)

    def _along(self, line: Line, read: QParams) -> QParams:
        scale = np.asarray(read.scale * np.float32(line.slope), np.float32)
        zero = int(read.zero_point) - round(line.offset / float(scale))
        zero = min(max(zero, int(read.format.qmin)), int(read.format.qmax))
        return QParams(read.format, scale, np.asarray(zero, read.format.storage))

    def _range(self, root: Value, format: Format) -> tuple[float, float]:
        """The range of a value, with the points in it that lines behind it read as 0."""
        own = self.bounds.get(few_bits(root.name, format)) or self.bounds.get(root.name)
        low, high = known_range(root, self.placed, format) or own or self.bounds[root.name]
        zeros = list(self._zeros(root))
        return min([low, *zeros]), max([high, *zeros])

    def _zeros(self, value: Value) -> Iterator[float]:
        for use in value.uses:
            made = use.node.outputs[0]
            line = None if made is None else self.placed.lines.get(made)
            if line is not None and made is not None:
                yield line.zero
                yield from ((zero - line.offset) / line.slope for zero in self._zeros(made))

    def _fitted(self, value: Value, low: float, high: float, format: Format) -> QParams | None:
        """Qparams of a value of which a gate reads the very integers; None if none can.

        Below the point at which the gate closes all is as good as that point, where nothing else
        reads the value.
        """
        gates = [n for n in _readers(value) if self._is_gate(n)]
        lines = {(g.slope, g.offset) for n in gates if (g := line_of(n))}
        if len(lines) != 1 or format.bits != 8 or self.target.scheme_of(format) != ZERO_POINT:
            return None
        # What clips before it goes only where the range ends where it clips.
        maker = next(iter(self.placed.integer.get(value, ())), None)
        if maker is None or maker is not value.producer or value.graph.opset < _FIRST_OPSET:
            return None
        # What a gate gives ends where the gate clips.
        if maker.is_op("HardSigmoid") and self._is_gate(maker):
            return None
        slope, offset = lines.pop()
        closed, opened = -offset / slope, (1 - offset) / slope
        if not closed < 0 < opened:
            return None
        if self._is_gated(value, gates):
            low = max(low, closed)
            if all(n.is_op("HardSigmoid") for n in _readers(value)):
                high = min(high, opened)
        low, high = min(low, 0.0), max(high, 0.0)
        widened = min(low, closed)
        levels = format.levels - 1
        if high - widened > _WIDENED * (high - low):
            return None
        steps = math.floor(-closed * levels / (high - widened) + 1e-3)
        if steps < _FEWEST_STEPS:
            return None
        scale = np.asarray(-closed / steps, np.float32)
        zero = int(format.qmin) + round(-widened / float(scale))
        return QParams(format, scale, np.asarray(zero, format.storage))

    def _is_gate(self, node: Node) -> bool:
        return node in self.placed.nodes and self.placed.nodes[node].form == "clipped-line"

    def _is_gated(self, value: Value, gates: list[Node]) -> bool:
        """Whether all that reads a value is gates, and its products with these."""
        opened = {gate.output for gate in gates if gate.is_op("HardSigmoid")}
        return not value.is_output and all(
            node in gates or (node.is_op("Mul") and not opened.isdisjoint(node.inputs))
            for node in _readers(value)
        )


def _readers(value: Value) -> list[Node]:
    return list(dict.fromkeys(use.node for use in value.uses))

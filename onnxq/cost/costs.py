"""What every node costs in every precision, and every border between integers and floats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxq.plain import Amount
from onnxq.saved import SavedAsJson


@dataclass(frozen=True)
class Costs(SavedAsJson):
    """A cost table.

    Attributes:
        kind: ``latency`` in milliseconds, ``size`` in bytes, or ``flops`` in weighted operations.
        model_sha256: Hash of the model it is for.
        measured_on: Where it was measured: processor, provider, threads, versions; empty if it
            was computed.
        nodes: Cost by node name and precision.
        borders: By value name, cost of turning it into integers and of turning it into floats.
    """

    schema = "onnxq/costs/1"
    what = "cost table"
    remedy = "measure again"

    kind: str
    model_sha256: str
    measured_on: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, Amount]] = field(default_factory=dict)
    borders: Mapping[str, tuple[Amount, Amount]] = field(default_factory=dict)

    def of(self, node: str, precision: str) -> float:
        """Cost of a node in a precision; 0 for one that the table does not know."""
        return self.nodes.get(node, {}).get(precision, 0.0)

    def border(self, value: str) -> tuple[float, float]:
        """Cost of quantizing and of dequantizing a value."""
        return self.borders.get(value, (0.0, 0.0))

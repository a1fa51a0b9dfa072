"""What every node costs in every precision, and every border between integers and floats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxq.plain import Amount, entry
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
        passes: Float passes that made the graph whose nodes these are; empty if not known.
        opset: The opset of that graph.
    """

    schema = "onnxq/costs/1"
    what = "cost table"
    remedy = "measure again"

    kind: str
    model_sha256: str
    measured_on: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, Amount]] = field(default_factory=dict)
    borders: Mapping[str, tuple[Amount, Amount]] = field(default_factory=dict)
    passes: str = entry(sparse=True, default="")
    opset: int = entry(sparse=True, default=0)

    def of(self, node: str, precision: str) -> float:
        """Cost of a node in a precision; 0 for one that the table does not know."""
        return self.nodes.get(node, {}).get(precision, 0.0)

    def border(self, value: str) -> tuple[float, float]:
        """Cost of quantizing and of dequantizing a value."""
        return self.borders.get(value, (0.0, 0.0))

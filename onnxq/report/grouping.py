"""Views of a report that more than one of its forms show."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from onnxq.precision import available_precisions, parse_precision
from onnxq.verify.result import LayerFacts, Report


@dataclass(frozen=True)
class LeftInFloat:
    """Operators that stayed in float for one reason, in node order."""

    reason: str
    layers: tuple[LayerFacts, ...]

    @property
    def operators(self) -> Counter[str]:
        """How many of each operator."""
        return Counter(layer.op_type for layer in self.layers)


def left_in_float(layers: Iterable[LayerFacts]) -> tuple[LeftInFloat, ...]:
    """Operators with a reason, by reason; the reason that holds back most comes first.

    A plan has reasons for what it quantizes, too: those are left out.
    """
    known = (parse_precision(name) for name in available_precisions())
    quantized = {precision.described for precision in known if precision.weight_bits < 16}
    by_reason: dict[str, list[LayerFacts]] = {}
    for layer in layers:
        if layer.reason and layer.precision not in quantized:
            by_reason.setdefault(layer.reason, []).append(layer)
    groups = [LeftInFloat(reason, tuple(found)) for reason, found in by_reason.items()]
    return tuple(sorted(groups, key=lambda group: -len(group.layers)))


def weakest(layers: Iterable[LayerFacts], most: int) -> tuple[LayerFacts, ...]:
    """The layers with the lowest finite SQNR, lowest first."""
    measured = [(layer.sqnr_db, layer) for layer in layers if layer.sqnr_db is not None]
    ordered = sorted(measured, key=lambda pair: pair[0])
    return tuple(layer for sqnr, layer in ordered[:most] if sqnr < float("inf"))


def methods(report: Report) -> list[tuple[str, int, float]]:
    """Each method, on how many nodes it was used, and the median of its gains in dB."""
    gains: dict[str, list[float]] = {}
    for found in report.methods:
        gains.setdefault(found.method, []).append(found.gain_db)
    return [(method, len(own), statistics.median(own)) for method, own in gains.items()]

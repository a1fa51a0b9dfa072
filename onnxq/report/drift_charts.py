"""Charts of what an adaptive session saw, see `onnxq.report.pieces`."""

from __future__ import annotations

from typing import Any

from onnxq.adaptive.replay import Distribution, Replay
from onnxq.report import words
from onnxq.report.pieces import (
    Chart,
    axes_of,
    chart,
    curve,
    distribution,
    histogram,
    line,
    text,
)


def drifted(found: Distribution) -> Chart:
    """The values of a tensor when a bundle was made, and since an alarm."""
    middles = [(a + b) / 2 for a, b in zip(found.edges, found.edges[1:], strict=False)]
    width = (found.edges[-1] - found.edges[0]) / max(len(middles), 1)
    data = [
        histogram("when the bundle was made", middles, found.usual, width, "--float"),
        histogram("since the alarm", middles, found.now, width, "--accent") | {"opacity": 0.7},
    ]
    return distribution(data, (found.low, found.high))


def evidence(found: Replay) -> Chart:
    """Evidence for drift over requests, and what happened; an alarm is raised at 1."""
    points = [(_middle_of(own), max(own.evidence, 1e-4)) for own in found.stretches]
    data = [curve("evidence for drift", points, "--accent", "circle")]
    axes = axes_of("request", "evidence, of what raises an alarm")
    axes["yaxis"] |= {"type": "log", "exponentformat": "power"}
    shapes = [line("y", 1.0, "--bad", dash="dash"), *_marks(found)]
    return chart(data, {**axes, "shapes": shapes, "showlegend": False}, 260)


def nearness(found: Replay) -> Chart:
    """How often answers agreed with float over requests, and their metric if it is a share."""
    agreed = [(_middle_of(own), own.nearness.agreement) for own in found.stretches]
    data = [curve("agreement with float", agreed, "--accent", "circle")]
    if found.metric is not None and words.is_share(found.metric):
        values = [(_middle_of(own), own.value) for own in found.stretches]
        data.append(curve(text(found.metric), values, "--few", "square"))
    axes = axes_of("request", "")
    axes["yaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    return chart(data, {**axes, "shapes": _marks(found), "showlegend": True}, 260)


def _middle_of(stretch: Any) -> float:
    return float(stretch.first + stretch.last) / 2


def _marks(found: Replay) -> list[dict[str, Any]]:
    return [
        line("x", own.request, "--bad" if own.kind == "drift" else "--good", dash="dot")
        for own in found.happenings
    ]

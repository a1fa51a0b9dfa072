"""What an adaptive session saw and did, as an HTML page."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from onnxq.adaptive.replay import Distribution, Replay
from onnxq.report import words
from onnxq.report.pages import render

HTML_NAME = "watch.html"

_DECADES = 4
"""Powers of ten that evidence is drawn up to, above and below what raises an alarm."""


class Line(NamedTuple):
    """A line of a chart: its colour, what it is, and its points from 0 to 1."""

    kind: str
    label: str
    points: list[tuple[float, float]]


def summary(found: Replay) -> str:
    """The whole in one sentence."""
    parts = [
        f"{words.count(found.requests, 'request')}, {found.nearness.sampled:,} looked at: "
        f"{words.count(found.alarms, 'alarm')}, {words.count(found.changes, 'change')}"
    ]
    if found.nearness.sampled:
        parts.append(f"to float: {words.nearness(found.nearness)}")
    if found.metric is not None:
        parts.append(f"{found.metric}: {words.measured(found.metric, found.value)}")
    return "; ".join(parts)


def to_html(found: Replay, bundle: str, data: str) -> str:
    """One page: drift and agreement over time, what happened, and values then and now."""
    return render(
        "watch.html.jinja",
        found=found,
        bundle=Path(bundle).name,
        data=Path(data).name,
        summary=summary(found),
        evidence=[_evidence(found)],
        shares=list(_shares(found)),
        marks=[(own.request / max(found.requests, 1), own.kind) for own in found.happenings],
        charts=[(own, _tallest(own)) for own in found.distributions],
    )


def _evidence(found: Replay) -> Line:
    """Evidence on a logarithmic scale, in the middle of which an alarm is raised."""
    least = 10.0**-_DECADES
    points = [
        (x, min(math.log10(max(y, least)) / (2 * _DECADES) + 0.5, 1.0))
        for x, y in _points(found, [own.evidence for own in found.stretches])
    ]
    return Line("candidate", "evidence for drift", points)


def _shares(found: Replay) -> Iterator[Line]:
    agreement = [own.nearness.agreement for own in found.stretches]
    yield Line("candidate", "agreement with float", _points(found, agreement))
    if found.metric is not None and words.is_share(found.metric):
        yield Line("other", found.metric, _points(found, [own.value for own in found.stretches]))


def _points(found: Replay, values: list[float] | list[float | None]) -> list[tuple[float, float]]:
    """What is known of each stretch, where its middle lies."""
    return [
        ((own.first + own.last) / 2 / max(found.requests, 1), value)
        for own, value in zip(found.stretches, values, strict=True)
        if value is not None
    ]


def _tallest(found: Distribution) -> float:
    return max(*found.usual, *found.now)

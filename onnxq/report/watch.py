"""What an adaptive session saw and did, as an HTML page."""

from __future__ import annotations

from pathlib import Path

from onnxq.adaptive.replay import Replay
from onnxq.report import words
from onnxq.report.pages import render

HTML_NAME = "watch.html"


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
    )

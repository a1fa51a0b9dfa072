"""What a time budget left out, in words."""

from __future__ import annotations

from onnxq.report import words
from onnxq.verify.result import Report


def omission(report: Report) -> tuple[str, ...]:
    """A sentence on what was not tried for want of time; none if everything was."""
    found = [
        f"{entry.what} for {words.count(len(entry.nodes), 'node')}" if entry.nodes else entry.what
        for entry in report.untried
    ]
    return (f"The time budget was over before these were tried: {', '.join(found)}.",) * bool(found)

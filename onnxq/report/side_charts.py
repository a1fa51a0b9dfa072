"""Charts of several runs, see `onnxq.report.pieces`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from onnxq.report import words
from onnxq.report.pieces import (
    SYMBOLS,
    Chart,
    axes_of,
    chart,
    rounded,
    text,
)
from onnxq.verify.result import Report


def runs(reports: Mapping[str, Report]) -> Chart:
    """Several runs by speed and by how near they are to float."""
    data = []
    for place, (name, report) in enumerate(reports.items()):
        if report.latency is None or not report.outputs:
            continue
        data.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "name": text(name),
                "text": [text(name)],
                "textposition": "top center",
                "x": [rounded(report.latency.speedup)],
                "y": [rounded(min(report.sqnr_db, 120.0))],
                "marker": {
                    "size": 14,
                    "color": "--accent",
                    "symbol": SYMBOLS[place % len(SYMBOLS)],
                },
                "hovertemplate": f"{text(name)}: %{{x:.2f}}×, {words.decibels(report.sqnr_db)}"
                "<extra></extra>",
            }
        )
    axes = axes_of("speedup over float", "output SQNR in dB")
    return chart(data, {**axes, "showlegend": False}, 340)


def sides(reports: Mapping[str, Report]) -> Chart:
    """SQNR of the layers that all runs have by name, in the order of the first."""
    sqnr = {
        name: {n.node: n.sqnr_db for n in report.layers if n.sqnr_db is not None}
        for name, report in reports.items()
    }
    shared = [
        node for node in next(iter(sqnr.values()), {}) if all(node in s for s in sqnr.values())
    ]
    finite = [s[n] for s in sqnr.values() for n in shared if math.isfinite(s[n])]
    top = max([10.0, *finite]) * 1.05
    shades = (
        "--accent",
        "--few",
        "--act16",
        "--weight8",
        "--other",
        "--half",
        "--dynamic",
        "--float",
    )
    data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": text(name),
            "x": list(range(1, len(shared) + 1)),
            "y": [rounded(max(min(own[n], top), -top)) for n in shared],
            "customdata": [text(n) for n in shared],
            "marker": {"symbol": SYMBOLS[at % len(SYMBOLS)], "color": shades[at % len(shades)]},
            "line": {"width": 1, "color": shades[at % len(shades)]},
            "hovertemplate": "%{customdata}: %{y:.1f} dB<extra>%{fullData.name}</extra>",
        }
        for at, (name, own) in enumerate(sqnr.items())
    ]
    axes = axes_of("operators that all have, in node order", "SQNR in dB")
    return chart(data, {**axes, "showlegend": True}, 320)

"""Charts of one run, see `onnxq.report.pieces`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from onnxq.report import words
from onnxq.report.certainty import allowed_drops
from onnxq.report.pieces import (
    SYMBOLS,
    Chart,
    above,
    axes_of,
    chart,
    colour,
    curve,
    distribution,
    histogram,
    line,
    room,
    rounded,
    short,
    text,
)
from onnxq.tune.training import TrainingFacts
from onnxq.verify.result import LayerFacts, MetricFacts, Report, TensorFacts

_SENSITIVE = 30
"""Most nodes of a ranking that are drawn."""

MOST_LAYERS = 4000
"""Layers whose error is drawn, at most."""


def drop(metric: MetricFacts, report: Report) -> Chart:
    """The drop of the metric with its interval, and what is allowed."""
    unit = 100.0 if words.is_share(metric.name) else 1.0
    ends = [end * unit for end in metric.confidence or () if math.isfinite(end)]
    at = metric.drop * unit if math.isfinite(metric.drop) else None
    point: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": [at],
        "y": [0],
        "marker": {"size": 14, "color": "--accent"},
        "hovertemplate": f"drop {text(words.metric_drop(metric, metric.drop))}<extra></extra>",
    }
    if at is not None and len(ends) == 2:
        point["error_x"] = {
            "type": "data",
            "symmetric": False,
            "array": [ends[1] - at],
            "arrayminus": [at - ends[0]],
            "color": "--accent",
            "thickness": 3,
            "width": 10,
        }
    bounds = [bound * unit for bound in allowed_drops(metric, report.gates)]
    shapes = [line("x", 0.0, "--soft"), *(line("x", b, "--bad", dash="dash") for b in bounds)]
    notes = [above(0.0, "no change", "--soft")]
    notes += [above(b, f"allowed {words.number(b)}", "--bad") for b in bounds]
    title = "drop in points: to the right is worse" if unit > 1 else "drop: to the right is worse"
    layout = {
        "xaxis": {"title": {"text": title}, "range": room([0.0, at, *ends, *bounds])},
        "yaxis": {"visible": False, "range": [-1, 1]},
        "shapes": shapes,
        "annotations": notes,
        "showlegend": False,
        "margin": {"t": 34, "l": 16, "r": 16},
    }
    return chart([point], layout, 170)


def layers(found: Sequence[LayerFacts]) -> Chart:
    """SQNR of every layer in node order, of many the lowest; no difference is at the top."""
    measured = [(at, n) for at, n in enumerate(found, 1) if n.sqnr_db is not None]
    measured = sorted(sorted(measured, key=lambda pair: pair[1].sqnr_db or 0.0)[:MOST_LAYERS])
    finite = [n.sqnr_db for _, n in measured if n.sqnr_db is not None and math.isfinite(n.sqnr_db)]
    low, high = min([0.0, *finite]), max([10.0, *finite]) * 1.05
    data = []
    for place, precision in enumerate(dict.fromkeys(n.precision for _, n in measured)):
        own = [(at, n, n.sqnr_db or 0.0) for at, n in measured if n.precision == precision]
        own = [entry for entry in own if not math.isnan(entry[2])]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": text(precision),
                "x": [at for at, _, _ in own],
                "y": [rounded(min(max(sqnr, low), high)) for _, _, sqnr in own],
                "customdata": [
                    [text(n.node), text(n.op_type), words.decibels(sqnr)] for _, n, sqnr in own
                ],
                "marker": {
                    "color": f"--{colour(precision)}",
                    "symbol": SYMBOLS[place % len(SYMBOLS)],
                    "size": 7 if len(found) <= 500 else 5,
                },
                "hovertemplate": "%{customdata[0]}<br>%{customdata[1]}, %{fullData.name}: "
                "%{customdata[2]}<extra></extra>",
            }
        )
    axes = axes_of("operator, in node order", "SQNR in dB")
    axes["yaxis"]["range"] = [low * 1.05, high * 1.02]
    return chart(data, {**axes, "showlegend": True}, 320)


def sensitivity(found: Sequence[LayerFacts]) -> Chart:
    """The nodes that lose most in the precision they have, the worst at the top."""
    measured = [(n.sensitivity, n) for n in found if n.sensitivity and math.isfinite(n.sensitivity)]
    worst = sorted(measured, key=lambda pair: -pair[0])[:_SENSITIVE]
    return bars(
        [(n.node, loss, f"{n.op_type}, {n.precision}", n.precision) for loss, n in worst],
        "predicted loss",
    )


def bars(
    found: Sequence[tuple[str, float, str, str]], title: str, colours: Mapping[str, str] = {}
) -> Chart:
    """Bars below each other on a logarithmic scale: label, length, what hovering adds, and kind.

    Kinds are precisions, unless ``colours`` has them.
    """
    data = []
    for kind in dict.fromkeys(entry[3] for entry in found):
        own = [(at, *entry) for at, entry in enumerate(found) if entry[3] == kind]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": text(kind),
                "y": [at for at, *_ in own],
                "x": [rounded(length) for _, _, length, *_ in own],
                "customdata": [[text(name), text(more)] for _, name, _, more, _ in own],
                "marker": {"color": colours.get(kind) or f"--{colour(kind)}"},
                "hovertemplate": "%{customdata[0]}<br>%{customdata[1]}: %{x:.4g}<extra></extra>",
            }
        )
    lengths = [length for _, length, *_ in found if length > 0]
    axes = axes_of(title, "")
    axes["xaxis"]["exponentformat"] = "power"
    axes["xaxis"]["type"] = "log" if lengths and max(lengths) > 30 * min(lengths) else "linear"
    axes["yaxis"] |= {
        "tickmode": "array",
        "tickvals": list(range(len(found))),
        "ticktext": [short(name) for name, *_ in found],
        "range": [len(found) - 0.4, -0.6],
        "automargin": True,
        "showgrid": False,
    }
    layout = {**axes, "showlegend": len(data) > 1, "bargap": 0.25, "barmode": "overlay"}
    return chart(data, layout, 90 + 20 * len(found))


def front(report: Report) -> Chart:
    """Candidates by speed and by how near they are to float, and those that none beats in both."""
    found = [
        (c, words.loss("noise", c.predicted_loss), _decibels(c.predicted_loss))
        for c in report.candidates
        if math.isfinite(c.speedup)
    ]
    measured = [
        c.sqnr_db for c, _, _ in found if c.sqnr_db is not None and math.isfinite(c.sqnr_db)
    ]
    top = max([10.0, *measured, *(d for _, _, d in found if math.isfinite(d))]) * 1.05
    ordered = sorted(found, key=lambda entry: (-entry[0].speedup, -entry[2]))
    best = accumulate((d for _, _, d in ordered), max)
    kept = [(c.speedup, d) for (c, _, d), b in zip(ordered, best, strict=True) if d >= b]
    corners = [*dict.fromkeys(kept)]
    marks = {"size": 11, "color": "--accent"}
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": "none is better in both",
            "x": [rounded(speed) for speed, _ in corners],
            "y": [rounded(min(d, top)) for _, d in corners],
            "line": {"shape": "vh", "dash": "dot", "color": "--soft"},
            "hoverinfo": "skip",
        },
        _points("predicted", [(c, d, said) for c, said, d in found], top)
        | {"marker": {**marks, "symbol": "circle-open"}},
        _points(
            "measured",
            [
                (c, c.sqnr_db, words.decibels(c.sqnr_db))
                for c, _, _ in found
                if c.sqnr_db is not None
            ],
            top,
        )
        | {"marker": {**marks, "symbol": "diamond"}},
    ]
    winner = [
        (c, d if c.sqnr_db is None else c.sqnr_db, "in this report")
        for c, _, d in found
        if c.chosen
    ]
    if winner:
        ring = {"size": 22, "color": "--good", "symbol": "circle-open", "line": {"width": 3}}
        data.append(_points("chosen", winner, top) | {"marker": ring})
    axes = axes_of("speedup over float", "SQNR in dB: higher is nearer to float")
    return chart(data, {**axes, "showlegend": True}, 360)


def _points(name: str, found: Sequence[tuple[Any, float, str]], top: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [rounded(c.speedup) for c, _, _ in found],
        "y": [rounded(min(d, top)) for _, d, _ in found],
        "customdata": [[text(c.label), said] for c, _, said in found],
        "hovertemplate": "%{customdata[0]}<br>%{x:.2f}×, %{customdata[1]}<extra>%{fullData.name}"
        "</extra>",
    }


def tensor(found: TensorFacts) -> Chart:
    """Where the values of a tensor lie, and what its range leaves out."""
    width = (found.last - found.first) / max(len(found.shares), 1)
    middles = [found.first + (at + 0.5) * width for at in range(len(found.shares))]
    inside = [found.low <= x <= found.high for x in middles]
    data = [
        histogram(name, middles, shares, width, shade)
        for name, shade, wanted in (("in range", "--accent", True), ("clipped", "--bad", False))
        for shares in [
            [s if i is wanted else 0.0 for s, i in zip(found.shares, inside, strict=True)]
        ]
        if any(shares)
    ]
    return distribution(data, (found.low, found.high))


def methods(report: Report) -> Chart:
    """What each method gained, node by node."""
    names = [*dict.fromkeys(m.method for m in report.methods)]
    data = []
    for at, name in enumerate(names):
        own = [m for m in report.methods if m.method == name and math.isfinite(m.gain_db)]
        data.append(
            {
                "type": "box",
                "name": text(name),
                "x": [rounded(m.gain_db) for m in own],
                "y": [at] * len(own),
                "orientation": "h",
                "boxpoints": "all",
                "pointpos": 0,
                "jitter": 0.4,
                "customdata": [text(m.node) for m in own],
                "marker": {"color": "--accent", "size": 6, "opacity": 0.7},
                "line": {"color": "--soft"},
                "fillcolor": "rgba(0,0,0,0)",
                "hovertemplate": "%{customdata}: %{x:.2f} dB<extra></extra>",
            }
        )
    axes = axes_of("gain in dB: less error in what the node gives", "")
    axes["yaxis"] |= {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [short(name) for name in names],
        "automargin": True,
        "range": [len(names) - 0.4, -0.6],
    }
    return chart(data, {**axes, "showlegend": False}, 100 + 60 * len(names))


def training(found: TrainingFacts) -> Chart:
    """Losses by epoch, in training and on data never trained on, and the score if there is one."""
    epochs = found.history
    data = [
        curve("loss in training", [(e.epoch, e.loss) for e in epochs], "--float", "circle"),
        curve(
            "loss on data never trained on",
            [(e.epoch, e.held_out_loss) for e in epochs],
            "--accent",
            "diamond",
        ),
    ]
    axes = axes_of("epoch", "loss")
    axes["yaxis"]["rangemode"] = "tozero"
    if any(e.score is not None for e in epochs):
        score = curve("accuracy", [(e.epoch, e.score) for e in epochs], "--few", "square")
        data.append(score | {"yaxis": "y2"})
        second = {"overlaying": "y", "side": "right", "tickformat": ".0%", "showgrid": False}
        axes["yaxis2"] = {**second, "title": {"text": "accuracy on held-out data"}}
    best = line("x", float(found.best), "--good", dash="dash")
    note = above(float(found.best), f"epoch {found.best} was kept", "--good")
    layout = {**axes, "shapes": [best], "annotations": [note], "margin": {"t": 34}}
    return chart(data, {**layout, "showlegend": True}, 320)


def _decibels(loss: float) -> float:
    """What is not known counts as the worst."""
    if math.isnan(loss):
        return -math.inf
    return -10 * math.log10(loss) if loss > 0 else math.inf

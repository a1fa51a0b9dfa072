"""Charts of a report as plotly takes them: plain data, in which colours are the style sheet's.

A colour is written as the name of a property of the style sheet, as ``--int8``, which the page's
script looks up: so charts follow light, dark and print. Plotly reads marks in text, so whatever
comes from a model goes through `text`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeAlias

from onnxq.adaptive.replay import Distribution, Replay
from onnxq.report import words
from onnxq.report.certainty import allowed_drops
from onnxq.tune.training import TrainingFacts
from onnxq.verify.result import LayerFacts, MetricFacts, Report, TensorFacts

Chart: TypeAlias = dict[str, Any]
"""``data`` and ``layout`` for plotly, and ``height`` in pixels."""

_SENSITIVE = 30
"""Most nodes of a ranking that are drawn."""

_LABEL = 26
"""Characters of a label beside bars."""

MOST_LAYERS = 4000
"""Layers whose error is drawn, at most."""

_SYMBOLS = ("circle", "diamond", "square", "cross", "triangle-up", "x", "star", "pentagon")

_KINDS: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("half", lambda p: p.startswith(("float16", "bfloat16"))),
    ("float", lambda p: p.startswith(("float", "double", "unknown"))),
    ("index", lambda p: p in ("bool", "string", "int32", "int64", "uint32", "uint64")),
    ("int8", lambda p: p == "int8"),
    ("dynamic", lambda p: p == "int8-dynamic"),
    ("weight8", lambda p: p in ("int8-weight", "q8_0")),
    ("act16", lambda p: p == "int16-act"),
    ("few", lambda p: p.endswith("-weight") or p == "q4_0"),
)


def colour(precision: str) -> str:
    """The style sheet's name for the colour of a precision."""
    return next((kind for kind, holds in _KINDS if holds(precision)), "other")


def text(name: str) -> str:
    """A name that plotly shows as it is."""
    return html.escape(words.printable(name), quote=False)


def _short(name: str) -> str:
    return text(words.shortened(words.printable(name), _LABEL))


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
    shapes = [_line("x", 0.0, "--soft"), *(_line("x", b, "--bad", dash="dash") for b in bounds)]
    notes = [_above(0.0, "no change", "--soft")]
    notes += [_above(b, f"allowed {words.number(b)}", "--bad") for b in bounds]
    title = "drop in points: to the right is worse" if unit > 1 else "drop: to the right is worse"
    layout = {
        "xaxis": {"title": {"text": title}, "range": _room([0.0, at, *ends, *bounds])},
        "yaxis": {"visible": False, "range": [-1, 1]},
        "shapes": shapes,
        "annotations": notes,
        "showlegend": False,
        "margin": {"t": 34, "l": 16, "r": 16},
    }
    return _chart([point], layout, 170)


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
                "y": [_rounded(min(max(sqnr, low), high)) for _, _, sqnr in own],
                "customdata": [
                    [text(n.node), text(n.op_type), words.decibels(sqnr)] for _, n, sqnr in own
                ],
                "marker": {
                    "color": f"--{colour(precision)}",
                    "symbol": _SYMBOLS[place % len(_SYMBOLS)],
                    "size": 7 if len(found) <= 500 else 5,
                },
                "hovertemplate": "%{customdata[0]}<br>%{customdata[1]}, %{fullData.name}: "
                "%{customdata[2]}<extra></extra>",
            }
        )
    axes = _axes("operator, in node order", "SQNR in dB")
    axes["yaxis"]["range"] = [low * 1.05, high * 1.02]
    return _chart(data, {**axes, "showlegend": True}, 320)


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
                "x": [_rounded(length) for _, _, length, *_ in own],
                "customdata": [[text(name), text(more)] for _, name, _, more, _ in own],
                "marker": {"color": colours.get(kind) or f"--{colour(kind)}"},
                "hovertemplate": "%{customdata[0]}<br>%{customdata[1]}: %{x:.4g}<extra></extra>",
            }
        )
    lengths = [length for _, length, *_ in found if length > 0]
    axes = _axes(title, "")
    axes["xaxis"]["exponentformat"] = "power"
    axes["xaxis"]["type"] = "log" if lengths and max(lengths) > 30 * min(lengths) else "linear"
    axes["yaxis"] |= {
        "tickmode": "array",
        "tickvals": list(range(len(found))),
        "ticktext": [_short(name) for name, *_ in found],
        "range": [len(found) - 0.4, -0.6],
        "automargin": True,
        "showgrid": False,
    }
    layout = {**axes, "showlegend": len(data) > 1, "bargap": 0.25, "barmode": "overlay"}
    return _chart(data, layout, 90 + 20 * len(found))


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
            "x": [_rounded(speed) for speed, _ in corners],
            "y": [_rounded(min(d, top)) for _, d in corners],
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
    axes = _axes("speedup over float", "SQNR in dB: higher is nearer to float")
    return _chart(data, {**axes, "showlegend": True}, 360)


def _points(name: str, found: Sequence[tuple[Any, float, str]], top: float) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [_rounded(c.speedup) for c, _, _ in found],
        "y": [_rounded(min(d, top)) for _, d, _ in found],
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
        _histogram(name, middles, shares, width, shade)
        for name, shade, wanted in (("in range", "--accent", True), ("clipped", "--bad", False))
        for shares in [
            [s if i is wanted else 0.0 for s, i in zip(found.shares, inside, strict=True)]
        ]
        if any(shares)
    ]
    return _distribution(data, (found.low, found.high))


def drifted(found: Distribution) -> Chart:
    """The values of a tensor when a bundle was made, and since an alarm."""
    middles = [(a + b) / 2 for a, b in zip(found.edges, found.edges[1:], strict=False)]
    width = (found.edges[-1] - found.edges[0]) / max(len(middles), 1)
    data = [
        _histogram("when the bundle was made", middles, found.usual, width, "--float"),
        _histogram("since the alarm", middles, found.now, width, "--accent") | {"opacity": 0.7},
    ]
    return _distribution(data, (found.low, found.high))


def _histogram(
    name: str, middles: Sequence[float], shares: Sequence[float], width: float, shade: str
) -> dict[str, Any]:
    seen = [(x, s) for x, s in zip(middles, shares, strict=True) if s > 0]
    return {
        "type": "bar",
        "name": name,
        "x": [_rounded(x) for x, _ in seen],
        "y": [_rounded(s) for _, s in seen],
        "width": _rounded(width),
        "marker": {"color": shade},
        "hovertemplate": "around %{x:.4g}: %{y:.3%}<extra>%{fullData.name}</extra>",
    }


def _distribution(data: list[dict[str, Any]], ends: tuple[float, float]) -> Chart:
    axes = _axes("value", "share of values")
    axes["yaxis"] |= {"type": "log", "tickformat": "~%", "dtick": 1}
    shapes = [_line("x", end, "--bad", dash="dash") for end in ends if math.isfinite(end)]
    layout = {**axes, "shapes": shapes, "barmode": "overlay", "bargap": 0}
    return _chart(data, {**layout, "showlegend": len(data) > 1}, 220)


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
                "x": [_rounded(m.gain_db) for m in own],
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
    axes = _axes("gain in dB: less error in what the node gives", "")
    axes["yaxis"] |= {
        "tickmode": "array",
        "tickvals": list(range(len(names))),
        "ticktext": [_short(name) for name in names],
        "automargin": True,
        "range": [len(names) - 0.4, -0.6],
    }
    return _chart(data, {**axes, "showlegend": False}, 100 + 60 * len(names))


def training(found: TrainingFacts) -> Chart:
    """Losses by epoch, in training and on data never trained on, and the score if there is one."""
    epochs = found.history
    data = [
        _curve("loss in training", [(e.epoch, e.loss) for e in epochs], "--float", "circle"),
        _curve(
            "loss on data never trained on",
            [(e.epoch, e.held_out_loss) for e in epochs],
            "--accent",
            "diamond",
        ),
    ]
    axes = _axes("epoch", "loss")
    axes["yaxis"]["rangemode"] = "tozero"
    if any(e.score is not None for e in epochs):
        score = _curve("accuracy", [(e.epoch, e.score) for e in epochs], "--few", "square")
        data.append(score | {"yaxis": "y2"})
        second = {"overlaying": "y", "side": "right", "tickformat": ".0%", "showgrid": False}
        axes["yaxis2"] = {**second, "title": {"text": "accuracy on held-out data"}}
    best = _line("x", float(found.best), "--good", dash="dash")
    note = _above(float(found.best), f"epoch {found.best} was kept", "--good")
    layout = {**axes, "shapes": [best], "annotations": [note], "margin": {"t": 34}}
    return _chart(data, {**layout, "showlegend": True}, 320)


def evidence(found: Replay) -> Chart:
    """Evidence for drift over requests, and what happened; an alarm is raised at 1."""
    points = [(_middle_of(own), max(own.evidence, 1e-4)) for own in found.stretches]
    data = [_curve("evidence for drift", points, "--accent", "circle")]
    axes = _axes("request", "evidence, of what raises an alarm")
    axes["yaxis"] |= {"type": "log", "exponentformat": "power"}
    shapes = [_line("y", 1.0, "--bad", dash="dash"), *_marks(found)]
    return _chart(data, {**axes, "shapes": shapes, "showlegend": False}, 260)


def nearness(found: Replay) -> Chart:
    """How often answers agreed with float over requests, and their metric if it is a share."""
    agreed = [(_middle_of(own), own.nearness.agreement) for own in found.stretches]
    data = [_curve("agreement with float", agreed, "--accent", "circle")]
    if found.metric is not None and words.is_share(found.metric):
        values = [(_middle_of(own), own.value) for own in found.stretches]
        data.append(_curve(text(found.metric), values, "--few", "square"))
    axes = _axes("request", "")
    axes["yaxis"] |= {"tickformat": ".0%", "rangemode": "tozero"}
    return _chart(data, {**axes, "shapes": _marks(found), "showlegend": True}, 260)


def _middle_of(stretch: Any) -> float:
    return float(stretch.first + stretch.last) / 2


def _marks(found: Replay) -> list[dict[str, Any]]:
    return [
        _line("x", own.request, "--bad" if own.kind == "drift" else "--good", dash="dot")
        for own in found.happenings
    ]


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
                "x": [_rounded(report.latency.speedup)],
                "y": [_rounded(min(report.sqnr_db, 120.0))],
                "marker": {
                    "size": 14,
                    "color": "--accent",
                    "symbol": _SYMBOLS[place % len(_SYMBOLS)],
                },
                "hovertemplate": f"{text(name)}: %{{x:.2f}}×, {words.decibels(report.sqnr_db)}"
                "<extra></extra>",
            }
        )
    axes = _axes("speedup over float", "output SQNR in dB")
    return _chart(data, {**axes, "showlegend": False}, 340)


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
            "y": [_rounded(max(min(own[n], top), -top)) for n in shared],
            "customdata": [text(n) for n in shared],
            "marker": {"symbol": _SYMBOLS[at % len(_SYMBOLS)], "color": shades[at % len(shades)]},
            "line": {"width": 1, "color": shades[at % len(shades)]},
            "hovertemplate": "%{customdata}: %{y:.1f} dB<extra>%{fullData.name}</extra>",
        }
        for at, (name, own) in enumerate(sqnr.items())
    ]
    axes = _axes("operators that all have, in node order", "SQNR in dB")
    return _chart(data, {**axes, "showlegend": True}, 320)


def _curve(
    name: str, points: Iterable[tuple[float, float | None]], shade: str, symbol: str
) -> dict[str, Any]:
    known = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [_rounded(x) for x, _ in known],
        "y": [_rounded(y) for _, y in known],
        "line": {"color": shade, "width": 2},
        "marker": {"color": shade, "symbol": symbol, "size": 8},
        "hovertemplate": "%{x:.4g}: %{y:.4g}<extra>%{fullData.name}</extra>",
    }


def _chart(data: list[dict[str, Any]], layout: dict[str, Any], height: int) -> Chart:
    return {"data": _known(data), "layout": _known(layout), "height": height}


def _known(value: Any) -> Any:
    """Plain data without infinite numbers and NaN, which JSON has no form for: none is drawn."""
    if isinstance(value, dict):
        return {key: _known(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_known(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _axes(x: str, y: str) -> dict[str, Any]:
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}


def _line(axis: str, at: float, shade: str, **style: str) -> dict[str, Any]:
    """A line across the whole chart."""
    other = "y" if axis == "x" else "x"
    ends = {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1}
    line = {"color": shade, "width": 1.5, **style}
    return {"type": "line", **ends, f"{other}ref": "paper", "line": line}


def _above(x: float, said: str, shade: str) -> dict[str, Any]:
    place = {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
    return {**place, "text": said, "font": {"color": shade}}


def _room(marks: Iterable[float | None]) -> list[float]:
    known = [mark for mark in marks if mark is not None and math.isfinite(mark)]
    margin = 0.12 * (max(known) - min(known) or 1.0)
    return [min(known) - margin, max(known) + margin]


def _decibels(loss: float) -> float:
    """What is not known counts as the worst."""
    if math.isnan(loss):
        return -math.inf
    return -10 * math.log10(loss) if loss > 0 else math.inf


def _rounded(number: float) -> float:
    """Six significant digits: no chart shows more."""
    return float(f"{number:.6g}")

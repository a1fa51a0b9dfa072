"""What charts consist of, as plotly takes it: plain data, in which colours are the style sheet's.

A colour is written as the name of a property of the style sheet, as ``--int8``, which the page's
script looks up: so charts follow light, dark and print. Plotly reads marks in text, so whatever
comes from a model goes through `text`.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from onnxq.report import words

Chart: TypeAlias = dict[str, Any]
"""``data`` and ``layout`` for plotly, and ``height`` in pixels."""

_LABEL = 26
"""Characters of a label beside bars."""

SYMBOLS = ("circle", "diamond", "square", "cross", "triangle-up", "x", "star", "pentagon")

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


def short(name: str) -> str:
    """A name beside bars: shortened, and as plotly shows it."""
    return text(words.shortened(words.printable(name), _LABEL))


def curve(
    name: str, points: Iterable[tuple[float, float | None]], shade: str, symbol: str
) -> dict[str, Any]:
    """A line with marks; points without a finite number are left out."""
    known = [(x, y) for x, y in points if y is not None and math.isfinite(y)]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [rounded(x) for x, _ in known],
        "y": [rounded(y) for _, y in known],
        "line": {"color": shade, "width": 2},
        "marker": {"color": shade, "symbol": symbol, "size": 8},
        "hovertemplate": "%{x:.4g}: %{y:.4g}<extra>%{fullData.name}</extra>",
    }


def histogram(
    name: str, middles: Sequence[float], shares: Sequence[float], width: float, shade: str
) -> dict[str, Any]:
    """Shares of values as bars; those of none are left out."""
    seen = [(x, s) for x, s in zip(middles, shares, strict=True) if s > 0]
    return {
        "type": "bar",
        "name": name,
        "x": [rounded(x) for x, _ in seen],
        "y": [rounded(s) for _, s in seen],
        "width": rounded(width),
        "marker": {"color": shade},
        "hovertemplate": "around %{x:.4g}: %{y:.3%}<extra>%{fullData.name}</extra>",
    }


def distribution(data: list[dict[str, Any]], ends: tuple[float, float]) -> Chart:
    """A chart of histograms, with the ends of what can be held."""
    axes = axes_of("value", "share of values")
    axes["yaxis"] |= {"type": "log", "tickformat": "~%", "dtick": 1}
    shapes = [line("x", end, "--bad", dash="dash") for end in ends if math.isfinite(end)]
    layout = {**axes, "shapes": shapes, "barmode": "overlay", "bargap": 0}
    return chart(data, {**layout, "showlegend": len(data) > 1}, 220)


def chart(data: list[dict[str, Any]], layout: dict[str, Any], height: int) -> Chart:
    """A chart of plain data: what JSON has no form for is not drawn."""
    return {"data": _known(data), "layout": _known(layout), "height": height}


def _known(value: Any) -> Any:
    """Plain data without infinite numbers and NaN, which JSON has no form for: none is drawn."""
    if isinstance(value, dict):
        return {key: _known(own) for key, own in value.items()}
    if isinstance(value, list):
        return [_known(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def axes_of(x: str, y: str) -> dict[str, Any]:
    """Axes with these titles."""
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}


def line(axis: str, at: float, shade: str, **style: str) -> dict[str, Any]:
    """A line across the whole chart."""
    other = "y" if axis == "x" else "x"
    ends = {f"{axis}0": at, f"{axis}1": at, f"{other}0": 0, f"{other}1": 1}
    line = {"color": shade, "width": 1.5, **style}
    return {"type": "line", **ends, f"{other}ref": "paper", "line": line}


def above(x: float, said: str, shade: str) -> dict[str, Any]:
    """Words above a line across the chart."""
    place = {"x": x, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
    return {**place, "text": said, "font": {"color": shade}}


def room(marks: Iterable[float | None]) -> list[float]:
    """The ends of an axis that shows all marks with some room beside them."""
    known = [mark for mark in marks if mark is not None and math.isfinite(mark)]
    margin = 0.12 * (max(known) - min(known) or 1.0)
    return [min(known) - margin, max(known) + margin]


def rounded(number: float) -> float:
    """Six significant digits: no chart shows more."""
    return float(f"{number:.6g}")

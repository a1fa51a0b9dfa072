"""Inline SVG for the HTML report; colours and fonts come from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from onnxq.report.words import decibels, printable
from onnxq.verify.result import LayerFacts

_WIDTH = 640
_ROW = 46
_CHART_HEIGHT, _CHART_LEFT, _CHART_TOP, _CHART_BOTTOM = 210, 46, 10, 26
_WIDEST_BAR = 26.0
_RANK_ROW, _RANK_LEFT, _RANK_RIGHT, _RANK_NAME = 19, 300, 90, 44


@dataclass(frozen=True)
class Bar:
    """One labelled bar; ``kind`` is ``float`` or ``candidate``."""

    label: str
    value: float
    text: str
    kind: str


def bars(rows: Sequence[Bar], title: str) -> str:
    """Horizontal bars from zero, with label and value above each."""
    longest = max((row.value for row in rows if math.isfinite(row.value)), default=0.0)
    parts = []
    for position, row in enumerate(rows):
        top = position * _ROW
        length = _share(row.value, longest) * _WIDTH
        parts.append(
            f'<text x="0" y="{top + 14}">{escape(row.label)}</text>'
            f'<text class="strong" x="{_WIDTH}" y="{top + 14}" text-anchor="end">'
            f"{escape(row.text)}</text>"
            f'<rect class="f-{row.kind}" x="0" y="{top + 21}" width="{max(length, 2.0):.1f}" '
            'height="14" rx="3"/>'
        )
    return _svg(len(rows) * _ROW - 8, title, "".join(parts))


@dataclass(frozen=True)
class Ranked:
    """One thin bar of a ranking; ``kind`` is a colour of the style sheet."""

    label: str
    value: float
    text: str
    kind: str


def ranking(rows: Sequence[Ranked], title: str) -> str:
    """Thin horizontal bars from zero, label to the left and value to the right of each.

    A long label is cut in its middle: names of nodes differ at their ends.
    """
    longest = max((row.value for row in rows), default=0.0)
    parts = []
    for position, row in enumerate(rows):
        top = position * _RANK_ROW
        label = row.label
        if len(label) > _RANK_NAME:
            half = _RANK_NAME // 2
            label = f"{label[:half]}…{label[-half:]}"
        length = _share(row.value, longest) * (1000 - _RANK_LEFT - _RANK_RIGHT)
        parts.append(
            f'<text x="{_RANK_LEFT - 8}" y="{top + 13}" text-anchor="end">{escape(label)}</text>'
            f'<rect class="f-{row.kind}" x="{_RANK_LEFT}" y="{top + 3}" '
            f'width="{max(length, 1.5):.1f}" height="12" rx="2">'
            f"<title>{escape(f'{row.label}: {row.text}')}</title></rect>"
            f'<text class="strong" x="{_RANK_LEFT + max(length, 1.5) + 8:.1f}" y="{top + 13}">'
            f"{escape(row.text)}</text>"
        )
    return _svg(len(rows) * _RANK_ROW, title, "".join(parts), width=1000)


def strip(value: float, longest: float, kind: str) -> str:
    """A bar for a table cell; nothing but its length is shown."""
    width = _share(value, longest) * 100.0
    return (
        '<svg class="strip" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="f-{kind}" width="{max(width, 1.0):.1f}" height="10"/></svg>'
    )


def interval(
    value: float,
    limits: tuple[float, float] | None,
    bounds: Sequence[tuple[float, str]],
    show: Callable[[float], str],
    title: str,
) -> str:
    """A value with its confidence interval on an axis through zero.

    Args:
        value: What was measured.
        limits: Its interval, if it has one.
        bounds: Positions of promises and what to write there.
        show: Writes a number on the axis.
        title: What the figure says, for those who cannot see it.
    """
    marks = [0.0, value, *(limits or ()), *(at for at, _ in bounds)]
    finite = [mark for mark in marks if math.isfinite(mark)]
    low, high = min(finite), max(finite)
    span = (high - low) or max(abs(high), 1.0)
    low, high = low - 0.08 * span, high + 0.08 * span

    def x(mark: float) -> float:
        inside = min(max(mark, low), high) if not math.isnan(mark) else low
        return float(24 + (inside - low) / (high - low) * (_WIDTH - 48))

    axis = 52
    parts = [
        f'<line x1="0" y1="{axis}" x2="{_WIDTH}" y2="{axis}"/>',
        f'<line class="zero" x1="{x(0):.1f}" y1="30" x2="{x(0):.1f}" y2="{axis + 12}"/>',
        f'<text x="{x(0):.1f}" y="{axis + 27}" text-anchor="middle">no change</text>',
    ]
    for at, label in bounds:
        side = "end" if x(at) > _WIDTH / 2 else "start"
        parts.append(
            f'<line class="bound" x1="{x(at):.1f}" y1="24" x2="{x(at):.1f}" y2="{axis + 12}"/>'
            f'<text x="{x(at):.1f}" y="16" text-anchor="{side}">{escape(label)}</text>'
        )
    if limits is not None:
        ends = [x(limit) for limit in limits]
        parts.append(
            f'<line class="interval" x1="{ends[0]:.1f}" y1="{axis}" x2="{ends[1]:.1f}" '
            f'y2="{axis}"/>'
        )
        parts += [
            f'<text x="{end:.1f}" y="{axis + 44}" text-anchor="{anchor}">{escape(show(limit))}'
            "</text>"
            for end, limit, anchor in zip(ends, limits, ("middle", "middle"), strict=True)
        ]
    parts.append(f'<circle class="f-candidate" cx="{x(value):.1f}" cy="{axis}" r="7"/>')
    return _svg(axis + 48, title, "".join(parts))


def layer_chart(layers: Sequence[LayerFacts], kinds: dict[str, str]) -> str:
    """SQNR of every layer in node order, one bar a layer, coloured by precision.

    A layer without any difference reaches the top; one without SQNR leaves a gap.
    """
    finite = [s for layer in layers if (s := layer.sqnr_db) is not None and math.isfinite(s)]
    step = 10 if max(finite, default=0.0) <= 60 else 20
    top = max(step, math.ceil(max(finite, default=0.0) / step) * step)
    height = _CHART_HEIGHT - _CHART_TOP - _CHART_BOTTOM
    base = _CHART_TOP + height
    parts = []
    for tick in range(0, top + 1, step):
        y = base - tick / top * height
        parts.append(
            f'<line x1="{_CHART_LEFT}" y1="{y:.1f}" x2="1000" y2="{y:.1f}"/>'
            f'<text x="{_CHART_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick}</text>'
        )
    pitch = min((1000 - _CHART_LEFT) / max(len(layers), 1), _WIDEST_BAR)
    for position, layer in enumerate(layers):
        if layer.sqnr_db is None:
            continue
        length = _share(layer.sqnr_db, float(top)) * height
        name = escape(printable(f"{layer.node}: {decibels(layer.sqnr_db)}, {layer.precision}"))
        parts.append(
            f'<rect class="f-{kinds[layer.precision]}" x="{_CHART_LEFT + position * pitch:.2f}" '
            f'y="{base - max(length, 1.5):.1f}" width="{pitch * 0.78:.2f}" '
            f'height="{max(length, 1.5):.1f}"><title>{name}</title></rect>'
        )
    parts.append(f'<text x="{_CHART_LEFT}" y="{base + 20}">SQNR in dB; first to last node</text>')
    title = f"SQNR of {len(layers)} layers in node order"
    return _svg(_CHART_HEIGHT, title, "".join(parts), width=1000)


def key(kind: str) -> str:
    """A small square in a colour, for a legend."""
    return (
        '<svg viewBox="0 0 10 10" aria-hidden="true">'
        f'<rect class="f-{kind}" width="10" height="10" rx="2"/></svg>'
    )


def _share(value: float, longest: float) -> float:
    """Length of a bar as a share of the longest; infinite values are as long as any."""
    if value == math.inf:
        return 1.0
    if longest <= 0.0 or not math.isfinite(value):
        return 0.0
    return min(max(value / longest, 0.0), 1.0)


def _svg(height: float, title: str, body: str, *, width: int = _WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="{escape(title)}">'
        f"{body}</svg>"
    )

"""The ranking of a sensitivity analysis as an HTML page."""

from __future__ import annotations

import math
from pathlib import Path

from onnxq.report import words
from onnxq.report.pages import render, share
from onnxq.sensitivity import NodeSensitivity, Sensitivity

HTML_NAME = "sensitivity.html"

_DRAWN = 40
"""Most nodes of a precision that are drawn; the table lists all."""


def to_html(found: Sensitivity, model: str) -> str:
    """One page: for every precision a chart of the most sensitive nodes, and a table of all."""
    nodes = {node.node: node for node in found.nodes}
    rankings = []
    for precision in found.precisions():
        ranking = [(nodes[name], loss) for name, loss in found.ranking(precision)]
        bars = _bars(ranking, precision, found.proxy)
        rankings.append((precision, ranking, bars))
    name = Path(model).name
    return render("sensitivity.html.jinja", found=found, model=name, rankings=rankings)


def _bars(
    ranking: list[tuple[NodeSensitivity, float]], precision: str, proxy: str
) -> list[dict[str, object]]:
    noisy = [(node, loss) for node, loss in ranking if loss > 0][:_DRAWN]
    return [
        {
            "label": node.node,
            "text": words.loss(proxy, loss),
            "share": share(_height(proxy, loss), _height(proxy, noisy[0][1])),
            "kind": _kind(node, precision),
        }
        for node, loss in noisy
    ]


def _kind(node: NodeSensitivity, precision: str) -> str:
    weights = node.part(precision, "weights") or 0.0
    activations = node.part(precision, "activations") or 0.0
    return "other" if weights > activations else "candidate"


def _height(proxy: str, loss: float) -> float:
    """Losses span orders of magnitude: their logarithm, from where nobody would notice."""
    floor = 1e-9 if proxy == "noise" else 1e-12
    return max(0.0, math.log10(max(loss, floor) / floor))

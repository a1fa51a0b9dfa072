"""The ranking of a sensitivity analysis as an HTML page."""

from __future__ import annotations

from pathlib import Path

from onnxq.report import charts, words
from onnxq.report.pages import render
from onnxq.report.pieces import Chart
from onnxq.sensitivity import NodeSensitivity, Sensitivity

HTML_NAME = "sensitivity.html"

_DRAWN = 40
"""Most nodes of a precision that are drawn; the table lists all."""

_WEIGHTS, _ACTIVATIONS, _ALL = "mostly from its weights", "mostly from its activations", "loss"
_COLOURS = {_WEIGHTS: "--few", _ACTIVATIONS: "--accent", _ALL: "--accent"}


def to_html(found: Sensitivity, model: str) -> str:
    """One page: for every precision a chart of the most sensitive nodes, and a table of all."""
    nodes = {node.node: node for node in found.nodes}
    rankings = []
    for precision in found.precisions():
        ranking = [(nodes[name], loss) for name, loss in found.ranking(precision)]
        rankings.append((precision, ranking, _chart(found, ranking, precision)))
    name = Path(model).name
    return render("sensitivity.html.jinja", found=found, model=name, rankings=rankings)


def _chart(
    found: Sensitivity, ranking: list[tuple[NodeSensitivity, float]], precision: str
) -> Chart | None:
    noisy = [(node, loss) for node, loss in ranking if loss > 0][:_DRAWN]
    bars = [
        (
            node.node,
            loss,
            f"{node.op_type}, {words.loss(found.proxy, loss)}",
            _kind(node, precision) if found.method == "suffix" else _ALL,
        )
        for node, loss in noisy
    ]
    return charts.bars(bars, "loss", _COLOURS) if bars else None


def _kind(node: NodeSensitivity, precision: str) -> str:
    weights = node.part(precision, "weights") or 0.0
    activations = node.part(precision, "activations") or 0.0
    return _WEIGHTS if weights > activations else _ACTIVATIONS

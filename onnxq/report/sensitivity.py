"""The ranking of a sensitivity analysis as an HTML page."""

from __future__ import annotations

import math
from pathlib import Path

from onnxq.report import figures, page, words
from onnxq.saved import write_text
from onnxq.sensitivity import NodeSensitivity, Sensitivity

HTML_NAME = "sensitivity.html"

_DRAWN = 40
"""Most nodes of a precision that are drawn; the table lists all."""


def to_html(found: Sensitivity, model: str) -> str:
    """One page: for every precision a chart of the most sensitive nodes, and a table of all."""
    name = Path(model).name
    how = f"{found.method} on {words.count(found.samples, 'sample')}"
    if found.method == "suffix":
        how += f"; rankings by two halves of them agree to {found.reliability:.2f}"
    head = (
        f"<header><div><h1>Sensitivity of {page.text(name)}</h1>"
        f'<p class="soft">{page.text(how)}</p></div></header>\n'
    )
    sections = "".join(_section(found, precision) for precision in found.precisions())
    return page.page(f"{name} - onnxq sensitivity", head + sections)


def write_html(found: Sensitivity, path: Path, model: str) -> None:
    """Write `to_html`, complete or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, to_html(found, model))


def _section(found: Sensitivity, precision: str) -> str:
    nodes = {node.node: node for node in found.nodes}
    ranking = [(nodes[name], loss) for name, loss in found.ranking(precision)]
    noisy = [(node, loss) for node, loss in ranking if loss > 0][:_DRAWN]
    chart = ""
    if noisy:
        rows = [
            figures.Ranked(
                words.printable(node.node),
                _height(found.proxy, loss),
                words.loss(found.proxy, loss),
                _kind(node, precision),
            )
            for node, loss in noisy
        ]
        what = "SQNR that quantizing this node alone leaves" if _is_noise(found) else "loss"
        legend = "".join(
            f'<span class="key">{figures.key(kind)}{label}</span>'
            for kind, label in (
                ("candidate", "mostly from its activations"),
                ("other", "mostly from its weights"),
            )
            if found.method == "suffix"
        )
        caption = f"{what[0].upper()}{what[1:]}, the most sensitive first: a longer bar loses more."
        chart = (
            f"<figure>{figures.ranking(rows, f'ranking of nodes in {precision}')}"
            f"<figcaption>{caption} {legend}</figcaption></figure>"
        )
    return page.section(page.text(precision), chart + _table(found, precision, ranking), long=True)


def _table(found: Sensitivity, precision: str, ranking: list[tuple[NodeSensitivity, float]]) -> str:
    rows = [
        [
            page.number(f"{place}"),
            f'<td class="name mono">{page.text(node.node)}</td>',
            f'<td class="fixed">{page.text(node.op_type)}</td>',
            page.number(words.loss(found.proxy, node.part(precision, "weights"))),
            page.number(words.loss(found.proxy, node.part(precision, "activations"))),
            page.number(words.loss(found.proxy, loss)),
        ]
        for place, (node, loss) in enumerate(ranking, start=1)
    ]
    columns = ["#", "node", "operator", "#weights only", "#activations only", "#both"]
    return page.table(columns, rows)


def _kind(node: NodeSensitivity, precision: str) -> str:
    weights = node.part(precision, "weights") or 0.0
    activations = node.part(precision, "activations") or 0.0
    return "other" if weights > activations else "candidate"


def _height(proxy: str, loss: float) -> float:
    """Losses span orders of magnitude: their logarithm, from where nobody would notice."""
    floor = 1e-9 if proxy == "noise" else 1e-12
    return max(0.0, math.log10(max(loss, floor) / floor))


def _is_noise(found: Sensitivity) -> bool:
    return found.proxy == "noise"

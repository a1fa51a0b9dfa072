"""The page of a sensitivity analysis: every node, bars by loss, safe names."""

from __future__ import annotations

import pytest

from onnxq.report.sensitivity import to_html
from onnxq.sensitivity import NodeSensitivity, Sensitivity
from tests.report.hostile import SCRIPT, hostile_report, is_clean
from tests.report.test_html import ALLOWED, Page, own


def an_analysis(*losses: tuple[float, float], names: str = "n{}", **changes: str) -> Sensitivity:
    """Nodes with these losses of weights and of activations in int8."""
    nodes = tuple(
        NodeSensitivity(
            names.format(place),
            "Conv",
            {"weights:int8": weights, "activations:int8": activations},
            {"int8": ("weights:int8", "activations:int8")},
        )
        for place, (weights, activations) in enumerate(losses)
    )
    settings = {"proxy": "noise", "method": "suffix", **changes}
    return Sensitivity("aa", samples=12, reliability=0.987, nodes=nodes, **settings)


def bars(html: str) -> dict[str, list[float]]:
    """Lengths of the bars of the first chart, by what they are."""
    charts = Page(html).data
    return {own["name"]: own["x"] for own in charts[0]["data"]} if charts else {}


def test_every_node_has_a_row_and_the_most_sensitive_comes_first() -> None:
    page = Page(to_html(an_analysis((1e-5, 0.0), (1e-3, 1e-2)), "some/where/m.onnx"))
    assert page.rows == [
        ["#", "node", "operator", "weights only", "activations only", "both"],
        ["1", "n1", "Conv", "30.0 dB", "20.0 dB", "19.6 dB"],
        ["2", "n0", "Conv", "50.0 dB", "exact", "50.0 dB"],
    ]
    for part in ("Sensitivity of m.onnx", "12 samples", "agree to 0.99", "Noise over signal"):
        assert part in page.text


def test_bars_are_losses_in_the_colour_of_the_greater_part() -> None:
    html = to_html(an_analysis((1e-3, 0.0), (0.0, 1e-6), (0.0, 0.0)), "m.onnx")
    assert bars(html) == {"mostly from its weights": [1e-3], "mostly from its activations": [1e-6]}
    chart = Page(html).data[0]
    assert chart["layout"]["xaxis"]["type"] == "log"
    assert chart["data"][0]["customdata"] == [["n0", "Conv, 30.0 dB"]]


def test_the_page_of_another_proxy_and_method() -> None:
    text = Page(to_html(an_analysis((0.5, 0.25), proxy="kl", method="exhaustive"), "m.onnx")).text
    assert "Loss when this node alone is quantized" in text and "0.75" in text
    assert "mostly from" not in text and "agree" not in text


@pytest.mark.parametrize(("count", "drawn"), [(0, 0), (40, 40), (41, 40)])
def test_the_most_sensitive_of_many_nodes_are_drawn(count: int, drawn: int) -> None:
    html = to_html(an_analysis(*[(1e-4, 0.0)] * count), "m.onnx")
    assert len(bars(html).get("mostly from its weights", [])) == drawn
    assert sum(row[1].startswith("n") for row in Page(html).rows[1:]) == count


def test_long_names_keep_what_tells_them_apart() -> None:
    found = an_analysis((1e-3, 0.0), names="/model/features/stages/block.7/depthwise/conv{}/Conv")
    html = to_html(found, "m.onnx")
    (chart,) = Page(html).data
    assert chart["layout"]["yaxis"]["ticktext"] == ["/model…epthwise/conv0/Conv"]
    ((name, _),) = chart["data"][0]["customdata"]
    assert name == "/model/features/stages/block.7/depthwise/conv0/Conv"


def test_hostile_names_are_text() -> None:
    evil = hostile_report().layers[0].node
    node = NodeSensitivity(evil, evil, {f"weights:{evil}": 1e-3}, {evil: (f"weights:{evil}",)})
    html = to_html(Sensitivity("aa", "noise", "suffix", 1, 1.0, (node,)), f"{evil}.onnx")
    page = Page(html)
    assert set(page.tags) <= set(ALLOWED.split()) and is_clean(own(html))
    assert page.tags["script"] == len(page.data) + 3 and page.text.count(SCRIPT) >= 3

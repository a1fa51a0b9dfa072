"""The HTML report: complete, self-contained and safe."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from onnxq.report import to_html
from onnxq.verify import Report
from onnxq.verify.result import (
    CandidateFacts,
    GateFacts,
    LayerFacts,
    MethodFacts,
    MetricFacts,
    SizeFacts,
)
from tests.report.hostile import SCRIPT, hostile_report, is_clean
from tests.verify.reports import CANDIDATE, TRAINING, a_report

VOID = {"meta", "br", "hr", "img", "link", "input", "rect", "line", "circle"}
ALLOWED = """
html head meta title style body main header section h1 h2 p div dl dt dd span strong code figure
figcaption table thead tbody tr th td details summary svg text rect line circle
polyline
"""


class Page(HTMLParser):
    """Tags, attributes, table rows and the text of a page; fails on unbalanced tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"left open: {self._open}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-3:]}"
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "style":
            return
        self.words.append(data)
        if self.rows and {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data


def many_layers(count: int, reason: str = "") -> tuple[LayerFacts, ...]:
    kind = "float32" if reason else "int8"
    return tuple(LayerFacts(f"node_{i}", "Conv", kind, 20.0, None, reason) for i in range(count))


REPORTS: dict[str, Report] = {
    "usual": a_report(),
    "hostile": hostile_report(),
    "no metric": a_report(metric=None),
    "better": a_report(metric=MetricFacts("accuracy", 0.9, 0.95, -0.05, 450, (-0.1, 0.0))),
    "no interval": a_report(metric=MetricFacts("bits-per-byte", 2.0, 2.1, 0.1, 9, None)),
    "not finite": a_report(
        metric=MetricFacts("mine", 1.0, math.nan, math.nan, 9, (-math.inf, math.inf)),
        layers=(
            LayerFacts("a", "Conv", "int8", math.inf, math.inf, ""),
            LayerFacts("b", "Conv", "int8", -math.inf, None, ""),
            LayerFacts("c", "Conv", "int8", math.nan, None, ""),
        ),
    ),
    "no latency": a_report(latency=None, latencies=()),
    "bare": a_report(
        metric=None, latency=None, latencies=(), outputs=(), layers=(), gates=(), passes=()
    ),
    "not written": a_report(output=replace(CANDIDATE, path="", integer_operators={})),
    "compiled": a_report(output=replace(CANDIDATE, integer_operators={}, compiled=9)),
    "no memory known": a_report(peak_rss_bytes=0),
    "gates only": a_report(
        gates=(GateFacts("drop<=0.01", 0.0, True), GateFacts("drop>=-1", 0.0, True)), passed=True
    ),
    "trained": a_report(training=TRAINING),
    "not trained": a_report(training=replace(TRAINING, best=0, history=TRAINING.history[:1])),
    "large": a_report(layers=many_layers(1000, "for a reason")),
}


@pytest.mark.parametrize("name", REPORTS)
def test_every_page_is_well_formed_and_stands_alone(name: str) -> None:
    html = to_html(REPORTS[name])
    page = Page(html)
    assert set(page.tags) <= set(ALLOWED.split())
    assert html.startswith("<!DOCTYPE html>")
    assert not re.search(r"url\(|@import", html)
    for key, value in page.attributes:
        assert key not in ("src", "href", "xlink:href", "srcset", "action", "data", "style")
        assert not key.startswith("on"), f"an event handler: {key}"
        # What a mark's label says is never fetched.
        assert key == "aria-label" or "http" not in (value or "")
    for number in re.findall(r' (?:x|y|x1|x2|cx|width|height)="([^"]*)"', html):
        assert math.isfinite(float(number.rstrip("%")))


@pytest.mark.parametrize("name", sorted(set(REPORTS) - {"hostile"}))
def test_nothing_is_fetched(name: str) -> None:
    html = to_html(REPORTS[name])
    assert "http" not in html and "src=" not in html


def test_hostile_names_are_text() -> None:
    html = to_html(hostile_report())
    page = Page(html)
    assert "script" not in page.tags
    assert "<script" not in html.lower()
    # The names stand in headings, tables, figures and footers: everywhere as they are.
    assert page.text.count(SCRIPT) >= 15
    assert is_clean(html)
    assert "\\x00\\x1b[31m\\x9b\\u202e\\ufffe\\ud800" in html
    html.encode()


def test_every_figure_is_there() -> None:
    page = Page(to_html(a_report()))
    for part in (
        "q.onnx",
        "compared with m.onnx",
        "1 gate failed",
        "98.50 %",
        "float 99.00 %, drop 0.50 points",
        "1.50×",
        "3.00 ms → 2.00 ms on cpu",
        "4.00×",
        "4 kB → 1 kB",
        "35.5 dB",
        "loses 0.50 points of accuracy on 450 held-out samples; 95 % interval of the drop: "
        "-0.20 to 1.20 points.",
        "allowed: 1.00 points",
        "candidate on cuda",
        "2.50 ms (1.20×)",
        "4,000 and 1,000 bytes",
        "com.microsoft:QLinearConv",
        "onnx 1",
        "Took 1.50 s, at most 123 B of memory.",
        "int8 × 1",
        "float32 × 1",
    ):
        assert part in page.text, part


def test_every_gate_layer_output_pass_and_model_has_a_row() -> None:
    rows = Page(to_html(a_report())).rows
    assert ["drop<=0.01", "0.005", "held"] in rows
    assert ["speedup>=2", "not measured", "failed"] in rows
    reason = "target cpu-x64 does not quantize Exp"
    assert ["1", "c", "Conv", "int8", "40.0 dB", "", "", ""] in rows
    assert ["2", "e", "Exp", "float32", "", "", "0.5", reason] in rows
    assert ["y", "35.5 dB", "0.999900", "0.25"] in rows
    assert ["z", "exact", "1.000000", "0"] in rows
    assert [reason, "1", "Exp 1", "e"] in rows
    assert ["insert-qdq", "2", "250 ms"] in rows
    assert ["float", "m.onnx", "7", "17", "aa"] in rows
    assert ["candidate", "q.onnx", "19", "17", "bb"] in rows


def test_every_gate_that_limits_the_drop_is_drawn() -> None:
    gates = ("drop<0.02", "drop<=0.03", "drop>=-0.04", "sqnr<=0.05")
    page = Page(to_html(a_report(gates=tuple(GateFacts(expr, 0.0, True) for expr in gates))))
    assert re.findall("allowed: (.*?) points", page.text) == ["2.00", "3.00"]


def test_candidates_of_a_search_and_notes() -> None:
    candidates = (
        CandidateFacts("all <int8>", 3.0, 1e-3, 29.5, 0.002),
        CandidateFacts("plan", 2.0, 0.0, None, None),
    )
    page = Page(to_html(a_report(candidates=candidates, notes=("Only up to <1> point.",))))
    assert ["all <int8>", "3.00×", "30.0 dB", "29.5 dB", "0.20 points"] in page.rows
    assert ["plan", "2.00×", "exact", "", ""] in page.rows
    assert "Only up to <1> point." in page.text
    assert "Candidates" not in to_html(a_report())


def test_methods() -> None:
    page = Page(to_html(a_report(methods=(MethodFacts("b", "gptq<>", 3.0, 1.0),))))
    assert ["gptq<>", "1", "3.0 dB"] in page.rows
    assert "<h2>Methods" not in to_html(a_report())


def test_training_is_drawn_and_listed() -> None:
    html = to_html(a_report(training=TRAINING))
    page = Page(html)
    assert page.tags["polyline"] == 2
    assert ["1", "0.4", "0.25", "90.00 %", "0.0005"] in page.rows
    # From 0 to the largest loss: half as high is half way up.
    assert "46.0,14.0 516.0,99.0" in html
    assert (
        "80.00 % -> 90.00 % (epoch 1; 640 samples changed at random (flip, crop), 12.5 s on cpu)"
        in page.text
    )
    assert "Training" not in to_html(a_report())


def test_sensitivity_has_a_column_only_where_there_is_some() -> None:
    layers = tuple(replace(layer, sensitivity=None) for layer in a_report().layers)
    assert "sensitivity" in to_html(a_report())
    assert "sensitivity" not in to_html(a_report(layers=layers))


@pytest.mark.parametrize("count", [300, 301])
def test_all_of_many_layers_are_there_but_folded_away(count: int) -> None:
    html = to_html(a_report(layers=many_layers(count)))
    rows = [row for row in Page(html).rows if len(row) > 2 and row[2] == "Conv"]
    assert [row[1] for row in rows] == [f"node_{i}" for i in range(count)]
    assert ("<details open>" in html) == (count == 300)


@pytest.mark.parametrize("count", [12, 13])
def test_many_names_of_one_reason_are_folded_away(count: int) -> None:
    page = Page(to_html(a_report(layers=many_layers(count, "why"))))
    (row,) = (row for row in page.rows if row[0] == "why")
    assert row[1] == str(count)
    assert ("show nodes" in row[3]) == (count == 13)
    assert row[3].count("node_") == count


@pytest.mark.parametrize(
    ("gates", "verdict"),
    [
        ((), "no gates were set"),
        ((GateFacts("drop<=1", 0.0, True),), "every gate held"),
        ((GateFacts("drop<=1", 2.0, False),), "1 gate failed"),
        ((GateFacts("drop<=1", 2.0, False), GateFacts("sqnr>=9", 2.0, False)), "2 gates failed"),
    ],
)
def test_the_verdict(gates: tuple[GateFacts, ...], verdict: str) -> None:
    assert verdict in Page(to_html(a_report(gates=gates))).text


def test_a_gain_is_called_a_gain() -> None:
    text = Page(to_html(REPORTS["better"])).text
    assert "gains 5.00 points of accuracy" in text and "loses" not in text


def test_a_larger_candidate_is_called_larger() -> None:
    text = Page(to_html(a_report(size=SizeFacts(1000, 4000, 0.25)))).text
    assert "larger by 4.00×" in text and "smaller" not in text
    assert "smaller by 4.00×" in Page(to_html(a_report())).text


def test_missing_parts_leave_no_empty_sections() -> None:
    text = Page(to_html(REPORTS["bare"])).text
    for heading in ("Gates", "Drop of", "Latency", "Outputs", "Layers", "Left in float", "Passes"):
        assert heading not in text
    assert "Size" in text
    assert "None: everything runs in float." in Page(to_html(REPORTS["not written"])).text
    assert "not written" in Page(to_html(REPORTS["not written"])).text
    assert "of memory" not in Page(to_html(REPORTS["no memory known"])).text


def heights(html: str) -> list[float]:
    """Heights of the bars of the layer chart, which are those with a title."""
    found = re.findall(r'<rect class="f-[^>]*height="([\d.]+)"><title>', html)
    return [float(height) for height in found]


def test_bars_of_layers_are_as_high_as_their_sqnr() -> None:
    layers = [LayerFacts(str(s), "Conv", "int8", s, None, "") for s in (10.0, 20.0, 30.0, math.inf)]
    layers.append(LayerFacts("none", "Exp", "float32", None, None, ""))
    low, middle, high, exact = heights(to_html(a_report(layers=tuple(layers))))
    assert middle == pytest.approx(2 * low, abs=0.11)
    assert high == pytest.approx(3 * low, abs=0.16)
    assert exact == pytest.approx(high, abs=0.11), "30 dB is the top of the axis"


def test_bars_of_latency_and_size_are_in_proportion() -> None:
    html = to_html(a_report())
    widths = re.findall(r'<rect class="f-\w+" x="0" y="\d+" width="([\d.]+)"', html)
    assert [float(w) for w in widths[:4]] == pytest.approx(
        [440, 440 * 2 / 3, 440, 440 * 2.5 / 3], abs=0.1
    )
    assert [float(w) for w in widths[4:]] == pytest.approx([440, 110], abs=0.1)


def test_the_interval_lies_around_the_drop() -> None:
    html = to_html(a_report())
    drop = float(re.findall(r'<circle[^>]*cx="([\d.]+)"', html)[0])
    low, high = map(
        float, re.findall(r'class="interval" x1="([\d.]+)" y1="\d+" x2="([\d.]+)"', html)[0]
    )
    zero = float(re.findall(r'class="zero" x1="([\d.]+)"', html)[0])
    bound = float(re.findall(r'class="bound" x1="([\d.]+)"', html)[0])
    assert low < zero < drop < bound < high
    # The axis is linear: -0.002, 0, 0.005, 0.01, 0.012.
    assert (drop - low) / (high - low) == pytest.approx(7 / 14, abs=1e-3)
    assert (zero - low) / (high - low) == pytest.approx(2 / 14, abs=1e-3)
    assert (bound - low) / (high - low) == pytest.approx(12 / 14, abs=1e-3)

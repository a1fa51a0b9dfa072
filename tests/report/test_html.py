"""The HTML report: complete, self-contained and safe."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections import Counter
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from typing import Any

import pytest
from plotly.graph_objects import Figure

from onnxq.report import to_html
from onnxq.report.headline import headline
from onnxq.verify import Report
from onnxq.verify.result import (
    CandidateFacts,
    EndFacts,
    GateFacts,
    GraphFacts,
    LatencyFacts,
    LayerFacts,
    MethodFacts,
    MetricFacts,
    SizeFacts,
    TensorFacts,
)
from tests.report.hostile import SCRIPT, hostile_report, is_clean
from tests.verify.reports import CANDIDATE, DEPLOYMENTS, METRIC, TRAINING, a_report

VOID = {"meta", "br", "hr", "img", "link", "input", "rect"}
ALLOWED = """
html head meta title style script body main header nav ul li a section h1 h2 h3 p div dl dt dd span
strong code pre br figure figcaption table thead tbody tr th td details summary svg text rect
canvas label input fieldset legend button output
"""


class Page(HTMLParser):
    """Tags, attributes, table rows, data and the text of a page; fails on unbalanced tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.labels: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"left open: {self._open}"
        self.data = [json.loads(text) for text in self.scripts if text.startswith("{")]

    def chart(self, label: str) -> Any:
        """The data of the chart whose label begins so."""
        charts = [own for own in self.data if "layout" in own]
        found = dict(zip(self.labels, charts, strict=True))
        return next(own for name, own in found.items() if name.startswith(label))

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if ("class", "chart") in attrs:
            self.labels.append(dict(attrs)["aria-label"] or "")
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
        if self._open and self._open[-1] in ("style", "script"):
            if self._open[-1] == "script":
                self.scripts.append(data)
            return
        self.words.append(data)
        if self.rows and {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data


def many_layers(count: int, reason: str = "") -> tuple[LayerFacts, ...]:
    kind = "float32" if reason else "int8"
    return tuple(LayerFacts(f"node_{i}", "Conv", kind, 20.0, None, reason) for i in range(count))


def full_of(value: float) -> Report:
    """A report in which no number but those of whole things is another one."""

    def filled(own: Any) -> Any:
        if is_dataclass(own):
            return replace(own, **{f.name: filled(getattr(own, f.name)) for f in fields(own)})
        if isinstance(own, tuple):
            return tuple(map(filled, own))
        return value if isinstance(own, float) else own

    candidates = (
        CandidateFacts("all int8", 3.0, 1e-3, 29.5, 0.002, True),
        CandidateFacts("weights", 2.0, 0.0, None, None),
    )
    gates = (GateFacts("drop<=inf", 0.0, True), GateFacts("drop<=0.1", 0.0, True))
    return filled(
        a_report(
            gates=gates,
            candidates=candidates,
            tensors=(TensorFacts("t", "c", 0.0, 1.0, -1.0, 1.0, (0.5, 0.5), 20.0, 0.5),),
            methods=(MethodFacts("c", "gptq", 3.0, 1.0),),
            training=TRAINING,
        )
    )


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
    **{f"all {value}": full_of(value) for value in (math.inf, -math.inf, math.nan, 1e308)},
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
    "deployed": a_report(deployments=DEPLOYMENTS, deploy="onnxruntime.InferenceSession()"),
    "trained": a_report(training=TRAINING),
    "not trained": a_report(training=replace(TRAINING, best=0, history=TRAINING.history[:1])),
    "drawn": a_report(
        graph=GraphFacts(((0, 1),), ("float[N]", ""), (1, 2), (), (EndFacts("x", (0,)),), ()),
        tensors=(TensorFacts("t", "c", 0.0, 1.0, -1.0, 1.0, (0.5, 0.5), math.inf, 0.5),),
        candidates=(CandidateFacts("all int8", 3.0, 1e-3, 29.5, 0.002, True),),
        methods=(MethodFacts("c", "gptq", 3.0, 1.0), MethodFacts("e", "awq", math.inf, 1.0)),
        command="onnxq compare",
    ),
    "large": a_report(layers=many_layers(1000, "for a reason")),
}


def own(html: str) -> str:
    """A page without what runs in it, the last of which are the scripts that are not data."""
    return html.partition("<script>")[0]


def test_deployments_are_a_table_below_the_line_that_loads_the_chosen_one() -> None:
    page = Page(to_html(REPORTS["deployed"]))
    assert "Deployment onnxruntime.InferenceSession() target, python" in page.text
    (chosen,) = (row for row in page.rows if row and row[0] == "openvino, ov/python")
    assert " ".join(chosen[1:8]) == (
        "1.24.1 (onnxruntime-openvino) all int8 2.50× 2.40 to 2.60 29.5 dB 0.00 points 1 kB"
    )
    assert " ".join(chosen[8].split()) == "chosen The provider leaves 3 operators to another one."
    (lost,) = (row for row in page.rows if row and row[0] == "nope/python")
    assert lost[1:] == ["", "", "", "", "", "", "", "'nope/python' cannot be started"]
    failed = Page(to_html(replace(REPORTS["deployed"], deploy="")))
    assert "Deployment target, python" in failed.text
    assert failed.tags["pre"] + 1 == page.tags["pre"]


@pytest.mark.parametrize("name", REPORTS)
def test_every_page_is_well_formed_and_stands_alone(name: str) -> None:
    html = to_html(REPORTS[name])
    page = Page(html)
    assert set(page.tags) <= set(ALLOWED.split())
    assert html.startswith("<!DOCTYPE html>")
    assert not re.search(r"url\(|@import", own(html))
    for key, value in page.attributes:
        assert key not in ("src", "xlink:href", "srcset", "action", "data", "style")
        assert key != "href" or (value or "").startswith("#")
        assert not key.startswith("on"), f"an event handler: {key}"
        # What a mark's label says is never fetched.
        assert key == "aria-label" or "http" not in (value or "") or "http-equiv" in (value or "")
    for number in re.findall(r' (?:x|y|x1|x2|cx|width|height)="([^"]*)"', own(html)):
        assert math.isfinite(float(number.rstrip("%")))
    for id in (value for key, value in page.attributes if key == "href"):
        assert f'id="{(id or "")[1:]}"' in html


@pytest.mark.parametrize("name", sorted(set(REPORTS) - {"hostile"}))
def test_nothing_is_fetched(name: str) -> None:
    html = own(to_html(REPORTS[name]))
    assert "http" not in html.replace("http-equiv", "") and "src=" not in html


def test_only_scripts_that_are_named_by_their_hash_run() -> None:
    """As the specification of content security policies has it: base64 of SHA-256 of the text."""
    page = Page(to_html(a_report()))
    (policy,) = (v for k, v in page.attributes if k == "content" and "script-src" in (v or ""))
    run = [text for text in page.scripts if not text.startswith("{")]
    digests = (hashlib.sha256(text.encode()).digest() for text in run)
    named = " ".join(f"'sha256-{base64.b64encode(own).decode()}'" for own in digests)
    assert policy is not None and policy.startswith("default-src 'none'; ")
    assert policy.endswith(f"script-src {named}") and len(run) == 3


def test_the_same_report_gives_the_same_page() -> None:
    assert to_html(a_report()) == to_html(Report.from_json(a_report().to_json()))


def test_hostile_names_are_text() -> None:
    html = to_html(hostile_report())
    page = Page(html)
    # Data and scripts of the page's own, and not one more.
    assert page.tags["script"] == len(page.scripts) == len(page.data) + 4
    assert len(re.findall("<script", own(html).lower())) == len(page.data)
    # The names stand in headings, tables, figures and footers: everywhere as they are.
    assert page.text.count(SCRIPT) >= 15
    assert is_clean(own(html))
    assert "\\x00\\x1b[31m\\x9b\\u202e\\ufffe\\ud800" in html
    html.encode()
    # Plotly reads marks in text, so they are written out; the drawing shows text as it is.
    (graph,) = (own for own in page.data if "nodes" in own)
    assert graph["nodes"][0][0].startswith(SCRIPT)
    charts = [json.dumps(own) for own in page.data if "layout" in own]
    assert not any("<script" in text for text in charts)
    assert any("&lt;script src='http://x/'&gt;" in text for text in charts)


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
    notes = page.chart("The candidate loses")["layout"]["annotations"]
    assert [note["text"] for note in notes] == ["no change", "allowed 2", "allowed 3"]
    assert [note["x"] for note in notes] == [0, 2, 3]


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
    assert "Methods</h2>" not in to_html(a_report())


def test_training_is_drawn_and_listed() -> None:
    page = Page(to_html(a_report(training=TRAINING)))
    assert ["1", "0.4", "0.25", "90.00 %", "0.0005"] in page.rows
    chart = page.chart("loss by epoch")
    loss, held_out, score = chart["data"]
    assert (loss["x"], loss["y"]) == ([1, 2], [0.4, 0.3])
    assert (held_out["x"], held_out["y"]) == ([0, 1], [0.5, 0.25]), "what is infinite is left out"
    assert (score["y"], score["yaxis"]) == ([0.8, 0.9, 0.0], "y2")
    assert [shape["x0"] for shape in chart["layout"]["shapes"]] == [1], "the epoch that was kept"
    assert (
        "80.00 % -> 90.00 % (epoch 1; 640 samples changed at random (flip, crop), 12.5 s on cpu)"
        in page.text
    )
    assert "Training" not in to_html(a_report())


def test_sensitivity_has_a_column_only_where_there_is_some() -> None:
    layers = tuple(replace(layer, sensitivity=None) for layer in a_report().layers)
    assert "sensitivity" in Page(to_html(a_report())).text
    assert "sensitivity" not in Page(to_html(a_report(layers=layers))).text


@pytest.mark.parametrize("count", [40, 41])
def test_all_of_many_layers_are_there_but_folded_away(count: int) -> None:
    html = to_html(a_report(layers=many_layers(count)))
    rows = [row for row in Page(html).rows if len(row) > 2 and row[2] == "Conv"]
    assert [row[1] for row in rows] == [f"node_{i}" for i in range(count)]
    assert ("<details open>" in html) == (count == 40)


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


def test_marks_of_layers_are_as_high_as_their_sqnr() -> None:
    layers = [LayerFacts(str(s), "Conv", "int8", s, None, "") for s in (10.0, 20.0, 30.0, math.inf)]
    layers.append(LayerFacts("none", "Exp", "float32", None, None, ""))
    layers.append(LayerFacts("half", "Exp", "float16", 25.0, None, ""))
    chart = Page(to_html(a_report(layers=tuple(layers)))).chart("SQNR of 5 layers")
    ints, halves = chart["data"]
    assert ints["x"] == [1, 2, 3, 4] and ints["y"][:3] == [10, 20, 30]
    assert 30 < ints["y"][3] <= chart["layout"]["yaxis"]["range"][1], "exact is at the top"
    assert ints["customdata"][3] == ["inf", "Conv", "exact"]
    assert (halves["x"], halves["y"], halves["name"]) == ([6], [25], "float16")


def test_bars_of_latency_and_size_are_in_proportion() -> None:
    html = to_html(a_report())
    bars = re.findall(r'<li><span>.*?</strong><svg.*?<rect class="f-\w+" width="([\d.]+)"', html)
    assert [float(width) for width in bars] == pytest.approx(
        [100, 200 / 3, 100, 250 / 3, 100, 25], abs=0.1
    )


def test_the_interval_of_a_speedup_is_told() -> None:
    cpu, cuda = a_report().latencies
    known = replace(cpu, confidence=(1.4, 1.6))
    assert (
        "interval of the speedup: 1.40 to 1.60." in Page(to_html(a_report(latencies=(known,)))).text
    )
    text = Page(to_html(a_report(latencies=(known, cuda)))).text
    assert "interval of the speedup on cpu: 1.40 to 1.60." in text
    assert text.count("interval of the speedup") == 1


def test_the_interval_lies_around_the_drop() -> None:
    (point,) = Page(to_html(a_report())).chart("The candidate loses")["data"]
    arms = point["error_x"]
    # In points: 0.5, from -0.2 to 1.2.
    assert point["x"] == [0.5]
    assert (arms["arrayminus"], arms["array"]) == ([pytest.approx(0.7)], [pytest.approx(0.7)])


def test_the_front_has_what_no_candidate_beats_in_both() -> None:
    candidates = (
        CandidateFacts("fast", 3.0, 1e-2, None, None),
        CandidateFacts("beaten", 2.0, 1e-1, None, None),
        CandidateFacts("better", 2.0, 1e-4, 38.0, 0.0, chosen=True),
        CandidateFacts("float", 1.0, 0.0, math.inf, 0.0),
    )
    page = Page(to_html(a_report(candidates=candidates)))
    front, predicted, measured, chosen = page.chart("speedup and SQNR of 4")["data"]
    assert front["x"] == [3, 2, 1] and front["y"][:2] == [20, 40]
    assert predicted["x"] == [3, 2, 2, 1] and predicted["customdata"][3] == ["float", "exact"]
    assert (measured["x"], chosen["x"], chosen["y"]) == ([2, 1], [2], [38])
    assert any(row[0] == "better chosen" for row in page.rows)


def test_distributions_have_what_is_clipped_apart() -> None:
    tensor = TensorFacts("conv<b>", "conv", -0.1, 1.1, -1.0, 3.0, (0.25, 0.5, 0.0, 0.25), 17.0, 0.5)
    page = Page(to_html(a_report(tensors=(tensor,))))
    inside, clipped = page.chart("values of conv<b>")["data"]
    assert (inside["x"], inside["y"]) == ([0.5], [0.5])
    assert (clipped["x"], clipped["y"]) == ([-0.5, 2.5], [0.25, 0.25])
    assert "17.0 dB; range -0.1 to 1.1, values -1 to 3, 50.00 % clipped" in page.text
    assert "Distributions" not in to_html(a_report())


def test_what_was_typed_is_there() -> None:
    page = Page(to_html(a_report(command="onnxq optimize 'a <b>.onnx'")))
    assert "Again with onnxq optimize 'a <b>.onnx'" in page.text
    assert "Again with" not in to_html(a_report())


def test_a_page_of_very_many_operators_is_below_8_megabytes() -> None:
    """The graph of 12,000 operators is the largest that is described."""
    count = 12_000
    reason = "for a reason that is as long as reasons are: alone leaves an SQNR of 50.1 dB"
    layers = tuple(
        LayerFacts(f"/model/layers.{i // 50}/block/node_{i}", "Conv", "float32", 20.0, 1e-3, reason)
        for i in range(count)
    )
    links = tuple((i, i + 1) for i in range(count - 1))
    types = ("float[N, 64, 56, 56]",) * count
    graph = GraphFacts(links, types, (1,) * count, (), (), (EndFacts("y", (count - 1,)),))
    html = to_html(a_report(layers=layers, graph=graph))
    assert len(html.encode()) < 8e6
    assert "10,000 more are in the report" in html


def test_a_graph_that_is_too_large_to_be_drawn_is_told() -> None:
    assert "not drawn: 12,001 operators" in Page(to_html(a_report(layers=many_layers(12_001)))).text
    assert "not drawn" not in Page(to_html(a_report())).text


@pytest.mark.parametrize("name", sorted(REPORTS))
def test_plotly_knows_all_that_charts_say(name: str) -> None:
    for own in Page(to_html(REPORTS[name])).data:
        if "layout" in own:
            # It refuses unknown properties and values; colours are names only on their way.
            Figure(json.loads(re.sub('"--[a-z0-9]+"', '"red"', json.dumps(own))) | {"height": None})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "q.onnx is 1.50 times as fast as m.onnx and 4.00 times smaller, and loses 0.50 points "
            "of accuracy (95 % interval of the drop -0.20 to 1.20 points), but 1 of 2 gates "
            "failed.",
        ),
        (
            {
                "metric": replace(METRIC, drop=0.0, confidence=None),
                "gates": (GateFacts("drop<=1", 0.0, True),),
            },
            "q.onnx is 1.50 times as fast as m.onnx and 4.00 times smaller, and loses nothing of "
            "accuracy: its gate held.",
        ),
        (
            {"metric": MetricFacts("agreement", 1.0, 0.98, 0.02, 9, (0.01, 0.05)), "gates": ()},
            "q.onnx is 1.50 times as fast as m.onnx and 4.00 times smaller, and decides as float "
            "does in 98.00 % of all cases (95 % interval 95.00 % to 99.00 %).",
        ),
        (
            {
                "metric": MetricFacts("psnr", math.inf, math.inf, math.nan, 9, None),
                "gates": (GateFacts("drop<=1", math.nan, False),),
            },
            "q.onnx is 1.50 times as fast as m.onnx and 4.00 times smaller, and loses an unknown "
            "amount of psnr (inf before, inf after), but 1 of 1 gate failed.",
        ),
        (
            {
                "metric": None,
                "latency": LatencyFacts("cpu", 1, 2.0, 2.0, 0.999),
                "size": SizeFacts(10, 10, 1.0),
                "gates": (),
            },
            "q.onnx is as fast as m.onnx and as large, and keeps its outputs to 35.5 dB.",
        ),
        (
            {
                "metric": None,
                "outputs": (),
                "latency": LatencyFacts("cpu", 1, 2.0, 4.0, 0.5),
                "size": SizeFacts(10, 20, 0.5),
                "gates": (GateFacts("drop<=1", 0.0, True), GateFacts("sqnr>=1", 2.0, True)),
            },
            "q.onnx is slower than m.onnx (0.50 times as fast) and 2.00 times larger: both gates "
            "held.",
        ),
    ],
)
def test_the_whole_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    assert headline(a_report(**changes)) == sentence

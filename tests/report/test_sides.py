"""Several reports on one page."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from onnxq.adaptive.replay import Rules
from onnxq.errors import InputError
from onnxq.report import to_html
from onnxq.report.sides import to_html as compared
from onnxq.reporting import page_of
from onnxq.verify.result import LatencyFacts, LayerFacts, MethodFacts, SizeFacts
from onnxq.watching import Watch
from tests.report.hostile import SCRIPT, hostile_report, is_clean
from tests.report.test_html import ALLOWED, Page, full_of, own
from tests.report.test_watch import REPLAY
from tests.verify.reports import CANDIDATE, METRIC, a_report

ONE = a_report(command="onnxq optimize m.onnx")
OTHER = a_report(
    output=replace(CANDIDATE, path="other.onnx"),
    latency=LatencyFacts("cpu", 1, 3.0, 1.0, 3.0, confidence=(2.9, 3.1)),
    metric=replace(METRIC, drop=0.02, confidence=None),
    size=SizeFacts(4000, 1000, 4.0),
    layers=(LayerFacts("c", "Conv", "int4-weight", 20.0, None, ""), ONE.layers[1]),
    methods=(MethodFacts("c", "gptq", 1.0, 1.0),),
    versions={"onnx": "2"},
)


def test_runs_stand_side_by_side_and_the_best_are_marked() -> None:
    page = Page(compared(["a.json", "b.json"], [ONE, OTHER]))
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["A"][:2] == ["q.onnx", "a.json"] and rows["B"][:2] == ["other.onnx", "b.json"]
    assert rows["speedup"] == ["1.50×", "3.00× (2.90 to 3.10) ✓best"]
    assert rows["drop"] == ["0.50 points (-0.20 to 1.20 points) ✓best", "2.00 points"]
    assert rows["size over float's"] == ["4.00× smaller", "4.00× smaller"], "none leads"
    assert rows["methods"] == ["", "gptq 1"] and rows["onnx"] == ["1", "2"]
    assert rows["promise"] == ["1 of 2 gates held"] * 2
    assert rows["c"] == ["Conv", "int840.0 dB", "int4-weight20.0 dB"], "where precisions differ"
    assert "e" not in rows and "training" not in rows
    assert "all of m.onnx" in page.text and "Again with A onnxq optimize m.onnx" in page.text
    assert [point["x"] for point in page.chart("runs by speedup")["data"]] == [[1.5], [3.0]]
    assert [line["y"] for line in page.chart("SQNR of the layers")["data"]] == [[40.0], [20.0]]


def test_runs_of_different_models_and_metrics() -> None:
    other = replace(OTHER, model=replace(ONE.model, sha256="cc"), latency=None, layers=())
    other = replace(other, metric=replace(METRIC, name="mine"))
    page = Page(compared(["a", "b"], [ONE, other]))
    assert "The float models differ" in page.text
    assert not any("best" in cell for row in page.rows for cell in row)
    same = replace(other, model=ONE.model, layers=OTHER.layers)
    rows = {row[0]: row[1:] for row in Page(compared(["a", "b"], [ONE, same])).rows}
    assert not any("best" in cell for cell in rows["drop"]), "of metrics that differ"


def test_hostile_names_are_text() -> None:
    evil = hostile_report()
    layers = tuple(replace(n, precision="int8") for n in evil.layers)
    html = compared([SCRIPT, "b"], [evil, replace(evil, layers=layers)])
    page = Page(html)
    assert set(page.tags) <= set(ALLOWED.split()) and is_clean(own(html))
    assert page.tags["script"] == len(page.data) + 3 and page.text.count(SCRIPT) >= 10


def test_pages_from_files(tmp_path: Path) -> None:
    one, other, watch = (tmp_path / f"{name}.json" for name in ("one", "other", "watch"))
    ONE.save(one)
    OTHER.save(other)
    Watch("bundle", "today.npz", Rules(), REPLAY, {}).save(watch)
    assert page_of([one]) == to_html(ONE)
    assert page_of([one, other]) == compared([str(one), str(other)], [ONE, OTHER])
    assert "Watching bundle" in Page(page_of([watch])).text
    drifted = Page(page_of([watch, one]))
    assert ("id", "drift") in drifted.attributes and "values moved" in drifted.text
    assert "values moved" in Page(page_of([one, other, watch])).text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "the report '.*file.json'"),
        ("[" * 200_000, "is not valid JSON"),
        ('{"schema": "onnxq/plan/1"}', "has schema 'onnxq/plan/1', not 'onnxq/report/1'"),
        (None, "cannot read the report"),
    ],
)
def test_what_is_no_report_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "file.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=said):
        page_of([file])


def test_too_many_or_none() -> None:
    with pytest.raises(InputError, match="up to 26 reports, not 27"):
        compared(["r"] * 27, [ONE] * 27)
    with pytest.raises(InputError, match=r"name report\.json files"):
        page_of([])


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_is_drawn_nowhere(value: float) -> None:
    page = Page(compared(["a", "b"], [full_of(value), ONE]))
    assert page.chart("SQNR of the layers")["data"][1]["y"] == [40.0]

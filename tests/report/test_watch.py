"""The page of a watched stream: what was seen over time, what happened, and safe names."""

from __future__ import annotations

import math
from dataclasses import replace

from onnxq.adaptive.replay import Distribution, Happening, Nearness, Replay, Stretch
from onnxq.report.watch import summary, to_html
from tests.report.hostile import SCRIPT, hostile_report, is_clean
from tests.report.test_html import ALLOWED, Page, own

NEAR = Nearness(3, 0.5, 20.0)
REPLAY = Replay(
    200,
    200,
    1,
    1,
    "accuracy",
    0.75,
    NEAR,
    (
        Stretch(1, 100, NEAR, 1e-2, 0.5, 0, "int8"),
        Stretch(101, 200, Nearness(0, None, None), 1e9, 1.0, 1, "float"),
    ),
    (
        Happening(50, 5.0, "drift", "values moved", None, None, {}),
        Happening(100, 10.0, "adapted", "a step up", NEAR, Nearness(2, 1.0, math.inf), {}),
    ),
    (
        Distribution(
            "conv/x", 50, 4, (0.0, 1.0, 2.0, 4.0), (1.0, 0.0, 0.0), (0.0, 0.75, 0.25), -1, 2
        ),
    ),
)


def test_the_page_tells_what_was_seen_and_done() -> None:
    page = Page(to_html(REPLAY, "some/where/bundle", "data/today.npz"))
    assert page.rows == [
        ["request", "event", "reason", "to float before", "after"],
        ["50", "drift", "values moved", "", ""],
        ["100", "adapted", "a step up", "50.00 % agree, 20.0 dB", "100.00 % agree, exact"],
        ["requests", "looked at", "to float", "accuracy", "drift", "answered by"],
        ["1 - 100", "3", "50.00 % agree, 20.0 dB", "50.00 %", "0.01", "int8"],
        ["101 - 200", "0", "not looked at", "100.00 %", "alarm", "float"],
    ]
    for part in ("Watching bundle", "today.npz", "drift", "conv/x", "request 50, on 4 requests"):
        assert part in page.text


def test_lines_and_bars_have_what_was_measured() -> None:
    evidence, agreement, values = Page(to_html(REPLAY, "b", "d")).data
    assert evidence["layout"]["yaxis"]["type"] == "log"
    (line,) = evidence["data"]
    assert (line["x"], line["y"]) == ([50.5, 150.5], [1e-2, 1e9])
    shapes = [(s["x0"], s["y0"]) for s in evidence["layout"]["shapes"]]
    assert shapes == [(0, 1.0), (50, 0), (100, 0)], "where an alarm is raised; what happened"
    agreed, metric = agreement["data"]
    assert (agreed["x"], agreed["y"], metric["y"]) == ([50.5], [0.5], [0.5, 1.0])
    usual, now = values["data"]
    assert (usual["y"], now["y"]) == ([1.0], [0.75, 0.25]), "empty bars are left out"
    assert [shape["x0"] for shape in values["layout"]["shapes"]] == [-1, 2]


def test_the_page_without_drift_labels_and_decisions() -> None:
    quiet = replace(
        REPLAY,
        alarms=0,
        changes=0,
        metric=None,
        value=None,
        nearness=Nearness(0, None, None),
        stretches=(Stretch(1, 200, Nearness(0, None, None), 0.0, None, 0, "int8"),),
        happenings=(),
        distributions=(),
    )
    page = Page(to_html(quiet, "b", "d"))
    assert page.rows == [
        ["requests", "looked at", "to float", "drift", "answered by"],
        ["1 - 200", "0", "not looked at", "0.00", "int8"],
    ]
    assert "no drift" in page.text and "What happened" not in page.text
    assert summary(quiet) == "200 requests, 0 looked at: 0 alarms, 0 changes"


def test_hostile_names_are_text() -> None:
    evil = hostile_report().layers[0].node
    happening = replace(REPLAY.happenings[1], kind=evil, reason=evil)
    found = replace(
        REPLAY,
        metric=evil,
        stretches=(replace(REPLAY.stretches[0], variant=evil),),
        happenings=(happening,),
        distributions=(replace(REPLAY.distributions[0], tensor=evil),),
    )
    html = to_html(found, evil, evil)
    page = Page(html)
    assert set(page.tags) <= set(ALLOWED.split()) and is_clean(own(html))
    assert page.tags["script"] == len(page.data) + 3 and page.text.count(SCRIPT) >= 5

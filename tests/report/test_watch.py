"""The page of a watched stream: what was seen over time, what happened, and safe names."""

from __future__ import annotations

import math
import re
from dataclasses import replace

from onnxq.adaptive.replay import Distribution, Happening, Nearness, Replay, Stretch
from onnxq.report.watch import summary, to_html
from tests.report.hostile import SCRIPT, hostile_report, is_clean
from tests.report.test_html import ALLOWED, Page

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


def test_lines_and_bars_have_the_right_lengths() -> None:
    html = to_html(REPLAY, "b", "d")
    lines = re.findall(r'<polyline class="curve s-(\w+)" points="([^"]*)"', html)
    # A hundredth of what raises an alarm is two decades of four below it.
    assert lines == [
        ("candidate", "306.8,131.0 763.8,14.0 "),
        ("candidate", "306.8,92.0 "),
        ("other", "306.8,92.0 763.8,14.0 "),
    ]
    bars = re.findall(r'<rect class="f-(\w+)" x="([\d.]+)" y="([\d.]+)".*?height="([\d.]+)"', html)
    assert bars == [
        ("float", "20.0", "4.0", "120.0"),
        ("candidate", "487.2", "20.1", "103.9"),
        ("candidate", "807.2", "64.0", "60.0"),
    ]
    # What it could hold ends at 2, and begins below what is drawn.
    assert re.findall(r'class="bound" x1="([\d.]+)" y1="4"', html) == ["500.0"]


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
    assert set(page.tags) <= set(ALLOWED.split()) and is_clean(html)
    assert "<script" not in html.lower() and page.text.count(SCRIPT) >= 5

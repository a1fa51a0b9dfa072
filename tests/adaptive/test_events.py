from __future__ import annotations

import logging

import pytest

from onnxq.adaptive import events
from onnxq.adaptive.events import Event, Journal


def test_an_event_is_logged_and_waits(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal("me", wall=lambda: 5.0)
    with caplog.at_level(logging.INFO, logger="onnxq.adaptive"):
        journal.tell("drift", "brighter than 100 % ever was", score=3, kind="values")
    assert [record.getMessage() for record in caplog.records] == ["brighter than 100 % ever was"]
    assert journal.waiting() == [
        Event("drift", 5.0, "brighter than 100 % ever was", "me", {"score": 3, "kind": "values"})
    ]


def test_a_fault_is_told_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal("me")
    for _ in range(3):
        journal.fault("the disk", "the disk is full")
    journal.works("the disk")
    journal.works("the disk")
    journal.fault("the disk", "the disk is full")
    assert [event.kind for event in journal.waiting()] == ["fault", "recovered", "fault"]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2


def test_what_is_taken_waits_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_MOST", 3)
    journal = Journal("me")
    for number in range(3):
        journal.tell("drift", f"{number}")
    seen = journal.waiting()
    journal.tell("drift", "3")
    journal.taken(seen)
    assert [event.reason for event in journal.waiting()] == ["3"]


def test_the_oldest_go_where_nobody_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_MOST", 3)
    journal = Journal("me")
    for number in range(5):
        journal.tell("drift", f"{number}")
    assert [event.reason for event in journal.waiting()] == ["2", "3", "4"]

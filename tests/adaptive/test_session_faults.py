"""Requests go on, and one sentence says why something else does not."""

from __future__ import annotations

import time
from typing import Any

import pytest

from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.deployment import Deployment
from onnxq.adaptive.worker import Clock, Intervals
from onnxq.errors import InputError
from tests.adaptive import fakes
from tests.adaptive.fakes import Open, ask, kinds, parts


def test_a_twin_that_crashes(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    crashing = [True]

    class Crashing(fakes.Twin):
        def run(self, feeds: Any) -> Any:
            if crashing[0]:
                raise MemoryError("no room")
            return super().run(feeds)

    session = opened(parts=parts(twin=lambda bundle: Crashing()))
    assert ask(session, 20.0, 50) == [1.0] * 50
    assert [record.getMessage() for record in caplog.records] == [
        "looking at requests fails (MemoryError: no room); requests are answered as before, "
        "and are looked at again as soon as that is possible"
    ]
    crashing[0] = False
    time.sleep(0.06)
    assert ask(session, 20.0, 8)[-1] == 2.0
    assert kinds(session.events()) == ["fault", "drift", "recovered", "adapted"]


def test_a_twin_that_cannot_be_loaded(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    tried = []

    def broken(bundle: Bundle) -> Any:
        tried.append(1)
        raise InputError("the float model is damaged")

    session = opened(parts=parts(twin=broken), intervals=Intervals(retry=1000.0))
    assert ask(session, 20.0, 50) == [1.0] * 50
    assert len(tried) == len(caplog.records) == 1


def test_a_monitor_that_cannot_be_made_at_first(opened: Open) -> None:
    known = []

    def monitor(bundle: Bundle, before: Any) -> Any:
        known.append(before)
        if len(known) == 2:
            raise MemoryError("no room")
        return fakes.Monitor(before)

    first = opened(parts=parts(monitor=monitor))
    ask(first, times=3)
    first.close()
    second = opened(parts=parts(monitor=monitor), intervals=Intervals(retry=0.0))
    ask(second, times=2)
    assert known == [None, {"seen": 3}, {"seen": 3}]


def test_adapting_that_crashes(opened: Open) -> None:
    def broken(*args: Any) -> Any:
        raise ZeroDivisionError("nothing to divide by")

    session = opened(parts=parts(adapt=broken))
    assert ask(session, 20.0, 50) == [1.0] * 50
    told = ["fault", "recovered"]
    assert kinds(session.events()) == ["drift", *told, *told, "declined", *told]
    assert "adapting failed 3 times" in session.events()[5]["reason"]


def test_adapting_that_crashes_once(opened: Open) -> None:
    failed: list[int] = []

    def broken_once(bundle: Bundle, live: Deployment, verdict: Any, fit: Any, held: Any) -> Any:
        assert (fit.requests, len(held)) == (2, 4)
        if not failed:
            failed.append(1)
            raise MemoryError("no room")
        return fakes.step_up(bundle, live)

    session = opened(parts=parts(adapt=broken_once))
    assert ask(session, 20.0, 20) == [1.0] * 13 + [2.0] * 7
    assert kinds(session.events()) == ["drift", "fault", "recovered", "adapted"]


@pytest.mark.parametrize("failures", [1, 3])
def test_a_proof_that_crashes(opened: Open, failures: int) -> None:
    proofs: list[int] = []

    def worse(*args: Any) -> str:
        proofs.append(1)
        if len(proofs) <= failures:
            raise MemoryError("no room")
        return "twice as far from float"

    session = opened(parts=parts(worse=worse))
    # Four requests are asked for each proof.
    asked = 4 * min(failures + 1, 3)
    assert ask(session, 20.0, 30) == [1.0] * 7 + [2.0] * asked + [1.0] * (23 - asked)
    why = "twice as far" if failures == 1 else "could not be found out whether it is worse"
    (back,) = [event for event in session.events() if event["kind"] == "rolled-back"]
    assert why in back["reason"]


def test_a_state_file_that_is_damaged(
    opened: Open, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    session = opened()
    ask(session, 20.0, 8)
    for path in bundle.folder.glob("*.sqlite*"):
        path.write_bytes(b"SQLite format 3\0" + b"?" * 10_000)
    assert ask(session, 20.0, 3) == [2.0] * 3
    session.close()
    assert len(caplog.records) == 1 and "is damaged" in caplog.text
    assert ask(opened(), 1.0) == [2.0]


def test_a_disk_that_is_full(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import sqlite3

    connect = sqlite3.connect

    def full(*args: Any, **kwargs: Any) -> Any:
        file = connect(*args, **kwargs)
        file.execute("PRAGMA max_page_count=1")
        return file

    monkeypatch.setattr(sqlite3, "connect", full)
    session = opened()
    assert ask(session, 20.0, 10) == [1.0] * 7 + [2.0] * 3
    session.close()
    assert len(caplog.records) == 1 and "full" in caplog.text
    assert kinds(session.events()) == ["fault", "drift", "adapted"]


def test_a_model_file_that_is_replaced_before_it_is_used(
    opened: Open, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    session = opened()
    (bundle.folder / "factor2.onnx").write_bytes(fakes.model(9))
    assert ask(session, 20.0, 30) == [1.0] * 30
    assert kinds(session.events()) == ["drift", "fault"]
    assert len(caplog.records) == 1 and "is not what the bundle was made with" in caplog.text


def test_a_model_file_that_is_replaced_while_it_answers(
    opened: Open, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    session = opened()
    (bundle.folder / "factor1.onnx").write_bytes(fakes.model(9))
    time.sleep(0.1)
    assert ask(session, 1.0, 5) == [1.0] * 5
    assert len(caplog.records) == 1 and "answered by what was loaded before" in caplog.text


def test_a_generation_that_cannot_be_made_after_a_restart(
    opened: Open, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    session = opened()
    ask(session, 20.0, 8)
    session.close()
    (bundle.folder / "factor2.onnx").unlink()
    again = opened()
    time.sleep(0.1)
    assert ask(again, 1.0, 3) == [1.0] * 3
    assert len(caplog.records) == 1 and "factor2.onnx" in caplog.text
    # What is adapted then follows on it.
    again.close()
    to_float = parts(adapt=lambda *args: fakes.Proposal(Deployment(2), "float"))
    third = opened(parts=to_float)
    assert ask(third, 20.0, 8)[-1] == 3.0
    assert third.statistics()["generation"] == 2
    third.close()
    assert ask(opened()) == [3.0]


def test_no_model_that_could_answer(opened: Open, bundle: Bundle) -> None:
    (bundle.folder / "factor1.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r"factor1\.onnx' is not what"):
        opened()


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps(opened: Open, jump: float, caplog: pytest.LogCaptureFixture) -> None:
    off = [0.0]
    session = opened(clock=Clock(wall=lambda: time.time() + off[0]))
    ask(session, 1.0, 3)
    off[0] = jump
    time.sleep(0.1)
    assert ask(session, 20.0, 8)[-1] == 2.0
    assert kinds(session.events()) == ["fault", "drift", "adapted"]
    assert len(caplog.records) == 1 and f"jumped by {jump:+.0f} seconds" in caplog.text


def test_answers_that_cannot_be_copied(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    session = opened()

    def full(*args: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr("onnxq.adaptive.session._array", full)
    assert ask(session, 1.0, 5) == [1.0] * 5
    assert len(caplog.records) == 1 and "could not be copied" in caplog.text

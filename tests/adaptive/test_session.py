"""Sessions: they answer as onnxruntime does, look at requests, and adapt."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from onnxq.adaptive import judge
from onnxq.adaptive import worker as workers
from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.deployment import Deployment
from onnxq.adaptive.worker import Clock, Intervals
from onnxq.errors import InputError
from tests.adaptive import fakes
from tests.adaptive.fakes import OFTEN, Open, ask, feeds, kinds, parts


def plain(bundle: Bundle, variant: int = 0) -> ort.InferenceSession:
    return ort.InferenceSession(bundle.model(variant), providers=["CPUExecutionProvider"])


def outcome(session: Any, *args: Any) -> Any:
    try:
        return [answer.tolist() for answer in session.run(*args)]
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("sampling", [0.0, 1.0])
def test_it_answers_and_refuses_as_onnxruntime(
    bundle: Bundle, opened: Open, sampling: float
) -> None:
    session, reference = opened(sampling=sampling), plain(bundle)
    x = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    options = ort.RunOptions()
    options.terminate = True
    for args in (
        (None, {"x": x}),
        ([], {"x": x}),
        (["total"], {"x": x}),
        (["total", "y"], {"x": x}),
        (["y", "y"], {"x": x}),
        (("y",), {"x": x}),
        (None, {}),
        (None, {"x": x, "z": x}),
        (None, {"x": x.astype(np.float64)}),
        (None, {"x": x[0]}),
        (None, {"x": "text"}),
        (["z"], {"x": x}),
        (["y", "z"], {"x": x}),
        (None, {"x": x}, options),
        (None, None),
    ):
        assert outcome(session, *args) == outcome(reference, *args), args
    session.flush()
    assert kinds(session.events()) == []


def test_it_tells_of_the_model_as_onnxruntime(bundle: Bundle, opened: Open) -> None:
    session, reference = opened(), plain(bundle)
    for name in ("get_inputs", "get_outputs", "get_overridable_initializers"):
        ours, theirs = (getattr(s, name)() for s in (session, reference))
        assert [(a.name, a.type, a.shape) for a in ours] == [
            (a.name, a.type, a.shape) for a in theirs
        ]
    assert session.get_modelmeta().graph_name == reference.get_modelmeta().graph_name
    assert session.get_providers() == reference.get_providers()
    assert session.get_provider_options() == reference.get_provider_options()
    assert session.get_session_options().intra_op_num_threads == 1


def test_options_and_providers_are_those_that_are_given(bundle: Bundle, opened: Open) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    session = opened(sess_options=options, providers=["CPUExecutionProvider"])
    assert session.get_session_options().intra_op_num_threads == 2
    assert ask(session) == [1.0]


def test_a_sudden_change_is_seen_adapted_to_and_told(opened: Open) -> None:
    session = opened()
    assert ask(session, 1.0, 5) == [1.0] * 5
    # One alarm, six gathered; the next one is answered by another model.
    assert ask(session, 20.0, 12) == [1.0] * 7 + [2.0] * 5
    events = session.events()
    assert kinds(events) == ["drift", "adapted"]
    assert events[0]["reason"] == "the values are above 10"
    assert events[0]["details"] == {"tensors": ["x"]}
    assert events[1]["reason"] == "a step up the ladder"
    assert events[1]["details"] == {"generation": 1}
    assert {event["worker"] for event in events} == {session.worker}
    assert abs(events[1]["time"] - time.time()) < 60
    assert session.statistics()["variant"] == 1
    assert session.statistics()["generation"] == 1


def test_what_is_worse_is_taken_back_and_not_tried_again(opened: Open) -> None:
    compared = []

    def worse(bundle: Bundle, *outputs: Any) -> str:
        compared.append([[float(one[0][0, 0]) for one in kind] for kind in outputs])
        return "twice as far from float"

    session = opened(parts=parts(worse=worse))
    assert ask(session, 20.0, 20) == [1.0] * 7 + [2.0] * 4 + [1.0] * 9
    assert compared == [[[20.0] * 4, [40.0] * 4, [40.0] * 4]]
    assert kinds(session.events()) == ["drift", "adapted", "rolled-back"]
    assert session.events()[-1]["reason"] == "twice as far from float"
    assert session.statistics()["generation"] == 2


def test_where_nothing_is_better_that_is_told(opened: Open) -> None:
    def nothing(*args: Any) -> Any:
        return fakes.Proposal(None, "the float model itself suffers")

    session = opened(parts=parts(adapt=nothing))
    assert ask(session, 20.0, 20) == [1.0] * 20
    assert kinds(session.events()) == ["drift", "declined"]


def test_adaptation_gets_what_was_gathered_after_the_alarm(opened: Open) -> None:
    given: list[Any] = []

    def adapt(bundle: Bundle, live: Deployment, verdict: Any, fit: Any, held_back: Any) -> Any:
        given.extend([live, verdict.reason, fit.requests, held_back])
        return fakes.Proposal(None, "")

    session = opened(parts=parts(adapt=adapt))
    ask(session, 1.0, 3)
    ask(session, 20.0, 5)
    session.feedback(6, True)
    ask(session, 20.0, 2)
    live, reason, fitted, held_back = given
    assert (live, reason, fitted) == (Deployment(0), "the values are above 10", 2)
    assert [sampled.request for sampled, _ in held_back] == [6, 7, 9, 10]
    assert [sampled.correct for sampled, _ in held_back] == [True, None, None, None]
    for sampled, reference in held_back:
        assert sampled.feeds["x"].tolist() == [[20.0] * 3]
        assert [a.tolist() for a in sampled.served] == [[[20.0] * 3], [60.0]]
        assert [a.tolist() for a in reference.outputs] == [[[40.0] * 3], [120.0]]


def test_looking_takes_no_more_than_its_share_of_time(opened: Open) -> None:
    passed = [0.0]

    class Slow(fakes.Twin):
        def run(self, feeds: Any) -> Any:
            passed[0] += 0.5
            return super().run(feeds)

    session = opened(
        time_share=0.1,
        clock=Clock(lambda: passed[0]),
        intervals=Intervals(1e9, 1e9),
        parts=parts(twin=lambda bundle: Slow()),
    )
    for _ in range(500):
        ask(session)
        passed[0] += 0.1
    assert session.statistics()["judged"] == pytest.approx(0.1 * passed[0] / 0.5, rel=0.1)
    # After an alarm it is in a hurry.
    passed[0] += 10.0
    assert ask(session, 20.0, 20)[-1] == 2.0


def test_what_is_dropped_after_an_alarm_is_made_up_for(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(sampling=0.02)
    while not session.events():
        ask(session, 20.0)
    monkeypatch.setattr(workers, "_MOST_WAITING", -1)
    session._worker._waiting.append(0)
    for _ in range(20):
        session.run(None, feeds(20.0))
    monkeypatch.undo()
    session._worker._waiting.clear()
    assert session.statistics()["dropped"] > 3
    assert 2.0 in ask(session, 20.0, 220)


def test_suspicion_makes_sampling_denser(opened: Open) -> None:
    session = opened(sampling=0.02)
    ask(session, 1.0, 200)
    assert session.statistics()["sampling"] == 0.02
    ask(session, 7.0, 200)
    assert session.statistics()["sampling"] == 0.5
    ask(session, 1.0, 200)
    assert session.statistics()["sampling"] == 0.02


def test_a_replay_with_the_same_seed_tells_the_same(
    bundle: Bundle, opened: Open, tmp_path: Path
) -> None:
    told = []
    for number in range(2):
        session = opened(sampling=0.1, seed=7, state=tmp_path / f"{number}.sqlite")
        answers = ask(session, 1.0, 100) + ask(session, 20.0, 200) + ask(session, 30.0, 200)
        told.append((answers, [(e["kind"], e["reason"]) for e in session.events()]))
    assert told[0] == told[1]
    assert set(told[0][0]) == {1.0, 2.0, 3.0}


def test_requests_are_numbered_by_thread(opened: Open) -> None:
    session = opened()
    assert session.request == 0
    ask(session, times=3)
    thread = threading.Thread(target=ask, args=(session,))
    thread.start()
    thread.join()
    assert session.request == 3
    ask(session)
    assert session.request == 5


def test_feedback_is_taken_in_where_it_is_of_what_answers(opened: Open) -> None:
    monitor = fakes.Monitor()
    session = opened(parts=parts(monitor=lambda bundle, known: monitor))
    ask(session, 1.0, 2)
    session.feedback(2, False)
    ask(session, 20.0, 7)
    session.feedback(1, False)
    session.feedback(9, False)
    ask(session)
    session.feedback(session.request, True)
    session.flush()
    assert monitor.said == [False, True]
    assert session.statistics()["feedback"] == 4


def test_feedback_counts_once_and_only_of_requests_that_were_asked(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "_MOST_SAID", 4)
    monitor = fakes.Monitor()
    session = opened(parts=parts(monitor=lambda bundle, known: monitor))
    ask(session, 1.0, 10)
    for request in (0, -1, 11, 10**9):
        session.feedback(request, True)
    session.flush()
    assert monitor.said == []
    # More than are remembered, and all of them again.
    for request in (2, 1, *range(3, 11), *range(1, 11)):
        session.feedback(request, False)
    session.flush()
    assert monitor.said == [False] * 10


def test_callers_may_change_their_arrays_at_once(opened: Open) -> None:
    monitor, released = fakes.Monitor(), threading.Event()

    class Slow(fakes.Twin):
        def run(self, feeds: Any) -> Any:
            released.wait(10)
            return super().run(feeds)

    session = opened(parts=parts(monitor=lambda b, k: monitor, twin=lambda b: Slow()))
    own = feeds(3.0)
    answers = session.run(None, own)
    own["x"][:] = 0
    answers[0][:] = 0
    released.set()
    session.flush()
    (seen,) = monitor.seen
    assert seen.feeds["x"].tolist() == [[3.0] * 3] and seen.served[0].tolist() == [[3.0] * 3]


def test_of_a_batch_one_sample_is_looked_at(opened: Open) -> None:
    monitor = fakes.Monitor()
    session = opened(parts=parts(monitor=lambda bundle, known: monitor))
    x = np.arange(12, dtype=np.float32).reshape(4, 3)
    for _ in range(8):
        session.run(["total"], {"x": x})
    session.flush()
    rows = [1, 2, 3, 0, 1, 2, 3, 0]
    assert [seen.feeds["x"].tolist() for seen in monitor.seen] == [
        [x[row].tolist()] for row in rows
    ]
    assert [seen.served[1].tolist() for seen in monitor.seen] == [[x[row].sum()] for row in rows]


def test_an_empty_batch_is_answered(opened: Open) -> None:
    session = opened()
    assert session.run(["y"], {"x": np.zeros((0, 3), np.float32)})[0].shape == (0, 3)


def test_requests_never_wait_for_judging(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    class Stuck(fakes.Twin):
        def run(self, feeds: Any) -> Any:
            released.wait(10)
            return super().run(feeds)

    session = opened(parts=parts(twin=lambda bundle: Stuck()))
    for _ in range(100):
        session.run(None, feeds())
    assert session.statistics()["dropped"] == 36
    monkeypatch.setattr(workers, "_MOST_BYTES", 1)
    released.set()
    session.flush()
    session.run(None, feeds())
    session.flush()
    assert session.statistics()["judged"] == 65


def test_values_of_onnxruntime_are_sampled_too(bundle: Bundle, opened: Open) -> None:
    monitor = fakes.Monitor()
    session = opened(parts=parts(monitor=lambda bundle, known: monitor))
    value = ort.OrtValue.ortvalue_from_numpy(feeds(3.0)["x"])
    for names in (None, ["total"]):
        ours = session.run_with_ort_values(names, {"x": value})
        theirs = plain(bundle).run_with_ort_values(names, {"x": value})
        assert [a.numpy().tolist() for a in ours] == [a.numpy().tolist() for a in theirs]
    with pytest.raises(Exception, match="Invalid output name"):
        session.run_with_ort_values(["z"], {"x": value})
    session.flush()
    assert [s.served[1].tolist() for s in monitor.seen] == [[9.0], [9.0]]


def test_what_is_bound_goes_along_with_what_answers(opened: Open) -> None:
    session = opened()
    x, y = feeds(20.0)["x"], np.zeros((1, 3), np.float32)
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu", 0, np.float32, y.shape, y.ctypes.data)
    binding.bind_output("total")
    found = []
    for _ in range(9):
        session.run_with_iobinding(binding)
        session.flush()
        found.append((y[0, 0], binding.get_outputs()[1].numpy()[0]))
    assert found == [(20.0, 60.0)] * 7 + [(40.0, 120.0)] * 2
    assert kinds(session.events()) == ["drift", "adapted"]

    binding.clear_binding_inputs()
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(feeds(1.0)["x"]))
    binding.clear_binding_outputs()
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(y))
    session.run_with_iobinding(binding)
    assert binding.copy_outputs_to_cpu()[0].tolist() == [[2.0] * 3]


def test_what_cannot_be_read_is_answered_and_not_sampled(opened: Open) -> None:
    session = opened()
    x = feeds()["x"]
    binding = session.io_binding()
    binding.bind_input("x", "cpu", 0, np.float32, x.shape, x.ctypes.data)
    for name in ("y", "total"):
        binding.bind_output(name)
    session.run_with_iobinding(binding)
    assert binding.get_outputs()[0].numpy().tolist() == [[1.0] * 3]
    session.flush()
    assert session.statistics()["sampled"] == 0 and kinds(session.events()) == []


def test_a_restart_goes_on_where_it_was(opened: Open) -> None:
    known = []

    def monitor(bundle: Bundle, before: Any) -> Any:
        known.append(before)
        return fakes.Monitor(before)

    first = opened(parts=parts(monitor=monitor))
    ask(first, 20.0, 10)
    first.close()
    second = opened(parts=parts(monitor=monitor))
    assert ask(second) == [2.0]
    assert kinds(second.events()) == ["drift", "adapted"]
    assert known == [None, {"seen": 10}]


def test_another_bundle_in_the_folder_has_a_state_of_its_own(opened: Open, bundle: Bundle) -> None:
    old = opened()
    ask(old, 20.0, 8)
    new = opened(of=fakes.bundle(bundle.folder, variants=4))
    assert ask(new) == [1.0] and ask(old) == [2.0]
    assert kinds(new.events()) == [] and kinds(old.events()) == ["drift", "adapted"]


def test_workers_on_one_bundle_follow_each_other(opened: Open) -> None:
    one, two = opened(), opened()
    ask(two)
    ask(one, 20.0, 8)
    end = time.monotonic() + 10
    while ask(two) != [2.0] and time.monotonic() < end:
        time.sleep(0.02)
    assert ask(two) == [2.0]
    two.close()
    assert kinds(one.events()) == ["drift", "adapted", "followed"]
    assert two.events()[-1]["reason"].endswith("a step up the ladder")


def test_of_workers_that_adapt_at_once_one_wins(opened: Open) -> None:
    slow = OFTEN.__class__(share=1000.0, keep=1000.0, retry=0.0)
    one, two = opened(intervals=slow), opened(intervals=slow)
    ask(one, 20.0, 6)
    ask(two, 20.0, 6)
    ask(one, 20.0)
    assert ask(two, 20.0, 3) == [1.0, 2.0, 2.0]
    assert kinds(two.events()) == ["drift", "drift", "adapted", "followed"]
    assert one.statistics()["generation"] == two.statistics()["generation"] == 1


def test_without_a_place_for_the_state_it_is_in_memory_and_told(
    opened: Open, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    session = opened()
    assert ask(session, 20.0, 8)[-1] == 2.0
    session.flush()
    assert kinds(session.events()) == ["fault", "drift", "adapted"]
    assert "give the path of a file as `state`" in caplog.text
    session.close()
    assert not list(bundle.folder.glob("*.sqlite"))


def test_state_of_another_bundle_is_left_alone(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "own.sqlite"
    ask(opened(state=path), 20.0, 8)
    session = opened(of=fakes.bundle(tmp_path / "other", variants=2), state=path)
    assert ask(session) == [1.0]
    assert "belongs to another bundle" in caplog.text
    assert ask(opened(state=path)) == [2.0]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"sampling": 1.5}, "not from 0 to 1"),
        ({"time_share": 0.0}, "not above 0"),
        ({"parts": None, "false_alarms_per_day": 0.0}, "cannot be kept"),
    ],
)
def test_what_cannot_be_asked_for(opened: Open, options: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        opened(**options)

"""Threads, processes and their ends: none mixes answers, loses the state or holds another up."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.deployment import Deployment
from onnxq.adaptive.session import AdaptiveSession
from tests.adaptive import fakes
from tests.adaptive.fakes import Open, ask, kinds, parts


def hammer(opened: Open, requests: int, swaps: int) -> None:
    """Four threads ask while the model is changed forth and back; each checks all its answers."""
    turns = count()

    def adapt(bundle: Bundle, live: Deployment, *rest: Any) -> Any:
        return fakes.Proposal(Deployment(1 - live.variant), f"turn {next(turns)}")

    class Always(fakes.Monitor):
        def verdict(self) -> fakes.Verdict:
            return fakes.Verdict(alarm=True)

    session = opened(
        sampling=0.5,
        parts=parts(adapt=adapt, monitor=lambda bundle, known: Always()),
        amounts=fakes.Amounts(fit=1, held_back=1, prove=1),
    )
    wrong: list[Any] = []
    finished = []

    def call(number: int) -> None:
        generator = np.random.default_rng(number)
        end = time.monotonic() + 300
        for turn in count():
            swapped = session.statistics()["generation"]
            if turn >= requests // 4 and (swapped >= swaps or time.monotonic() > end):
                break
            x = generator.normal(size=(2, 3)).astype(np.float32)
            y, total = session.run(None, {"x": x})
            # Both outputs come from one model.
            if not any(
                np.array_equal(y, x * factor) and np.array_equal(total, (x * factor).sum(1))
                for factor in (np.float32(1), np.float32(2))
            ):
                wrong.append((x, y, total))
        finished.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(finished) == 4
    assert session.statistics()["generation"] >= swaps
    assert session.statistics()["requests"] >= requests


def test_threads_get_answers_of_one_model_while_it_is_changed(opened: Open) -> None:
    hammer(opened, 4_000, 5)


@pytest.mark.slow
def test_threads_get_answers_of_one_model_in_a_long_run(opened: Open) -> None:
    hammer(opened, 100_000, 50)


def alive() -> int:
    return sum(thread.name == "onnxq" for thread in threading.enumerate())


def test_a_closed_session_answers_on_and_watches_no_longer(opened: Open) -> None:
    session = opened()
    before = alive()
    with session as same:
        assert ask(same) == [1.0]
    assert alive() == before - 1
    assert ask(session, 20.0, 10) == [1.0] * 10
    session.feedback(1, True)
    session.flush()
    session.close()
    assert kinds(session.events()) == []


def test_a_forgotten_session_leaves_no_thread(bundle: Bundle) -> None:
    before = alive()
    session = AdaptiveSession(bundle, sampling=1.0, time_share=1.0, parts=parts())
    ask(session, 1.0, 3)
    del session
    gc.collect()
    end = time.monotonic() + 10
    while alive() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert alive() == before


def program(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    begin = f"""
        import os, sys, time, threading
        from pathlib import Path
        from onnxq.adaptive.session import AdaptiveSession
        from tests.adaptive import fakes
        from tests.adaptive.fakes import feeds, parts, kinds, FEW, OFTEN
        def opened(**options):
            defaults = dict(sampling=1.0, time_share=1.0, parts=parts(), amounts=FEW)
            options = {{**defaults, "intervals": OFTEN, **options}}
            return AdaptiveSession(fakes.bundle(Path({str(folder)!r})), **options)
    """
    code = textwrap.dedent(begin) + textwrap.dedent(text)
    root = str(Path(__file__).parents[2])
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_the_interpreter_ends_with_sessions_that_nobody_closed(tmp_path: Path) -> None:
    done = program(
        tmp_path,
        """
        class Slow(fakes.Twin):
            def run(self, feeds):
                time.sleep(0.2)
                return super().run(feeds)
        session = opened(parts=parts(twin=lambda bundle: Slow()))
        for _ in range(60):
            session.run(None, feeds())
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
def test_a_forked_process_answers_and_watches_on_its_own(tmp_path: Path) -> None:
    done = program(
        tmp_path,
        """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        session = opened()
        session.run(None, feeds())
        session.flush()
        # As if another thread was at it.
        session._worker._lock.acquire()
        session._worker.sampling._lock.acquire()
        child = os.fork()
        if not child:
            for _ in range(8):
                y = session.run(["y"], feeds(20.0))[0]
                session.flush()
            assert y[0, 0] == 20.0 or y[0, 0] == 40.0
            assert session.run(["y"], feeds(20.0))[0][0, 0] == 40.0
            session.close()
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        session._worker._lock.release()
        session._worker.sampling._lock.release()
        end = time.monotonic() + 10
        while session.run(["y"], feeds())[0][0, 0] != 2.0 and time.monotonic() < end:
            time.sleep(0.02)
        assert session.run(["y"], feeds())[0][0, 0] == 2.0
        session.close()
        assert kinds(session.events()) == ["drift", "adapted", "followed"], session.events()
        """,
    )
    assert (done.returncode, done.stderr) == (0, "")


KILLED = """
        import random, signal, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        from onnxq.adaptive.deployment import Deployment
        from onnxq.adaptive.worker import Intervals

        class Always(fakes.Monitor):
            def verdict(self):
                return fakes.Verdict(alarm=True)

        def forth_and_back(bundle, live, *rest):
            return fakes.Proposal(Deployment(1 - live.variant), "the other one")

        def serve(pipe):
            session = opened(
                parts=parts(adapt=forth_and_back, monitor=lambda bundle, known: Always()),
                amounts=fakes.Amounts(fit=1, held_back=1, prove=1),
                intervals=Intervals(share=0.001, keep=0.001),
            )
            os.write(pipe, b"?")
            while True:
                y, total = session.run(None, feeds(3.0))
                is_one = [y[0, 0], total[0]] in ([3.0, 9.0], [6.0, 18.0])
                os.write(pipe, b"." if is_one else b"!")
                time.sleep(0.001)

        chance, generation, asked = random.Random(0), 0, 0
        for kill in range(KILLS):
            reading, writing = os.pipe()
            child = os.fork()
            if not child:
                os.close(reading)
                serve(writing)
            os.close(writing)
            if kill % 4:
                # Not always before it has begun.
                os.read(reading, 1)
            time.sleep(0.3 * chance.random())
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            found = b""
            while more := os.read(reading, 1 << 20):
                found += more
            os.close(reading)
            assert b"!" not in found
            asked += len(found)
            # What was written before is there, and is whole.
            with opened(parts=parts(), sampling=0.0) as session:
                now = session.statistics()["generation"]
                assert now >= generation, (now, generation)
                assert session.run(["y"], feeds())[0][0, 0] in (1.0, 2.0)
                assert set(kinds(session.events())) <= {"drift", "adapted"}, session.events()
                generation = now
        assert asked > KILLS and generation, (asked, generation)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="only where processes fork")
@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_a_kill_at_any_moment_loses_little_and_mixes_nothing(tmp_path: Path, kills: int) -> None:
    done = program(tmp_path, KILLED.replace("KILLS", str(kills)))
    assert (done.returncode, done.stderr) == (0, "")

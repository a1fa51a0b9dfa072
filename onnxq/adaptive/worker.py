"""The thread that looks at requests behind the back of those that wait for answers."""

from __future__ import annotations

import atexit
import os
import queue
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from onnxq.adaptive.deployment import Deployment, Sampled
from onnxq.adaptive.events import Journal, Kind, said
from onnxq.adaptive.sampling import Sampling
from onnxq.adaptive.serving import Serving, Sessions
from onnxq.adaptive.state import Generation, State
from onnxq.errors import InputError
from onnxq.runtime.specs import Array

_MOST_WAITING = 64
"""Requests that wait to be looked at; what comes then is not looked at."""

_MOST_BYTES = 64 << 20
"""Of the requests that wait; one may wait whatever its size."""

_MOST_SAID = 10_000
"""Things that wait, above which what is said of answers is not heard."""

_MOST_FAILURES = 5
"""Failures in a row after which what judges is made anew; so many successes, and it works."""

_PATIENCE = 10.0
"""Seconds that the interpreter's exit waits for a thread."""

_JUMP = 60.0
"""Seconds that the wall clock may differ from what passed."""

_MISSED = 10
"""Times that a worker on another machine may fail to write its statistics and count as at work."""

_JUDGING, _SHARING = "looking at requests", "sharing what is known with other workers"


@dataclass(frozen=True)
class Clock:
    """Two clocks: intervals go by the one that never jumps, records by the one on the wall."""

    steady: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


@dataclass(frozen=True)
class Intervals:
    """How often things are done, in seconds.

    Attributes:
        share: Looking at what other workers did.
        keep: Writing statistics, which a kill loses since the last time.
        retry: Trying again to make what could not be made.
    """

    share: float = 1.0
    keep: float = 30.0
    retry: float = 60.0


class Judging(Protocol):
    """What is done with a request that was sampled."""

    def see(self, sampled: Sampled, now: float) -> None:
        """Look at a request."""

    def feedback(self, request: int, correct: bool) -> None:
        """Take to heart what somebody says of an answer."""

    def followed(self) -> None:
        """Another worker changed what answers."""

    def statistics(self) -> dict[str, Any]:
        """What goes on after a restart."""


@dataclass(frozen=True)
class _Feedback:
    request: int
    correct: bool


@dataclass
class Counts:
    """What became of the requests that were sampled, and of what was said of answers.

    Attributes:
        sampled: Requests that were picked.
        dropped: Those that too many were waiting before.
        judged: Those, and what was said, that were judged.
        failed: Those where that failed.
        feedback: What was said.
    """

    sampled: int = 0
    dropped: int = 0
    judged: int = 0
    failed: int = 0
    feedback: int = 0


class Worker:
    """Judges sampled requests in a thread, and lets other sessions answer than before.

    Whatever fails there is told once and changes nothing of what answers.

    The thread has no lower priority than others: while it holds the interpreter's lock, requests
    would wait for whatever else runs on the machine, and the threads of sessions that it makes
    would be as low.

    Args:
        sessions: Makes sessions.
        sampling: Picks requests.
        state: Opens the state for a journal.
        judge: Makes what judges, in the thread, given the worker and what an earlier run knew.
        time_share: Of the time, for looking at requests while there is no suspicion.
        clock: Clocks.
        intervals: How often what is done.

    Attributes:
        live: What answers. It is replaced in one assignment: who reads it once has a session, what
            it is of, and its outputs, which belong together.
        sampling: Picks requests.
        counts: What became of those that were picked.

    Raises:
        InputError: there is no session that could answer.
    """

    def __init__(
        self,
        sessions: Sessions,
        sampling: Sampling,
        state: Callable[[Journal], State],
        judge: Callable[[Worker, Any], Judging],
        *,
        time_share: float,
        clock: Clock,
        intervals: Intervals,
    ) -> None:
        if not 0 < time_share <= 1:
            raise InputError(f"the share of time is {time_share}, not above 0 and at most 1")
        self._rest = 1 / time_share - 1
        self._sessions, self._open_state, self._make_judge = sessions, state, judge
        self._clock, self._every = clock, intervals
        self.sampling = sampling
        self._closed = False
        self.begin()
        self._before: Serving | None = None
        # The newest generation, where it is not what answers because it cannot.
        self._unusable: Generation | None = None
        self.live = self._first()
        self._start()
        _WORKERS.add(self)

    def begin(self) -> None:
        """Begin as if nothing had been sampled; in a process that was forked, too.

        The parent's thread is not in a child, and what it was about to write is the parent's.
        """
        name = f"{socket.gethostname()}:{os.getpid()}:{os.urandom(4).hex()}"
        self.counts = Counts()
        self.journal = Journal(name, self._clock.wall)
        self.state = self._open_state(self.journal)
        self.sampling.begin()
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting: deque[int] = deque()
        self._thread: threading.Thread | None = None
        self._judge: Judging | None = None
        # What was taken over, until what judges is made of it.
        self._inherited: Any = None
        self._retry = 0.0
        self._failures = self._successes = 0
        self._offset = self._clock.wall() - self._clock.steady()
        self._files: dict[str, tuple[int, ...] | None] = {}

    def offer(self, sampled: Sampled) -> None:
        """Give a request to be judged; never waits, and drops it where too many are waiting."""
        size = sum(array.nbytes for array in (*sampled.feeds.values(), *sampled.served))
        with self._lock:
            self.counts.sampled += 1
            waiting = self._waiting
            is_much = len(waiting) >= _MOST_WAITING or sum(waiting) + size > _MOST_BYTES
            if self._closed or (waiting and is_much):
                self.counts.dropped += 1
                return
            waiting.append(size)
        self._put(sampled)

    def feedback(self, request: int, correct: bool) -> None:
        """Give what somebody says of an answer."""
        if self._queue.qsize() < _MOST_SAID:
            self._put(_Feedback(request, correct))

    def flush(self) -> None:
        """Wait until all that was given has been judged, and what follows from it is done."""
        if self._closed or threading.current_thread() is self._thread:
            return
        done = threading.Event()
        self._put(done)
        # A thread that has ended sets nothing.
        while not done.wait(0.5) and self._thread is not None and self._thread.is_alive():
            pass

    def stop(self) -> None:
        """Let the thread end after what it does now; does not wait."""
        self._closed = True
        self._queue.put(None)

    def close(self, patience: float | None = None) -> None:
        """Let the thread end and wait for it."""
        self.stop()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(patience)

    def change(
        self,
        deployment: Deployment,
        kind: Kind,
        reason: str,
        feeds: Mapping[str, Array],
        **details: Any,
    ) -> bool:
        """Let another deployment answer from the next request on; for what judges.

        Args:
            deployment: What is to answer.
            kind: What is told.
            reason: Why.
            feeds: A request to warm up with.
            details: Told, too.

        Returns:
            Whether it answers: it may be unusable, and another worker may have been faster.
        """
        expected = self._unusable or self.live.generation
        new = Generation(expected.number + 1, deployment, reason)
        serving = self._made(new, feeds)
        if serving is None:
            return False
        if not self.state.change(expected, new):
            self._follow(self.state.newest())
            return False
        self._before, self.live, self._unusable = self.live, serving, None
        self.journal.tell(kind, reason, generation=new.number, **details)
        return True

    def answer_before(self, feeds: Mapping[str, Array]) -> tuple[Array, ...] | None:
        """What was answered to a request before the last change; None where that is forgotten."""
        return None if self._before is None else tuple(self._before.session.run(None, dict(feeds)))

    def forget_before(self) -> None:
        """Let go of what answered before the last change."""
        self._before = None

    def _put(self, item: Any) -> None:
        if not self._closed:
            self._start()
            self._queue.put(item)

    def _start(self) -> None:
        if self._thread is not None and self._thread.is_alive():
            return
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="onnxq", daemon=True)
                self._thread.start()

    def _first(self) -> Serving:
        """The newest generation that can answer."""
        newest = self.state.newest()
        for generation in (newest, *self.state.before(newest.number)):
            serving = self._made(generation)
            if serving is not None:
                self._unusable = None if generation is newest else newest
                return serving
        return self._sessions.make(Generation(0, self._sessions.bundle.deployment))

    def _made(
        self, generation: Generation, feeds: Mapping[str, Array] | None = None
    ) -> Serving | None:
        try:
            return self._sessions.make(generation, feeds)
        except Exception as error:
            self.journal.fault(
                f"generation {generation.number}",
                f"generation {generation.number} cannot answer ({said(error)}); requests are "
                "answered by the one before",
            )
            return None

    def _work(self) -> None:
        shared = kept = self._clock.steady()
        generation = self.live.generation
        while not self._closed:
            try:
                item = self._queue.get(timeout=self._every.share)
            except queue.Empty:
                item = None
            self._handle(item)
            now = self._clock.steady()
            if now - shared >= self._every.share or self.journal.waiting():
                # Statistics of what answered before a change mislead after a restart.
                is_due = now - kept >= self._every.keep or generation is not self.live.generation
                self._share(with_statistics=is_due)
                shared, kept = now, now if is_due else kept
                generation = self.live.generation
        self._share(with_statistics=True)
        while not self._queue.empty():
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()

    def _handle(self, item: Any) -> None:
        if isinstance(item, threading.Event):
            item.set()
        elif isinstance(item, _Feedback):
            self.counts.feedback += 1
            self._guarded(lambda judge: judge.feedback(item.request, item.correct))
        elif isinstance(item, Sampled):
            self._guarded(lambda judge: self._see(judge, item))
            with self._lock:
                self._waiting.popleft()

    def _see(self, judge: Judging, sampled: Sampled) -> None:
        began, is_hurried = self._clock.steady(), self.sampling.is_dense
        judge.see(sampled, began)
        if not is_hurried:
            self.sampling.rest(self._rest * (self._clock.steady() - began))

    def _guarded(self, action: Callable[[Judging], None]) -> None:
        """Let the judge do something, which may fail."""
        try:
            if self._judge is None:
                if self._clock.steady() < self._retry:
                    self.counts.failed += 1
                    return
                if self._inherited is None:
                    self._inherited = self.state.inherit(self._is_at_work)
                self._judge = self._make_judge(self, self._inherited)
                self._inherited = None
            action(self._judge)
        except Exception as error:
            self.counts.failed += 1
            self._failures += 1
            self.journal.fault(
                _JUDGING,
                f"{_JUDGING} fails ({said(error)}); requests are answered as before, and are "
                "looked at again as soon as that is possible",
            )
            if self._failures >= _MOST_FAILURES or self._judge is None:
                self._judge = None
                self._retry = self._clock.steady() + self._every.retry
            self._successes = 0
        else:
            self.counts.judged += 1
            self._failures = 0
            self._successes += 1
            # What fails now and then is told once.
            if self._successes >= _MOST_FAILURES:
                self.journal.works(_JUDGING)

    def _share(self, *, with_statistics: bool) -> None:
        """Tell others, and see what they did."""
        try:
            self._check_clock()
            self._check_file()
            known = self._judge.statistics() if with_statistics and self._judge else None
            found = self.state.save(known)
            if found not in (self.live.generation, self._unusable):
                self._follow(found)
        except Exception as error:
            self.journal.fault(_SHARING, f"{_SHARING} fails ({said(error)}); requests go on")

    def _follow(self, generation: Generation) -> None:
        """Let answer what another worker says."""
        serving = self._made(generation)
        if serving is None:
            self._unusable = generation
            return
        self._before, self.live, self._unusable = None, serving, None
        self.journal.tell(
            "followed",
            f"another worker changed what answers: {generation.reason}",
            generation=generation.number,
        )
        if self._judge is not None:
            self._judge.followed()

    def _check_clock(self) -> None:
        offset = self._clock.wall() - self._clock.steady()
        jump, self._offset = offset - self._offset, offset
        if abs(jump) > _JUMP:
            self.journal.tell(
                "fault",
                f"the wall clock jumped by {jump:+.0f} seconds; times of events before and after "
                "differ by that",
                seconds=jump,
            )

    def _check_file(self) -> None:
        """Tell where the file of what answers was replaced: a restart could not use it."""
        variant = self.live.deployment.variant
        name = self._sessions.bundle.variants[variant].file
        seen = _signature(self._sessions.bundle.folder / name)
        if self._files.get(name) == seen:
            return
        self._files[name] = seen
        try:
            self._sessions.bundle.model(variant)
        except InputError as error:
            self.journal.fault(name, f"{error}; requests are answered by what was loaded before")
        else:
            self.journal.works(name)

    def _is_at_work(self, worker: str, saved: float) -> bool:
        host, pid, _ = worker.rsplit(":", 2)
        if any(own.journal.worker == worker and not own._closed for own in _WORKERS):
            return True
        if host == socket.gethostname() and os.name == "posix":
            return int(pid) != os.getpid() and _runs(int(pid))
        return abs(self._clock.wall() - saved) < _MISSED * self._every.keep


_WORKERS: weakref.WeakSet[Worker] = weakref.WeakSet()


def _runs(pid: int) -> bool:
    try:
        # Sends nothing.
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


@atexit.register
def _end() -> None:
    """Let no thread be inside onnxruntime when the interpreter goes."""
    workers = list(_WORKERS)
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.close(_PATIENCE)


def _begin_in_child() -> None:
    for worker in list(_WORKERS):
        worker.begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_in_child)

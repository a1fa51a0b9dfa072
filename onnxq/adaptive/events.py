"""What happened to an adaptive session: told once, to the log and to whoever keeps it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from onnxq.errors import OnnxqError
from onnxq.plain import entry

LOGGER = logging.getLogger("onnxq.adaptive")

Kind = Literal[
    "drift", "adapted", "declined", "rolled-back", "stricter", "followed", "recovered", "fault"
]
"""What can happen.

``drift``: requests are no longer what they were. ``adapted``: another model answers from now on.
``declined``: there was drift, and nothing better was found. ``rolled-back``: what an adaptation
brought was worse, and the model before it answers again. ``stricter``: answers of a cascade
differed from the float model's more often than was promised; its thresholds rose, if there were
higher ones. ``followed``: another worker changed what answers. ``fault``: something failed,
requests are answered as before. ``recovered``: it works again.
"""

_MOST = 10_000
"""Events that wait to be kept; with more, the oldest are lost."""


def said(error: Exception) -> str:
    """What an exception says; what was not raised for users says little without its type."""
    return str(error) if isinstance(error, OnnxqError) else f"{type(error).__name__}: {error}"


@dataclass(frozen=True)
class Event:
    """What happened.

    Attributes:
        kind: See `Kind`.
        time: When, in seconds since 1970 by the wall clock.
        reason: One sentence.
        worker: Which of the processes on a bundle it happened to.
        details: Numbers behind the sentence.
    """

    kind: Kind
    time: float
    reason: str
    worker: str = ""
    details: Mapping[str, Any] = entry(sparse=True, default_factory=dict)


@dataclass
class Journal:
    """Events on their way to where they are kept; any thread may use it.

    A fault is told when it begins, not each time that it is met until it is over.
    """

    worker: str
    wall: Callable[[], float] = time.time
    _events: deque[Event] = field(default_factory=lambda: deque(maxlen=_MOST))
    _faults: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, kind: Kind, reason: str, /, **details: Any) -> None:
        """Log an event and keep it until it is taken."""
        LOGGER.log(logging.WARNING if kind == "fault" else logging.INFO, "%s", reason)
        self._events.append(Event(kind, self.wall(), reason, self.worker, details))

    def fault(self, what: str, reason: str) -> None:
        """Tell that something does not work, unless that is known."""
        with self._lock:
            known = what in self._faults
            self._faults.add(what)
        if not known:
            self.tell("fault", reason, what=what)

    def works(self, what: str) -> None:
        """Tell that something works again, if it did not."""
        with self._lock:
            known = what in self._faults
            self._faults.discard(what)
        if known:
            self.tell("recovered", f"{what} works again", what=what)

    def waiting(self) -> list[Event]:
        """What was not taken."""
        return list(self._events)

    def taken(self, events: list[Event]) -> None:
        """Forget what is kept elsewhere now."""
        for event in events:
            if self._events and self._events[0] is event:
                self._events.popleft()

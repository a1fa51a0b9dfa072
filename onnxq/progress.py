"""How long work tells where it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable


class Progress(Protocol):
    """Is told which stage runs and how far it is."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins; ``total`` is what `advance` will reach, None if nobody knows."""

    def advance(self, done: int) -> None:
        """So much of the stage's total is done."""

    def finish(self) -> None:
        """All stages are over."""


@runtime_checkable
class Foreseeing(Progress, Protocol):
    """Progress that also shows what is to come."""

    def expect(self, names: Sequence[str]) -> None:
        """These stages are likely to come, in this order; some may be left out, others added."""


def expect(progress: Progress, names: Sequence[str]) -> None:
    """Tell which stages are to come, if that is shown."""
    if isinstance(progress, Foreseeing):
        progress.expect(names)


class PeakWatch:
    """Passes on what it is told, and notes in which stage memory was highest.

    Args:
        inner: Whom to pass it on to.
        peak: Gives the most memory that the process has held so far, in bytes.
    """

    def __init__(self, inner: Progress, peak: Callable[[], int]) -> None:
        self._inner = inner
        self._peak = peak
        self._highest = peak()
        self._running, self._found = "reading", ""

    def expect(self, names: Sequence[str]) -> None:
        """Passed on."""
        expect(self._inner, names)

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins, so the one before it is over."""
        self.peak_stage()
        self._running = name
        self._inner.stage(name, total)

    def advance(self, done: int) -> None:
        """Passed on."""
        self._inner.advance(done)

    def finish(self) -> None:
        """Passed on."""
        self._inner.finish()

    def peak_stage(self) -> str:
        """The stage in which the most memory was held; empty if more was before all stages."""
        peak = self._peak()
        if peak > self._highest:
            self._highest, self._found = peak, self._running
        return self._found


class _Silent:
    def stage(self, name: str, total: int | None = None) -> None:
        pass

    def advance(self, done: int) -> None:
        pass

    def finish(self) -> None:
        pass


SILENT: Progress = _Silent()
"""Tells nobody."""

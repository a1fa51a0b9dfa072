"""How long work tells where it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Is told which stage runs and how far it is."""

    def stage(self, name: str, total: int | None = None) -> None:
        """A stage begins; ``total`` is what `advance` will reach, None if nobody knows."""

    def advance(self, done: int) -> None:
        """So much of the stage's total is done."""

    def finish(self) -> None:
        """All stages are over."""


class _Silent:
    def stage(self, name: str, total: int | None = None) -> None:
        pass

    def advance(self, done: int) -> None:
        pass

    def finish(self) -> None:
        pass


SILENT: Progress = _Silent()
"""Tells nobody."""

"""What the user sees: tables on standard output, progress on standard error."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from onnxq.ir.save import replacing
from onnxq.progress import SILENT, Progress

WIDTH = 100
"""Columns of output that does not go to a terminal."""


def show(parsed: argparse.Namespace, what: RenderableType) -> None:
    """Print for people, unless that is unwanted or JSON takes standard output."""
    if parsed.quiet or parsed.json == "-":
        return
    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, emoji=False, markup=False, width=WIDTH)
    console.print(what)


def write_json(parsed: argparse.Namespace, body: Mapping[str, Any]) -> None:
    """Write the result where ``--json`` says, if it says so.

    Raises:
        InputError: the file cannot be written.
    """
    text = json.dumps(body, indent=1, allow_nan=False) + "\n"
    if parsed.json == "-":
        sys.stdout.write(text)
    elif parsed.json:
        with replacing(Path(parsed.json)) as file:
            file.write(text.encode())


@contextlib.contextmanager
def progress(parsed: argparse.Namespace) -> Iterator[Progress]:
    """A bar on standard error while long work runs; nothing where that is no terminal."""
    if parsed.quiet or not sys.stderr.isatty():
        yield SILENT
        return
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bars:
        yield _Stages(bars)


class _Stages:
    """Shows one stage at a time."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def stage(self, name: str, total: int | None = None) -> None:
        self.finish()
        self._task = self._bars.add_task(name, total=total)

    def advance(self, done: int) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done)

    def finish(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None

"""What the user sees: tables on standard output, progress on standard error."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult
from rich.measure import Measurement
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from onnxq.errors import InputError
from onnxq.plain import finite
from onnxq.progress import SILENT, Progress
from onnxq.report.text import grid
from onnxq.report.words import duration, printable, shortened
from onnxq.saved import write_text

EXIT_OK, EXIT_GATE, EXIT_INPUT, EXIT_DEFECT = 0, 1, 2, 70

WIDTH = 100
"""Columns of output that does not go to a terminal."""

NARROWEST = 72
"""Fewest columns that tables are laid out for: in less, figures would be cut off."""

_FEWEST = 14
"""Characters to which a name is shortened; where there is room for fewer, it is broken."""


@dataclass(frozen=True)
class Outcome:
    """What a command found: JSON, what people see, a last line, and the exit code."""

    body: Mapping[str, Any]
    shown: RenderableType
    ending: str = ""
    code: int = EXIT_OK


@dataclass(frozen=True)
class OneLine:
    """A name that loses its middle where there is little room, rather than to be broken.

    Attributes:
        name: The name.
        all: Those that it stands among: where two of them would look the same, all are broken.
    """

    name: str
    all: frozenset[str]

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        """What rich asks: how much room it takes."""
        return Measurement(min(_FEWEST, len(self.name)), len(self.name))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """What rich asks: how it looks."""
        width = options.max_width
        are_told_apart = len({shortened(name, width) for name in self.all}) == len(self.all)
        shortens = width >= _FEWEST and are_told_apart
        yield Text(shortened(self.name, width) if shortens else self.name, overflow="fold")


def table(
    rows: Iterable[Sequence[object]],
    headings: Sequence[str] = (),
    *,
    align: str = "",
    fold: bool = False,
) -> Table:
    """Rows of cells, of which the first names things.

    Args:
        rows: What stands in the cells: `OneLine`, or what is printed as text.
        headings: What stands above each column.
        align: ``<``, ``|`` or ``>`` for each column after the first: words, words that are never
            broken, or figures, which are never broken; the first without it.
        fold: Whether long names in the first column are broken.
    """
    lines: list[list[RenderableType]] = [
        [cell if isinstance(cell, OneLine) else Text(printable(str(cell))) for cell in row]
        for row in rows
    ]
    if headings:
        lines.insert(0, [Text(printable(h), "bold") for h in headings])
    found = grid(fold=fold)
    for side in align.ljust(max(map(len, lines), default=1) - 1, "<"):
        justify: JustifyMethod = "right" if side == ">" else "left"
        found.add_column(justify=justify, no_wrap=side in "|>", overflow="fold")
    for line in lines:
        found.add_row(*line)
    return found


def show(parsed: argparse.Namespace, what: RenderableType, ending: str = "") -> None:
    """Print for people, unless that is unwanted or JSON takes standard output.

    Args:
        parsed: The command's options.
        what: What was found.
        ending: A last line, never broken, so that paths in it stay whole.

    Raises:
        InputError: standard output cannot be written.
    """
    if parsed.quiet or parsed.json == "-":
        return
    stdout = Console()
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=stdout.is_terminal,
        width=max(stdout.width, NARROWEST) if stdout.is_terminal else WIDTH,
        highlight=False,
        emoji=False,
        markup=False,
    )
    console.print(what)
    if ending:
        console.print()
        console.print(Text(printable(ending)), soft_wrap=True)
    # Tables fill their last column with spaces.
    emit("\n".join(line.rstrip() for line in text.getvalue().split("\n")))


def write_json(parsed: argparse.Namespace, body: Mapping[str, Any]) -> None:
    """Write the result where ``--json`` says, if it says so.

    Raises:
        InputError: the file or standard output cannot be written.
    """
    text = json.dumps(finite(body), indent=1, allow_nan=False) + "\n"
    if parsed.json == "-":
        emit(text)
    elif parsed.json:
        write_text(parsed.json, text)


def emit(text: str = "") -> None:
    """Write to standard output, and what was written before, too.

    What nobody reads any more (``onnxq inspect ... | head -1``) is thrown away. Characters that
    the terminal's encoding lacks are written as escapes.

    Raises:
        InputError: standard output cannot be written.
    """
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
    except OSError as error:
        _discard_output()
        raise InputError(f"cannot write to standard output: {error.strerror}") from error


def _discard_output() -> None:
    """Send what is still buffered nowhere: Python would fail to write it once more at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


@contextlib.contextmanager
def progress(parsed: argparse.Namespace) -> Iterator[Progress]:
    """A bar on standard error while long work runs; nothing where that is no terminal."""
    if parsed.quiet or sys.stderr is None or not sys.stderr.isatty():
        yield SILENT
        return
    bars = _Bars(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Percentage(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    with bars:
        yield _Stages(bars)


def show_live(progress: Progress, what: RenderableType) -> None:
    """Show above the bar what is known so far, until the command ends; nothing without a bar."""
    if isinstance(progress, _Stages):
        progress.show(what)


class _Bars(Bars):
    """Bars, what stands above them, and the stages that are over and to come."""

    above: RenderableType | None = None
    over: Mapping[str, float] = MappingProxyType({})
    to_come: Sequence[str] = ()

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.above is not None:
            yield self.above
        for name, seconds in self.over.items():
            yield Text(f"{printable(name)}: {duration(seconds)}", "dim")
        yield from super().get_renderables()
        for name in dict.fromkeys(self.to_come):
            yield Text(f"{printable(name)}: to come", "dim")


class _Percentage(ProgressColumn):
    """How much is done; nothing where nobody knows how much there is."""

    def render(self, task: Task) -> Text:
        return Text("" if task.total is None else f"{task.percentage:3.0f} %")


class _Stages:
    """Shows one stage at a time, those before and after it too if they are foreseen."""

    def __init__(self, bars: _Bars) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._over: dict[str, float] | None = None

    def expect(self, names: Sequence[str]) -> None:
        self._over, self._bars.to_come = {}, tuple(names)
        self._bars.over = self._over

    def stage(self, name: str, total: int | None = None) -> None:
        self.finish()
        to_come = self._bars.to_come
        if name in to_come:
            # What was to come before it was left out.
            self._bars.to_come = to_come[to_come.index(name) + 1 :]
        self._task = self._bars.add_task(name, total=total)

    def advance(self, done: int) -> None:
        if self._task is not None:
            self._bars.update(self._task, completed=done)

    def show(self, what: RenderableType) -> None:
        self._bars.above = what
        self._bars.refresh()

    def finish(self) -> None:
        if self._task is None:
            return
        task = next(task for task in self._bars.tasks if task.id == self._task)
        self._bars.remove_task(self._task)
        self._task = None
        if self._over is not None:
            # A stage may come again and again.
            self._over[task.description] = self._over.get(task.description, 0.0) + (
                task.elapsed or 0.0
            )

"""The report as a short summary for a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxq.report import words
from onnxq.report.figures import figures
from onnxq.report.grouping import weakest
from onnxq.verify.result import Report

_WEAKEST = 5


def to_text(
    report: Report, *, layers: Literal["none", "weakest", "all"] = "none"
) -> RenderableType:
    """A summary for `rich.console.Console.print`; plain where the console is no terminal.

    Args:
        report: What was found out.
        layers: Whether to list the layers with the lowest SQNR, too, or all.
    """
    parts: list[RenderableType] = [_listing(figures(report))]
    if report.deployments:
        parts += [Text(), _deployments(report)]
    if report.deploy:
        parts += [Text(), Text(words.printable(report.deploy))]
    if report.candidates:
        parts += [Text(), _candidates(report)]
    if report.gates:
        parts += [Text(), _listing(_gates(report))]
    if report.notes:
        parts += [Text(), *(Text(words.printable(note)) for note in report.notes)]
    if layers == "weakest" and any(layer.sqnr_db is not None for layer in report.layers):
        parts += [Text(), _listing(_weakest(report), numbers=True)]
    if layers == "all":
        parts += [Text(), _layers(report)]
    if layers != "none" and report.jump is not None:
        parts += [Text(), Text(f"First jump: {words.jump(report.jump)}.", "bold red")]
    return Group(*parts)


def grid(*, fold: bool = False) -> Table:
    """A table without lines whose first column names things.

    Args:
        fold: Break long names, so that the other columns keep their room.
    """
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=not fold, overflow="fold")
    return table


def _deployments(report: Report) -> Table:
    table = grid(fold=True)
    table.add_column(overflow="fold")
    for _ in range(4):
        table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    headings = ("model", "speedup", "interval", "SQNR", "size", "")
    table.add_row(Text("deployments"), *(Text(heading, "bold") for heading in headings))
    for found in report.deployments:
        cells = (
            words.printable(found.model),
            "" if found.speedup is None else f"{words.ratio(found.speedup)}x",
            words.speedup_interval(found),
            "" if found.sqnr_db is None else words.decibels(found.sqnr_db),
            "" if found.bytes is None else words.size(found.bytes),
            "chosen" if found.chosen else words.printable(found.reason),
        )
        where = Text(words.printable(words.place(found)), "")
        table.add_row(where, *(Text(cell, "green" * found.chosen) for cell in cells))
    return table


def _candidates(report: Report) -> Table:
    table = grid(fold=True)
    for _ in range(4):
        table.add_column(justify="right", no_wrap=True)
    headings = ("speedup", "predicted SQNR", "SQNR", "drop")
    table.add_row(Text("candidates"), *(Text(heading, "bold") for heading in headings))
    for found in report.candidates:
        cells = (
            f"{words.ratio(found.speedup)}x",
            words.loss("noise", found.predicted_loss),
            "" if found.sqnr_db is None else words.decibels(found.sqnr_db),
            words.candidate_drop(report.metric, found.drop),
        )
        table.add_row(Text(words.printable(found.label), ""), *(Text(cell) for cell in cells))
    return table


def _gates(report: Report) -> Iterator[tuple[str, str, Text]]:
    for place, gate in enumerate(report.gates):
        value = ("" if gate.value is None else "measured ") + words.gate_value(gate)
        verdict = Text("held", "green") if gate.passed else Text("FAILED", "bold red")
        yield "" if place else "gates", gate.expr, Text(f"{value}: ") + verdict


def _weakest(report: Report) -> Iterator[tuple[str, str, str]]:
    label = "weakest layers"
    for layer in weakest(report.layers, _WEAKEST):
        kind = words.printable(f"{layer.op_type}, {layer.precision}")
        what = f"{words.name(layer.node)} ({kind})"
        yield label, "" if layer.sqnr_db is None else words.decibels(layer.sqnr_db), what
        label = ""
    if label:
        yield label, "none", "every layer is exact"


def _layers(report: Report) -> Table:
    """Every layer in node order, with its accumulated and its own error."""
    table = grid(fold=True)
    for _ in range(5):
        table.add_column(justify="right", no_wrap=True)
    headings = ("precision", "accumulated", "own", "worst channel", "cut off")
    table.add_row(Text("layers"), *(Text(heading, "bold") for heading in headings))
    for layer in report.layers:
        worst, db = "", layer.worst_channel_db
        # Of a layer without an error none is the worst.
        if layer.worst_channel is not None and db is not None and db < math.inf:
            worst = f"{layer.worst_channel}: {words.decibels(db)}"
        cells = (
            layer.precision,
            "" if layer.sqnr_db is None else words.decibels(layer.sqnr_db),
            "" if layer.local_db is None else words.decibels(layer.local_db),
            worst,
            "" if layer.saturation is None else words.share(layer.saturation),
        )
        name = f"{words.name(layer.node)} ({words.printable(layer.op_type)})"
        table.add_row(Text(name, ""), *(Text(cell) for cell in cells))
    return table


def _listing(rows: Iterable[tuple[str, str, str | Text]], numbers: bool = False) -> Table:
    table = grid()
    table.add_column(justify="right" if numbers else "left", no_wrap=numbers, overflow="fold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table

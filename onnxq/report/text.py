"""The report as a short summary for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxq.report import words
from onnxq.report.grouping import left_in_float, methods, weakest
from onnxq.report.providers import told_of
from onnxq.verify.precision import counts
from onnxq.verify.result import AGREEMENT, Report

_REASONS = 5
_OPERATORS = 4
_WEAKEST = 5


def to_text(
    report: Report, *, layers: Literal["none", "weakest", "all"] = "none"
) -> RenderableType:
    """A summary for `rich.console.Console.print`; plain where the console is no terminal.

    Args:
        report: What was found out.
        layers: Whether to list the layers with the lowest SQNR, too, or all.
    """
    parts: list[RenderableType] = [_listing(_rows(report))]
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


def _rows(report: Report) -> Iterator[tuple[str, str, str]]:
    metric = report.metric
    if metric is not None and metric.name != AGREEMENT:
        before = words.metric_value(metric, metric.float)
        after = words.metric_value(metric, metric.candidate)
        drop = f"drop {words.metric_drop(metric, metric.drop)}"
        interval = words.drop_interval(metric)
        if interval:
            drop += f", 95 % interval {interval}"
        samples = words.count(metric.samples, "sample")
        yield words.printable(metric.name), f"{before} -> {after}", f"{drop} ({samples})"
    if (found := report.agreement) is not None:
        what, _, over = words.agreement(found)
        interval = words.agreement_interval(found)
        told = f"same {what} as float, 95 % interval {interval} ({over})"
        yield AGREEMENT, words.share(found.value), told
    for latency in report.latencies:
        before, after = map(words.milliseconds, (latency.float_ms, latency.candidate_ms))
        told = f"{words.ratio(latency.speedup)}x as fast"
        if interval := words.speedup_interval(latency):
            told += f", 95 % interval {interval}"
        told += f" ({words.measured_on(latency)})"
        yield f"latency {latency.of}".strip(), f"{before} -> {after}", told
    for found_on in report.providers:
        yield "provider", words.printable(found_on.name), told_of(found_on)
    for rate in report.throughput:
        before, after = map(words.per_second, (rate.float_per_second, rate.candidate_per_second))
        told = f"{words.ratio(rate.speedup)}x as many ({words.measured_on(rate)})"
        yield "throughput", f"{before} -> {after}", told
    sizes = f"{words.size(report.size.float_bytes)} -> {words.size(report.size.candidate_bytes)}"
    yield "size", sizes, words.change(report.size.ratio)
    if report.outputs:
        worst = min(report.outputs, key=lambda output: output.sqnr_db)
        which = f"output {words.printable(worst.name)}"
        if len(report.outputs) > 1:
            which = f"worst of {len(report.outputs)} outputs: {words.printable(worst.name)}"
        yield "SQNR", words.decibels(worst.sqnr_db), which
    integer = Counter[str]()
    for name, amount in report.output.integer_operators.items():
        integer[name.rpartition(":")[2]] += amount
    kinds = words.listed(integer, _OPERATORS) if integer else ""
    if compiled := report.output.compiled:
        yield "integer", "not known", f"the provider compiled {words.count(compiled, 'operator')}"
    else:
        yield "integer", words.count(sum(integer.values()), "operator"), kinds
    yield (
        "precision",
        words.count(len(report.layers), "operator"),
        words.listed(counts(report.layers)),
    )
    for place, (method, nodes, gain) in enumerate(methods(report)):
        told = words.printable(method)
        told += f": error lower by {words.decibels(gain)} in the median" if gain else ""
        yield "" if place else "methods", words.count(nodes, "node"), told
    yield from _left_in_float(report)
    if (training := report.training) is not None:
        yield "training", *words.training(training)


def _left_in_float(report: Report) -> Iterator[tuple[str, str, str]]:
    groups = left_in_float(report.layers)
    for place, group in enumerate(groups[:_REASONS]):
        kinds = words.listed(group.operators, _OPERATORS)
        yield "" if place else "left in float", kinds, words.printable(group.reason)
    hidden = groups[_REASONS:]
    if hidden:
        total = sum(len(group.layers) for group in hidden)
        yield "", words.count(total, "operator"), f"for {words.count(len(hidden), 'more reason')}"


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
        value = "not measured" if gate.value is None else f"measured {words.number(gate.value)}"
        verdict = Text("held", "green") if gate.passed else Text("FAILED", "bold red")
        yield "" if place else "gates", gate.expr, Text(f"{value}: ") + verdict


def _weakest(report: Report) -> Iterator[tuple[str, str, str]]:
    label = "weakest layers"
    for layer in weakest(report.layers, _WEAKEST):
        what = words.printable(f"{layer.node} ({layer.op_type}, {layer.precision})")
        yield label, "" if layer.sqnr_db is None else words.decibels(layer.sqnr_db), what
        label = ""
    if label:
        yield label, "none", "every layer is exact"


def _layers(report: Report) -> Table:
    """Every layer in node order, with its accumulated and its local error."""
    table = grid(fold=True)
    for _ in range(5):
        table.add_column(justify="right", no_wrap=True)
    headings = ("precision", "accumulated", "local", "worst channel", "cut off")
    table.add_row(Text("layers"), *(Text(heading, "bold") for heading in headings))
    for layer in report.layers:
        worst = ""
        if layer.worst_channel is not None and layer.worst_channel_db is not None:
            worst = f"{layer.worst_channel}: {words.decibels(layer.worst_channel_db)}"
        cells = (
            layer.precision,
            "" if layer.sqnr_db is None else words.decibels(layer.sqnr_db),
            "" if layer.local_db is None else words.decibels(layer.local_db),
            worst,
            "" if layer.saturation is None else words.share(layer.saturation),
        )
        name = words.printable(f"{layer.node} ({layer.op_type})")
        table.add_row(Text(name, ""), *(Text(cell) for cell in cells))
    return table


def _listing(rows: Iterable[tuple[str, str, str | Text]], numbers: bool = False) -> Table:
    table = grid()
    table.add_column(justify="right" if numbers else "left", no_wrap=numbers, overflow="fold")
    table.add_column(overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
    return table

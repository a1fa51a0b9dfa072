"""Several reports side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import TypeAlias

from onnxq.adaptive.replay import Replay
from onnxq.errors import InputError
from onnxq.report import words
from onnxq.report.grouping import left_in_float, methods
from onnxq.report.pages import render
from onnxq.verify.precision import counts
from onnxq.verify.result import LayerFacts, Report

_MOST = len(ascii_uppercase)
_LISTED = 500
"""Nodes that differ, at most, that are listed."""

_Said: TypeAlias = Callable[[Report], str]
_Worth: TypeAlias = Callable[[Report], float | None]


@dataclass(frozen=True)
class Row:
    """One thing that was measured, in the words of every run; the best are those that lead."""

    what: str
    cells: tuple[str, ...]
    best: frozenset[int] = frozenset()


@dataclass(frozen=True)
class NodeRow:
    """An operator that not all runs have in one precision, as it is in each."""

    node: str
    op_type: str
    layers: tuple[LayerFacts, ...]


def to_html(files: Sequence[str], reports: Sequence[Report], replays: Sequence[Replay] = ()) -> str:
    """One page that compares runs, which it calls A, B and so on.

    Args:
        files: Where the reports come from.
        reports: What was found out in each run.
        replays: What adaptive sessions saw and did.

    Raises:
        InputError: there are more runs than letters.
    """
    if len(reports) > _MOST:
        raise InputError(
            f"a page compares up to {_MOST} reports, not {len(reports)}; name fewer of them"
        )
    named = dict(zip(ascii_uppercase, reports, strict=False))
    nodes, rows = list(_differing(reports)), list(_rows(reports))
    is_one_model = len({report.model.sha256 for report in reports}) == 1
    if not is_one_model:
        # Ratios to different models cannot be ranked.
        rows = [Row(row.what, row.cells) for row in rows]
    return render(
        "sides.html.jinja",
        named=named,
        files=files,
        rows=rows,
        nodes=nodes[:_LISTED],
        left_out=max(0, len(nodes) - _LISTED),
        is_one_model=is_one_model,
        replays=replays,
    )


def _rows(reports: Sequence[Report]) -> Iterator[Row]:
    rows = (
        _row(reports, "promise", _promise),
        _row(reports, "metric", lambda r: r.metric.name if r.metric else ""),
        _row(
            reports,
            "of float",
            lambda r: words.metric_value(r.metric, r.metric.float) if r.metric else "",
        ),
        _row(
            reports,
            "of the candidate",
            lambda r: words.metric_value(r.metric, r.metric.candidate) if r.metric else "",
        ),
        _row(reports, "drop", _drop, _kept(reports)),
        _row(
            reports,
            "agreement",
            lambda r: words.share(r.agreement.value) if r.agreement else "",
            _agreement,
        ),
        _row(
            reports,
            "output SQNR",
            lambda r: words.decibels(r.sqnr_db) if r.outputs else "",
            lambda r: r.sqnr_db if r.outputs else None,
        ),
        _row(reports, "speedup", _speed, _speedup),
        _row(reports, "latency", _latency),
        _row(
            reports,
            "size over float's",
            lambda r: words.change(r.size.ratio).replace("x ", "× "),
            lambda r: r.size.ratio,
        ),
        _row(reports, "size", lambda r: words.size(r.size.candidate_bytes)),
        _row(reports, "operators", lambda r: words.listed(counts(r.layers)) if r.layers else ""),
        _row(reports, "left in float", _left),
        _row(reports, "methods", lambda r: ", ".join(f"{m} {n}" for m, n, _ in methods(r))),
        _row(reports, "training", lambda r: words.training(r.training)[0] if r.training else ""),
        _row(reports, "took", lambda r: words.duration(r.seconds)),
        _row(reports, "memory", lambda r: words.size(r.peak_rss_bytes) if r.peak_rss_bytes else ""),
        _row(reports, "opset", lambda r: str(r.output.opset)),
    )
    yield from (row for row in rows if any(row.cells))
    for name in dict.fromkeys(name for report in reports for name in report.versions):
        cells = tuple(report.versions.get(name, "") for report in reports)
        if len({*cells}) > 1:
            yield Row(name, cells)


def _row(reports: Sequence[Report], what: str, said: _Said, worth: _Worth | None = None) -> Row:
    values = [worth(report) if worth else None for report in reports]
    known = [v for v in values if v is not None and not math.isnan(v)]
    # Where all are alike, none leads.
    best = {at for at, v in enumerate(values) if v == max(known)} if len({*known}) > 1 else ()
    return Row(what, tuple(said(report) for report in reports), frozenset(best))


def _promise(report: Report) -> str:
    held = sum(gate.passed for gate in report.gates)
    return f"{held} of {words.count(len(report.gates), 'gate')} held" if report.gates else ""


def _drop(report: Report) -> str:
    metric = report.metric
    if metric is None:
        return ""
    interval = words.drop_interval(metric)
    return words.metric_drop(metric, metric.drop) + (f" ({interval})" if interval else "")


def _kept(reports: Sequence[Report]) -> _Worth | None:
    """How little is lost, where all speak of one metric."""
    names = {report.metric.name for report in reports if report.metric}
    return (lambda r: -r.metric.drop if r.metric else None) if len(names) == 1 else None


def _agreement(report: Report) -> float | None:
    return report.agreement.value if report.agreement else None


def _speed(report: Report) -> str:
    if report.latency is None:
        return ""
    interval = words.speedup_interval(report.latency)
    return f"{words.ratio(report.latency.speedup)}×" + (f" ({interval})" if interval else "")


def _speedup(report: Report) -> float | None:
    return report.latency.speedup if report.latency else None


def _latency(report: Report) -> str:
    found = report.latency
    if found is None:
        return ""
    times = f"{words.milliseconds(found.float_ms)} → {words.milliseconds(found.candidate_ms)}"
    return f"{times} on {words.measured_on(found)}"


def _left(report: Report) -> str:
    amount = sum(len(group.layers) for group in left_in_float(report.layers))
    return words.count(amount, "operator") if amount else ""


def _differing(reports: Sequence[Report]) -> Iterator[NodeRow]:
    """Operators that all runs have, in more than one precision, in the order of the first."""
    named = [{layer.node: layer for layer in report.layers} for report in reports]
    for node, layer in named[0].items():
        own = tuple(found[node] for found in named if node in found)
        if len(own) == len(reports) and len({n.precision for n in own}) > 1:
            yield NodeRow(node, layer.op_type, own)

"""The figures of a report, a row each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from onnxq.report import words
from onnxq.report.grouping import left_in_float, methods
from onnxq.report.providers import told_of
from onnxq.verify.precision import counts
from onnxq.verify.result import AGREEMENT, Report

_REASONS = 5
_OPERATORS = 4


def figures(report: Report) -> Iterator[tuple[str, str, str]]:
    """What was measured, its value (in float and in the candidate), and what there is to say of it.

    The first is empty in further rows of one thing. All of it is printable.
    """
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
    kinds = words.listed(integer, _OPERATORS)
    # The CPU was asked where the target's provider is not there, which has other kernels.
    on = f"on {words.printable(report.output.provider)}" if report.output.provider else ""
    if compiled := report.output.compiled:
        yield "integer", "not known", f"the provider compiled {words.count(compiled, 'operator')}"
    else:
        yield "integer", words.count(sum(integer.values()), "operator"), kinds if integer else on
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

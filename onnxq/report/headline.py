"""The whole report in one sentence."""

from __future__ import annotations

import math
from pathlib import Path

from onnxq.report import words
from onnxq.verify.result import AGREEMENT, Report


def headline(report: Report) -> str:
    """What the candidate is worth, and whether the promise held."""
    name = Path(report.output.path).name or "The candidate"
    said = " and ".join(part for part in (_speed(report), _size(report)) if part)
    if accuracy := _accuracy(report):
        said += f", and {accuracy}"
    failed = sum(not gate.passed for gate in report.gates)
    if failed:
        verdict = f", but {failed} of {words.count(len(report.gates), 'gate')} failed"
    elif report.gates:
        verdict = f": {_all(len(report.gates))} held"
    else:
        verdict = ""
    return f"{name} is {said}{verdict}."


def _all(gates: int) -> str:
    return "its gate" if gates == 1 else "both gates" if gates == 2 else f"all {gates} gates"


def _speed(report: Report) -> str:
    latency = report.latency
    if latency is None:
        return ""
    float_name, ratio = Path(report.model.path).name, words.ratio(latency.speedup)
    if ratio == "1.00":
        return f"as fast as {float_name}"
    if latency.speedup > 1:
        return f"{ratio} times as fast as {float_name}"
    return f"slower than {float_name} ({ratio} times as fast)"


def _size(report: Report) -> str:
    ratio = report.size.ratio
    if words.ratio(ratio) == "1.00":
        return "as large"
    return words.change(ratio).replace("x ", " times ")


def _accuracy(report: Report) -> str:
    metric = report.metric
    if metric is None:
        return f"keeps its outputs to {words.decibels(report.sqnr_db)}" if report.outputs else ""
    if metric.name == AGREEMENT:
        said = f"decides as float does in {words.share(metric.candidate)} of all cases"
        if metric.confidence is None:
            return said
        low, high = (words.share(1 - end) for end in reversed(metric.confidence))
        return f"{said} (95 % interval {low} to {high})"
    if math.isnan(metric.drop):
        values = (words.measured(metric.name, side) for side in (metric.float, metric.candidate))
        return "loses an unknown amount of {} ({} before, {} after)".format(metric.name, *values)
    amount = words.metric_drop(metric, abs(metric.drop))
    said = f"{'gains' if metric.drop < 0 else 'loses'} {amount} of {metric.name}"
    if not metric.drop:
        said = f"loses nothing of {metric.name}"
    if metric.confidence is None:
        return said
    return f"{said} (95 % interval of the drop {words.drop_interval(metric)})"

"""For tests of a user's own: an assertion that a candidate is as good as its float model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from onnxq.comparison import compare
from onnxq.data import DataLike, ImageOptions
from onnxq.ir import ModelLike
from onnxq.options import Options
from onnxq.progress import SILENT, Progress
from onnxq.promise import promise
from onnxq.report import words
from onnxq.report.grouping import weakest
from onnxq.verify import Gate, Report, with_gates
from onnxq.verify.result import GateFacts

_WEAKEST = 3


def assert_equivalent(
    float_model: ModelLike,
    candidate: ModelLike,
    data: DataLike,
    *,
    gates: Sequence[str | Gate] = (),
    metric: str | None = None,
    providers: Sequence[str] = ("cpu",),
    threads: int = 1,
    images: ImageOptions | None = None,
    batch_size: int | None = None,
    samples: int | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Assert that a candidate keeps what gates promise, as a test with pytest wants it.

    Latency is measured only if a gate speaks of it. See `onnxq.compare` for what arguments mean.

    Args:
        float_model: The reference: path, serialized bytes or ``ModelProto``.
        candidate: The model to judge, with the same inputs and outputs.
        data: Samples, see `onnxq.data.read`.
        gates: Promises, as ``"drop<=0.01"``; by default those of accuracy that `onnxq.optimize`
            makes: a drop of the metric of at most 0.01 where there are labels, otherwise that 95 %
            of all decisions are the float model's, and an SQNR of 15 dB where outputs are numbers.
        metric: Name of the metric; chosen by the labels if None.
        providers: Execution providers to run on.
        threads: Threads inside one operator.
        images: How to read a folder of images.
        batch_size: Samples in a batch where the model leaves it open.
        samples: Use only about so many samples.
        progress: Told of stages.

    Returns:
        The report, if every gate held.

    Raises:
        AssertionError: a gate failed; the message says which, by how much, and at which layer the
            error first jumps.
        InputError: a model, the data or an option cannot be used.
    """
    __tracebackhide__ = True
    parsed = Gate.listed(gates)
    report = compare(
        float_model,
        candidate,
        data,
        metric=metric,
        providers=providers,
        threads=threads,
        images=images,
        batch_size=batch_size,
        latency=any(gate.is_timed for gate in parsed),
        samples=samples,
        progress=progress,
    )
    report = with_gates(report, parsed or promise(report, Options(), is_timed=False))
    if not report.passed:
        raise AssertionError(_message(report))
    return report


def _message(report: Report) -> str:
    names = (words.printable(Path(facts.path).name) for facts in (report.output, report.model))
    failed = [gate for gate in report.gates if not gate.passed]
    heading = "{} is not equivalent to {}: ".format(*names)
    heading += f"{len(failed)} of {words.count(len(report.gates), 'gate')} failed"
    return "\n".join(
        [heading, *(f"  {gate.expr}: {_miss(gate)}" for gate in failed), _where(report)]
    )


def _miss(facts: GateFacts) -> str:
    """What was measured, and by how much that breaks the promise."""
    if facts.value is None:
        return "not measured"
    gate = Gate.parse(facts.expr)
    by, measured = abs(facts.value - gate.bound), f"measured {words.gate_value(facts)}"
    how = {"<": "too much", ">": "too little"}.get(gate.comparison[0], "apart")
    return f"{measured}, {words.number(by)} {how}" if math.isfinite(by) else measured


def _where(report: Report) -> str:
    """The layer at which the error first jumps, or the weakest, if each is explained."""
    if report.jump is not None:
        return f"The error first jumps here: {words.jump(report.jump)}."
    found = ", ".join(
        f"{words.name(layer.node)} ({words.printable(layer.op_type)}, {layer.precision})"
        + f" {words.decibels(layer.sqnr_db)}"
        for layer in weakest(report.layers, _WEAKEST)
        if layer.sqnr_db is not None
    )
    return f"No layer errs more than its precision explains; the weakest: {found or 'none'}."

"""What was made in a job, with the plan that makes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from onnxq.bundling import Ladder
from onnxq.ir import Graph
from onnxq.job import Job
from onnxq.plan import Plan
from onnxq.verify import Gate, Report


@dataclass(frozen=True)
class Found:
    """What was made in a job.

    Attributes:
        graph: The model.
        report: What verification found.
        plan: The plan that makes it.
        ladder: What a bundle could be made of; None where nothing was quantized.
    """

    graph: Graph
    report: Report
    plan: Plan
    ladder: Ladder | None = None


def left_alone(job: Job) -> Plan:
    """The plan that leaves the model as it is."""
    return Plan(
        job.sha256,
        job.target.name,
        passes="",
        opset=job.source.opset,
        keep_overridable=job.options.keep_overridable,
        calibrator=str(job.calibrator),
        seed=job.options.seed,
    )


def noted(plan: Plan, report: Report, gates: Sequence[Gate]) -> Plan:
    """The plan with its promise and what verification measured."""
    found = {"sqnr_db": report.sqnr_db, "size_ratio": report.size.ratio}
    if report.latency is not None:
        found["speedup"] = report.latency.speedup
    if report.metric is not None:
        found["drop"] = report.metric.drop
    return replace(plan, promise=tuple(map(str, gates)), measured=found)

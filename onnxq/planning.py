"""Ranges, sensitivity, costs, plans and their application, each as a stage of its own."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxq.cost import Costs
from onnxq.data import DataLike
from onnxq.errors import InputError
from onnxq.ir import Context, Graph, ModelLike, load, save
from onnxq.ir.saving import check_writable
from onnxq.job import Job, as_file, open_job
from onnxq.observe import Ranges
from onnxq.options import Options
from onnxq.passes.cleanup.constant_initializers import settle_overridable
from onnxq.plan import Assignment, Plan, assign, pareto_front
from onnxq.plan.apply import check_made_for, remake
from onnxq.plan.assignment import Objective
from onnxq.prepare import find_ranges as ranges_of
from onnxq.prepare import observed, prepare, transformed
from onnxq.progress import SILENT, Progress
from onnxq.promise import DEFAULT_MIN_SQNR
from onnxq.sensitivity import Sensitivity
from onnxq.study import find_costs as costs_of
from onnxq.study import find_losses as losses_of
from onnxq.study import study, uniform_plan
from onnxq.targets import load_target
from onnxq.verify.facts import file_sha256


@dataclass(frozen=True)
class Limit:
    """What a plan has to stay within; at most one of these.

    Attributes:
        loss: Largest predicted loss, in units of the proxy ``noise``.
        min_sqnr: The same as SQNR of the outputs in dB.
        latency: Largest predicted latency in milliseconds; the plan then loses as little as it can.
        bytes: Largest size of the weights in bytes; likewise.
    """

    loss: float | None = None
    min_sqnr: float | None = None
    latency: float | None = None
    bytes: float | None = None

    def resolved(self, kind: str) -> tuple[Objective, float, str]:
        """What to minimise, the budget of the other quantity, and the promise in words.

        Without a limit, an SQNR of `DEFAULT_MIN_SQNR` is predicted.

        Raises:
            InputError: there are several, or it does not fit what costs are.
        """
        given = [name for name, value in vars(self).items() if value is not None]
        if len(given) > 1:
            raise InputError(f"a plan keeps one limit, not both {given[0]} and {given[1]}")
        for name, wanted in (("latency", "latency"), ("bytes", "size")):
            if name in given and kind != wanted:
                raise InputError(f"a limit of {name} needs costs of kind '{wanted}', not '{kind}'")
        if self.latency is not None:
            return "loss", self.latency, f"candidate_ms<={self.latency:g}"
        if self.bytes is not None:
            return "loss", self.bytes, f"weight_bytes<={self.bytes:g}"
        if self.loss is not None:
            if self.loss < 0:
                raise InputError(f"a loss of {self.loss:g} is not possible; give 0 or more")
            return "cost", self.loss, f"loss<={self.loss:g}"
        sqnr = DEFAULT_MIN_SQNR if self.min_sqnr is None else self.min_sqnr
        return "cost", 10 ** (-sqnr / 10), f"sqnr>={sqnr:g}"


@dataclass(frozen=True)
class FrontPoint:
    """One plan of a front: what it costs, what it loses, how many nodes have which precision."""

    cost: float
    loss: float
    exact: bool
    nodes: dict[str, int]


def find_sensitivity(
    model: ModelLike,
    data: DataLike,
    options: Options | None = None,
    *,
    progress: Progress = SILENT,
    **changes: Any,
) -> Sensitivity:
    """Predict what quantizing each node costs in accuracy, see `onnxq.sensitivity.analyse`.

    The arguments, and what is raised, are those of `make_plan`, without the limit.
    """
    with _opened(model, data, options, changes, progress) as job:
        return losses_of(observed(prepare(job.as_search())))


def find_costs(
    model: ModelLike,
    data: DataLike | None = None,
    options: Options | None = None,
    *,
    progress: Progress = SILENT,
    **changes: Any,
) -> Costs:
    """What every node costs in every precision, and every border between integers and floats.

    Only latencies need data; without it, samples are made up, which only models take that run on
    any numbers. The arguments, and what is raised, are those of `make_plan`, without the limit.
    """
    with _opened(model, data, options, changes, progress) as job:
        prepared = prepare(job.as_search())
        return costs_of(observed(prepared) if job.options.cost == "latency" else prepared)


def find_ranges(
    model: ModelLike,
    data: DataLike,
    options: Options | None = None,
    *,
    progress: Progress = SILENT,
    **changes: Any,
) -> Ranges:
    """Find the ranges of the activations that `optimize` would quantize, from the same samples.

    They come with histograms, so that `Ranges.with_calibrator` can try other calibrators without
    running the model again.

    The arguments, and what is raised, are those of `make_plan`, without the limit.
    """
    with _opened(model, data, options, changes, progress) as job:
        return ranges_of(transformed(prepare(job)), histograms=True)


def make_plan(
    model: ModelLike,
    data: DataLike,
    options: Options | None = None,
    *,
    limit: Limit | None = None,
    progress: Progress = SILENT,
    **changes: Any,
) -> Plan:
    """Choose a precision for every node from predictions, without verification.

    The plan of a recipe that is no search is that of `optimize`; it has no limit.

    Args:
        model: Path, serialized bytes or ``ModelProto`` of the float model.
        data: Representative samples, see `onnxq.data.read`; the part that `optimize` would
            calibrate on counts.
        options: See `Options`.
        limit: What the plan has to stay within, see `Limit`.
        progress: Told of stages.
        **changes: Single fields of `Options`.

    Raises:
        InputError: the model, the data or an option cannot be used, nothing in the model can be
            quantized, or no plan keeps the limit.
    """
    limit = limit or Limit()
    with _opened(model, data, options, changes, progress) as job:
        if not job.recipe.is_search:
            if limit != Limit() or job.options.cost_table is not None:
                raise InputError(
                    "limits and costs are for a search, and the recipe gives all nodes one "
                    "precision; leave them out, or use the recipe 'mixed'"
                )
            return uniform_plan(observed(prepare(job)), job.recipe.precision)
        table = job.options.cost_table
        kind = job.options.cost if table is None else table.kind
        objective, budget, promise = limit.resolved(kind)
        found = study(observed(prepare(job)))
        problem = found.problem()
        free = _possible(assign(problem))
        chosen = assign(problem, objective=objective, budget=budget)
        if chosen is None:
            least = f"cost there is, is {free.cost:.6g}"
            if objective == "cost":
                lossless = _possible(assign(problem, objective="loss"))
                least = f"loss there is, is {lossless.loss:.6g}"
            raise InputError(f"no plan keeps '{promise}': the least {least}")
        return found.plan(problem, chosen, free, [promise])


def find_front(
    model: ModelLike,
    data: DataLike,
    options: Options | None = None,
    *,
    progress: Progress = SILENT,
    **changes: Any,
) -> list[FrontPoint]:
    """Plans of which none is better than another in both cost and loss, the cheapest first.

    The arguments, and what is raised, are those of `make_plan`, without the limit.
    """
    with _opened(model, data, options, changes, progress) as job:
        found = study(observed(prepare(job.as_search())))
        progress.stage("solving")
        points = pareto_front(found.problem())
        _possible(points[0] if points else None)
        return [
            FrontPoint(p.cost, p.loss, p.exact, dict(Counter(p.precisions.values())))
            for p in points
        ]


def apply_plan(
    model: ModelLike,
    plan: Plan | str | os.PathLike[str],
    *,
    output: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
    debug: int = 0,
) -> Graph:
    """Make the model that a plan describes; the same plan gives the same bytes.

    Args:
        model: Path, serialized bytes or ``ModelProto`` of the float model the plan is for.
        plan: The plan, or its file.
        output: Where to write the model; nowhere if None.
        progress: Told of stages.
        debug: Level of the passes' log.

    Raises:
        InputError: the model or the plan cannot be used, the plan is for another model, or a
            precision that was set by hand is none that its node can have.
    """
    made = plan if isinstance(plan, Plan) else Plan.load(plan)
    if output is not None:
        check_writable(Path(output))
    with as_file(model) as (path, _):
        graph = load(path)
        check_made_for(made, file_sha256(path))
        ctx = Context(debug)
        settle_overridable(graph, ctx, keep=made.keep_overridable)
        if not made.changes_nothing:
            graph, _ = remake(graph, made, load_target(made.target), ctx, progress)
        if output is not None:
            save(graph, output)
    progress.finish()
    return graph


@contextmanager
def _opened(
    model: ModelLike,
    data: DataLike | None,
    options: Options | None,
    changes: dict[str, Any],
    progress: Progress,
) -> Iterator[Job]:
    with open_job(model, data, replace(options or Options(), **changes), progress=progress) as job:
        yield job
    progress.finish()


def _possible(found: Assignment | None) -> Assignment:
    if found is None:
        raise InputError("no plan has all the precisions that are pinned; pin fewer nodes")
    return found

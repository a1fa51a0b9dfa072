"""The main job and its proof: the chain put together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from onnxq.adaptive.bundle import check_folder
from onnxq.bundling import Ladder, Rung, check_bundled, told, write_bundle
from onnxq.data import DataLike, Dataset
from onnxq.distributions import worst_tensors
from onnxq.errors import InputError, NothingToQuantizeError
from onnxq.fastest import fastest
from onnxq.found import Found, left_alone, noted
from onnxq.ir import Graph, ModelLike, save
from onnxq.ir.saving import check_writable
from onnxq.job import Job, label, open_job, told_of_seen
from onnxq.options import Options
from onnxq.plan import Plan
from onnxq.plan.apply import float_graph
from onnxq.precision import FLOAT
from onnxq.prepare import Prepared, float_form, observed, prepare
from onnxq.progress import SILENT, PeakWatch, Progress, expect
from onnxq.promise import check_promise, promise
from onnxq.proof import verify
from onnxq.report.certainty import certainty
from onnxq.report.expectation import expectation
from onnxq.report.omission import omission
from onnxq.runtime.pool import model_room
from onnxq.search import REWRITTEN, Candidate, Search, check_pinned
from onnxq.sensitivity import Sensitivity
from onnxq.study import apply_to, study, uniform_plan
from onnxq.targets import FASTEST
from onnxq.tuning import method_facts, planned_methods
from onnxq.verify import CompareOptions, Gate, Reference, Report, compare_files, with_gates
from onnxq.verify.facts import file_sha256, peak_rss_bytes
from onnxq.verify.metrics import choose_metric
from onnxq.verify.result import AGREEMENT, CandidateFacts

_FEW = 8
"""Samples that show what the outputs are."""


@dataclass(frozen=True)
class Optimized:
    """An optimized model, its plan and proof, and where it was written (None if it was not).

    Where a search ended at the float model as it was, the plan has neither passes nor nodes.
    """

    graph: Graph
    report: Report
    written: Path | None
    plan: Plan

    @property
    def passed(self) -> bool:
        """Whether every promise held."""
        return self.report.passed


def optimize(
    model: ModelLike,
    data: DataLike,
    options: Options | None = None,
    *,
    output: str | os.PathLike[str] | None = None,
    plan_output: str | os.PathLike[str] | None = None,
    adaptive: str | os.PathLike[str] | None = None,
    cascade: float | None = None,
    eval_data: DataLike | None = None,
    keep_failed: bool = False,
    progress: Progress = SILENT,
    **changes: Any,
) -> Optimized:
    """Quantize a float model and prove the result against it.

    The model is rewritten, observed on one part of the data, quantized by a plan, and compared with
    the float model on the other part: metric, outputs, layers, size, and latency measured in turn.
    The recipe ``mixed`` searches for the plan: every node gets the precision that sensitivity and
    measured costs speak for, and the fastest candidate that keeps the promise wins, the float model
    among them. The plan of any other recipe gives all nodes one precision. With the target
    ``fastest`` this is done for every provider that is installed, see `onnxq.fastest.fastest`.

    Args:
        model: Path, serialized bytes or ``ModelProto`` of the float model.
        data: Representative samples, see `onnxq.data.read`. Of data with a split of its own only
            the part for the purpose is used.
        options: See `Options`.
        output: Where to write the model; nothing is written without it, or when a promise broke.
        plan_output: Where to write the plan, on the same conditions.
        adaptive: Folder to write a bundle for adaptive sessions to, on the same conditions: the
            model, those that a search measured and that are faster or nearer to the float model,
            the float model, and what was usual of the data.
        cascade: Share of decisions that are to be the float model's where models of the bundle
            answer together, the cheapest as far as it is sure; one model answers if None.
        eval_data: Held-out samples; a part of ``data`` if None.
        keep_failed: Write even when a promise broke.
        progress: Told of stages.
        **changes: Single fields of `Options`, as ``max_drop=0.005``.

    Raises:
        InputError: the model, the data or an option cannot be used, or nothing in the model can
            be quantized.
    """
    options, make = replace(options or Options(), **changes), _made
    if options.target == FASTEST:
        if adaptive is not None:
            raise InputError(
                "a bundle is for one target; find the fastest first, and make the bundle with that "
                "--target, or leave --adaptive out"
            )
        wanted, name = options, "model.onnx" if output is None else os.fspath(output)
        # What is read and held against is for the CPU provider here, as a whole.
        options = replace(options, target="auto", pythons=(), candidates=(), provider_options=())

        def make(job: Job) -> Found:
            return fastest(job, wanted, _made, name, keep_failed=keep_failed)

    return made(
        make,
        *(model, data, options),
        output=output,
        plan_output=plan_output,
        adaptive=adaptive,
        cascade=cascade,
        eval_data=eval_data,
        keep_failed=keep_failed,
        progress=progress,
    )


def made(
    make: Callable[[Job], Found],
    model: ModelLike,
    data: DataLike,
    options: Options,
    *,
    output: str | os.PathLike[str] | None,
    plan_output: str | os.PathLike[str] | None,
    adaptive: str | os.PathLike[str] | None = None,
    cascade: float | None = None,
    eval_data: DataLike | None,
    keep_failed: bool,
    progress: Progress,
) -> Optimized:
    """Open a job, make a model in it, and write what keeps its promise; see `optimize`.

    Raises:
        InputError: the model, the data or an option cannot be used, or ``make`` raises it.
    """
    started = time.perf_counter()
    beside = None if plan_output is None else Path(plan_output).with_suffix(".safetensors")
    files = (output, plan_output, beside)
    for file in files:
        if file is not None:
            check_writable(Path(file))
    if beside is not None and output is not None and beside.resolve() == Path(output).resolve():
        raise InputError(
            f"the plan's tensors go to '{beside}', as does the model; name another file"
        )
    if cascade is not None and adaptive is None:
        raise InputError("a cascade is of the models of a bundle; name its folder by --adaptive")
    if adaptive is not None and options.candidates:
        raise InputError(
            "a bundle is made of a search's own models, whose tensors have the same names; leave "
            "--candidate or --adaptive out"
        )
    if adaptive is not None:
        check_folder(Path(adaptive))
        if Path(adaptive).resolve() in {Path(f).resolve() for f in files if f is not None}:
            raise InputError(f"a bundle and a file both go to '{adaptive}'; name another folder")
    watch = PeakWatch(progress, peak_rss_bytes)
    check_promise(options)
    with open_job(model, data, options, eval_data=eval_data, progress=watch) as job:
        _check(job)
        if adaptive is not None:
            check_bundled(job, cascade)
            # A bundle is of a search's own models, see above.
            job = replace(job, target=replace(job.target, alternatives=()))
        found = make(job)
        graph, report, plan = found.graph, found.report, found.plan
        report = replace(
            report,
            notes=(
                *job.notes,
                *(told_of_seen(data, eval_data, job.training) if _has_learned(job, found) else ()),
                *report.notes,
                *expectation(report),
                *certainty(report),
                *omission(report),
            ),
            model=replace(report.model, path=label(model)),
            output=replace(report.output, path="" if output is None else str(output)),
        )
        is_kept = report.passed or keep_failed
        if is_kept and output is not None:
            save(graph, output)
            report = replace(
                report, output=replace(report.output, sha256=file_sha256(Path(output)))
            )
        if is_kept and plan_output is not None:
            plan.save(plan_output)
        if is_kept and adaptive is not None:
            if found.ladder is None:
                raise InputError(
                    "no bundle can be made: nothing in the model is quantized, so there is nothing "
                    "to adapt; leave --adaptive out"
                )
            bundle = write_bundle(job, found.ladder, graph, adaptive, cascade)
            if cascade is not None:
                report = replace(report, notes=(*report.notes, told(bundle, cascade)))
    written = Path(output) if is_kept and output is not None else None
    report = replace(
        report,
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        peak_stage=watch.peak_stage(),
    )
    return Optimized(graph, report, written, plan)


def _has_learned(job: Job, found: Found) -> bool:
    """Whether samples have a part in what was made."""
    plan = found.plan
    by_method = plan.transformations or any(node.method for node in plan.nodes)
    return bool(job.recipe.is_search or plan.ranges or by_method)


def _made(job: Job) -> Found:
    return _searched(job) if job.recipe.is_search else _planned(job)


def _check(job: Job) -> None:
    """Refuse before long work what cannot be measured."""
    held_out, options, missing = job.held_out, job.options, job.missing_provider()
    if held_out is None:
        # Says that there are too few samples.
        job.samples.split(options.seed, options.samples)
    else:
        metric = choose_metric(options.metric, held_out.has_labels, held_out.labels_ndim)
        if metric is None:
            _check_decisions(job, held_out)
        elif options.max_drop is None and not held_out.has_labels:
            # Held against its own outputs the float model errs by nothing.
            metric.allowed_drop(0.0)
    if missing and job.recipe.is_search:
        raise InputError(
            f"the recipe mixed measures latency on the target {job.target.name}, but {missing}; "
            "name another recipe, as int8, or use `onnxq plan --cost flops` and `onnxq apply`"
        )
    if missing and options.min_speedup:
        raise InputError(
            f"a smallest speedup on the target {job.target.name} cannot be measured here, because "
            f"{missing}; leave --min-speedup away and use `onnxq compare` there"
        )


def _check_decisions(job: Job, held_out: Dataset) -> None:
    """Run the float model on a few samples where a promise needs its outputs to be decisions."""
    options = job.options
    if options.metric == AGREEMENT or (options.max_drop, options.min_agreement) != (None, None):
        few = held_out.take(_FEW)
        measured = CompareOptions(layers=False, latency=False, operators=False)
        room, metric = model_room(options.memory_limit), options.metric
        reference = Reference(job.path, few, files=job.files, room=room, metric=metric)
        found = compare_files(job.path, job.path, few, job.workload, measured, reference=reference)
        promise(found, options)


_OBSERVING = ("rewriting", "transforming", "calibrating", "tuning")


def _proving(job: Job) -> tuple[str, ...]:
    return "verifying", f"measuring latency on {job.target.provider}", "comparing layers"


def _planned(job: Job) -> Found:
    """The plan that the recipe is, applied and verified."""
    expect(job.progress, (*_OBSERVING, "quantizing", *_proving(job)))
    prepared = observed(prepare(job))
    plan = uniform_plan(prepared, job.recipe.precision)
    found = proven(prepared, plan)
    return replace(found, report=replace(found.report, methods=method_facts(prepared, plan)))


def proven(prepared: Prepared, plan: Plan) -> Found:
    """A plan applied and held to its promise.

    Raises:
        InputError: onnxruntime cannot run the model, or what is promised cannot be measured.
    """
    job = prepared.job
    job.progress.stage("quantizing")
    graph, records = apply_to(prepared, plan, job.context)
    path = job.files.save(graph, "candidate.onnx")
    report = verify(job, path, [*prepared.records, *records])
    gates = promise(report, job.options, is_timed=not job.missing_provider())
    tensors = worst_tensors(prepared, graph)
    report = with_gates(replace(report, untried=plan.untried, tensors=tensors), gates)
    ladder = Ladder(prepared.graph, (Rung(job.recipe.precision, graph, path),))
    return Found(graph, report, noted(plan, report, gates), ladder)


def _searched(job: Job) -> Found:
    """The model that a search over precisions finds; the float one if nothing is better."""
    learning = ("analysing sensitivity", "measuring costs", "measuring candidates")
    first, proving = _proving(job)[:2], _proving(job)
    expect(job.progress, (*first, "comparing forms", *_OBSERVING, *learning, *proving))
    baseline = verify(job, job.path)
    gates = promise(baseline, job.options)
    try:
        prepared = observed(prepare(job))
    except NothingToQuantizeError as error:
        if job.pins:
            raise
        return _float_only(job, baseline, gates, str(error))
    check_pinned(job.candidates, prepared.pinned)
    found = study(prepared)
    search = Search(found, gates)
    winner, report = search.prove(search.run())
    untried = (*winner.plan.untried, *search.untried)
    ranked = sorted(search.candidates, key=lambda c: -c.speedup)
    facts = tuple(_facts(c, (c.study or found).sensitivity) for c in ranked)
    marked = tuple(replace(f, chosen=c is winner) for f, c in zip(facts, ranked, strict=True))
    rungs = tuple(
        Rung(c.label, c.graph, c.path) for c in ranked if c.label != REWRITTEN and c.study is found
    )
    ladder = Ladder(prepared.graph, rungs) if rungs else None
    kept = with_gates(replace(baseline, candidates=facts, untried=untried), gates)
    may_be_float = all(precision == FLOAT for precision in prepared.pinned.values())
    if not report.passed and kept.passed and may_be_float:
        return Found(job.source, kept, replace(left_alone(job), untried=untried), ladder)
    basis, made = winner.study or found, winner.prepared or prepared
    losses, chosen = basis.sensitivity.losses(), winner.plan.precisions()
    layers = tuple(
        replace(layer, sensitivity=losses[layer.node].get(chosen[layer.node], 0.0))
        if layer.node in losses and layer.node in chosen
        else layer
        for layer in report.layers
    )
    notes = (*report.notes, *made.notes, *basis.notes, *search.notes())
    plan = replace(winner.plan, untried=untried)
    methods = planned_methods(plan) if winner.is_given else method_facts(made, plan)
    report = replace(
        report,
        layers=layers,
        candidates=marked,
        methods=methods,
        notes=notes,
        untried=untried,
        tensors=worst_tensors(made, winner.graph),
    )
    return Found(winner.graph, report, noted(plan, report, gates), ladder)


def _float_only(job: Job, baseline: Report, gates: Sequence[Gate], why: str) -> Found:
    """The rewritten float model if it is faster, else the model as it is."""
    form, found = float_form(job)
    plan = Plan(
        job.sha256,
        job.target.name,
        passes=form.passes,
        opset=form.opset,
        keep_overridable=job.options.keep_overridable,
        calibrator=str(job.calibrator),
        seed=job.options.seed,
    )
    graph, records = float_graph(
        job.source, plan.passes, job.target, plan.opset, job.context, job.progress
    )
    path = job.files.save(graph, "float.onnx")
    notes = (f"{why[:1].upper()}{why[1:]}. The model stays in float.",)
    report = with_gates(replace(verify(job, path, records), notes=(*notes, *found)), gates)
    kept = with_gates(replace(baseline, notes=notes), gates)
    if not report.passed and kept.passed:
        return Found(job.source, kept, left_alone(job))
    return Found(graph, report, plan)


def _facts(candidate: Candidate, sensitivity: Sensitivity) -> CandidateFacts:
    report = candidate.report
    return CandidateFacts(
        candidate.label,
        candidate.speedup,
        sensitivity.predicted(candidate.plan.precisions()),
        None if report is None else report.sqnr_db,
        None if report is None or report.metric is None else report.metric.drop,
    )

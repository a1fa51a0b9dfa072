"""The main job and its proof: the stages put together."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from onnxq.data import Batch, DataLike, Dataset, ImageOptions, read
from onnxq.errors import InputError, NothingToQuantizeError
from onnxq.ir import Context, Graph, Pass, Pipeline, load, save
from onnxq.ir.save import check_writable
from onnxq.mixed import Candidate, Search
from onnxq.observe import Calibrator, calibrate, parse_calibrator
from onnxq.passes.cleanup.constant_initializers import ConstantInitializers
from onnxq.passes.notes import node_name
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.passes.static.keep_float_weights import KeepFloatWeights
from onnxq.plan import Pin, Plan
from onnxq.precision import FLOAT
from onnxq.progress import SILENT, Progress
from onnxq.quant import Format
from onnxq.recipe import Recipe, load_recipe
from onnxq.report.certainty import certainty
from onnxq.runtime import Session, missing_provider
from onnxq.stages import (
    ModelLike,
    as_file,
    float_graph,
    label,
    place_integers,
    promise,
    single_feed,
    split_data,
)
from onnxq.study import Study, StudyOptions, study
from onnxq.targets import Target, load_target
from onnxq.verify import CompareOptions, Gate, Report, compare_files, with_gates
from onnxq.verify.facts import file_sha256
from onnxq.verify.metrics import choose_metric
from onnxq.verify.precision import left_in_float
from onnxq.verify.result import CandidateFacts

DEFAULT_RECIPE = "mixed"


@dataclass(frozen=True)
class Optimized:
    """An optimized model, the proof, and where it was written (None if it was not).

    ``plan`` is what made it, if a search over precisions did. Where that ended at the float model
    as it was, the plan has neither passes nor nodes.
    """

    graph: Graph
    report: Report
    written: Path | None
    plan: Plan | None = None

    @property
    def passed(self) -> bool:
        """Whether every promise held."""
        return self.report.passed


def optimize(
    model: ModelLike,
    data: DataLike,
    *,
    output: str | os.PathLike[str] | None = None,
    recipe: str | Recipe = DEFAULT_RECIPE,
    target: str = "auto",
    calibrator: str | None = None,
    eval_data: DataLike | None = None,
    metric: str | None = None,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    min_sqnr: float | None = None,
    max_size_ratio: float | None = None,
    pins: Sequence[str | Pin] = (),
    keep_failed: bool = False,
    constant_initializers: bool = False,
    opset: int | None = None,
    calibration_samples: int | None = None,
    batch_size: int | None = None,
    images: ImageOptions | None = None,
    threads: int = 1,
    seed: int = 0,
    plan_output: str | os.PathLike[str] | None = None,
    work_folder: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
    debug: int = 0,
) -> Optimized:
    """Quantize a float model and prove the result against it.

    The model is rewritten, calibrated on one part of the data, quantized, and compared with the
    float model on the other part: metric, outputs, layers, size, and latency measured in turn.
    With the recipe ``mixed`` every node gets the precision that sensitivity and measured costs
    speak for, and the fastest candidate that keeps the promise wins, the float model among them.

    Args:
        model: Path, serialized bytes or ``ModelProto`` of the float model.
        data: Representative samples, see `onnxq.data.read`.
        output: Where to write the model; nothing is written without it, or when a promise broke.
        recipe: A `Recipe`, or the name or file of one.
        target: Where the model is to run; ``auto`` is this machine's processor.
        calibrator: How activation ranges are found, as ``percentile{percentile=99.9}``; the
            recipe's if None.
        eval_data: Held-out samples; a part of ``data`` if None. Of data with a split of its own
            only the part for the purpose is used.
        metric: Name of the metric; chosen by the labels if None.
        max_drop: Largest drop of the metric that is acceptable, in its own unit.
        min_speedup: Smallest speedup over float.
        min_sqnr: Smallest SQNR of any output in dB.
        max_size_ratio: Largest size of the file relative to the float one.
        pins: Precisions set by hand, as ``"head*=float32"``; for the recipe ``mixed``.
        keep_failed: Write the model even when a promise broke.
        constant_initializers: Make weights that are listed as inputs, too, constants; callers
            can no longer override them.
        opset: Raise the model to at least this opset; the lowest that will do if None.
        calibration_samples: Samples to calibrate on.
        batch_size: Samples in a batch where the model leaves it open.
        images: How to read a folder of images.
        threads: Threads inside one operator, for latency.
        seed: Chooses the held-out part.
        plan_output: Where to write the plan, with the model; for the recipe ``mixed``.
        work_folder: Where to keep what was found out, for another run; nowhere if None. For the
            recipe ``mixed``.
        progress: Told of stages.
        debug: Level of the passes' log, see `onnxq.ir.Context`.

    Raises:
        InputError: the model, the data or an option cannot be used, or nothing in the model can
            be quantized.
    """
    started = time.perf_counter()
    steps = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    table = load_target(target)
    chosen = parse_calibrator(calibrator or steps.calibrator)
    parsed = tuple(p if isinstance(p, Pin) else Pin.parse(p) for p in pins)
    if not steps.is_mixed and (parsed or plan_output is not None or work_folder is not None):
        what = "pins are" if parsed else "a work folder is" if work_folder else "a plan is"
        raise InputError(f"{what} for a search over precisions; use the recipe 'mixed'")
    _check_measurable(table, steps, min_speedup)
    for file in (output, plan_output):
        if file is not None:
            check_writable(Path(file))
    with as_file(model) as (path, folder):
        source = load(path)
        specs = Session(path).inputs
        samples, held_out = split_data(
            data, eval_data, specs, seed, calibration_samples, batch_size, images
        )
        if choose_metric(metric, held_out.has_labels, held_out.labels_ndim) is None:
            # A promise that nothing can measure is refused before the long work.
            promise(None, max_drop)
        if constant_initializers:
            ConstantInitializers().run(source, Context(debug))
        job = _Job(
            path,
            folder,
            source,
            samples,
            held_out,
            single_feed(held_out, specs),
            steps,
            table,
            chosen,
            metric,
            StudyOptions(
                pins=parsed,
                work_folder=None if work_folder is None else Path(work_folder),
                opset=opset or 0,
                constant_initializers=constant_initializers,
                threads=threads,
                seed=seed,
                debug=debug,
            ),
            progress,
        )
        bounds = (max_drop, min_speedup, min_sqnr, max_size_ratio)
        graph, report, plan = job.mixed(*bounds) if steps.is_mixed else job.uniform(*bounds)
        report = replace(
            report,
            notes=(*report.notes, *certainty(report)),
            model=replace(report.model, path=label(model)),
            output=replace(report.output, path="" if output is None else str(output)),
        )
        written = None
        if output is not None and (report.passed or keep_failed):
            written = Path(output)
            save(graph, written)
            if plan is not None and plan_output is not None:
                plan.save(plan_output)
    seconds = time.perf_counter() - started
    return Optimized(graph, replace(report, seconds=seconds), written, plan)


Found = tuple[Graph, Report, Plan | None]


@dataclass(frozen=True)
class _Job:
    """One optimization: everything it needs, once it was read and checked."""

    path: Path
    folder: Path
    source: Graph
    samples: Dataset
    held_out: Dataset
    one: Batch
    steps: Recipe
    table: Target
    calibrator: Calibrator
    metric: str | None
    options: StudyOptions
    progress: Progress

    def uniform(
        self,
        max_drop: float | None,
        min_speedup: float | None,
        min_sqnr: float | None,
        max_size_ratio: float | None,
    ) -> Found:
        """Quantize as the recipe's passes do."""
        quantizing = self.steps.quantizing_passes()
        quantizing = tuple(_configured(step, self.steps, self.table) for step in quantizing)
        static = next((step for step in quantizing if isinstance(step, InsertQdq)), None)
        if static and not self.table.has_integer_kernels:
            raise InputError(
                f"target {self.table.name} has no integer kernels, so static integers would only "
                "cost time there; use another recipe, as float16 or int4-weight"
            )
        if static and self.table.provider == "cpu":
            quantizing = (*quantizing, KeepFloatWeights())
        needed = [getattr(step, "needed_opset", 0) for step in quantizing]
        opset = max(*needed, self.options.opset, self.source.opset)
        debug, progress = self.options.debug, self.progress
        graph, records = float_graph(self.source, self.steps, self.table, opset, debug, progress)
        if static:
            ranges = self._ranges(graph, static.activation_format)
            quantizing = tuple(
                replace(step, ranges=ranges) if isinstance(step, InsertQdq) else step
                for step in quantizing
            )
        progress.stage("quantizing")
        made = Pipeline(quantizing, fixed_point=False).run(graph, Context(debug))
        if not any(record.rewrites for record in made):
            raise InputError(f"nothing in the model can be quantized: {_why(graph, self.table)}")
        candidate = self.folder / "candidate.onnx"
        save(graph, candidate)
        missing = missing_provider(self.table.provider)
        options = CompareOptions(
            metric=self.metric,
            providers=("cpu" if missing else self.table.provider,),
            threads=self.options.threads,
            latency=not missing,
        )
        try:
            report = compare_files(
                self.path,
                candidate,
                self.held_out,
                self.one,
                options,
                passes=[*records, *made],
                progress=progress,
            )
        except InputError as error:
            made_by = "the model that the recipe makes"
            raise InputError(str(error).replace(str(candidate), made_by)) from error
        bounds = (max_drop, min_speedup, min_sqnr, max_size_ratio)
        gates = promise(report.metric, *bounds, is_timed=not missing)
        if missing:
            note = (
                f"Verified on the CPU provider. Latency on target {self.table.name} was not "
                f"measured: {missing}; `onnxq compare --provider {self.table.provider}` does it "
                "there."
            )
            report = replace(report, notes=(note,))
        return graph, with_gates(report, gates), None

    def mixed(
        self,
        max_drop: float | None,
        min_speedup: float | None,
        min_sqnr: float | None,
        max_size_ratio: float | None,
    ) -> Found:
        """Search over precisions, node by node."""
        baseline = self._baseline()
        gates = promise(baseline.metric, max_drop, min_speedup, min_sqnr, max_size_ratio)
        try:
            found = self._study()
        except NothingToQuantizeError as error:
            return self._float_only(baseline, gates, str(error))
        search = Search(
            found,
            self.path,
            self.held_out,
            self.one,
            gates,
            self.metric,
            self.folder,
            self.progress,
        )
        winner = search.run()
        report = search.prove(winner)
        if not report.passed and not _breaks_accuracy(report):
            # What looked fast enough is not, measured again: the next one may be.
            for candidate in [c for c in search.order() if c is not winner]:
                winner, report = candidate, search.prove(candidate)
                if report.passed:
                    break
        facts = tuple(_facts(c) for c in sorted(search.candidates, key=lambda c: -c.speedup))
        kept = with_gates(replace(baseline, candidates=facts), gates)
        may_be_float = all(precision == FLOAT for precision in found.pinned().values())
        if not report.passed and kept.passed and may_be_float:
            return self.source, kept, self._left_alone(winner.plan)
        plan = winner.plan.with_measured(_measured(report))
        losses = {n.node: n for n in found.sensitivity.nodes}
        layers = tuple(
            replace(layer, sensitivity=losses[layer.node].loss(layer.precision))
            if layer.node in losses and layer.precision in found.precisions
            else layer
            for layer in report.layers
        )
        return winner.graph, replace(report, layers=layers, candidates=facts), plan

    def _study(self) -> Study:
        return study(
            file_sha256(self.path),
            self.source,
            self.samples,
            self.one,
            self.steps,
            self.table,
            self.calibrator,
            self.options,
            self.progress,
        )

    def _float_only(self, baseline: Report, gates: list[Gate], why: str) -> Found:
        """The rewritten float model if it is faster, else the model as it is."""
        graph, records = float_graph(
            self.source,
            self.steps,
            self.table,
            max(self.source.opset, self.options.opset),
            self.options.debug,
            self.progress,
        )
        candidate = self.folder / "float.onnx"
        save(graph, candidate)
        report = compare_files(
            self.path,
            candidate,
            self.held_out,
            self.one,
            CompareOptions(
                metric=self.metric,
                providers=(self.table.provider,),
                threads=self.options.threads,
            ),
            passes=records,
            progress=self.progress,
        )
        note = f"{why[:1].upper()}{why[1:]}. The model stays in float."
        report = with_gates(replace(report, notes=(note,)), gates)
        plan = Plan(
            file_sha256(self.path),
            self.table.name,
            passes=self.steps.passes,
            opset=graph.opset,
            constant_initializers=self.options.constant_initializers,
        )
        kept = with_gates(replace(baseline, notes=(note,)), gates)
        if not report.passed and kept.passed:
            return self.source, kept, self._left_alone(plan)
        return graph, report, plan

    def _left_alone(self, plan: Plan) -> Plan:
        """The plan that leaves the model as it is."""
        return replace(
            plan,
            passes="",
            opset=self.source.opset,
            cost=plan.float_cost,
            loss=0.0,
            exact=True,
            nodes=(),
            ranges={},
        )

    def _baseline(self) -> Report:
        """The float model against itself: what a candidate that changes nothing gives."""
        report = compare_files(
            self.path,
            self.path,
            self.held_out,
            self.one,
            CompareOptions(
                metric=self.metric,
                providers=(self.table.provider,),
                threads=self.options.threads,
                layers=False,
                latency_seconds=0.5,
            ),
            progress=self.progress,
        )
        # It is the same file: what the clock makes of it is noise.
        latencies = tuple(
            replace(facts, candidate_ms=facts.float_ms, speedup=1.0) for facts in report.latencies
        )
        return replace(report, latency=latencies[0], latencies=latencies)

    def _ranges(self, graph: Graph, format: Format) -> dict[str, tuple[float, float]]:
        placed = place_integers(graph, self.steps, self.table)
        self.progress.stage("calibrating", len(self.samples))
        ranges = calibrate(
            graph,
            self.samples,
            placed.observed(),
            calibrator=self.calibrator,
            format=format,
            scheme=self.table.scheme_of(format),
            model_sha256=file_sha256(self.path),
            progress=lambda done, _: self.progress.advance(done),
        )
        return {name: (r.min, r.max) for name, r in ranges.ranges.items()}


def _why(graph: Graph, table: Target) -> str:
    """Why nothing was quantized: the most frequent reason, of operators that compute if any."""
    reasons = left_in_float(graph)
    computing = [
        reasons[node_name(node)]
        for node in graph.nodes()
        if node_name(node) in reasons
        and (rule := table.operators.get(node.op_type))
        and rule.role == "compute"
    ]
    found = computing or [*reasons.values()] or ["it holds nothing of the kind"]
    return max(found, key=found.count)


def _configured(step: Pass, steps: Recipe, table: Target) -> Pass:
    """A recipe's pass with what only the run knows: target, nodes kept in float."""
    own = {f.name for f in fields(step)}  # type: ignore[arg-type]
    given: dict[str, Any] = {}
    if "keep_float" in own:
        given["keep_float"] = (*vars(step)["keep_float"], *steps.keep_float)
    if "reduced_range" in own:
        reduced = table.weight_scheme.reduced_range
        given["reduced_range"] = vars(step)["reduced_range"] or reduced
    if isinstance(step, InsertQdq):
        given["target"] = table.name
    return replace(step, **given)  # type: ignore[type-var]


def _check_measurable(table: Target, steps: Recipe, min_speedup: float | None) -> None:
    """Refuse before long work what needs latencies of a provider that is not here."""
    missing = missing_provider(table.provider)
    if missing and steps.is_mixed:
        raise InputError(
            f"the recipe mixed measures latency on the target {table.name}, but {missing}; name "
            "another recipe, as int8, or use `onnxq plan --cost flops` and `onnxq apply`"
        )
    if missing and min_speedup:
        raise InputError(
            f"a smallest speedup on the target {table.name} cannot be measured here, because "
            f"{missing}; leave --min-speedup away and use `onnxq compare` there"
        )


def _breaks_accuracy(report: Report) -> bool:
    return any(not g.passed and not g.expr.startswith("speedup") for g in report.gates)


def _measured(report: Report) -> dict[str, float]:
    found = {"sqnr_db": report.sqnr_db, "size_ratio": report.size.ratio}
    if report.latency is not None:
        found["speedup"] = report.latency.speedup
    if report.metric is not None:
        found["drop"] = report.metric.drop
    return found


def _facts(candidate: Candidate) -> CandidateFacts:
    report = candidate.report
    return CandidateFacts(
        candidate.label,
        candidate.speedup,
        candidate.loss,
        None if report is None else report.sqnr_db,
        None if report is None or report.metric is None else report.metric.drop,
    )


def compare(
    float_model: ModelLike,
    candidate: ModelLike,
    data: DataLike,
    *,
    metric: str | None = None,
    providers: Sequence[str] = ("cpu",),
    gates: Sequence[str | Gate] = (),
    threads: int = 1,
    images: ImageOptions | None = None,
    batch_size: int | None = None,
    samples: int | None = None,
    layers: bool = True,
    progress: Progress = SILENT,
) -> Report:
    """Compare a candidate with a float model on data: metric, outputs, layers, size, latency.

    Data with a split of its own is compared on its held-out part, other data as a whole.

    Args:
        float_model: The reference: path, serialized bytes or ``ModelProto``.
        candidate: The model to judge, with the same inputs and outputs.
        data: Samples, see `onnxq.data.read`.
        metric: Name of the metric; chosen by the labels if None.
        providers: Execution providers to measure on.
        gates: Promises, as ``"drop<=0.01"``.
        threads: Threads inside one operator.
        images: How to read a folder of images.
        batch_size: Samples in a batch where the model leaves it open.
        samples: Use only about so many samples.
        layers: Whether to measure the error of every layer.
        progress: Told of stages.

    Raises:
        InputError: a model, the data or an option cannot be used.
    """
    started = time.perf_counter()
    parsed = tuple(g if isinstance(g, Gate) else Gate.parse(g) for g in gates)
    with as_file(float_model) as (path, _), as_file(candidate) as (candidate_path, _):
        load(path)
        load(candidate_path)
        specs = Session(path).inputs
        dataset = read(data, specs, batch_size=batch_size, images=images)
        if dataset.has_split:
            dataset = dataset.split(0)[1]
        if samples is not None:
            dataset = dataset.take(samples)
        report = compare_files(
            path,
            candidate_path,
            dataset,
            single_feed(dataset, specs),
            CompareOptions(
                metric=metric,
                providers=tuple(providers),
                threads=threads,
                layers=layers,
                gates=parsed,
            ),
            started=started,
            progress=progress,
        )
    return replace(
        report,
        notes=certainty(report),
        model=replace(report.model, path=label(float_model)),
        output=replace(report.output, path=label(candidate)),
    )

"""The main job and its proof: the stages put together."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from onnxq.calibrate import calibrate
from onnxq.data import Batch, DataLike, Dataset, ImageOptions, read
from onnxq.data.dataset import CALIBRATION_LIMIT
from onnxq.errors import InputError
from onnxq.ir import (
    Context,
    Graph,
    PassRecord,
    Pipeline,
    infer_types,
    load,
    parse_passes,
    raise_opset,
    save,
)
from onnxq.ir.save import check_writable
from onnxq.passes.constant_initializers import ConstantInitializers
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.placement import OVERRIDABLE, Placement, place
from onnxq.progress import SILENT, Progress
from onnxq.quant import Target, load_target
from onnxq.recipe import Recipe, load_recipe
from onnxq.runtime import Session, TensorSpec
from onnxq.verify import CompareOptions, Gate, Report, compare_files, with_gates
from onnxq.verify.facts import file_sha256
from onnxq.verify.metrics import choose_metric
from onnxq.verify.precision import left_in_float, node_name
from onnxq.verify.result import MetricFacts

ModelLike = str | os.PathLike[str] | bytes | onnx.ModelProto

DEFAULT_MIN_SPEEDUP = 1.0
"""Without a promise of the user's, a model must at least not be slower than the float one."""

DEFAULT_MAX_DROP = 0.01
"""Without a promise of the user's: largest drop of a metric that is a fraction."""

DEFAULT_MAX_RISE = 0.02
"""Without a promise of the user's: largest rise of bits-per-byte, as a share of float's."""

DEFAULT_MIN_SQNR = 15.0
"""Without a promise and without labels: smallest SQNR of an output in dB."""


@dataclass(frozen=True)
class Optimized:
    """An optimized model, the proof, and where it was written (None if it was not)."""

    graph: Graph
    report: Report
    written: Path | None

    @property
    def passed(self) -> bool:
        """Whether every promise held."""
        return self.report.passed


def optimize(
    model: ModelLike,
    data: DataLike,
    *,
    output: str | os.PathLike[str] | None = None,
    recipe: str | Recipe = "int8",
    target: str = "auto",
    eval_data: DataLike | None = None,
    metric: str | None = None,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    min_sqnr: float | None = None,
    keep_failed: bool = False,
    constant_initializers: bool = False,
    opset: int | None = None,
    calibration_samples: int | None = None,
    batch_size: int | None = None,
    images: ImageOptions | None = None,
    threads: int = 1,
    seed: int = 0,
    progress: Progress = SILENT,
    debug: int = 0,
) -> Optimized:
    """Quantize a float model and prove the result against it.

    The model is rewritten, calibrated on one part of the data, quantized, and compared with the
    float model on the other part: metric, outputs, layers, size, and latency measured in turn.

    Args:
        model: Path, serialized bytes or ``ModelProto`` of the float model.
        data: Representative samples, see `onnxq.data.read`.
        output: Where to write the model; nothing is written without it, or when a promise broke.
        recipe: A `Recipe`, or the name or file of one.
        target: Where the model is to run; ``auto`` is this machine's processor.
        eval_data: Held-out samples; a part of ``data`` if None. Of data with a split of its own
            only the part for the purpose is used.
        metric: Name of the metric; chosen by the labels if None.
        max_drop: Largest drop of the metric that is acceptable, in its own unit.
        min_speedup: Smallest speedup over float.
        min_sqnr: Smallest SQNR of any output in dB.
        keep_failed: Write the model even when a promise broke.
        constant_initializers: Make weights that are listed as inputs, too, constants; callers
            can no longer override them.
        opset: Raise the model to at least this opset; the lowest that will do if None.
        calibration_samples: Samples to calibrate on.
        batch_size: Samples in a batch where the model leaves it open.
        images: How to read a folder of images.
        threads: Threads inside one operator, for latency.
        seed: Chooses the held-out part.
        progress: Told of stages.
        debug: Level of the passes' log, see `onnxq.ir.Context`.

    Raises:
        InputError: the model, the data or an option cannot be used, or nothing in the model can
            be quantized.
    """
    started = time.perf_counter()
    steps = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    table = load_target(target)
    if output is not None:
        check_writable(Path(output))
    with _as_file(model) as (path, folder):
        source = load(path)
        specs = Session(path).inputs
        samples, held_out = _split(
            data, eval_data, specs, seed, calibration_samples, batch_size, images
        )
        if choose_metric(metric, held_out.has_labels, held_out.labels_ndim) is None:
            # A promise that nothing can measure is refused before the long work.
            promise(None, max_drop)
        if constant_initializers:
            ConstantInitializers().run(source, Context(debug))
        graph, records, placed = _rewrite(source, steps, table, opset, debug, progress)
        progress.stage("calibrating", len(samples))
        ranges = calibrate(
            graph,
            samples,
            placed.observed(),
            calibrator=steps.calibrator,
            model_sha256=file_sha256(path),
            progress=lambda done, _: progress.advance(done),
        )
        progress.stage("quantizing")
        insertion = InsertQdq(
            {name: (r.min, r.max) for name, r in ranges.ranges.items()},
            target,
            steps.keep_float,
        )
        records += Pipeline((insertion,), fixed_point=False).run(graph, Context(debug))
        if not records[-1].rewrites:
            reasons = left_in_float(graph)
            computing = [node_name(n) for n, rule in placed.nodes.items() if rule.role == "compute"]
            raise InputError(f"nothing in the model can be quantized: {reasons[computing[0]]}")
        candidate = folder / "candidate.onnx"
        save(graph, candidate)
        report = compare_files(
            path,
            candidate,
            held_out,
            single_feed(held_out, specs),
            CompareOptions(metric=metric, providers=(table.provider,), threads=threads),
            passes=records,
            started=started,
            progress=progress,
        )
    report = with_gates(
        replace(
            report,
            model=replace(report.model, path=_label(model)),
            output=replace(report.output, path="" if output is None else str(output)),
        ),
        promise(report.metric, max_drop, min_speedup, min_sqnr),
    )
    written = None
    if output is not None and (report.passed or keep_failed):
        written = Path(output)
        save(graph, written)
    return Optimized(graph, replace(report, seconds=time.perf_counter() - started), written)


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
    with _as_file(float_model) as (path, _), _as_file(candidate) as (candidate_path, _):
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
        model=replace(report.model, path=_label(float_model)),
        output=replace(report.output, path=_label(candidate)),
    )


def promise(
    metric: MetricFacts | None,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    min_sqnr: float | None = None,
) -> list[Gate]:
    """The gates that `optimize` holds a candidate to, the defaults filled in.

    Raises:
        InputError: a drop is promised, but there is no metric to measure it by.
    """
    gates = []
    if metric is not None:
        if max_drop is None:
            is_fraction = metric.name != "bits-per-byte"
            max_drop = DEFAULT_MAX_DROP if is_fraction else DEFAULT_MAX_RISE * metric.float
        gates.append(Gate("drop", "<=", max_drop))
    elif max_drop is not None:
        raise InputError(
            "a largest drop needs a metric, and the data has no array 'labels'; add labels, or "
            "promise --min-sqnr instead"
        )
    elif min_sqnr is None:
        min_sqnr = DEFAULT_MIN_SQNR
    if min_sqnr is not None:
        gates.append(Gate("sqnr", ">=", min_sqnr))
    gates.append(Gate("speedup", ">=", DEFAULT_MIN_SPEEDUP if min_speedup is None else min_speedup))
    return gates


def single_feed(data: Dataset, specs: Sequence[TensorSpec]) -> Batch:
    """The first sample alone where the model leaves the batch open, else the first batch."""
    first = next(data.batches())
    open_batch = all(
        s.shape and not isinstance(s.shape[0], int) and len(first.feeds[s.name]) == first.size
        for s in specs
    )
    if first.size == 1 or not open_batch:
        return first
    return Batch({name: array[:1] for name, array in first.feeds.items()}, None, 1, 1)


def _rewrite(
    source: Graph, steps: Recipe, table: Target, opset: int | None, debug: int, progress: Progress
) -> tuple[Graph, list[PassRecord], Placement]:
    progress.stage("rewriting")
    graph = raise_opset(source, max(table.opset, opset or 0))
    float_passes = (*steps.float_passes(), *parse_passes(table.passes))
    records = Pipeline(float_passes).run(graph, Context(debug))
    infer_types(graph)
    names = {node.name for node in graph.all_nodes()}
    for name in steps.keep_float:
        if name not in names:
            raise InputError(
                f"the recipe keeps '{name}' in float, but after the float passes no node has that "
                "name; `onnxq rewrite` writes the model in which to look it up"
            )
    placed = place(graph, table, frozenset(steps.keep_float))
    if not placed.nodes:
        raise InputError(f"nothing in the model can be quantized: {_main_reason(placed, table)}")
    return graph, records, placed


def _main_reason(placed: Placement, target: Target) -> str:
    """Why nothing can be quantized, in the words of most of the operators that compute."""
    computing = {n for n, rule in target.operators.items() if rule.role == "compute"}
    reasons = [r for node, r in placed.left_in_float.items() if node.op_type in computing]
    if not reasons:
        return f"it has no {', '.join(sorted(computing))} outside of subgraphs and functions"
    reason = max(reasons, key=reasons.count)
    if reason == OVERRIDABLE:
        reason += "; if none does, add --constant-initializers"
    return reason


def _split(
    data: DataLike,
    eval_data: DataLike | None,
    specs: Sequence[TensorSpec],
    seed: int,
    calibration_samples: int | None,
    batch_size: int | None,
    images: ImageOptions | None,
) -> tuple[Dataset, Dataset]:
    samples = read(data, specs, batch_size=batch_size, images=images)
    if eval_data is None:
        return samples.split(seed, calibration_samples)
    held_out = read(eval_data, specs, batch_size=batch_size, images=images)
    if held_out.has_split:
        held_out = held_out.split(seed)[1]
    if samples.has_split:
        samples = samples.split(seed)[0]
    limit = CALIBRATION_LIMIT if calibration_samples is None else calibration_samples
    return samples.take(limit), held_out


@contextmanager
def _as_file(model: ModelLike) -> Iterator[tuple[Path, Path]]:
    """The model as a file, and a folder for more files that goes away afterwards."""
    with tempfile.TemporaryDirectory(prefix="onnxq-") as name:
        folder = Path(name)
        if isinstance(model, str | os.PathLike):
            yield Path(model), folder
        else:
            path = folder / "model.onnx"
            save(load(model), path)
            yield path, folder


def _label(model: ModelLike) -> str:
    return os.fspath(model) if isinstance(model, str | os.PathLike) else "the model in memory"

"""Proving a candidate against the float model with onnxruntime."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TypeAlias

from onnxq.data import Dataset
from onnxq.errors import InputError
from onnxq.ir import Graph, PassRecord, infer_types, load
from onnxq.ir.saving import constant_bytes
from onnxq.progress import SILENT, Progress
from onnxq.runtime import (
    ErrorAccumulator,
    Session,
    TensorSpec,
    as_stored,
    load_backend,
    of_several_sessions,
)
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.segmented import Segmented, is_too_large
from onnxq.runtime.specs import Array, Runnable
from onnxq.verify.agreement import Agreement
from onnxq.verify.facts import peak_rss_bytes, versions
from onnxq.verify.gates import Gate
from onnxq.verify.layers import compare_layers
from onnxq.verify.metrics import paired_drop
from onnxq.verify.metrics.mean import MeanMetric
from onnxq.verify.precision import describe
from onnxq.verify.providers import compare_providers
from onnxq.verify.reference import Judged, Reference
from onnxq.verify.result import (
    LatencyFacts,
    PassFacts,
    ProviderFacts,
    Report,
    SizeFacts,
    ThroughputFacts,
)
from onnxq.verify.structure import structure
from onnxq.verify.workload import Workload

_SESSIONS, _SMALL_BYTES, _SHORT = 4, 1 << 25, 0.02
"""In how many sessions a model is timed whose weights and inferences take no more than these bytes
and seconds, unless opening them would take longer than timing. Sessions of others take longer to
open and to run."""

_Measured: TypeAlias = tuple[list[float], tuple[float, float] | None]
"""Milliseconds of each model, and the 95 % interval of the speedup."""

LAYER_SAMPLES = 16
"""Samples that the error of every layer is measured on."""


@dataclass(frozen=True)
class CompareOptions:
    """What to measure.

    Attributes:
        metric: Name of the metric, None to choose by the labels.
        backend: What to run with.
        providers: Execution providers to run on; metric and outputs are those of the first.
        float_on: Provider that the float model gives its outputs on; the first if empty.
        each: Whether to find out what the candidate is worth on each provider.
        reference: Whether `onnx.reference` is one of them.
        threads: Threads inside one operator.
        layers: Whether to measure the error of every layer.
        latency: Whether to measure latency.
        latency_seconds: Time to spend on latency for each provider.
        operators: Whether to count what operators really run.
        gates: Promises to hold the result against.
    """

    metric: str | None = None
    backend: str = "onnxruntime"
    providers: tuple[str, ...] = ("cpu",)
    float_on: str = ""
    each: bool = False
    reference: bool = False
    threads: int = 1
    layers: bool = True
    latency: bool = True
    latency_seconds: float = 3.0
    operators: bool = True
    gates: tuple[Gate, ...] = ()


def compare_files(
    float_path: Path,
    candidate_path: Path,
    data: Dataset,
    workload: Workload,
    options: CompareOptions,
    *,
    passes: Sequence[PassRecord] = (),
    reference: Reference | None = None,
    started: float | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Compare a candidate with the float model.

    Args:
        float_path: The float model's file.
        candidate_path: The candidate's file.
        data: Held-out samples for metric and outputs.
        workload: What latency is measured with.
        options: What to measure.
        passes: What the pipeline that made the candidate did, for the report.
        reference: The float model on these samples, if several are compared with it.
        started: `time.perf_counter()` when the work began; now if None.
        progress: Told of stages.

    Raises:
        InputError: one of the models cannot be run, their interfaces differ, or data and metric
            do not fit.
    """
    started = time.perf_counter() if started is None else started
    if not options.providers:
        raise InputError("no execution provider is named; name at least one, as 'cpu'")
    candidate_graph = load(candidate_path)
    with ModelFiles.temporary() as files:
        if reference is None:
            reference = Reference(
                float_path,
                data,
                files=files,
                metric=options.metric,
                backend=options.backend,
                provider=options.float_on or options.providers[0],
            )
        float_graph, runs = reference.graph, reference.runs
        if candidate_path != float_path:
            runs = files.beside(candidate_graph, candidate_path)
        first = options.providers[0]
        if (candidate_path, first) not in reference.judged:
            reference.judged[candidate_path, first] = _quality(
                reference, candidate_graph, runs, candidate_path, first, progress
            )
        metric, agreement, outputs = judged = reference.judged[candidate_path, first]
        models = (float_graph, reference.runs), (candidate_graph, runs)
        latencies, throughput = _timed(models, files, reference.room, workload, options, progress)
        providers: tuple[ProviderFacts, ...] = ()
        if options.each:
            others = {
                provider: _quality(
                    reference, candidate_graph, runs, candidate_path, provider, progress
                )
                for provider in options.providers[1:]
            }
            progress.stage("comparing providers")
            providers = compare_providers(
                models,
                data,
                {first: judged, **others},
                latencies,
                files,
                backend=options.backend,
                room=reference.room,
                reference=options.reference,
            )
        infer_types(candidate_graph)
        if options.layers:
            progress.stage("comparing layers")
            layers, jump = compare_layers(
                float_graph, candidate_graph, data.take(LAYER_SAMPLES), reference.room
            )
        else:
            layers, jump = describe(candidate_graph), None
    progress.finish()
    counted = options.operators
    float_on = reference.provider, reference.backend
    model = reference.facts(float_graph, float_path, *float_on, operators=counted)
    output = reference.facts(
        candidate_graph, candidate_path, first, options.backend, operators=counted
    )
    report = Report(
        model=model,
        output=output,
        metric=metric,
        latency=latencies[0] if latencies else None,
        latencies=tuple(latencies),
        throughput=tuple(throughput),
        size=SizeFacts(model.bytes, output.bytes, model.bytes / output.bytes),
        outputs=outputs,
        layers=layers,
        gates=(),
        passes=tuple(PassFacts(p.name, p.rewrites, p.seconds) for p in passes),
        versions=versions(options.backend),
        seconds=time.perf_counter() - started,
        peak_rss_bytes=peak_rss_bytes(),
        passed=True,
        agreement=agreement,
        graph=structure(candidate_graph) if options.layers else None,
        jump=jump,
        providers=providers,
    )
    return with_gates(report, options.gates)


def with_gates(report: Report, gates: Sequence[Gate]) -> Report:
    """The report held against promises."""
    facts = tuple(gate.check(report) for gate in gates)
    return replace(report, gates=facts, passed=all(fact.passed for fact in facts))


def _check_interface(reference: Reference, candidate: Session, path: Path) -> None:
    # What a file states of an output's rank may be wrong; its values will tell.
    for kind, ours, theirs, with_rank in (
        ("inputs", reference.inputs, candidate.inputs, True),
        ("outputs", reference.outputs, candidate.outputs, False),
    ):
        if _interface(ours, with_rank) != _interface(theirs, with_rank):
            raise InputError(
                f"'{path}' has other {kind} than the float model: "
                f"{', '.join(map(str, theirs)) or 'none'} instead of "
                f"{', '.join(map(str, ours)) or 'none'}; compare models of one interface"
            )


def _interface(specs: Sequence[TensorSpec], with_rank: bool) -> dict[str, tuple[str, int | None]]:
    return {
        s.name: (s.onnx_type, len(s.shape) if with_rank and s.shape is not None else None)
        for s in specs
    }


def _quality(
    reference: Reference, graph: Graph, runs: Path, path: Path, provider: str, progress: Progress
) -> Judged:
    """What a model's outputs on a provider are worth; without labels agreement is the metric."""
    is_same = reference.is_own(runs, provider)
    if runs != reference.runs:
        _check_interface(reference, as_stored(runs), path)
    agreement: Agreement | None = None
    errors = ErrorAccumulator()
    progress.stage("verifying", len(reference.data))
    done = 0
    metric = None if is_same else reference.new_metric()
    for part in reference.parts(graph, runs, path, provider):
        for of_batch in part.errors:
            errors.merge(of_batch)
        if agreement is None:
            agreement = part.agreement
        else:
            agreement.merge(part.agreement)
        if metric is not None and part.metric is not None:
            metric.merge(part.metric)
        done += part.samples
        progress.advance(done)
    metric = reference.metric if is_same else metric
    if isinstance(metric, MeanMetric):
        reference.scored.setdefault(path, metric)
    agreed = None if agreement is None else agreement.result()
    facts = paired_drop(reference.metric, metric) if reference.metric and metric else None
    if facts is None and agreed is not None:
        facts = agreed.as_metric()
    return facts, agreed, tuple(errors.result())


def _timed(
    models: Sequence[tuple[Graph, Path]],
    files: ModelFiles,
    room: int,
    workload: Workload,
    options: CompareOptions,
    progress: Progress,
) -> tuple[list[LatencyFacts], list[ThroughputFacts]]:
    """Latencies and throughputs of the float model and the candidate, on each provider."""
    latencies, throughput = list[LatencyFacts](), list[ThroughputFacts]()
    if models[0][1] == models[1][1]:
        # It is the same file: what the clock would make of it is noise.
        models = models[:1]
    for provider in options.providers if options.latency else ():
        progress.stage(f"measuring latency on {provider}")
        measure = _clock(models, files, room, provider, options)
        how = (provider, options.threads)
        for of, batch in {workload.of: workload.one, **workload.others}.items():
            spent, interval = measure(batch.feeds)
            times = (spent[0], spent[-1], spent[0] / spent[-1])
            latencies.append(LatencyFacts(*how, *times, batch.size, of, interval))
        for batch in workload.throughput:
            spent, _ = measure(batch.feeds)
            rate, new_rate = (batch.size * 1000 / ms for ms in (spent[0], spent[-1]))
            throughput.append(
                ThroughputFacts(*how, batch.size, rate, new_rate, spent[0] / spent[-1])
            )
    return latencies, throughput


def _clock(
    models: Sequence[tuple[Graph, Path]],
    files: ModelFiles,
    room: int,
    provider: str,
    options: CompareOptions,
) -> Callable[[Mapping[str, Array]], _Measured]:
    """What times the models on some feeds; their segments, one by one, if one is large."""
    seconds, threads = options.latency_seconds, options.threads
    largest = max(constant_bytes(graph) for graph, _ in models)
    if is_too_large(largest, room, options.backend, provider):
        segmented = [Segmented(graph, files, room // 2) for graph, _ in models]
        share = seconds / len(models)
        return lambda feeds: (
            [s.milliseconds(feeds, seconds=share, threads=threads) for s in segmented],
            None,
        )
    backend = load_backend(options.backend)

    def opened() -> list[Runnable]:
        return [backend.session(path, provider=provider, threads=threads) for _, path in models]

    start = time.perf_counter()
    # What is opened first is slower: it is not timed where there are others.
    sessions, others = opened(), list[Runnable]()
    is_small = len(models) > 1 and largest <= _SMALL_BYTES
    # Compilers may take minutes for a model that runs in a moment.
    is_small &= _SESSIONS * (time.perf_counter() - start) <= seconds

    def measure(feeds: Mapping[str, Array]) -> _Measured:
        is_short = is_small and _seconds(sessions[0], feeds) <= _SHORT
        if is_short and not others:
            others.extend(chain.from_iterable(opened() for _ in range(_SESSIONS)))
        timings = backend.time(others if is_short else sessions, feeds, seconds=seconds)
        if is_short:
            timings = of_several_sessions(timings, len(models))
        interval = timings[-1].low, timings[-1].high
        return [t.p10_ms for t in timings], interval if math.isfinite(interval[1]) else None

    return measure


def _seconds(session: Runnable, feeds: Mapping[str, Array]) -> float:
    """What one inference takes, once it is warm."""
    session.run(feeds)
    start = time.perf_counter()
    session.run(feeds)
    return time.perf_counter() - start

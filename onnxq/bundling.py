"""Making a bundle for adaptive sessions of what a job found."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from onnxq.adaptive.baseline import Baseline, TensorBaseline
from onnxq.adaptive.bundle import Bundle, BundleFacts, Variant, data_sha256
from onnxq.adaptive.cascade import check_promised
from onnxq.adaptive.fitting import fitted
from onnxq.adaptive.scores import (
    KINDS,
    Scoring,
    as_arrays,
    as_usual,
    deviations,
    output_scores,
    streams,
    usual_of,
)
from onnxq.adaptive.serving import Sessions
from onnxq.adaptive.state import Generation
from onnxq.adaptive.twin import Twin, quantized, watched
from onnxq.data import Dataset
from onnxq.data.dataset import CALIBRATION_LIMIT
from onnxq.errors import InputError
from onnxq.ir import Graph, save
from onnxq.job import Job
from onnxq.observe import Histogram
from onnxq.observe.histogram import Tally, as_float32
from onnxq.proof import verify
from onnxq.runtime import EQUAL, load_backend
from onnxq.runtime.specs import Array
from onnxq.verify import Report
from onnxq.verify.facts import file_sha256

_SECONDS_EACH = 0.6
"""Time to measure each variant for."""


@dataclass(frozen=True)
class Rung:
    """A quantized model that may be a variant: what it is, the model, and its file."""

    name: str
    graph: Graph
    path: Path


@dataclass(frozen=True)
class Ladder:
    """What a bundle is made of.

    Attributes:
        floats: The float model that all rungs were made from.
        rungs: Quantized models in any order.
    """

    floats: Graph
    rungs: tuple[Rung, ...]


def check_bundled(job: Job, promised: float | None = None) -> None:
    """Refuse before long work what no bundle can be made of.

    Args:
        job: What the models are to be made in.
        promised: Agreement with float that a cascade of them is to keep; None without one.

    Raises:
        InputError: the target's provider, which the variants are to be timed on, is not here, or
            the held-out samples are too few for the promise.
    """
    if promised is not None:
        check_promised(promised, 0 if job.held_out is None else len(job.held_out))
    if missing := job.missing_provider():
        raise InputError(
            f"the variants of a bundle are timed on the target {job.target.name}, but {missing}; "
            "leave --adaptive out, or make the bundle there"
        )


def write_bundle(
    job: Job,
    ladder: Ladder,
    chosen: Graph,
    folder: str | os.PathLike[str],
    promised: float | None = None,
) -> Bundle:
    """Write a bundle: the models that are worth having, float, and what is usual.

    A quantized model is worth having if it is faster than all that are nearer to the float model.
    Histograms are of the samples that were calibrated on; the scores that live ones are held
    against are of held-out samples, because nothing was fitted to these.

    Args:
        job: What the models were made in.
        ladder: The models.
        chosen: The one that kept its promise; the float model if it is none of the rungs.
        folder: Where to write.
        promised: Agreement with float that a cascade of the models is to keep; None without one.

    Raises:
        InputError: the folder cannot be written, the outputs hold no decisions to promise, or
            onnxruntime cannot run a model on the data.
    """
    job.progress.stage("making the bundle")
    made = job.folder / "bundle"
    made.mkdir()
    floats = made / "float.onnx"
    save(ladder.floats, floats)
    sized = _sized(job, ladder, floats)
    kept = [*_worth(sized, chosen), (Rung("float", ladder.floats, floats), 1.0, None)]
    variants = []
    for place, (rung, speedup, report) in enumerate(kept):
        path = floats if report is None else made / f"variant-{place}.onnx"
        if report is not None:
            save(rung.graph, path)
        agreed = None if report is None or report.agreement is None else report.agreement.value
        if report is None and any(r is not None and r.agreement for *_, r in kept):
            agreed = 1.0
        sqnr_db = math.inf if report is None else report.sqnr_db
        sha256 = file_sha256(path)
        variants.append(
            Variant(rung.name, path.name, sha256, speedup, sqnr_db, agreed, data_sha256(path))
        )
    graphs = [rung.graph for rung, *_ in kept]
    place = next((at for at, graph in enumerate(graphs) if graph is chosen), len(graphs) - 1)
    found = watched(ladder.floats, graphs)
    facts = BundleFacts(
        tuple(variants),
        place,
        job.reference.decisions(next(job.reference.batches())[1]),
        found.tensors,
        found.unmatched,
        job.target.backend,
        job.provider,
        job.options.threads,
        outputs=tuple(value.name for value in ladder.floats.outputs),
    )
    bundle = Bundle(made, facts, Baseline(0, {}, {}))
    if promised is not None and job.held_out is not None:
        cascade = fitted(bundle, _single(job, job.held_out), promised, seed=job.options.seed)
        bundle = replace(bundle, facts=replace(facts, cascade=cascade))
    return replace(bundle, baseline=_baseline(job, bundle, graphs[place])).save(folder)


def told(bundle: Bundle, promised: float) -> str:
    """What became of a promised agreement, in a sentence."""
    cascade = bundle.facts.cascade
    if cascade is None:
        return (
            f"No cascade: only the float model keeps an agreement of {promised:g} for certain, so "
            "sessions on the bundle answer by one model."
        )
    names = ", ".join(f"'{bundle.variants[place].name}'" for place in cascade.variants)
    return (
        f"Sessions on the bundle answer by {names}: at least {100 * cascade.proved:.2f} % of the "
        f"decisions are float's (95 % confidence, {cascade.samples} samples), in "
        f"{cascade.cost:.2f} of its time."
    )


_Sized = tuple[Rung, float, Report | None]
"""A rung, how many times as fast as float it is, and how near to it; None for float itself."""


def _sized(job: Job, ladder: Ladder, floats: Path) -> list[_Sized]:
    """The rungs with what they are worth, timed in turn with the float model."""
    backend, options = load_backend(job.target.backend), job.options
    sessions = [
        backend.session(path, provider=job.provider, threads=options.threads)
        for path in (floats, *(rung.path for rung in ladder.rungs))
    ]
    timings = backend.time(sessions, job.one.feeds, seconds=_SECONDS_EACH * len(sessions))
    return [
        (rung, timing.speedup, verify(job, rung.path, full=False))
        for rung, timing in zip(ladder.rungs, timings[1:], strict=True)
    ]


def _worth(sized: Sequence[_Sized], chosen: Graph) -> list[_Sized]:
    """Those that are faster than all that are nearer to float, and the chosen one; fastest first.

    Of those that are about as fast the nearest one counts.
    """
    kept: list[_Sized] = []
    for own in sorted(sized, key=lambda s: (s[0].graph is not chosen, _distance(s))):
        rung, speedup, _ = own
        nearer = [s for s in kept if _distance(s) <= _distance(own)]
        fastest = max((s[1] for s in nearer), default=1.0)
        if rung.graph is chosen or speedup > fastest * EQUAL:
            kept.append(own)
    return sorted(kept, key=lambda s: -s[1])


def _distance(sized: _Sized) -> float:
    """How far from float: by the divergence of decisions, or where there are none by noise."""
    report = sized[2]
    assert report is not None
    if report.agreement is not None and report.agreement.kl is not None:
        return report.agreement.kl
    return 10 ** (-report.sqnr_db / 10)


def _baseline(job: Job, bundle: Bundle, chosen: Graph) -> Baseline:
    """What is usual of the tensors and of what the chosen variant answers."""
    twin, ends = Twin(bundle), quantized(chosen)
    samples = job.samples.take(CALIBRATION_LIMIT)
    count, tallies = 0, {name: Tally() for name in bundle.facts.tensors}
    for feeds in _single(job, samples):
        count += 1
        for name, values in twin.run(feeds).tensors.items():
            tallies[name].add(as_float32(values).reshape(-1))
    tensors = {}
    for name, tally in tallies.items():
        histogram = tally.histogram()
        tensors[name] = TensorBaseline(*(ends.get(name) or _seen_ends(histogram)), histogram, {})
    scoring = Scoring(tensors)
    each = (scoring.see(twin.run(feeds).tensors) for feeds in _single(job, samples))
    scores = np.stack([scoring.scores(seen) for seen in each])
    rows = as_usual(scores.mean(axis=0), scores.std(axis=0))
    tensors = {
        name: replace(own, usual=dict(zip(KINDS, row, strict=True)))
        for (name, own), row in zip(tensors.items(), rows, strict=True)
    }
    return Baseline(count, tensors, _bag(job, bundle, twin, tensors))


def _bag(
    job: Job, bundle: Bundle, twin: Twin, tensors: Mapping[str, TensorBaseline]
) -> dict[str, tuple[float, ...]]:
    """The scores of held-out samples by stream."""
    assert job.held_out is not None
    facts, scoring = bundle.facts, Scoring(tensors)
    served = Sessions(bundle).make(Generation(0, bundle.deployment)).session
    bag, usual = defaultdict(list), as_arrays(usual_of(tensors))
    for feeds in _single(job, job.held_out.take(CALIBRATION_LIMIT)):
        reference, answered = twin.run(feeds), served.run(facts.outputs, feeds)
        away = deviations(scoring.scores(scoring.see(reference.tensors)), *usual)
        own = output_scores(facts.decisions, facts.outputs, reference.outputs, answered)
        for stream, score in {**streams(away), **own}.items():
            bag[stream].append(score)
    return {stream: tuple(scores) for stream, scores in bag.items()}


def _single(job: Job, data: Dataset) -> Iterator[dict[str, Array]]:
    """Feeds of single samples, as far as the model leaves it open how many there are."""
    for batch in data.in_parts(1, job.reference.inputs).batches():
        yield batch.feeds


def _seen_ends(histogram: Histogram) -> tuple[float, float]:
    """The range that was seen, where a model holds numbers of any size."""
    if not histogram.total:
        return -math.inf, math.inf
    return float(histogram.lower[0]), float(histogram.upper[-1])

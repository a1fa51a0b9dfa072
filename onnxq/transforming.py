"""Transforming: what methods turn the float graph into before it is observed and quantized."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxq.ir import Graph, PassRecord
from onnxq.job import Job
from onnxq.observe import Observations, observe
from onnxq.passes.tuned import Tuned
from onnxq.plan import PlanTransformation
from onnxq.plan.apply import transform as apply_transformations
from onnxq.precision import parse_precision
from onnxq.time_budget import Untried
from onnxq.tune import AUTOMATIC, NO_METHODS, Change, Subject, Transformation, parse_method
from onnxq.tune.tuned import sha256


@dataclass(frozen=True)
class Transformed:
    """The equivalent transformations that were made of a float graph.

    Attributes:
        transformations: What was done, in this order.
        numbers: What the transformations take, by tensor and kind.
        tried: Methods that could have done something.
        records: What the passes did.
        seconds: How long each method took, for each node that it changed.
        untried: Methods for which no time was left.
    """

    transformations: tuple[PlanTransformation, ...] = ()
    numbers: Tuned = field(default_factory=dict)
    tried: tuple[str, ...] = ()
    records: tuple[PassRecord, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    untried: tuple[Untried, ...] = ()

    @property
    def digest(self) -> str:
        """Hash of all that was done; empty for nothing."""
        return sha256(self.numbers)


def transform(
    graph: Graph, job: Job, choices: Mapping[str, Sequence[str]]
) -> tuple[Graph, Transformed]:
    """Let the methods wanted transform a float graph, one after the other.

    Each observes what it needs in one pass over the data; where none has anything to do, no data is
    read. Where time is limited, those that promise most begin, until it is over.

    Args:
        graph: The float graph, which is left as it is.
        job: What is wanted.
        choices: Precisions that each node can have beside float, by the node's name.

    Returns:
        The transformed graph, or the same one where nothing was changed, and what was done.

    Raises:
        InputError: onnxruntime cannot run the model on the data.
    """
    found = Transformed()
    precisions = {name: [parse_precision(t) for t in own] for name, own in choices.items()}
    for method in _methods(job):
        subject = Subject(graph, job.target, precisions)
        if method.refusal(subject):
            continue
        if job.time.is_over():
            found = replace(found, untried=(*found.untried, Untried(str(method))))
            continue
        job.progress.stage("transforming")
        started = time.perf_counter()
        needs = tuple(dict.fromkeys(method.needs(subject)))
        observations = Observations()
        if needs:
            observations = observe(
                graph,
                job.samples,
                needs,
                memory_limit=job.options.memory_limit,
                seed=job.options.seed,
                executor=job.executor,
            )
        changes = method.transform(subject, observations)
        entries = tuple(
            PlanTransformation(c.kind, c.tensor, str(method), c.nodes, c.gain_db) for c in changes
        )
        numbers = {name: dict(own) for name, own in found.numbers.items()}
        for change in changes:
            numbers.setdefault(change.tensor, {})[change.kind] = change.numbers
        graph, records = apply_transformations(graph, entries, numbers, job.context)
        found = replace(
            found,
            transformations=(*found.transformations, *entries),
            numbers=numbers,
            tried=(*found.tried, str(method)),
            records=(*found.records, *records),
            seconds={**found.seconds, str(method): _each(time.perf_counter() - started, changes)},
        )
    return graph, found


def _each(seconds: float, changes: Sequence[Change]) -> float:
    return seconds / max(1, sum(len(change.nodes) for change in changes))


def _methods(job: Job) -> list[Transformation]:
    """The transformations to try, in their order."""
    wanted = job.methods
    if wanted == AUTOMATIC:
        named = [*job.precisions, *(pin.precision for pin in job.pins)]
        wanted = tuple(m for text in named for m in parse_precision(text).transformations)
    methods = [parse_method(m) for m in dict.fromkeys(wanted)] if wanted != NO_METHODS else []
    return [m for m in methods if isinstance(m, Transformation)]

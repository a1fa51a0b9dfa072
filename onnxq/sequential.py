"""Tuning in the order of computation: each layer on what the quantized layers before it give."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from onnxq.data import Batch, Dataset
from onnxq.data.batch import Fed
from onnxq.data.dataset import Indices, Source
from onnxq.ir import Graph
from onnxq.ir.segments import Segment, cut_by_depth
from onnxq.needs import Comparison, DifferenceOf, Need
from onnxq.observe import Observations, compare, observe
from onnxq.passes.notes import node_name
from onnxq.passes.tuned import Tensors, Tuned
from onnxq.plan.apply import apply_precisions
from onnxq.precision import Given
from onnxq.prepare import Prepared
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.pool import give_back, processors
from onnxq.runtime.specs import Array
from onnxq.runtime.spool import Spool
from onnxq.tune import Layer, Tuner
from onnxq.tune.judge import Contest

_ROWS = 8
"""Samples that go through the layers together where the model leaves it open."""


def tune_in_order(
    prepared: Prepared,
    precisions: Mapping[str, str],
    wanted: Sequence[tuple[str, Tuner]],
    others: Tuned,
    samples: Dataset,
    judging: Judging | None = None,
    is_over: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[str, Tuner, Tensors]]:
    """What tuners compute for nodes of the main graph from what quantized nodes give them.

    The graph is cut so that no tuned node of a segment is computed from another one of it. Segment
    by segment, what its tuned nodes need is observed, with everything before it in the precisions
    of the plan; they are tuned; and the segment runs in the precisions of the plan to give what
    later ones read. What crosses waits on disk, so that memory holds one segment, a few samples,
    and what is observed of the nodes of one depth. Where a tuner compares, the float model goes
    along. What needs the difference of what a node gives comes last, with the node quantized.

    Where methods compete for a node, samples that nothing is fitted to go along, too, and the node
    gets what wins on them before the segment runs.

    Args:
        prepared: The model, with ranges if a precision needs any.
        precisions: Precision of every node, by name.
        wanted: Names of nodes, and what they are tuned by.
        others: What other tuners computed.
        samples: What is fitted to.
        judging: How methods compete; None if none do.
        is_over: Whether there is no time for another segment.

    Returns:
        The tensors of every tuner, with the node's name.

    Raises:
        InputError: onnxruntime cannot run the model on the data.
    """
    graph, nodes = prepared.graph, prepared.nodes()
    tuned = {name: dict(tensors) for name, tensors in others.items()}
    tasks = [_Task(prepared.layer(nodes[n], precisions[n]), tuner) for n, tuner in wanted]
    segments = cut_by_depth(graph, [task.layer.node for task in tasks])
    fed = [v for v in graph.inputs if v.data is None]
    compares = any(isinstance(n, Comparison) for task in tasks for n in task.needs)
    pairs = [_Pair.of(samples, fed, compares)]
    if judging is not None and judging.contests:
        pairs.append(_Pair.of(judging.samples, fed, True))
    with ModelFiles.temporary() as files:
        for number, segment in enumerate(segments, start=1):
            if is_over():
                return
            own = [task for task in tasks if task.layer.node in segment.nodes]
            for is_late in (False, True):
                if some := [task for task in own if task.is_late is is_late]:
                    form = _quantized(prepared, segment, precisions, tuned) if is_late else None
                    needs = [need for task in some for need in task.needs]
                    seen = _observed(prepared, segment, form, needs, pairs[0], files)
                    for task in some:
                        name = node_name(task.layer.node)
                        tensors = task.tuner.tune(task.layer, seen)
                        tuned.setdefault(name, {}).update(tensors)
                        yield name, task.tuner, tensors
                if judging is not None and not is_late:
                    tuned.update(_decided(prepared, segment, judging, pairs[-1], files))
            if number == len(segments):
                return
            later = {name for other in segments[number:] for name in other.inputs}
            changed = _quantized(prepared, segment, precisions, tuned)
            pairs = [pair.through(changed, segment, later, files) for pair in pairs]
            give_back()


@dataclass(frozen=True)
class Judging:
    """How methods compete.

    Attributes:
        samples: What nothing was fitted to.
        contests: Nodes and their methods, by name.
        decide: Told of what a node reads, with everything before it quantized and in the float
            model, gives the tensors of the winner.
    """

    samples: Dataset
    contests: Mapping[str, Contest]
    decide: Callable[[str, Observations, Observations], Tensors]


def _decided(
    prepared: Prepared, segment: Segment, judging: Judging, pair: _Pair, files: ModelFiles
) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of what wins, for the nodes of a segment for which methods compete."""
    inside = sorted(map(node_name, segment.nodes))
    contests = {name: judging.contests[name] for name in inside if name in judging.contests}
    if not contests:
        return {}
    assert pair.exact is not None
    needs = [need for contest in contests.values() for need in contest.needs]
    read = _observed(prepared, segment, None, needs, pair, files)
    grams = [contest.matrix.gram for contest in contests.values()]
    floats = _Pair(pair.exact, None)
    exact = _observed(prepared, segment, None, grams, floats, files)
    return {name: dict(judging.decide(name, read, exact)) for name in contests}


@dataclass(frozen=True)
class _Pair:
    """What a segment reads in the quantized model and, if wanted, in the float model."""

    quantized: _Held
    exact: _Held | None

    @classmethod
    def of(cls, samples: Dataset, inputs: Sequence[Fed], compares: bool) -> _Pair:
        """What a model is fed."""
        held = _Held.of(samples, inputs)
        return cls(held, held if compares else None)

    def through(
        self, graph: Graph, segment: Segment, later: Collection[str], files: ModelFiles
    ) -> _Pair:
        """What later segments read behind a segment, of which a graph is the quantized form."""
        return _Pair(
            self.quantized.through(graph, segment, later, files),
            self.exact and self.exact.through(segment.graph, segment, later, files),
        )


@dataclass(frozen=True)
class _Task:
    """A layer that is to be tuned, and by what."""

    layer: Layer
    tuner: Tuner

    @cached_property
    def needs(self) -> Sequence[Need]:
        """What has to be observed."""
        return self.tuner.needs(self.layer)

    @property
    def is_late(self) -> bool:
        """Whether the node has to be quantized first."""
        return any(isinstance(need, DifferenceOf) for need in self.needs)


def _observed(
    prepared: Prepared,
    segment: Segment,
    quantized: Graph | None,
    needs: Sequence[Need],
    pair: _Pair,
    files: ModelFiles,
) -> Observations:
    """What some nodes of a segment need, with everything before it quantized.

    Args:
        prepared: The model.
        segment: The segment, in float.
        quantized: The same, quantized, if the nodes are.
        needs: What.
        pair: What the segment reads.
        files: Where to put models.
    """
    options, ours, exact = prepared.job.options, pair.quantized, pair.exact
    graph = quantized or segment.graph
    seen = observe(
        segment.graph,
        ours.dataset(segment.inputs),
        needs,
        memory_limit=options.memory_limit,
        seed=options.seed,
    )
    compared = [n for n in needs if isinstance(n, Comparison) and n.tensor in graph.values]
    if exact is None or not compared:
        return seen
    names = list(dict.fromkeys(need.tensor for need in compared))
    found = compare(
        compared,
        zip(
            ours.values_of(graph, names, files),
            exact.values_of(segment.graph, names, files),
            strict=True,
        ),
    )
    return replace(seen, results={**seen.results, **found})


def _quantized(
    prepared: Prepared, segment: Segment, precisions: Mapping[str, str], tuned: Tuned
) -> Graph:
    """A segment in the precisions of the plan."""
    inside = sorted(map(node_name, segment.nodes))
    changed = segment.graph.copy()
    own = {name: tuned[name] for name in inside if name in tuned}
    given = Given(prepared.target, prepared.bounds(), own)
    apply_precisions(changed, {n: precisions[n] for n in inside if n in precisions}, given)
    return changed


@dataclass(frozen=True)
class _Held:
    """The values that segments read, for all samples, on disk.

    Attributes:
        sizes: Real samples, and rows, of what goes through together.
        values: The values by name.
    """

    sizes: Sequence[tuple[int, int]]
    values: Mapping[str, Spool[Any]]

    @classmethod
    def of(cls, data: Dataset, inputs: Sequence[Fed]) -> _Held:
        """What a model is fed."""
        sizes, values = [], {value.name: Spool[Any]() for value in inputs}
        for batch in data.in_parts(_ROWS, inputs).batches():
            sizes.append((batch.valid, batch.size))
            for name, spool in values.items():
                spool.add(batch.feeds[name])
        return cls(sizes, values)

    def feeds(self, names: Sequence[str]) -> Iterator[dict[str, Array]]:
        """Some of the values; those that a caller may leave out are not among them."""
        iterators = {name: iter(self.values[name]) for name in names if name in self.values}
        for _ in self.sizes:
            yield {name: next(values) for name, values in iterators.items()}

    def dataset(self, names: Sequence[str]) -> Dataset:
        """Some of the values as samples of a graph that reads them."""
        return Dataset(_Parts(self, names))

    def through(
        self, graph: Graph, segment: Segment, later: Collection[str], files: ModelFiles
    ) -> _Held:
        """What later segments read behind a segment, of which a graph is some form."""
        made = {name: Spool[Any]() for name in segment.outputs if name in later}
        for values in self._runs(graph, [*made], files):
            for name, spool in made.items():
                spool.add(values[name])
        return _Held(self.sizes, {n: v for n, v in {**self.values, **made}.items() if n in later})

    def values_of(
        self, graph: Graph, names: Sequence[str], files: ModelFiles
    ) -> Iterator[dict[str, Array]]:
        """Values of a graph that reads these, without samples that only fill up."""
        for (valid, size), values in zip(self.sizes, self._runs(graph, names, files), strict=True):
            yield Batch({}, None, valid, size).trim(values)

    def _runs(
        self, graph: Graph, names: Sequence[str], files: ModelFiles
    ) -> Iterator[dict[str, Array]]:
        inputs = [value.name for value in graph.inputs]
        made = [name for name in names if name not in inputs]
        session = None
        if made:
            whole = graph.copy()
            part = whole.extract(whole.inputs, [whole.values[name] for name in made])
            # As the operators are defined: what a runtime fuses, others do not.
            options = {"threads": processors(), "optimization": "none", "pooled": True}
            session = files.session(part, **options)
        for feeds in self.feeds(inputs):
            found = {name: feeds[name] for name in names if name in feeds}
            yield found if session is None else {**found, **session.run(feeds, made)}


class _Parts(Source):
    """What crosses between segments, as a source of samples."""

    name = "what the layers before give"

    def __init__(self, held: _Held, names: Sequence[str]) -> None:
        self._held, self._names = held, names
        self.samples = np.array([valid for valid, _ in held.sizes], np.int64)

    def batches(self, units: Indices) -> Iterator[Batch]:
        """See `Source`; all of them are wanted."""
        for (valid, size), feeds in zip(
            self._held.sizes, self._held.feeds(self._names), strict=True
        ):
            yield _Part(feeds, None, valid, size)


class _Part(Batch):
    """A batch that stays whole: which axis of inner values runs over samples nobody knows."""

    def is_divisible(self, inputs: object) -> bool:
        """See `Batch`."""
        return False

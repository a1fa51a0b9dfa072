"""Tuning in the order of computation: each layer on what the quantized layers before it give."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
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

_ROWS = 8
"""Samples that go through the layers together where the model leaves it open."""


def tune_in_order(
    prepared: Prepared,
    precisions: Mapping[str, str],
    wanted: Sequence[tuple[str, Tuner]],
    others: Tuned,
) -> Iterator[tuple[str, Tuner, Tensors]]:
    """What tuners compute for nodes of the main graph from what quantized nodes give them.

    The graph is cut so that no tuned node of a segment is computed from another one of it. Segment
    by segment, what its tuned nodes need is observed, with everything before it in the precisions
    of the plan; they are tuned; and the segment runs in the precisions of the plan to give what
    later ones read. What crosses waits on disk, so that memory holds one segment, a few samples,
    and what is observed of the nodes of one depth. Where a tuner compares, the float model goes
    along. What needs the difference of what a node gives comes last, with the node quantized.

    Args:
        prepared: The model, with ranges if a precision needs any.
        precisions: Precision of every node, by name.
        wanted: Names of nodes, and what they are tuned by.
        others: What other tuners computed.

    Returns:
        The tensors of every tuner, with the node's name.

    Raises:
        InputError: onnxruntime cannot run the model on the data.
    """
    graph, nodes = prepared.graph, prepared.nodes()
    tuned = {name: dict(tensors) for name, tensors in others.items()}
    tasks = [_Task(prepared.layer(nodes[n], precisions[n]), tuner) for n, tuner in wanted]
    segments = cut_by_depth(graph, [task.layer.node for task in tasks])
    held = _Held.of(prepared.job.samples, [v for v in graph.inputs if v.data is None])
    exact = held if any(isinstance(n, Comparison) for task in tasks for n in task.needs) else None
    with ModelFiles.temporary() as files:
        for number, segment in enumerate(segments, start=1):
            own = [task for task in tasks if task.layer.node in segment.nodes]
            for is_late in (False, True):
                if some := [task for task in own if task.is_late is is_late]:
                    form = _quantized(prepared, segment, precisions, tuned) if is_late else None
                    seen = _observed(prepared, segment, form, some, (held, exact), files)
                    for task in some:
                        name = node_name(task.layer.node)
                        tensors = task.tuner.tune(task.layer, seen)
                        tuned.setdefault(name, {}).update(tensors)
                        yield name, task.tuner, tensors
            if number == len(segments):
                return
            later = {name for other in segments[number:] for name in other.inputs}
            changed = _quantized(prepared, segment, precisions, tuned)
            held = held.through(changed, segment, later, files)
            exact = exact and exact.through(segment.graph, segment, later, files)
            give_back()


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
    tasks: Sequence[_Task],
    held: tuple[_Held, _Held | None],
    files: ModelFiles,
) -> Observations:
    """What some nodes of a segment need, with everything before it quantized.

    Args:
        prepared: The model.
        segment: The segment, in float.
        quantized: The same, quantized, if the nodes are.
        tasks: What is to be tuned.
        held: What the segment reads in the quantized model and, if wanted, in the float model.
        files: Where to put models.
    """
    options, (ours, exact) = prepared.job.options, held
    graph = quantized or segment.graph
    needs = [need for task in tasks for need in task.needs]
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

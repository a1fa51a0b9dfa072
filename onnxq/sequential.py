"""Tuning in the order of computation: each layer on what the quantized layers before it give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.data import Batch, Dataset
from onnxq.data.batch import Fed
from onnxq.data.dataset import Indices, Source
from onnxq.ir import Graph
from onnxq.ir.segments import Segment, cut_by_depth
from onnxq.observe import observe
from onnxq.passes.notes import node_name
from onnxq.passes.tuned import Tensors, Tuned
from onnxq.plan.apply import apply_precisions
from onnxq.precision import Given, parse_precision
from onnxq.prepare import Prepared
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.pool import give_back, processors
from onnxq.runtime.specs import Array
from onnxq.runtime.spool import Spool
from onnxq.tune import Tuner

_ROWS = 8
"""Samples that go through the layers together where the model leaves it open."""


def tune_in_order(
    prepared: Prepared, precisions: Mapping[str, str], tuners: Mapping[str, Tuner], others: Tuned
) -> Iterator[tuple[str, Tensors]]:
    """What tuners compute for nodes of the main graph from what quantized nodes give them.

    The graph is cut so that no tuned node of a segment is computed from another one of it. Segment
    by segment, what its tuned nodes need is observed, with everything before it in the precisions
    of the plan; they are tuned; and the segment runs in the precisions of the plan to give what
    later ones read. What crosses waits on disk, so that memory holds one segment, a few samples,
    and what is observed of the nodes of one depth.

    Args:
        prepared: The model, with ranges if a precision needs any.
        precisions: Precision of every node, by name.
        tuners: The tuners of those that are to be tuned so, by name.
        others: What was computed for others.

    Returns:
        The tensors of every tuned node, with its name.

    Raises:
        InputError: onnxruntime cannot run the model on the data.
    """
    graph, job, nodes = prepared.graph, prepared.job, prepared.nodes()
    limit, seed = job.options.memory_limit, job.options.seed
    bounds, tuned = prepared.bounds(), dict(others)
    segments = cut_by_depth(graph, [nodes[name] for name in tuners])
    held = _Held.of(job.samples, [v for v in graph.inputs if v.data is None])
    with ModelFiles.temporary() as files:
        for number, segment in enumerate(segments, start=1):
            inside = sorted(map(node_name, segment.nodes))
            parsed = {n: parse_precision(precisions[n]) for n in inside if n in precisions}
            own = [name for name in parsed if name in tuners]
            needs = [n for name in own for n in tuners[name].needs(nodes[name], parsed[name])]
            data = held.dataset(segment.inputs)
            seen = observe(segment.graph, data, needs, memory_limit=limit, seed=seed)
            for name in own:
                tuned[name] = tuners[name].tune(nodes[name], parsed[name], seen)
                yield name, tuned[name]
            if number == len(segments):
                return
            changed, wanted = segment.graph.copy(), {name: precisions[name] for name in parsed}
            here = {name: tuned[name] for name in inside if name in tuned}
            apply_precisions(changed, wanted, Given(job.target, bounds, here))
            later = {name for other in segments[number:] for name in other.inputs}
            held = held.through(changed, segment, later, files)
            give_back()


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

    def through(self, graph: Graph, segment: Segment, later: set[str], files: ModelFiles) -> _Held:
        """What later segments read behind a segment, whose nodes a graph holds in some form."""
        made = {name: Spool[Any]() for name in segment.outputs if name in later}
        # As the operators are defined: what a runtime fuses, others do not.
        session = files.session(graph, threads=processors(), optimization="none", pooled=True)
        for feeds in self.feeds(segment.inputs):
            for name, value in session.run(feeds, [*made]).items():
                made[name].add(value)
        return _Held(self.sizes, {n: v for n, v in {**self.values, **made}.items() if n in later})


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

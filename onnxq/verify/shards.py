"""What models give on shards of held-out data, and what that is worth, wherever they run."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from onnxq.data import Batch, Dataset
from onnxq.ir import Graph
from onnxq.runtime import ErrorAccumulator, load_backend
from onnxq.runtime.executor import Work
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.session import told_as
from onnxq.runtime.spool import Shelf
from onnxq.verify.agreement import Agreement
from onnxq.verify.decisions import Decision
from onnxq.verify.metrics import Metric

Outputs = dict[str, Any]


@dataclass
class Part:
    """What some batches say of a model; what others say may be added.

    Attributes:
        samples: Their samples.
        errors: How far outputs are from the float model's, batch by batch, so that sums are the
            same however batches are divided.
        agreement: How often both decide alike.
        metric: The metric; None without labels, and where it was not asked for.
    """

    samples: int
    errors: list[ErrorAccumulator]
    agreement: Agreement
    metric: Metric | None


def judged(
    batches: Iterable[tuple[Batch, Outputs, Outputs]],
    decisions: Sequence[Decision],
    metric: Metric | None,
) -> Part:
    """What some batches say, with the float model's outputs and a candidate's.

    Args:
        batches: The batches.
        decisions: What outputs decide.
        metric: Nothing was added to it; None if it is not wanted.
    """
    found = Part(0, [], Agreement(decisions), copy.deepcopy(metric))
    for batch, ours, theirs in batches:
        errors = ErrorAccumulator()
        errors.add(ours, theirs)
        found.errors.append(errors)
        found.agreement.add(ours, theirs, batch.valid)
        scored(found.metric, batch, theirs, ours)
        found.samples += batch.valid
    return found


def scored(metric: Metric | None, batch: Batch, outputs: Outputs, exact: Outputs) -> None:
    """Add a batch to a metric, if there is one."""
    if metric is not None:
        labels = None if batch.labels is None else batch.labels[: batch.valid]
        metric.add(outputs, labels, batch.valid, exact)


@dataclass(frozen=True)
class Giving(Work[int, Metric | None]):
    """Puts away what the float model gives, shard by shard, and finds its metric.

    Attributes:
        graph: The model.
        name: What messages call it.
        data: The samples.
        metric: Nothing was added to it; None if there is none.
        given: Where to put the outputs of each batch of a shard.
    """

    graph: Graph
    name: str
    data: Dataset
    metric: Metric | None
    given: Shelf[list[Outputs]]

    @contextmanager
    def open(self) -> Iterator[Callable[[int], Metric | None]]:
        """See `Work`."""
        shards = self.data.shards()
        with _running(self.graph, self.name) as run:

            def give(number: int) -> Metric | None:
                metric, given = copy.deepcopy(self.metric), []
                for batch in shards[number].batches():
                    given.append(run(batch))
                    scored(metric, batch, given[-1], given[-1])
                self.given.put(number, given)
                return metric

            yield give


@dataclass(frozen=True)
class Judging(Work[int, Part]):
    """Holds a model against what the float model gave, shard by shard.

    Attributes:
        graph: The model; None is the float model itself.
        name: What messages call it.
        data: The samples.
        decisions: What outputs decide.
        metric: Nothing was added to it; None if it is not wanted.
        given: What the float model gave.
    """

    graph: Graph | None
    name: str
    data: Dataset
    decisions: tuple[Decision, ...]
    metric: Metric | None
    given: Shelf[list[Outputs]] = field()

    @contextmanager
    def open(self) -> Iterator[Callable[[int], Part]]:
        """See `Work`."""
        shards = self.data.shards()
        if self.graph is None:
            yield lambda number: self._judged(shards[number], number, None)
            return
        with _running(self.graph, self.name) as run:
            yield lambda number: self._judged(shards[number], number, run)

    def _judged(self, shard: Dataset, number: int, run: Callable[[Batch], Outputs] | None) -> Part:
        exact = zip(shard.batches(), self.given[number], strict=True)
        batches = ((b, ours, ours if run is None else run(b)) for b, ours in exact)
        return judged(batches, self.decisions, self.metric)


@contextmanager
def _running(graph: Graph, name: str) -> Iterator[Callable[[Batch], Outputs]]:
    """What runs a model on the CPU provider, by one thread."""
    with ModelFiles.temporary() as files:
        path = files.save(graph, "model.onnx")
        with told_as(path, name):
            session = load_backend("onnxruntime").session(path, threads=1, pooled=True)
        yield lambda batch: batch.trim(session.run(batch.feeds))

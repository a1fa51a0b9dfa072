"""Tuning in the order of computation: each layer on what the quantized layers before it give."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from onnxq.data import Batch, Dataset
from onnxq.data.batch import Fed
from onnxq.data.dataset import Indices, Source
from onnxq.ir import Graph
from onnxq.ir.segments import Segment, cut_by_depth
from onnxq.needs import Comparison, DifferenceOf, Need
from onnxq.observe import Observations, compare, merge_observations
from onnxq.observe.run import Observing, observable
from onnxq.options import Options
from onnxq.passes.notes import node_name
from onnxq.passes.tuned import Tensors, Tuned
from onnxq.plan.apply import apply_precisions
from onnxq.precision import Given
from onnxq.prepare import Prepared
from onnxq.runtime.executor import Executor, Work
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.pool import give_back, processors
from onnxq.runtime.specs import Array
from onnxq.runtime.spool import Shelf
from onnxq.scratch import scratch_folder
from onnxq.tune import Layer, Tuner
from onnxq.tune.judge import Contest
from onnxq.tune.layers import open_layers

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
    later ones read, of which the next segment's needs are observed at once. What crosses waits on
    disk, so that memory holds two segments, a few samples, and what is observed of the nodes of one
    depth. Where a tuner compares, the float model goes along, and each of the two is there twice.
    What needs the difference of what a node gives comes last, with the node quantized.

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
    layers = [(task.tuner, task.layer) for task in tasks]
    with (
        _Passes.opened(prepared) as passes,
        open_layers(layers, prepared.job.executor) as tune,
    ):
        pairs = [passes.fed(samples, fed, compares)]
        if judging is not None and judging.contests:
            pairs.append(passes.fed(judging.samples, fed, True))
        seen = passes.observed(segments[0], None, _first_needs(segments[0], tasks), pairs[0])
        for number, segment in enumerate(segments, start=1):
            if is_over():
                return
            own = [task for task in tasks if task.layer.node in segment.nodes]
            for is_late in (False, True):
                if some := [task for task in own if task.is_late is is_late]:
                    if is_late:
                        form = _quantized(prepared, segment, precisions, tuned)
                        needs = [need for task in some for need in task.needs]
                        seen = passes.observed(segment, form, needs, pairs[0])
                    found = tune([*map(tasks.index, some)], seen)
                    for task, tensors in zip(some, found, strict=True):
                        name = node_name(task.layer.node)
                        tuned.setdefault(name, {}).update(tensors)
                        yield name, task.tuner, tensors
                if judging is not None and not is_late:
                    tuned.update(_decided(passes, segment, judging, pairs[-1]))
            if number == len(segments) or is_over():
                return
            later = {name for other in segments[number:] for name in other.inputs}
            changed = _quantized(prepared, segment, precisions, tuned)
            after = segments[number]
            needs = _first_needs(after, tasks)
            pairs, seen = passes.through(changed, segment, later, pairs, after, needs)
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
    passes: _Passes, segment: Segment, judging: Judging, pair: _Pair
) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of what wins, for the nodes of a segment for which methods compete."""
    inside = sorted(map(node_name, segment.nodes))
    contests = {name: judging.contests[name] for name in inside if name in judging.contests}
    if not contests:
        return {}
    assert pair.exact is not None
    needs = [need for contest in contests.values() for need in contest.needs]
    read = passes.observed(segment, None, needs, pair)
    grams = [contest.matrix.gram for contest in contests.values()]
    exact = passes.observed(segment, None, grams, _Pair(pair.exact, None))
    return {name: dict(judging.decide(name, read, exact)) for name in contests}


@dataclass(frozen=True)
class _Pair:
    """What a segment reads in the quantized model and, if wanted, in the float model."""

    quantized: _Held
    exact: _Held | None

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self.quantized.dataset(()).shards())


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


def _first_needs(segment: Segment, tasks: Sequence[_Task]) -> list[Need]:
    """What the layers of a segment need before any of its nodes is quantized."""
    own = [task for task in tasks if task.layer.node in segment.nodes and not task.is_late]
    return [need for task in own for need in task.needs]


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
        values: The values by name, each by the number of what goes through together.
    """

    sizes: Sequence[tuple[int, int]]
    values: Mapping[str, Shelf[Any]]

    def feeds(self, number: int, names: Iterable[str]) -> dict[str, Array]:
        """Some of the values; those that a caller may leave out are not among them."""
        return {name: self.values[name][number] for name in names if name in self.values}

    def dataset(self, names: Sequence[str]) -> Dataset:
        """Some of the values as samples of a graph that reads them."""
        return Dataset(_Parts(self, tuple(names)))


@dataclass(frozen=True)
class _Passes:
    """Passes over what waits between segments, each shard by itself.

    Attributes:
        options: Of the job.
        executor: Where they are done.
        folder: A folder that whoever does them sees.
    """

    options: Options
    executor: Executor
    folder: Path

    @classmethod
    @contextmanager
    def opened(cls, prepared: Prepared) -> Iterator[_Passes]:
        """Those over the values of a model."""
        job = prepared.job
        with scratch_folder() as folder:
            yield cls(job.options, job.executor, job.executor.folder or folder)

    def fed(self, data: Dataset, inputs: Sequence[Fed], compares: bool) -> _Pair:
        """What a model is fed."""
        sizes, values = [], {value.name: Shelf[Any](self.folder) for value in inputs}
        for number, batch in enumerate(data.in_parts(_ROWS, inputs).batches()):
            sizes.append((batch.valid, batch.size))
            for name, shelf in values.items():
                shelf.put(number, batch.feeds[name])
        held = _Held(sizes, values)
        return _Pair(held, held if compares else None)

    def observed(
        self, segment: Segment, quantized: Graph | None, needs: Sequence[Need], pair: _Pair
    ) -> Observations:
        """What some nodes of a segment need, with everything before it quantized.

        Args:
            segment: The segment, in float.
            quantized: The same, quantized, if the nodes are.
            needs: What.
            pair: What the segment reads.
        """
        work = self._seeing(segment, quantized, needs, pair)
        return _merged(self.executor.map(work, [*range(pair.shards)]))

    def through(
        self,
        graph: Graph,
        segment: Segment,
        later: Collection[str],
        pairs: Sequence[_Pair],
        after: Segment,
        needs: Sequence[Need],
    ) -> tuple[list[_Pair], Observations]:
        """What later segments read behind a segment, and what the next one's nodes need.

        Each shard goes through and is observed by whoever has it, so that nobody waits in between.

        Args:
            graph: The quantized form of the segment.
            segment: The segment.
            later: Names of all that later segments read.
            pairs: What the segment reads; the first is observed.
            after: The next segment.
            needs: What its nodes need.
        """
        names = [name for name in segment.outputs if name in later]
        sides = [
            tuple(
                _Side(form, held, {name: Shelf[Any](self.folder) for name in names})
                for form, held in ((graph, pair.quantized), (segment.graph, pair.exact))
                if held is not None
            )
            for pair in pairs
        ]
        behind = [
            _Pair(own[0].behind(later), own[1].behind(later) if len(own) > 1 else None)
            for own in sides
        ]
        work = _Stepping(tuple(sides), self._seeing(after, None, needs, behind[0]))
        items = [(place, shard) for place, p in enumerate(pairs) for shard in range(p.shards)]
        parts = self.executor.map(work, items)
        return behind, _merged(part for part in parts if part is not None)

    def _seeing(
        self, segment: Segment, quantized: Graph | None, needs: Sequence[Need], pair: _Pair
    ) -> _Seeing:
        graph = quantized or segment.graph
        is_compared = pair.exact is not None
        compared = tuple(
            need
            for need in needs
            if isinstance(need, Comparison) and need.tensor in graph.values and is_compared
        )
        return _Seeing(
            *(segment.graph, quantized, tuple(segment.inputs), pair),
            *(tuple(observable(segment.graph, needs)), compared),
            *(self.options.memory_limit, self.options.seed),
        )


def _merged(parts: Iterable[Observations]) -> Observations:
    """What was observed of shards, in their order, together."""
    whole: Observations | None = None
    for part in parts:
        whole = part if whole is None else merge_observations([whole, part])
    return whole or Observations()


@dataclass(frozen=True)
class _Side:
    """A segment in some form, what it reads, and where to put what it gives."""

    graph: Graph
    held: _Held
    made: Mapping[str, Shelf[Any]]

    def behind(self, later: Collection[str]) -> _Held:
        """What later segments read."""
        values = {**self.held.values, **self.made}
        return _Held(self.held.sizes, {name: v for name, v in values.items() if name in later})


@dataclass(frozen=True)
class _Seeing(Work[int, Observations]):
    """Observes shards of what a segment reads, and compares with what it reads in the float model.

    Attributes:
        graph: The segment.
        quantized: Its quantized form, if that is compared.
        inputs: What it reads.
        pair: The values.
        needs: What to observe.
        compared: What to compare.
        memory_limit: Of observing.
        seed: Of the rows drawn.
    """

    is_resumable: ClassVar[bool] = False

    graph: Graph
    quantized: Graph | None
    inputs: tuple[str, ...]
    pair: _Pair
    needs: Sequence[Need]
    compared: Sequence[Comparison]
    memory_limit: int | None
    seed: int

    @contextmanager
    def open(self) -> Iterator[Callable[[int], Observations]]:
        """See `Work`."""
        ours, exact = self.pair.quantized, self.pair.exact
        shards = ours.dataset(self.inputs).shards()
        count = sum(map(len, shards))
        settings = (np.arange(count), self.memory_limit, "", self.seed, None)
        with ExitStack() as stack:
            see = stack.enter_context(Observing(self.graph, shards, self.needs, *settings).open())
            files = stack.enter_context(ModelFiles.temporary())
            names = list(dict.fromkeys(need.tensor for need in self.compared))
            form = self.quantized or self.graph
            # Where no form of it is quantized, one session runs both sides.
            runs = {g: _Run(g, names, files) for g in {form, self.graph} if self.compared}

            def run(number: int) -> Observations:
                seen = Observations(len(shards[number]), {}, "", self.seed)
                if self.needs:
                    seen = see([number])
                if not self.compared:
                    return seen
                assert exact is not None
                values = (
                    (runs[form].of(ours, part), runs[self.graph].of(exact, part))
                    for part in _of_shard(shards, number)
                )
                return replace(seen, results={**seen.results, **compare(self.compared, values)})

            yield run


@dataclass(frozen=True)
class _Stepping(Work[tuple[int, int], Observations | None]):
    """Runs a segment on shards of what it reads, puts away what it gives, and observes the next.

    Both forms of a segment are one item's, also where there are fewer shards than workers: most of
    an item is observing, which has to wait for both.

    Attributes:
        sides: Its forms, each with what it reads, for each pair.
        seeing: What is observed of the first pair behind it.
    """

    is_resumable: ClassVar[bool] = False

    sides: tuple[tuple[_Side, ...], ...]
    seeing: _Seeing

    @contextmanager
    def open(self) -> Iterator[Callable[[tuple[int, int]], Observations | None]]:
        """See `Work`."""
        shards = [own[0].held.dataset(()).shards() for own in self.sides]
        with ModelFiles.temporary() as files, self.seeing.open() as see:

            @cache
            def opened(graph: Graph) -> _Run:
                return _Run(graph, [*self.sides[0][0].made], files)

            def run(item: tuple[int, int]) -> Observations | None:
                place, shard = item
                for side in self.sides[place]:
                    for part in _of_shard(shards[place], shard):
                        for name, values in opened(side.graph).all_of(side.held, part).items():
                            side.made[name].put(part, values)
                return None if place else see(shard)

            yield run


class _Run:
    """Some values of a graph, for parts of what it reads."""

    def __init__(self, graph: Graph, names: Sequence[str], files: ModelFiles) -> None:
        self._inputs = [value.name for value in graph.inputs]
        self._names = names
        self._made = [name for name in names if name not in self._inputs]
        self._session = None
        if self._made:
            whole = graph.copy()
            part = whole.extract(whole.inputs, [whole.values[name] for name in self._made])
            # As the operators are defined: what a runtime fuses, others do not.
            options = {"threads": processors(), "optimization": "none", "pooled": True}
            self._session = files.session(part, **options)

    def all_of(self, held: _Held, part: int) -> dict[str, Array]:
        """The values, with samples that only fill up."""
        feeds = held.feeds(part, self._inputs)
        found = {name: feeds[name] for name in self._names if name in feeds}
        return found if self._session is None else {**found, **self._session.run(feeds, self._made)}

    def of(self, held: _Held, part: int) -> dict[str, Array]:
        """The values, without these."""
        valid, size = held.sizes[part]
        return Batch({}, None, valid, size).trim(self.all_of(held, part))


def _of_shard(shards: Sequence[Dataset], number: int) -> range:
    """Numbers of the parts that a shard holds, of which each is a batch."""
    first = sum(len(shard.units) for shard in shards[:number])
    return range(first, first + len(shards[number].units))


class _Parts(Source):
    """What crosses between segments, as a source of samples."""

    name = "what the layers before give"

    def __init__(self, held: _Held, names: tuple[str, ...]) -> None:
        self._held, self._names = held, names
        self.samples = np.array([valid for valid, _ in held.sizes], np.int64)

    def __reduce__(self) -> Any:
        return _Parts, (self._held, self._names)

    def fingerprint(self) -> object:
        """See `Source`."""
        return self._held, self._names

    def batches(self, units: Indices) -> Iterator[Batch]:
        """See `Source`."""
        for unit in units.tolist():
            valid, size = self._held.sizes[unit]
            yield _Part(self._held.feeds(unit, self._names), None, valid, size)


class _Part(Batch):
    """A batch that stays whole: which axis of inner values runs over samples nobody knows."""

    def is_divisible(self, inputs: object) -> bool:
        """See `Batch`."""
        return False

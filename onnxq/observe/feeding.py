"""Running a model over data with inner values given out, within a bound on memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np

from onnxq.data import Dataset
from onnxq.data.batch import Batch
from onnxq.data.dataset import in_turn
from onnxq.errors import InputError
from onnxq.ir import DataType, Graph
from onnxq.ir.lifting import lift
from onnxq.ir.saving import constant_bytes
from onnxq.observe.observer import Indices, Observer
from onnxq.progress import Progress
from onnxq.runtime import Session
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.pool import RUN_BYTES, model_room
from onnxq.runtime.segmented import Segmented
from onnxq.runtime.specs import Array

_SMALLEST_PART = 3
"""Rows that parts of a batch may have to have: onnxruntime computes a single row with other
kernels, whose last digits differ, so a batch of three is not cut into two and one."""

_IN_FLIGHT = 2
"""Runs whose values are in memory at a time: one is computed while the one before is counted."""

_YIELDING = {"session.intra_op.allow_spinning": "0"}
"""Threads of the model's that have nothing to do leave the processor to the counting."""


@dataclass(frozen=True)
class _Group:
    """Tensors that are observed at a time, and how many rows may be fed at a time."""

    names: Sequence[str]
    made: Sequence[str]
    rows: int | None


@dataclass
class Feeding:
    """Shows observers every value that their tensors take.

    Attributes:
        graph: The float model. What bodies compute may be observed, too, see `lift`.
        shards: Samples to run it on, see `Dataset.shards`.
        tensors: Names of what is observed.
        positions: Place of each sample of all shards in the whole data, rising.
        folder: Where model files may be put.
        threads: Threads inside one operator.
        progress: Told of samples fed. Where memory makes several passes over the data necessary, a
            sample counts once in each.
        samples: Number of samples fed in the last run, in the pass that went furthest.
        chosen: Numbers of the shards that are fed in it, rising.
        observers: Those of each tensor in it, by name.
    """

    graph: Graph
    shards: Sequence[Dataset]
    tensors: Sequence[str]
    positions: Indices
    folder: Path
    threads: int
    progress: Progress
    samples: int = 0
    chosen: Sequence[int] = ()
    observers: Mapping[str, Sequence[Observer]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.graph = self.graph.copy()
        lift(self.graph, self.tensors)
        # Inputs with a default value are not fed; they are given out like any other tensor.
        fed = {value.name for value in self.graph.inputs if value.data is None}
        self._made = [name for name in self.tensors if name not in fed]
        self._files = ModelFiles(self.folder)
        for value in map(self.graph.values.__getitem__, self._made):
            if not value.is_output:
                self.graph.add_output(value)
        self._whole: Graph | None = None
        self._session: Session | None = None
        self._grouped: Sequence[_Group] = ()

    def run(
        self,
        chosen: Sequence[int],
        observers: Mapping[str, Sequence[Observer]],
        memory_limit: int | None = None,
    ) -> Iterator[Sequence[str]]:
        """Show all values; gives the names of tensors as soon as all of theirs were shown.

        Args:
            chosen: Numbers of the shards to feed, rising.
            observers: Those of each tensor, by name.
            memory_limit: Bytes that it may take; the same in all runs.

        Raises:
            InputError: the limit is too small for some tensor, or onnxruntime cannot run the
                model on the data.
        """
        self.chosen, self.observers, self.samples = chosen, observers, 0
        count = sum(len(self.shards[number]) for number in chosen)
        room = model_room(memory_limit)
        if self._made and constant_bytes(self.graph) > room:
            self.progress.stage("calibrating", count)
            self._feed_in_segments(room // 2)
            yield [*self.tensors]
            return
        if not self._grouped:
            self._make_ready(memory_limit)
        self.progress.stage("calibrating", len(self._grouped) * count)
        for number, group in enumerate(self._grouped):
            if self._whole is not None and group.made and (len(self._grouped) > 1 or not number):
                self._session = self._cut(self._whole, group.made)
            self._feed(self._session if group.made else None, group, number * count)
            yield group.names

    def _make_ready(self, memory_limit: int | None) -> None:
        """Load the model, and decide what is observed at a time."""
        if self._made and memory_limit is None:
            self._session = self._files.session(
                self.graph, threads=self.threads, config=_YIELDING, pooled=True
            )
        elif self._made:
            # What is given out decides what onnxruntime may fuse, and so the last digits of all
            # values. The model is optimized once, with everything given out, and cut up then: the
            # groups' values are those of one pass with all tensors.
            self._whole = self._files.optimized(self.graph)
            self._files.share(self._whole)
        if memory_limit is None:
            self._grouped = [_Group(self.tensors, self._made, None)]
        else:
            self._grouped = self._groups(self._whole, memory_limit)

    def _feed_in_segments(self, limit: int) -> None:
        """Pass over the data once, the model in segments whose weights take no more bytes."""
        segmented = Segmented(self.graph, self._files, limit, outputs=())
        fed = [name for name in self.tensors if name not in self._made]
        last = len(segmented.segments) - 1
        done = 0

        def see(place: int, part: _Part, made: Mapping[str, Array]) -> None:
            nonlocal done
            shown = {name: made[name] for name in made if name in self.tensors}
            if place == 0:
                shown |= {name: part.batch.feeds[name] for name in fed}
            self._show_all(part, shown)
            if place == last:
                done += part.batch.valid
                self.progress.advance(done)

        parts = self._parts(_Group((), (), _SMALLEST_PART))
        for _ in segmented.stages(((p, p.batch.feeds) for p in parts), self.threads, see):
            pass
        self.samples = done

    def _cut(self, whole: Graph, names: Sequence[str]) -> Session:
        """A session of what some of the optimized graph's values need."""
        graph = whole.copy()
        part = graph.extract(graph.inputs, [graph.values[name] for name in names])
        return self._as_optimized(part)

    def _as_optimized(self, part: Graph) -> Session:
        """A session of a part of what was optimized before."""
        return self._files.session(
            part, threads=self.threads, optimization="none", config=_YIELDING, pooled=True
        )

    def _bytes(self, whole: Graph | None) -> dict[str, tuple[int, int]]:
        """Bytes of the tensors in the smallest part of a batch that can be fed.

        Beside each, those that its observers take.
        """
        names, session, found = {}, None, {}
        if whole is not None:
            graph = whole.copy()
            shapes = {n: graph.add("Shape", [graph.values[n]]).output for n in self._made}
            names = {name: shape.name for name, shape in shapes.items()}
            session = self._as_optimized(graph.extract(graph.inputs, shapes.values()))
        # The same for whoever feeds some of the shards.
        part = next(self._parts(_Group((), (), 1), session, [0]))
        batch = part.batch
        if session is not None:
            found = session.run(batch.feeds, [*names.values()])
        # A batch that is fed as a whole, however small the parts, has none that are larger.
        rows = 1.0 if part.is_last else _SMALLEST_PART / batch.size
        sizes = {}
        for name, observers in self.observers.items():
            # What is fed lies in memory anyway.
            made = name in names
            shape = tuple(found[names[name]].tolist()) if made else batch.feeds[name].shape
            size = int(math.prod(shape) * self._item_bytes(name) * rows) if made else 0
            sizes[name] = size, sum(observer.bytes_for(shape) for observer in observers)
        return sizes

    def _item_bytes(self, name: str) -> int:
        dtype = self.graph.values[name].dtype or DataType.FLOAT
        # A float32 copy is made of what is something else.
        return 4 if dtype is DataType.FLOAT else 4 + dtype.numpy.itemsize

    def _groups(self, whole: Graph | None, limit: int) -> list[_Group]:
        sizes = self._bytes(whole)
        groups: list[list[str]] = [[]]
        room = limit
        for name, (size, kept) in sizes.items():
            needed = _IN_FLIGHT * size + kept
            if needed > limit:
                raise InputError(
                    f"observing '{name}' takes {needed:,} bytes of memory, and the limit is "
                    f"{limit:,}; raise the limit"
                )
            if needed > room:
                groups.append([])
                room = limit
            groups[-1].append(name)
            room -= needed
        found = []
        for names in groups:
            given, kept = (sum(of) for of in zip(*(sizes[name] for name in names), strict=True))
            left = min((limit - kept) // _IN_FLIGHT, RUN_BYTES)
            rows = max(1, left // max(1, given // _SMALLEST_PART))
            found.append(_Group(names, [name for name in names if name in self._made], rows))
        return found

    def _feed(self, session: Session | None, group: _Group, before: int) -> None:
        """Pass over the data once, or over as much as the group's observers need."""
        observers = [o for name in group.names for o in self.observers[name]]
        done = 0
        for part, values in _computed(session, self._parts(group, session), group.made):
            fed = {name: part.batch.feeds[name] for name in group.names if name not in values}
            self._show_all(part, {**fed, **values})
            done += part.batch.valid
            if part.is_last:
                self.samples = max(self.samples, done)
                self.progress.advance(before + done)
                if all(observer.is_complete for observer in observers):
                    return

    def _show_all(self, part: _Part, values: Mapping[str, Array]) -> None:
        # Samples that only fill up a last batch are not counted.
        for name, real in part.batch.trim(values).items():
            self._show(name, np.asarray(real), part)

    def _show(self, name: str, values: Array, part: _Part) -> None:
        samples = self.positions[part.first : part.first + part.batch.valid]
        for observer in self.observers[name]:
            try:
                observer.add(values, samples)
            except ValueError as error:
                raise InputError(f"tensor '{name}' cannot be observed {error}") from error
            if part.is_last:
                observer.end_batch()
            if part.ends_shard:
                observer.end_shard()

    def _parts(
        self, group: _Group, session: Session | None = None, chosen: Sequence[int] | None = None
    ) -> Iterator[_Part]:
        """What is fed at a time: parts of batches where something is computed of them."""
        inputs = [value for value in self.graph.inputs if value.data is None]
        firsts = list(accumulate(map(len, self.shards), initial=0))
        numbers = self.chosen if chosen is None else chosen
        before, rows, first = -1, group.rows, 0
        for place, batch in in_turn([self.shards[number] for number in numbers]):
            if place != before:
                before, rows, first = place, group.rows, firsts[numbers[place]]
            parts = [batch]
            if self._made and batch.is_divisible(inputs):
                if rows is None:
                    assert session is not None
                    rows = _rows_that_fit(session, batch, group.made)
                parts = [*batch.parts(max(rows, _SMALLEST_PART))]
            for number, part in enumerate(parts, start=1):
                following, is_last = first + part.valid, number == len(parts)
                is_end = is_last and following == firsts[numbers[place] + 1]
                yield _Part(part, first, is_last, is_end)
                first = following


@dataclass(frozen=True)
class _Part:
    """What is fed at a time: a batch, or some of its rows.

    Attributes:
        batch: The feeds.
        first: Number of samples before it.
        is_last: Whether it completes the batch.
        ends_shard: Whether it completes the shard.
    """

    batch: Batch
    first: int
    is_last: bool
    ends_shard: bool


def _computed(
    session: Session | None, parts: Iterator[_Part], names: Sequence[str]
) -> Iterator[tuple[_Part, dict[str, Array]]]:
    """Each part with the values of some tensors; the next part is computed in the meantime."""
    if session is None:
        for part in parts:
            yield part, {}
        return
    with ThreadPoolExecutor(1, thread_name_prefix="onnxq-observe") as pool:
        waiting: tuple[_Part, Future[dict[str, Array]]] | None = None
        for part in parts:
            following = (part, pool.submit(session.run, part.batch.feeds, names))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _rows_that_fit(session: Session, batch: Batch, names: Sequence[str]) -> int:
    """Number of rows whose values fill `RUN_BYTES`, judged by the first row's."""
    values = session.run(batch.rows(0, 1).feeds, names)
    return max(1, RUN_BYTES // max(1, sum(np.asarray(v).nbytes for v in values.values())))

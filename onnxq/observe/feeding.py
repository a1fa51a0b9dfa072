"""Running a model over data with inner values given out, within a bound on memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from onnxq.data import Dataset
from onnxq.data.batch import Batch
from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, load, save
from onnxq.observe.observer import Observer
from onnxq.runtime import Session
from onnxq.runtime.specs import Array

Progress = Callable[[int, int], None]
"""Called with the samples done and the samples in all; where memory makes several passes over the
data necessary, a sample counts once in each."""

RUN_BYTES = 64 << 20
"""Observed values that one run gives out unless told otherwise. Batches that make more are fed in
parts where the model leaves the batch open."""

_SMALLEST_PART = 3
"""Rows that parts of a batch may have to have: onnxruntime computes a single row with other
kernels, whose last digits differ, so a batch of three is not cut into two and one."""

_IN_FLIGHT = 2
"""Runs whose values are in memory at a time: one is computed while the one before is counted."""

_YIELDING = {"session.intra_op.allow_spinning": "0"}
"""Threads of the model's that have nothing to do leave the processor to the counting."""

_WEIGHTS_APART = {
    "session.optimized_model_external_initializers_file_name": "weights.bin",
    "session.optimized_model_external_initializers_min_size_in_bytes": "1024",
}


@dataclass(frozen=True)
class _Group:
    """Tensors that are observed at a time, and how many rows may be fed at a time."""

    names: Sequence[str]
    rows: int | None


class Feeding:
    """Shows observers every value that their tensors take.

    Args:
        graph: The float model.
        data: Samples to run it on.
        observers: One for each tensor, by name.
        folder: Where model files may be put.
        threads: Threads inside one operator; all processors when None.
        progress: Told after every batch how far it is.
    """

    def __init__(
        self,
        graph: Graph,
        data: Dataset,
        observers: Mapping[str, Observer],
        folder: Path,
        threads: int | None,
        progress: Progress | None,
    ) -> None:
        self._graph = graph
        self._data = data
        self._observers = observers
        self._folder = folder
        self._threads = threads or os.cpu_count() or 1
        self._progress = progress
        # Inputs with a default value are not fed; they are given out like any other tensor.
        values = graph.values
        self._fed = [n for n in observers if values[n].is_input and values[n].data is None]
        self._made = [n for n in observers if n not in self._fed]

    def run(self, memory_limit: int | None = None) -> int:
        """Show all values; gives the number of samples.

        Raises:
            InputError: the limit is too small for some tensor, or onnxruntime cannot run the
                model on the data.
        """
        if not self._made:
            return self._feed(None, _Group((), None), 0, 1)
        model = self._folder / "model.onnx"
        save(_with_outputs(self._graph, self._made), model)
        if memory_limit is None:
            session = Session(model, threads=self._threads, config=_YIELDING)
            return self._feed(session, _Group(self._made, None), 0, 1)
        # What is given out decides what onnxruntime may fuse, and so the last digits of all
        # values. The model is optimized once, with everything given out, and cut up then: the
        # groups' values are those of one pass with all tensors.
        optimized = self._folder / "optimized.onnx"
        Session(model, threads=self._threads, config=_WEIGHTS_APART, save_optimized=optimized)
        whole = load(optimized)
        groups = self._groups(self._bytes(whole), memory_limit)
        samples = 0
        for number, group in enumerate(groups):
            samples = self._feed(self._cut(whole, group.names), group, number, len(groups))
        return samples

    def _cut(self, whole: Graph, names: Sequence[str]) -> Session:
        """A session of what some of the optimized graph's values need."""
        graph = whole.copy()
        part = graph.extract(graph.inputs, [graph.values[name] for name in names])
        path = self._folder / "part.onnx"
        save(part, path)
        return Session(path, threads=self._threads, optimization="none", config=_YIELDING)

    def _bytes(self, whole: Graph) -> dict[str, int]:
        """Bytes of the observed tensors in the smallest part of a batch that can be fed."""
        graph = whole.copy()
        shapes = [graph.add("Shape", [graph.values[name]]).output for name in self._made]
        measured = graph.extract(graph.inputs, shapes)
        path = self._folder / "shapes.onnx"
        save(measured, path)
        session = Session(path, threads=self._threads, optimization="none", config=_YIELDING)
        part = next(self._parts(session, _Group((), 1)))
        found = session.run(part.batch.feeds, [shape.name for shape in shapes])
        rows = _SMALLEST_PART / part.batch.size if _is_open(session, part.batch) else 1.0
        return {
            name: int(math.prod(found[shape.name].tolist()) * self._item_bytes(name) * rows)
            for name, shape in zip(self._made, shapes, strict=True)
        }

    def _item_bytes(self, name: str) -> int:
        dtype = self._graph.values[name].dtype or DataType.FLOAT
        # A float32 copy is made of what is something else.
        return 4 if dtype is DataType.FLOAT else 4 + dtype.numpy.itemsize

    def _groups(self, sizes: Mapping[str, int], limit: int) -> list[_Group]:
        groups: list[list[str]] = [[]]
        tables = sum(self._observers[name].table_bytes for name in self._fed)
        room = limit - tables
        for name in self._made:
            needed = _IN_FLIGHT * sizes[name] + self._observers[name].table_bytes
            if needed > limit - tables:
                raise InputError(
                    f"observing '{name}' takes {needed + tables:,} bytes of memory, and the limit "
                    f"is {limit:,}; raise the limit"
                )
            if needed > room and groups[-1]:
                groups.append([])
                room = limit - tables
            groups[-1].append(name)
            room -= needed
        return [_Group(names, self._rows(names, sizes, limit - tables)) for names in groups]

    def _rows(self, names: Sequence[str], sizes: Mapping[str, int], limit: int) -> int:
        left = limit - sum(self._observers[name].table_bytes for name in names)
        row = max(1, sum(sizes[name] for name in names) // _SMALLEST_PART)
        return max(1, min(left // _IN_FLIGHT, RUN_BYTES) // row)

    def _feed(self, session: Session | None, group: _Group, number: int, passes: int) -> int:
        """Pass over the data once; gives the number of samples."""
        names = [*(self._fed if number == 0 else []), *group.names]
        samples, done = len(self._data), 0
        for part, values in _computed(session, self._parts(session, group), group.names):
            for name in names:
                array = values.pop(name) if name in values else part.batch.feeds[name]
                # Samples that only fill up a last batch are not counted.
                (real,) = part.batch.trim({name: array}).values()
                self._show(name, np.asarray(real), part.is_last)
            if part.is_last:
                done += part.samples
                if self._progress is not None:
                    self._progress(number * samples + done, passes * samples)
        return done

    def _show(self, name: str, values: Array, ends_batch: bool) -> None:
        try:
            self._observers[name].add(values)
        except ValueError as error:
            raise InputError(f"tensor '{name}' cannot be observed by channel: {error}") from error
        if ends_batch:
            self._observers[name].end_batch()

    def _parts(self, session: Session | None, group: _Group) -> Iterator[_Part]:
        rows = group.rows
        for batch in self._data.batches():
            if session is None or not _is_open(session, batch):
                yield _Part(batch, batch.valid, True)
                continue
            if rows is None:
                rows = _rows_that_fit(session, batch, group.names)
            count = min(math.ceil(batch.size / rows), max(1, batch.size // 2))
            cuts = [batch.size * i // count for i in range(count + 1)]
            for start, stop in pairwise(cuts):
                yield _Part(_slice(batch, start, stop), batch.valid, stop == batch.size)


@dataclass(frozen=True)
class _Part:
    """What is fed at a time: a batch, or some of its rows.

    Attributes:
        batch: The feeds.
        samples: Number of samples in the whole batch.
        is_last: Whether it completes the batch.
    """

    batch: Batch
    samples: int
    is_last: bool


def _computed(
    session: Session | None, parts: Iterator[_Part], names: Sequence[str]
) -> Iterator[tuple[_Part, dict[str, Array]]]:
    """Each part with the values of some tensors; the next part is computed in the meantime."""
    if session is None:
        for part in parts:
            yield part, {}
        return
    with ThreadPoolExecutor(1, thread_name_prefix="onnxq-calibrate") as pool:
        waiting: tuple[_Part, Future[dict[str, Array]]] | None = None
        for part in parts:
            following = (part, pool.submit(session.run, part.batch.feeds, names))
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def _is_open(session: Session, batch: Batch) -> bool:
    """Whether a batch's rows may as well be fed a few at a time."""
    return batch.valid == batch.size and all(
        s.shape and not isinstance(s.shape[0], int) and len(batch.feeds[s.name]) == batch.size
        for s in session.inputs
    )


def _slice(batch: Batch, start: int, stop: int) -> Batch:
    feeds = {name: array[start:stop] for name, array in batch.feeds.items()}
    return Batch(feeds, None, stop - start, stop - start)


def _rows_that_fit(session: Session, batch: Batch, names: Sequence[str]) -> int:
    """Number of rows whose values fill `RUN_BYTES`, judged by the first row's."""
    values = session.run(_slice(batch, 0, 1).feeds, names)
    return max(1, RUN_BYTES // max(1, sum(np.asarray(v).nbytes for v in values.values())))


def _with_outputs(graph: Graph, names: Sequence[str]) -> Graph:
    observed = graph.copy()
    for name in names:
        value = observed.values[name]
        if not value.is_output:
            observed.add_output(value)
    return observed

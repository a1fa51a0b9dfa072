"""What perturbations lose, asked of whoever runs the model: here or in other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from threading import Lock
from typing import Any, ClassVar, Literal

import numpy as np

from onnxq.data import Batch, Dataset
from onnxq.ir import Graph
from onnxq.ir.segments import cut, whole
from onnxq.precision import Part, Scene
from onnxq.runtime import ErrorAccumulator
from onnxq.runtime.executor import Work
from onnxq.runtime.files import ModelFiles
from onnxq.sensitivity.loss import Losses, losses
from onnxq.sensitivity.running import Key, Outputs, Runner, Sessions

_TINY = 1e-30

_AT_ONCE = 4
"""Perturbations that are asked for together."""

HELD_BYTES = 1 << 28
"""Float outputs that are held for the next precision; others are computed anew."""


@dataclass(frozen=True)
class Question:
    """What is asked of some batches.

    Attributes:
        kind: ``losses`` or ``errors`` of perturbations, or those of all nodes ``together``.
        batches: Numbers of the first batch, and of the one behind the last.
        about: Numbers of the first perturbation or precision, and of the one behind the last.
    """

    kind: Literal["losses", "errors", "together"]
    batches: tuple[int, int]
    about: tuple[int, int]


@dataclass(frozen=True)
class Asking(Work[Question, list[Any]]):
    """Runs a model whose nodes are perturbed one at a time.

    Attributes:
        graph: The float model.
        scene: What parts are put in by.
        samples: The batches.
        groups: The perturbations.
        precisions: Those in which all nodes are together.
        uniform: Makes the model in which all nodes that can have a precision do.
        proxy: What a loss is.
        segments: At most so many into which the graph is cut; None runs it as a whole.
    """

    is_reentrant: ClassVar[bool] = True

    graph: Graph
    scene: Scene
    samples: Dataset
    groups: Mapping[Key, Sequence[Part]]
    precisions: tuple[str, ...]
    uniform: Callable[[str], Graph]
    proxy: str
    segments: int | None

    @contextmanager
    def open(self) -> Iterator[Callable[[Question], list[Any]]]:
        """See `Work`."""
        graph, placed = self.graph, self.scene.placed
        nodes = [*dict.fromkeys(node for node, _ in self.groups)]
        segments = [whole(graph)]
        if self.segments is not None:
            segments = cut(graph, nodes, self.segments, placed.integer.values())
        with ModelFiles.temporary() as files:
            outputs = [value.name for value in graph.outputs]
            runner = Runner(segments, outputs, Sessions(files, self.scene))
            yield _Answering(self, runner).answer


class Asked:
    """Asks about some batches, and then about others.

    All nodes together are asked about first, and at once about all batches that are needed anyway:
    to make a model for that takes as long as many perturbations, which others run meanwhile.

    Args:
        do: What answers questions.
        groups: The perturbations.
        precisions: Those in which all nodes are together.
        needed: How many batches these are asked about at least.

    Attributes:
        valid: Samples of each of the batches, once all nodes together were asked about.
    """

    def __init__(
        self,
        do: Callable[[Sequence[Question]], Iterator[list[Any]]],
        groups: Sequence[Key],
        precisions: Sequence[str],
        needed: int,
    ) -> None:
        self._do, self._needed, self._batches = do, needed, (0, 0)
        self._places = {key: place for place, key in enumerate(groups)}
        self._groups, self._precisions = groups, precisions
        self._sizes: list[int] = []
        # Behind the end of the data, too, where there is nothing to ask about again.
        self._known_to = 0
        self._together: list[list[Any]] = [[] for _ in precisions]
        self.valid: Sequence[int] = ()

    def turn_to(self, start: int, stop: int) -> None:
        """Ask about the batches from one to that before another one from now on."""
        self._batches = start, stop

    def losses(self, keys: Sequence[Key]) -> Iterator[tuple[Key, list[Losses]]]:
        """Losses of perturbations that run through, for each batch."""
        yield from self._asked("losses", keys)

    def errors(self, keys: Sequence[Key]) -> Iterator[tuple[Key, tuple[int, list[float]]]]:
        """The next station of each, and how far values are off there for each batch."""
        yield from self._asked("errors", keys)

    def together(self) -> Iterator[tuple[str, list[tuple[ErrorAccumulator, Losses]]]]:
        """How far all nodes in a precision are off together, for each batch."""
        for _ in self._answered([]):
            pass
        self.valid = self._sizes[slice(*self._batches)]
        for text, answers in zip(self._precisions, self._together, strict=True):
            yield text, answers[slice(*self._batches)]

    def _asked(
        self, kind: Literal["losses", "errors"], keys: Sequence[Key]
    ) -> Iterator[tuple[Key, Any]]:
        places = [self._places[key] for key in keys]
        blocks: list[tuple[int, int]] = []
        for place in places:
            # Perturbations that follow each other go together.
            start, stop = blocks[-1] if blocks else (-1, -1)
            if place == stop and stop - start < _AT_ONCE:
                blocks[-1] = start, place + 1
            else:
                blocks.append((place, place + 1))
        questions = [Question(kind, self._batches, block) for block in blocks]
        for question, (_, *answers) in self._answered(questions):
            yield from zip(self._groups[slice(*question.about)], answers, strict=True)

    def _answered(self, questions: Sequence[Question]) -> Iterator[tuple[Question, list[Any]]]:
        """Questions with their answers, behind what is to be asked about all nodes together."""
        first, last = self._known_to, max(self._needed, self._batches[1])
        about = range(len(self._precisions)) if first < self._batches[1] else ()
        whole = [Question("together", (first, last), (n, n + 1)) for n in about]
        answers = self._do([*whole, *questions]) if whole or questions else iter(())
        for question, (sizes, answer) in zip(whole, islice(answers, len(whole)), strict=True):
            self._together[question.about[0]] += answer
            self._sizes[first:] = sizes
        if whole:
            self._known_to = last
        yield from zip(questions, answers, strict=True)


class _Reader:
    """Reads batches by their numbers, in one pass as long as these rise."""

    def __init__(self, samples: Dataset) -> None:
        self._samples, self._before = samples, 0
        self._read: Iterator[Batch] = iter(())

    def read(self, start: int, stop: int) -> list[Batch]:
        """The batches from one to that before another one, as far as there are any."""
        if start < self._before or not self._before:
            self._read, self._before = self._samples.batches(), 0
        for _ in islice(self._read, start - self._before):
            pass
        self._before = stop
        return list(islice(self._read, stop - start))


class _References:
    """The batches read last with their float outputs, as many of these as memory allows."""

    def __init__(self, samples: Dataset, outputs: Callable[[Batch], Outputs]) -> None:
        self._reader, self._outputs = _Reader(samples), outputs
        self._place = (0, 0)
        self._batches: list[Batch] = []
        self._held: dict[int, Outputs] = {}
        self._room = HELD_BYTES

    def read(self, place: tuple[int, int]) -> Iterator[tuple[Batch, Outputs]]:
        """The batches from one to that before another one with their float outputs."""
        if place != self._place:
            self._held, self._room = {}, HELD_BYTES
            self._batches = self._reader.read(*place)
            self._place = place
        for number, batch in enumerate(self._batches):
            exact = self._held.get(number) or self._outputs(batch)
            size = sum(value.nbytes for value in exact.values())
            if number not in self._held and size <= self._room:
                self._held[number] = exact
                self._room -= size
            yield batch, exact


class _Answering:
    """Answers questions about batches."""

    def __init__(self, work: Asking, runner: Runner) -> None:
        self._work, self._runner = work, runner
        self._groups = [*work.groups.items()]
        self._lock, self._own_lock = Lock(), Lock()
        self._place = (0, 0)
        self._reader = _Reader(work.samples)
        self._own = _References(work.samples, runner.outputs)
        self._batches: list[Batch] = []
        self._references: list[Outputs] = []
        self._models: dict[str, Graph] = {}

    def answer(self, question: Question) -> list[Any]:
        """Samples of the batches, and what is asked of each perturbation."""
        about = slice(*question.about)
        if question.kind == "together":
            (precision,) = self._work.precisions[about]
            with self._own_lock:
                return self._together(precision, question.batches)
        with self._lock:
            if question.batches != self._place:
                self._batches = self._reader.read(*question.batches)
                self._references = self._runner.start(self._batches)
                self._place = question.batches
        valid = [batch.valid for batch in self._batches]
        answer = self._losses if question.kind == "losses" else self._errors
        return [valid, *(answer(*group) for group in self._groups[about])]

    def _losses(self, key: Key, parts: Sequence[Part]) -> list[Losses]:
        runs = zip(self._batches, self._references, self._runner.run(key, parts), strict=True)
        return [
            self._loss(batch, batch.trim(exact), batch.trim(ours)) for batch, exact, ours in runs
        ]

    def _together(self, precision: str, place: tuple[int, int]) -> list[Any]:
        """Samples of the batches, and how far all nodes in a precision are off for each."""
        if precision not in self._models:
            self._models[precision] = self._work.uniform(precision)
        run = self._runner.whole(precision, self._models[precision])
        sizes, answers = [], []
        for batch, outputs in self._own.read(place):
            exact, ours, errors = batch.trim(outputs), batch.trim(run(batch)), ErrorAccumulator()
            errors.add(exact, ours)
            sizes.append(batch.valid)
            answers.append((errors, self._loss(batch, exact, ours)))
        return [sizes, answers]

    def _loss(self, batch: Batch, exact: Outputs, ours: Outputs) -> Losses:
        return losses(self._work.proxy, exact, ours, batch.valid)

    def _errors(self, key: Key, parts: Sequence[Part]) -> tuple[int, list[float]]:
        return self._runner.station(key), [
            sum(_row_error(exact[name], ours[name]) for name in exact)
            for exact, ours in self._runner.run_to_station(key, parts)
        ]


def _row_error(exact: np.ndarray, ours: np.ndarray) -> float:
    """Power of the error over that of the value, each row by itself, in the mean.

    What follows normalizes rows, and one of them, as a decoder's first token, may be larger than
    all others by orders of magnitude. Rows of little power, as of zeros, count by the median's.
    """
    if exact.dtype.kind != "f" or not exact.size:
        return 0.0
    exact, ours = (v.reshape(-1, v.shape[-1] if v.ndim else 1) for v in (exact, ours))
    power = np.square(exact, dtype=np.float64).sum(axis=1)
    least = np.median(power) or power.mean()
    off = np.square(exact - ours, dtype=np.float64).sum(axis=1)
    return float((off / np.maximum(power, max(float(least), _TINY))).mean())

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
        models: By precision, the model in which all nodes that can have it do.
        proxy: What a loss is.
        segments: At most so many into which the graph is cut; None runs it as a whole.
    """

    is_reentrant: ClassVar[bool] = True

    graph: Graph
    scene: Scene
    samples: Dataset
    groups: Mapping[Key, Sequence[Part]]
    models: Mapping[str, Graph]
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
    """Asks about some batches.

    Args:
        do: What answers questions.
        groups: The perturbations.
        models: By precision, the models.
        batches: Numbers of the first batch, and of the one behind the last.

    Attributes:
        valid: Samples of each of the batches, once something was asked.
    """

    def __init__(
        self,
        do: Callable[[Sequence[Question]], Iterator[list[Any]]],
        groups: Sequence[Key],
        models: Sequence[str],
        batches: tuple[int, int],
    ) -> None:
        self._do, self._batches = do, batches
        self._places = {key: place for place, key in enumerate(groups)}
        self._groups, self._models = groups, models
        self.valid: Sequence[int] = ()

    def losses(self, keys: Sequence[Key]) -> Iterator[tuple[Key, list[Losses]]]:
        """Losses of perturbations that run through, for each batch."""
        yield from self._asked("losses", keys)

    def errors(self, keys: Sequence[Key]) -> Iterator[tuple[Key, tuple[int, list[float]]]]:
        """The next station of each, and how far values are off there for each batch."""
        yield from self._asked("errors", keys)

    def together(self) -> Iterator[tuple[str, list[tuple[ErrorAccumulator, Losses]]]]:
        """How far all nodes in a precision are off together, for each batch."""
        numbers = range(len(self._models))
        questions = [Question("together", self._batches, (n, n + 1)) for n in numbers]
        for text, (valid, answer) in zip(self._models, self._do(questions), strict=True):
            self.valid = valid
            yield text, answer

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
        for question, (valid, *answers) in zip(questions, self._do(questions), strict=True):
            self.valid = valid
            yield from zip(self._groups[slice(*question.about)], answers, strict=True)


class _Answering:
    """Answers questions about batches, which are read once in their order."""

    def __init__(self, work: Asking, runner: Runner) -> None:
        self._work, self._runner = work, runner
        self._groups, self._models = [*work.groups.items()], [*work.models.items()]
        self._lock = Lock()
        self._place = (0, 0)
        self._read: Iterator[Batch] = iter(())
        self._batches: list[Batch] = []
        self._references: list[Outputs] = []

    def answer(self, question: Question) -> list[Any]:
        """Samples of the batches, and what is asked of each perturbation."""
        with self._lock:
            if question.batches != self._place:
                self._go_to(*question.batches)
        about = slice(*question.about)
        valid = [batch.valid for batch in self._batches]
        match question.kind:
            case "losses":
                return [valid, *(self._losses(*group) for group in self._groups[about])]
            case "errors":
                return [valid, *(self._errors(*group) for group in self._groups[about])]
            case "together":
                (model,) = self._models[about]
                return [valid, self._together(self._runner.run_whole(model))]

    def _go_to(self, start: int, stop: int) -> None:
        before = self._place[1]
        if start < before or not before:
            self._read, before = self._work.samples.batches(), 0
        for _ in islice(self._read, start - before):
            pass
        self._batches = list(islice(self._read, stop - start))
        self._references = self._runner.start(self._batches)
        self._place = start, stop

    def _losses(self, key: Key, parts: Sequence[Part]) -> list[Losses]:
        return [self._loss(*found) for found in self._held_against(self._runner.run(key, parts))]

    def _together(self, outputs: list[Outputs]) -> list[tuple[ErrorAccumulator, Losses]]:
        answers = []
        for batch, exact, ours in self._held_against(iter(outputs)):
            errors = ErrorAccumulator()
            errors.add(exact, ours)
            answers.append((errors, self._loss(batch, exact, ours)))
        return answers

    def _held_against(self, outputs: Iterator[Outputs]) -> Iterator[tuple[Batch, Outputs, Outputs]]:
        for batch, exact, ours in zip(self._batches, self._references, outputs, strict=True):
            yield batch, batch.trim(exact), batch.trim(ours)

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

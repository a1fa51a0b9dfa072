"""What a float model gives out on held-out data: computed once, however many are held against it.

Outputs are never in memory for more than one batch.
"""

from __future__ import annotations

import math
import pickle
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain, islice
from pathlib import Path

from onnxq.data import Batch, Dataset
from onnxq.data.shared import shared
from onnxq.errors import InputError
from onnxq.ir import Graph, load
from onnxq.ir.saving import constant_bytes
from onnxq.ir.sizes import live_bytes, value_bytes
from onnxq.runtime import OutputError, Runnable, as_stored, load_backend
from onnxq.runtime.executor import IN_PROCESS, Executor
from onnxq.runtime.files import ModelFiles
from onnxq.runtime.parallel import in_order
from onnxq.runtime.pool import AT_ONCE_BYTES, RUN_BYTES, give_back, model_room, processors
from onnxq.runtime.segmented import CPU, Segmented, is_too_large
from onnxq.runtime.session import model_label
from onnxq.runtime.spool import Shelf
from onnxq.verify.decisions import Decision, find_decisions
from onnxq.verify.facts import model_facts
from onnxq.verify.metrics import Metric, choose_metric
from onnxq.verify.metrics.mean import MeanMetric
from onnxq.verify.metrics.scored import ScoredMetric
from onnxq.verify.metrics.user import UserMetric
from onnxq.verify.result import AGREEMENT, AgreementFacts, MetricFacts, ModelFacts
from onnxq.verify.shards import Giving, Judging, Outputs, Part, judged, scored

_WORKING_COPIES = 8
"""Times that a metric holds the outputs of a batch, at most: float64 copies, and what it computes
from them."""

_FREE_SHARE = 0.25
"""Share of the free space of a disk that outputs may take; batches beyond are computed anew."""

Judged = tuple[MetricFacts | None, AgreementFacts | None, tuple[OutputError, ...]]
"""The metric, agreement, and how far outputs are."""


class Reference:
    """A float model on held-out data.

    Args:
        path: The model's file.
        data: Held-out samples.
        files: Where to put models.
        room: Bytes of weights that a session may hold, see `model_room`; by the machine's memory
            if None.
        metric: Name of the metric, see `choose_metric`.
        backend: What to run with.
        provider: Execution provider to run on.
        candidates_on: Backend that runs what is held against it; the same if empty.
        folder: Where to keep outputs; None keeps none, for whoever passes over them once.
        executor: Where models run on shards of the data, if that is onnxruntime's CPU provider.

    Attributes:
        path: As given.
        backend: As given.
        runs: The same model in the form in which it runs, see `ModelFiles.beside`.
        graph: The model.
        inputs: What must be fed.
        outputs: What it gives.
        data: The samples, as many in a batch as memory allows.
        metric: The model's own, over what was passed over so far; None without labels.
        scored: The metrics of the models that were held against it, by their files.
        judged: What was found of these models and the float one, by their files.

    Raises:
        InputError: the model cannot be read, or data and metric do not fit.
    """

    def __init__(
        self,
        path: Path,
        data: Dataset,
        *,
        files: ModelFiles,
        room: int | None = None,
        metric: str | None = None,
        backend: str = "onnxruntime",
        provider: str = "cpu",
        candidates_on: str = "",
        folder: Path | None = None,
        executor: Executor = IN_PROCESS,
    ) -> None:
        self._executor = executor
        self._given: Shelf[list[Outputs]] | None = None
        self.path, self.graph = path, load(path)
        self.runs = files.beside(self.graph, path)
        self._files = files
        self.room = model_room(None) if room is None else room
        inputs = [v for v in self.graph.inputs if v.data is None]
        first = next(data.batches())
        least = first.rows(0, 1) if first.is_divisible(inputs) else first
        taken = _bytes(self.graph, least)
        self._given_bytes = _output_bytes(self.graph, least) * math.ceil(len(data) / least.size)
        self.data = data.in_parts(max(1, RUN_BYTES // taken), inputs)
        self._most_at_once = max(1, AT_ONCE_BYTES // taken)
        self._metric_name = metric
        self.backend = backend
        self._candidates_on = candidates_on or backend
        self.provider = provider
        self._file = None if folder is None else folder / "reference.outputs"
        self._disk = 0 if folder is None else int(shutil.disk_usage(folder).free * _FREE_SHARE)
        self._kept = self._scored = 0
        self._model: Runnable | Segmented | None = None
        described = as_stored(self.runs)
        self.inputs, self.outputs = described.inputs, described.outputs
        self.metric = self.new_metric()
        self.scored: dict[Path, MeanMetric] = {}
        self.judged: dict[tuple[Path, str], Judged] = {}
        self._facts: dict[tuple[Path, str, str, bool], ModelFacts] = {}
        self._decisions: tuple[Decision, ...] | None = None

    def decisions(self, outputs: Outputs) -> tuple[Decision, ...]:
        """What the outputs decide, as seen in the first batch of them.

        Raises:
            InputError: agreement is asked for, but there is nothing that decides.
        """
        if self._decisions is None:
            is_asked = self._metric_name == AGREEMENT
            is_scored = is_asked or isinstance(self.metric, ScoredMetric)
            found = find_decisions(self.graph, outputs, is_asked=is_scored)
            if is_asked and not found:
                raise InputError(
                    "there is no agreement to measure, because no output of the model has scores "
                    "of classes; name another metric with --metric"
                )
            # Whoever asks for SQNR says that the outputs are mere numbers.
            self._decisions = () if self._metric_name == "sqnr" else found
        return self._decisions

    def facts(
        self, graph: Graph, path: Path, provider: str, backend: str, *, operators: bool
    ) -> ModelFacts:
        """Facts about a model's file, and what runs as what on a provider, found once."""
        key = path, provider, backend, operators
        if key not in self._facts:
            self._facts[key] = model_facts(graph, path, provider, backend, operators=operators)
        return self._facts[key]

    def new_metric(self) -> Metric | None:
        """A metric like the model's own, for a candidate."""
        data = self.data
        return choose_metric(self._metric_name, data.has_labels, data.labels_ndim, self.outputs)

    def is_own(self, runs: Path, provider: str) -> bool:
        """Whether a model that is held against this one is it, on the same provider."""
        ours = self.runs, self.provider, self.backend
        return (runs, provider, self._candidates_on) == ours

    def load(self, graph: Graph, runs: Path, provider: str) -> Runnable | Segmented:
        """A candidate on a provider; in segments if it is too large for memory."""
        return self._loaded(graph, runs, provider, self._candidates_on)

    def _loaded(
        self, graph: Graph, runs: Path, provider: str, backend: str
    ) -> Runnable | Segmented:
        if is_too_large(constant_bytes(graph), self.room, backend, provider):
            return Segmented(graph, self._files, self.room // 2)
        return load_backend(backend).session(runs, provider=provider, threads=1, pooled=True)

    def against(
        self, candidate: Runnable | Segmented | None
    ) -> Iterator[tuple[Batch, Outputs, Outputs]]:
        """Every batch, with the outputs of the float model and of a candidate, itself if None.

        Raises:
            InputError: as `batches`, or the candidate cannot be run.
        """
        if candidate is None:
            yield from ((batch, outputs, outputs) for batch, outputs in self.batches())
            return
        if isinstance(candidate, Segmented):
            theirs = self._results(candidate, self.data.batches())
            for (batch, outputs), (_, other) in zip(self.batches(), theirs, strict=True):
                yield batch, outputs, other
            return

        def run(pair: tuple[Batch, Outputs]) -> Outputs:
            return pair[0].trim(candidate.run(pair[0].feeds))

        workers = self._at_once(candidate)
        for (batch, outputs), other in in_order(run, self.batches(), workers):
            yield batch, outputs, other

    def parts(self, graph: Graph, runs: Path, path: Path, provider: str) -> Iterator[Part]:
        """What is found of a model on the samples, in their order.

        Args:
            graph: The model; the float one may be held against itself.
            runs: Its file, in the form in which it runs.
            path: Its file, as messages call it.
            provider: Execution provider to run on.

        Raises:
            InputError: as `batches`, or the model cannot be run.
        """
        is_own = self.is_own(runs, provider)
        if self._is_spread(graph, provider):
            yield from self._spread(None if is_own else graph, path)
            return
        metric = None if is_own else self.new_metric()
        for each in self.against(None if is_own else self.load(graph, runs, provider)):
            yield judged([each], self.decisions(each[1]), metric)

    def _is_spread(self, graph: Graph, provider: str) -> bool:
        """Whether other processes can run both models, and keep what the float one gives."""
        folder = self._executor.folder
        if not self._executor.is_spread or folder is None or isinstance(self.metric, UserMetric):
            return False
        largest = max(map(constant_bytes, (graph, self.graph)))
        places = {(self.backend, self.provider), (self._candidates_on, provider)}
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free * _FREE_SHARE
        return places == {CPU} and largest <= self.room and self._given_bytes < free

    def _spread(self, graph: Graph | None, path: Path) -> Iterator[Part]:
        folder = self._executor.folder
        assert folder is not None
        data, metric = shared(self.data, folder), self.new_metric()
        numbers = [*range(len(data.shards()))]
        if self._given is None:
            given = Shelf[list[Outputs]](folder)
            giving = Giving(self.graph, model_label(self.path), data, metric, given)
            self.metric = self.new_metric()
            for part in self._executor.map(giving, numbers):
                if self.metric is not None and part is not None:
                    self.metric.merge(part)
            self._given, self._scored = given, len(self.data.units)
        decisions = self.decisions(self._given[0][0])
        wanted = None if graph is None else metric
        judging = Judging(graph, model_label(path), data, decisions, wanted, self._given)
        yield from self._executor.map(judging, numbers)

    def _at_once(self, model: Runnable | Segmented) -> int:
        in_caller = isinstance(model, Segmented) or model.runs_in_caller
        return min(processors(), self._most_at_once) if in_caller else 1

    def _results(
        self, model: Runnable | Segmented, batches: Iterator[Batch]
    ) -> Iterator[tuple[Batch, Outputs]]:
        workers = self._at_once(model)
        if isinstance(model, Segmented):
            for batch, held in model.stages(((b, b.feeds) for b in batches), workers):
                yield batch, batch.trim(held)
            return
        yield from in_order(lambda batch: batch.trim(model.run(batch.feeds)), batches, workers)

    def _computed(self, batches: Iterator[Batch]) -> Iterator[tuple[Batch, Outputs]]:
        first = next(batches, None)
        if first is not None:
            self._model = self._model or self._loaded(
                self.graph, self.runs, self.provider, self.backend
            )
            yield from self._results(self._model, chain([first], batches))

    def batches(self) -> Iterator[tuple[Batch, Outputs]]:
        """Every batch, with the outputs of its real samples.

        Raises:
            InputError: the model cannot be run on the data, or data and metric do not fit.
        """
        with ExitStack() as stack:
            file = None
            if self._file is not None:
                self._file.touch()
                file = stack.enter_context(self._file.open("r+b"))
            left, number = self.data.batches(), self._kept
            if file is not None:
                for batch in islice(left, number):
                    yield batch, pickle.load(file)
            for batch, outputs in self._computed(left):
                number += 1
                if file is not None and number == self._kept + 1 and file.tell() < self._disk:
                    pickle.dump(outputs, file, protocol=5)
                    self._kept = number
                if number > self._scored:
                    scored(self.metric, batch, outputs, outputs)
                    self._scored = number
                yield batch, outputs
        if number == self._kept and not isinstance(self._model, Segmented):
            self._model = None
            give_back()


def _bytes(graph: Graph, batch: Batch) -> int:
    """Bytes that running a batch takes, and judging what comes out, by the shapes of all values."""
    sizes = value_bytes(graph, {name: array.shape for name, array in batch.feeds.items()})
    return max(1, live_bytes(graph, sizes) + _WORKING_COPIES * _output_bytes(graph, batch))


def _output_bytes(graph: Graph, batch: Batch) -> int:
    sizes = value_bytes(graph, {name: array.shape for name, array in batch.feeds.items()})
    return sum(sizes.get(value.name, 0) for value in graph.outputs)

"""What a float model gives out on held-out data: computed once, however many are held against it.

Outputs are never in memory for more than one batch.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from onnxq.data import Batch, Dataset
from onnxq.errors import InputError
from onnxq.ir import load
from onnxq.ir.sizes import live_bytes, value_bytes
from onnxq.runtime import Runnable, load_backend
from onnxq.runtime.pool import RUN_BYTES, processors
from onnxq.verify.decisions import Decision, find_decisions
from onnxq.verify.metrics import Metric, choose_metric
from onnxq.verify.metrics.scored import ScoredMetric
from onnxq.verify.result import AGREEMENT

_WORKING_COPIES = 8
"""Times that a metric holds the outputs of a batch, at most: float64 copies, and what it computes
from them."""

_FREE_SHARE = 0.25
"""Share of the free space of a disk that outputs may take; batches beyond are computed anew."""

Outputs = dict[str, Any]


class Reference:
    """A float model on held-out data.

    Args:
        path: The model's file.
        data: Held-out samples.
        metric: Name of the metric, see `choose_metric`.
        backend: What to run with.
        provider: Execution provider to run on.
        folder: Where to keep outputs; None keeps none, for whoever passes over them once.

    Attributes:
        path: As given.
        graph: The model.
        inputs: What must be fed.
        outputs: What it gives.
        data: The samples, as many in a batch as memory allows.
        metric: The model's own, over what was passed over so far; None without labels.

    Raises:
        InputError: the model cannot be read, or data and metric do not fit.
    """

    def __init__(
        self,
        path: Path,
        data: Dataset,
        *,
        metric: str | None = None,
        backend: str = "onnxruntime",
        provider: str = "cpu",
        folder: Path | None = None,
    ) -> None:
        self.path = path
        self.graph = load(path)
        inputs = [v for v in self.graph.inputs if v.data is None]
        self.data = data.in_parts(_rows(self, next(data.batches())), inputs)
        self._metric_name = metric
        self._backend = backend
        self._provider = provider
        self._file = None if folder is None else folder / "reference.outputs"
        self._room = 0 if folder is None else int(shutil.disk_usage(folder).free * _FREE_SHARE)
        self._kept = self._scored = 0
        self._session: Runnable | None = self.load(path)
        self.inputs, self.outputs = self._session.inputs, self._session.outputs
        self.metric = self.new_metric()
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

    def new_metric(self) -> Metric | None:
        """A metric like the model's own, for a candidate."""
        data = self.data
        return choose_metric(self._metric_name, data.has_labels, data.labels_ndim, self.outputs)

    def load(self, path: Path) -> Runnable:
        """A model's session on what the float model runs on."""
        return load_backend(self._backend).session(
            path, provider=self._provider, threads=processors(), pooled=True
        )

    def _running(self) -> Runnable:
        if self._session is None:
            self._session = self.load(self.path)
        return self._session

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
            number = 0
            for number, batch in enumerate(self.data.batches(), start=1):
                if file is not None and number <= self._kept:
                    outputs: Outputs = pickle.load(file)
                else:
                    outputs = batch.trim(self._running().run(batch.feeds))
                    if file is not None and file.tell() < self._room:
                        pickle.dump(outputs, file, protocol=5)
                        self._kept = number
                if self.metric is not None and number > self._scored:
                    labels = None if batch.labels is None else batch.labels[: batch.valid]
                    self.metric.add(outputs, labels, batch.valid)
                    self._scored = number
                yield batch, outputs
        if number == self._kept:
            self._session = None


def _rows(reference: Reference, batch: Batch) -> int:
    """Rows of a batch that fit into memory at a time, by the shapes of what they make."""
    graph = reference.graph
    inputs = [v for v in graph.inputs if v.data is None]
    if not batch.is_divisible(inputs):
        return batch.size
    sizes = value_bytes(graph, {n: a.shape for n, a in batch.rows(0, 1).feeds.items()})
    outputs = sum(sizes.get(value.name, 0) for value in graph.outputs)
    return max(1, RUN_BYTES // max(1, live_bytes(graph, sizes) + _WORKING_COPIES * outputs))

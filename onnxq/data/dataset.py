"""A fixed, repeatable sequence of samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from onnxq.data.batch import Batch, Fed
from onnxq.errors import InputError
from onnxq.runtime.specs import Array

Indices = npt.NDArray[np.int64]

CALIBRATION_LIMIT = 512
"""Most samples that a split takes for calibration unless told otherwise."""


class Source(ABC):
    """Where samples come from: a sequence of units, each one sample or one whole feed.

    Attributes:
        name: What a message calls the source: a path, or a description.
        samples: Number of samples in each unit.
        split: The source's own split, one entry per unit: 0 calibration, 1 held-out.
        labels_ndim: Number of dimensions of a batch's labels; None without labels.
    """

    name: str
    samples: Indices
    split: Array | None = None
    labels_ndim: int | None = None

    @abstractmethod
    def batches(self, units: Indices) -> Iterator[Batch]:
        """Yield the chosen units, given in rising order, as batches.

        Raises:
            InputError: the source cannot be read, or gives other data than on an earlier pass.
        """


class Dataset:
    """Samples in a fixed order, read again on every pass.

    Args:
        source: where the samples come from.
        units: which of the source's units belong to the dataset; all when None.
    """

    def __init__(self, source: Source, units: Indices | None = None) -> None:
        self._source = source
        self._units = np.arange(len(source.samples)) if units is None else np.sort(units)

    def __len__(self) -> int:
        """Return the number of samples, repeated ones not counted."""
        return int(self._source.samples[self._units].sum())

    @property
    def source(self) -> str:
        """Where the samples come from, for messages and reports."""
        return self._source.name

    @property
    def has_labels(self) -> bool:
        """Whether every sample has a label."""
        return self._source.labels_ndim is not None

    @property
    def labels_ndim(self) -> int | None:
        """Number of dimensions of a batch's labels, samples included; None without labels."""
        return self._source.labels_ndim

    @property
    def has_split(self) -> bool:
        """Whether the source itself says which samples are held out."""
        return self._source.split is not None

    def batches(self) -> Iterator[Batch]:
        """Yield all samples in order, as batches that fit the model.

        Raises:
            InputError: the source cannot be read, or gives other data than on an earlier pass.
        """
        return self._source.batches(self._units)

    def take(self, count: int) -> Dataset:
        """Return about `count` samples, evenly spaced so that sorted data stays represented.

        Exactly `count` where the source gives single samples; where it gives whole feeds of
        several samples, as many feeds as hold that many. All samples where there are fewer.

        Raises:
            InputError: `count` is below 1.
        """
        if count < 1:
            raise InputError(f"the number of samples must be at least 1, not {count}")
        if count >= len(self):
            return self
        return Dataset(self._source, _evenly(self._units, count / len(self)))

    def without(self, other: Dataset) -> Dataset:
        """Return the samples that another dataset of the same source has not."""
        return Dataset(self._source, np.setdiff1d(self._units, other._units))

    def in_parts(self, rows: int, inputs: Sequence[Fed]) -> Dataset:
        """Return the same samples, at most so many in a batch where a model leaves it open."""
        return Dataset(_Divided(self._source, rows, inputs), self._units)

    def split(self, seed: int, calibration: int | None = None) -> tuple[Dataset, Dataset]:
        """Return disjoint calibration and held-out parts; each keeps the source's order.

        The source's own split is used where it has one. Otherwise a permutation drawn from
        `seed` gives half of the samples, at most 512, to calibration and the rest to the held-out
        part. `calibration` sets the number of calibration samples; with a source's own split it
        only lowers it, and the samples left over are in neither part.

        Raises:
            InputError: there are too few samples, or one part of the source's split is empty.
        """
        if calibration is not None and calibration < 1:
            raise InputError(
                f"the number of calibration samples must be at least 1, not {calibration}"
            )
        if self._source.split is None:
            drawn, held_out = self._draw(seed, calibration)
        else:
            drawn, held_out = self._own_split(self._source.split, seed, calibration)
        return Dataset(self._source, drawn), Dataset(self._source, held_out)

    def _draw(self, seed: int, calibration: int | None) -> tuple[Indices, Indices]:
        if len(self._units) < 2:
            raise InputError(
                f"{self.source} holds one sample, which cannot serve both calibration and "
                "verification; give more samples, or evaluation data of their own"
            )
        if calibration is not None and calibration >= len(self):
            raise InputError(
                f"{self.source} holds {len(self)} samples, so {calibration} for calibration "
                "leave none for verification; give evaluation data of their own or a smaller number"
            )
        wanted = min(CALIBRATION_LIMIT, len(self) // 2) if calibration is None else calibration
        return self._partition(self._units, seed, wanted)

    def _own_split(
        self, split: Array, seed: int, calibration: int | None
    ) -> tuple[Indices, Indices]:
        first = self._units[split[self._units] == 0]
        second = self._units[split[self._units] == 1]
        if not len(first) or not len(second):
            part = "held-out" if len(first) else "calibration"
            raise InputError(f"{self.source}: its array 'split' leaves the {part} part empty")
        if calibration is not None and calibration < int(self._source.samples[first].sum()):
            first, _ = self._partition(first, seed, calibration)
        return first, second

    def _partition(self, units: Indices, seed: int, wanted: int) -> tuple[Indices, Indices]:
        """Draw units until they hold the wanted number of samples, leaving at least one unit."""
        # RandomState's stream is frozen (NEP 19), so a seed means the same with every numpy.
        order = units[np.random.RandomState(seed).permutation(len(units))]
        before = np.cumsum(self._source.samples[order]) - self._source.samples[order]
        taken = min(int((before < wanted).sum()), len(order) - 1)
        return order[:taken], order[taken:]


class _Divided(Source):
    """A source whose batches are given out in parts where a model's inputs allow it."""

    def __init__(self, source: Source, rows: int, inputs: Sequence[Fed]) -> None:
        self.name, self.samples = source.name, source.samples
        self.split, self.labels_ndim = source.split, source.labels_ndim
        self._source = source
        self._rows = rows
        self._inputs = tuple(inputs)

    def batches(self, units: Indices) -> Iterator[Batch]:
        for batch in self._source.batches(units):
            if batch.is_divisible(self._inputs):
                yield from batch.parts(self._rows)
            else:
                yield batch


def _evenly(units: Indices, fraction: float) -> Indices:
    count = max(1, math.ceil(round(fraction * len(units), 6)))
    chosen: Indices = units[np.arange(count) * len(units) // count]
    return chosen

"""A fixed, repeatable sequence of samples."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from onnxq.data.batch import Batch, Fed
from onnxq.errors import InputError
from onnxq.runtime.specs import Array

Indices = npt.NDArray[np.int64]

CALIBRATION_LIMIT = 512
"""Most samples that a split takes for calibration unless told otherwise."""

SHARD_SAMPLES = 32
"""Samples of a shard, but for whole batches: few enough that several workers have something to do,
and many beside what is found out of them."""


class Origin(ABC):
    """By what a source is opened in any process: a frozen dataclass."""

    @abstractmethod
    def open(self) -> Source:
        """The source."""

    @abstractmethod
    def settled(self) -> Self:
        """The same with what changes when what is read changes."""


@lru_cache(maxsize=4)
def opened(origin: Origin) -> Source:
    """The source of an origin, one for all that refer to it."""
    return origin.open()


class Source(ABC):
    """Where samples come from: a sequence of units, each one sample or one whole feed.

    Attributes:
        name: What a message calls the source: a path in quotes, or a description.
        samples: Number of samples in each unit.
        split: The source's own split, one entry per unit: 0 calibration, 1 held-out.
        labels_ndim: Number of dimensions of a batch's labels; None without labels.
        stacked: Units that are stacked to a batch.
        origin: By what another process opens it; None where only this one can.
    """

    name: str
    samples: Indices
    split: Array | None = None
    labels_ndim: int | None = None
    stacked: int = 1
    origin: Origin | None = None

    def __reduce__(self) -> Any:
        """Go to other processes as what opens the same source there."""
        if self.origin is None:
            raise TypeError(f"{self.name} is in the memory of one process")
        return opened, (self.origin.settled(),)

    def fingerprint(self) -> object:
        """What stands for all its samples."""
        if self.origin is None:
            raise TypeError(f"{self.name} is in the memory of one process")
        return self.origin.settled()

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
        """Where the samples come from, for messages: a path is in quotes."""
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

    def part(self, places: Sequence[int]) -> Dataset:
        """Return the samples, or whole feeds, at some places of this dataset."""
        return Dataset(self._source, self._units[np.asarray(places, np.int64)])

    def without(self, other: Dataset) -> Dataset:
        """Return the samples that another dataset of the same source has not."""
        return Dataset(self._source, np.setdiff1d(self._units, other._units))

    def shards(self) -> list[Dataset]:
        """Return the samples in parts of about `SHARD_SAMPLES`, each of whole batches.

        They depend on the data alone, not on who works on them.
        """
        parts: list[list[int]] = [[]]
        count, step = 0, self._source.stacked
        for start in range(0, len(self._units), step):
            batch = self._units[start : start + step]
            if count >= SHARD_SAMPLES:
                parts.append([])
                count = 0
            parts[-1] += batch.tolist()
            count += int(self._source.samples[batch].sum())
        return [Dataset(self._source, np.array(part, np.int64)) for part in parts]

    @property
    def units(self) -> Indices:
        """Numbers of the source's units that belong to it."""
        return self._units

    @property
    def origin(self) -> Origin | None:
        """By what another process opens the source of the samples; None if only this one can."""
        return self._source.origin

    def fingerprint(self) -> object:
        """What stands for all samples."""
        return self._source.fingerprint(), self._units

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


def in_turn(shards: Sequence[Dataset]) -> Iterator[tuple[int, Batch]]:
    """The batches of some shards of one dataset, rising, with the place of each one's shard.

    Units that are batches by themselves are read in one pass: some sources begin anew each time.
    """
    if not shards:
        return
    source = shards[0]._source
    if source.stacked > 1:
        for place, shard in enumerate(shards):
            yield from ((place, batch) for batch in shard.batches())
        return
    stops = np.cumsum([len(shard) for shard in shards])
    done = place = 0
    for batch in source.batches(np.concatenate([shard._units for shard in shards])):
        yield place, batch
        done += batch.valid
        place += done == stops[place]


@dataclass(frozen=True)
class _Input:
    """An input of a model, without the model."""

    name: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class _Parted(Origin):
    """By what a `_Divided` is opened."""

    inner: Origin
    rows: int
    inputs: tuple[_Input, ...]

    def open(self) -> Source:
        return _Divided(opened(self.inner), self.rows, self.inputs)

    def settled(self) -> Self:
        return replace(self, inner=self.inner.settled())


class _Divided(Source):
    """A source whose batches are given out in parts where a model's inputs allow it."""

    def __init__(self, source: Source, rows: int, inputs: Sequence[Fed]) -> None:
        self.name, self.samples = source.name, source.samples
        self.split, self.labels_ndim = source.split, source.labels_ndim
        self.stacked = source.stacked
        self._source = source
        self._rows = rows
        self._inputs = tuple(
            _Input(i.name, None if i.shape is None else (*i.shape,)) for i in inputs
        )
        if source.origin is not None:
            self.origin = _Parted(source.origin, rows, self._inputs)

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

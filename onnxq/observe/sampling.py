"""Samples of a tensor's values: rows drawn by seed, and the first samples whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxq.observe.histogram import Float32Array, as_float32, as_rows
from onnxq.observe.observer import Indices, Observer
from onnxq.runtime.specs import Array

_UInt64s = npt.NDArray[np.uint64]


@dataclass(frozen=True, eq=False)
class SampledRows:
    """Rows of a tensor, drawn without replacement.

    Every row has a hash of the seed, of the sample it belongs to and of its place in the sample;
    those with the smallest hashes are drawn. So order, batches and shards change nothing, as long
    as every sample has its place in the whole data, and the same rows are drawn of all tensors that
    have equally many rows a sample. A sample's rows are counted as if all samples of a batch had
    equally many, one sample's after the other's; where they lie otherwise, the draw is as good but
    depends on the batches.

    Attributes:
        wanted: Number of rows to draw.
        hashes: Hash of each row drawn, rising, uint64, (rows,).
        rows: The rows, float32, (rows, columns), at most as many as wanted.
    """

    wanted: int
    hashes: _UInt64s
    rows: Float32Array

    @classmethod
    def of(cls, values: Array, samples: Indices, wanted: int, seed: int) -> SampledRows:
        """Rows of some values, drawn by a seed.

        Raises:
            ValueError: they have no rows.
        """
        rows = as_rows(values)
        sample, place = np.divmod(np.arange(len(rows)), -(-len(rows) // len(samples)))
        hashes = _hashes(seed, samples[sample], place)
        drawn = np.argsort(hashes, kind="stable")[:wanted]
        return cls(wanted, hashes[drawn], rows[drawn])

    def merge(self, other: SampledRows) -> SampledRows:
        """The rows drawn of the samples of both, bit for bit as in one pass.

        Raises:
            ValueError: the rows have different lengths, or different numbers are wanted.
        """
        if self.wanted != other.wanted or self.rows.shape[1] != other.rows.shape[1]:
            raise ValueError("by rows: they differ in length, or in the number that is wanted")
        hashes = np.concatenate([self.hashes, other.hashes])
        drawn = np.argsort(hashes, kind="stable")[: self.wanted]
        rows = np.concatenate([self.rows, other.rows])[drawn]
        return SampledRows(self.wanted, hashes[drawn], rows)


@dataclass(frozen=True, eq=False)
class SampledValues(Sequence[Array]):
    """The whole values of the data's first samples.

    Item i is the value of the i-th sample as a batch of one sample makes it. Integers and booleans
    keep their type, all else is float32.

    Attributes:
        wanted: Number of samples to keep.
        samples: Their places in the whole data, rising, int64, (samples,).
        shapes: Shape of each one's value, int64, (samples, axes).
        flat: The elements of all values, one value after the other.
    """

    wanted: int
    samples: Indices
    shapes: Indices
    flat: Array

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __getitem__(self, place: int) -> Array:  # type: ignore[override]
        """Return a view of one sample's value."""
        sizes, shape = self.shapes.prod(axis=1), self.shapes[place]
        stop = sizes.cumsum()[place]
        return np.asarray(self.flat[stop - sizes[place] : stop].reshape(shape))

    def merge(self, other: SampledValues) -> SampledValues:
        """Those of the first samples of both, bit for bit as in one pass.

        Raises:
            ValueError: the values have different numbers of axes or types, or different numbers
                of samples are wanted.
        """
        if (self.wanted, self.flat.dtype) != (other.wanted, other.flat.dtype) or (
            self.shapes.shape[1] != other.shapes.shape[1]
        ):
            raise ValueError("their values are of different kinds, or other numbers are wanted")
        samples = np.concatenate([self.samples, other.samples])
        first = np.argsort(samples, kind="stable")[: self.wanted]
        values = [*self, *other]
        return SampledValues(
            self.wanted,
            samples[first],
            np.concatenate([self.shapes, other.shapes])[first],
            np.concatenate([values[i].reshape(-1) for i in first]),
        )


class SamplesObserver(Observer):
    """Keeps the values of the first samples on disk. Samples have to come in their order.

    Args:
        wanted: Number of samples to keep.
        path: The file to keep them in.
    """

    def __init__(self, wanted: int, path: Path) -> None:
        self._wanted = wanted
        self._path = path
        self._dtype: np.dtype[np.generic] | None = None
        self._samples: list[int] = []
        self._shapes: list[tuple[int, ...]] = []

    @property
    def is_complete(self) -> bool:
        """Whether all the samples were seen."""
        return len(self._samples) == self._wanted

    def add(self, values: Array, samples: Indices) -> None:
        """Take in values.

        Raises:
            ValueError: the first axis does not run over the samples, of which there are several.
        """
        if len(samples) > 1 and values.shape[:1] != samples.shape:
            raise ValueError(
                f"by sample: its shape is {values.shape} where the batch has {len(samples)} "
                "samples; give the data in batches of one"
            )
        kept = values if values.dtype.kind in "biu" else as_float32(values)
        if self._dtype not in (None, kept.dtype):
            raise ValueError(f"by sample: it is {kept.dtype}, and was {self._dtype} before")
        self._dtype = kept.dtype
        each = [kept] if len(samples) == 1 else kept[:, np.newaxis]
        with self._path.open("ab") as file:
            for sample, value in zip(samples, each, strict=True):
                if self.is_complete:
                    return
                self._samples.append(int(sample))
                self._shapes.append(value.shape)
                file.write(value.tobytes())

    def result(self) -> SampledValues | None:
        """The values, memory-mapped."""
        if self._dtype is None:
            return None
        some = self._path.stat().st_size > 0
        return SampledValues(
            self._wanted,
            np.array(self._samples, np.int64),
            np.array(self._shapes, np.int64),
            # Nothing cannot be mapped.
            np.memmap(self._path, self._dtype, "r") if some else np.zeros(0, self._dtype),
        )

    def bytes_for(self, shape: tuple[int, ...]) -> int:
        """A copy of one sample's value."""
        return 4 * math.prod(shape)


def _hashes(seed: int, samples: Indices, places: Indices) -> _UInt64s:
    """A 64-bit hash of each sample and place.

    The finalizer of SplitMix64 (Steele, Lea and Flood, Fast splittable pseudorandom number
    generators, OOPSLA 2014), once for each number.
    """
    hashed = np.full(len(samples), seed & (2**64 - 1), np.uint64)
    for numbers in (samples, places):
        hashed = hashed + np.uint64(0x9E3779B97F4A7C15) * (numbers.astype(np.uint64) + np.uint64(1))
        hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        hashed = (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashed = hashed ^ (hashed >> np.uint64(31))
    return hashed

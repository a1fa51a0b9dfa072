"""Histograms over the bit pattern of float32 numbers."""

from __future__ import annotations

import base64
import binascii
import math
import sys
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

RELATIVE_WIDTH = 2.0**-7
"""Width of a bin over its lower edge, at most: 0.8 %. (Below 2**-126, where float32 itself has
fewer digits, bins are 2**-133 wide.)"""

TABLE_BYTES = 8 << 16
"""Memory that a tally of one tensor takes at most."""

_DROPPED_BITS = 16
NOT_FINITE = 0x7F80
"""First bin that holds no finite numbers; the same below zero."""

_SIGN = 0x8000
_CHUNK = 3 << 12
"""Values counted at a time: their places fit the processor's cache, and are few enough for the
allocator to use the same memory again, rather than to ask the operating system every time."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often values fell into each bin.

    A float32 number's bin is made of its sign, its exponent and the first seven bits of its
    mantissa: the upper half of its 32 bits. So bins need no range beforehand, are the same for
    every tensor, and are the finer the nearer to zero. Bin k > 0 holds the magnitudes from the
    number with the upper half k to that with k + 1, bin -k the same below zero, and bin 0 what
    lies between -2**-133 and 2**-133.

    Attributes:
        bins: Bins with values in them, int32, rising.
        counts: Number of values in each, int64, positive.
    """

    bins: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return np.array_equal(self.bins, other.bins) and np.array_equal(self.counts, other.counts)

    def __hash__(self) -> int:
        return hash((self.bins.tobytes(), self.counts.tobytes()))

    @cached_property
    def total(self) -> int:
        """Number of values."""
        return int(self.counts.sum())

    @cached_property
    def lower(self) -> Float64Array:
        """Lower edge of each bin, as a number."""
        return np.where(self.bins > 0, _number(self.bins), _number(self.bins - 1))

    @cached_property
    def upper(self) -> Float64Array:
        """Upper edge of each bin, as a number."""
        return np.where(self.bins < 0, _number(self.bins), _number(self.bins + 1))

    def shares(self, edges: Float64Array) -> tuple[float, ...]:
        """Share of the values between each two rising numbers; a bin's lie in its middle.

        What lies beyond the first and the last number, as the rest of a bin may, is at the end.
        """
        middles = np.clip((self.lower + self.upper) / 2, edges[0], edges[-1])
        counts, _ = np.histogram(middles, edges, weights=self.counts / self.total)
        return tuple(counts.tolist())

    def merge(self, other: Histogram) -> Histogram:
        """The histogram of the values of both."""
        bins, places = np.unique(np.concatenate([self.bins, other.bins]), return_inverse=True)
        counts = np.zeros(len(bins), np.int64)
        np.add.at(counts, places, np.concatenate([self.counts, other.counts]))
        return Histogram(bins, counts)

    def to_plain(self) -> str:
        """The histogram as text, about five characters a bin.

        Base64 of numbers in LEB128: the first bin + 32768, then each bin's distance from the one
        before, then the counts.
        """
        distances = np.diff(self.bins, prepend=np.int32(-_SIGN))
        packed = _to_leb128(np.concatenate([distances.astype(np.uint64), self.counts]))
        return base64.b64encode(packed).decode("ascii")

    @classmethod
    def from_plain(cls, text: str) -> Histogram:
        """Read what `to_plain` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            numbers = _from_leb128(base64.b64decode(text, validate=True))
        except binascii.Error as error:
            raise ValueError("is no base64") from error
        distances, counts = np.split(numbers, 2)
        bins = np.cumsum(distances) - _SIGN
        rising = (distances > 0).all() and (np.abs(bins) < NOT_FINITE).all()
        if not (rising and (counts > 0).all() and distances.max(initial=0) <= 2 * _SIGN):
            raise ValueError("is no histogram")
        return cls(bins.astype(np.int32), counts)


class Tally:
    """Counts values into a histogram.

    Takes about 1.7 ns a value, and `TABLE_BYTES` of address space, of which the operating system
    gives out only the pages that are written.
    """

    def __init__(self) -> None:
        self._table = np.zeros(1 << 16, np.int64)

    def add(self, values: Float32Array) -> None:
        """Count values, a contiguous array of one axis."""
        bits = values.view(np.uint32)
        places = np.empty(min(_CHUNK, bits.size), np.intp)
        for start in range(0, bits.size, _CHUNK):
            chunk = bits[start : start + _CHUNK]
            filled = places[: chunk.size]
            np.right_shift(chunk, _DROPPED_BITS, out=filled, casting="unsafe")
            # In place, unlike bincount, which would make and add a whole table for every chunk.
            np.add.at(self._table, filled, 1)

    def histogram(self) -> Histogram:
        """The finite values counted so far; others are in no bin."""
        positive, negative = self._table.reshape(2, _SIGN)[:, :NOT_FINITE]
        counts = np.concatenate([negative[:0:-1], positive])
        counts[NOT_FINITE - 1] += negative[0]
        used = np.flatnonzero(counts)
        return Histogram((used - (NOT_FINITE - 1)).astype(np.int32), counts[used])


def histogram_of(values: Float32Array) -> Histogram:
    """What a `Tally` counts of one contiguous array of one axis; quicker where it is small.

    It needs no table of all bins, and lets other threads of the interpreter run while it sorts.
    """
    upper = values.view(np.uint16)[int(sys.byteorder == "little") :: 2].copy()
    # Stable is a radix sort here.
    upper.sort(kind="stable")
    ends = np.append(np.flatnonzero(upper[1:] != upper[:-1]), upper.size - 1)[: upper.size]
    bits, counts = upper[ends].astype(np.int32), np.diff(ends, prepend=-1)
    positive = slice(0, np.searchsorted(bits, NOT_FINITE))
    negative = slice(*np.searchsorted(bits, [_SIGN, _SIGN + NOT_FINITE]))
    bins = np.concatenate([_SIGN - bits[negative][::-1], bits[positive]])
    counts = np.concatenate([counts[negative][::-1], counts[positive]])
    # The two zeros are one bin.
    twice = np.flatnonzero(bins[1:] == bins[:-1])
    counts[twice + 1] += counts[twice]
    return Histogram(np.delete(bins, twice), np.delete(counts, twice))


def bins_of(values: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
    """The bin of every value; what is not finite lies beyond those of all finite ones."""
    halves = (as_float32(values).reshape(-1).view(np.uint32) >> _DROPPED_BITS).astype(np.uint16)
    magnitudes = (halves & (_SIGN - 1)).astype(np.int16)
    return np.where(halves >= _SIGN, -magnitudes, magnitudes)


def as_float32(values: npt.NDArray[Any]) -> Float32Array:
    """Numbers of any type as contiguous float32; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32, order="C")


def as_rows(values: npt.NDArray[Any]) -> Float32Array:
    """Rows along the last axis, with all other axes run together, as float32.

    Raises:
        ValueError: there is no axis.
    """
    if not values.ndim:
        raise ValueError("by rows: it is a scalar")
    return as_float32(values).reshape(math.prod(values.shape[:-1]), values.shape[-1])


def _number(bins: npt.NDArray[np.int32]) -> Float64Array:
    """The number of smallest magnitude in each bin."""
    magnitudes = (np.abs(bins).astype(np.uint32) << _DROPPED_BITS).view(np.float32)
    # The bin of the largest numbers ends at infinity, which has the next bit pattern.
    numbers = np.where(np.abs(bins) == NOT_FINITE, 2.0**128, magnitudes.astype(np.float64))
    return np.asarray(np.copysign(numbers, bins))


def _to_leb128(numbers: npt.NDArray[np.integer]) -> bytes:
    """Little-endian base 128: seven bits a byte, the eighth says that more follow."""
    rest = numbers.astype(np.uint64)
    columns, used = [], []
    more = np.ones(rest.shape, bool)
    while more.any():
        used.append(more)
        low, rest = rest & np.uint64(0x7F), rest >> np.uint64(7)
        more = rest > 0
        columns.append((low | np.where(more, np.uint64(0x80), np.uint64(0))).astype(np.uint8))
    if not columns:
        return b""
    return bytes(np.stack(columns, axis=1)[np.stack(used, axis=1)])


def _from_leb128(data: bytes) -> npt.NDArray[np.int64]:
    digits = np.frombuffer(data, np.uint8)
    last = np.flatnonzero(digits < 0x80)
    if digits.size and (not last.size or last[-1] != digits.size - 1):
        raise ValueError("ends within a number")
    first = np.concatenate([[0], last[:-1] + 1]) if last.size else last
    lengths = last - first + 1
    if lengths.max(initial=0) > 9:
        raise ValueError("holds a number that is too large")
    place = np.arange(digits.size) - np.repeat(first, lengths)
    values = (digits & 0x7F).astype(np.int64) << (7 * place)
    if not digits.size:
        return values
    sums: npt.NDArray[np.int64] = np.add.reduceat(values, first)
    return sums

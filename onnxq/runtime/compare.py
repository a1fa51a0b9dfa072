"""How far the outputs of one model are from another's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array

_AT_ONCE = 1 << 16
"""Numbers that are compared at a time; their float64 copies stay in the processor's cache."""


@dataclass(frozen=True)
class OutputError:
    """Error of one output c against its reference r, over all elements of all batches.

    - `sqnr_db` = 10 log10(sum r^2 / sum (r - c)^2), the signal-to-quantization-noise ratio in dB;
      inf where r and c are equal, -inf where r is all zero and c is not.
    - `cosine` = sum r c / sqrt(sum r^2 sum c^2); 1 where both are all zero, 0 where one is.
    - `max_abs` = max |r - c|.

    Elements that are NaN in both, or the same infinity in both, are equal and leave the sums
    alone. Where only one is finite, or the shapes differ, nothing can be measured: -inf dB,
    cosine 0, max_abs inf. Strings are equal (inf, 1, 0) or not (-inf, 0, inf).
    """

    name: str
    sqnr_db: float
    cosine: float
    max_abs: float


@dataclass
class _Sums:
    """Float64 sums over one output; they may be added in any split into batches."""

    signal: float = 0.0
    candidate: float = 0.0
    product: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0
    incomparable: bool = False

    def add(self, reference: Array, candidate: Array) -> None:
        if reference.shape != candidate.shape:
            self.incomparable = True
            return
        if reference.dtype.kind in "OUS" or candidate.dtype.kind in "OUS":
            self.incomparable |= not np.array_equal(reference, candidate)
            return
        r, c = reference.reshape(-1), candidate.reshape(-1)
        for at in range(0, r.size, _AT_ONCE):
            self._add(
                r[at : at + _AT_ONCE].astype(np.float64), c[at : at + _AT_ONCE].astype(np.float64)
            )

    def _add(self, r: Array, c: Array) -> None:
        signal, candidate = _product(r, r), _product(c, c)
        if not (math.isfinite(signal) and math.isfinite(candidate)):
            finite = np.isfinite(r) & np.isfinite(c)
            self.incomparable |= not np.array_equal(r[~finite], c[~finite], equal_nan=True)
            r, c = r[finite], c[finite]
            signal, candidate = _product(r, r), _product(c, c)
        if not r.size:
            return
        difference = r - c
        self.signal += signal
        self.candidate += candidate
        self.product += _product(r, c)
        self.noise += _product(difference, difference)
        self.max_abs = max(self.max_abs, float(difference.max()), -float(difference.min()))

    def merge(self, other: _Sums) -> None:
        self.signal += other.signal
        self.candidate += other.candidate
        self.product += other.product
        self.noise += other.noise
        self.max_abs = max(self.max_abs, other.max_abs)
        self.incomparable |= other.incomparable

    def result(self, name: str) -> OutputError:
        if self.incomparable:
            return OutputError(name, -math.inf, 0.0, math.inf)
        return OutputError(name, self._sqnr_db(), self._cosine(), self.max_abs)

    def _sqnr_db(self) -> float:
        if self.noise == 0.0:
            return math.inf
        if self.signal == 0.0 or math.isinf(self.noise):
            return -math.inf
        return 10.0 * (math.log10(self.signal) - math.log10(self.noise))

    def _cosine(self) -> float:
        if self.signal == 0.0 or self.candidate == 0.0:
            return float(self.signal == self.candidate)
        cosine = self.product / math.sqrt(self.signal) / math.sqrt(self.candidate)
        return max(-1.0, min(1.0, cosine))


def _product(a: Array, b: Array) -> float:
    # Not `a @ b`: BLAS starts threads for it, which cost more than they gain here, and their number
    # changes the rounding.
    return float(np.einsum("i,i->", a, b))


class ErrorAccumulator:
    """Compares outputs batch by batch, in memory that does not grow with the number of batches."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}

    def add(self, reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> None:
        """Add one batch of outputs: by name, arrays of any dtype and shape.

        Sequences and maps are compared element by element under names as `y[0]`.

        Raises:
            InputError: the candidate lacks an output of the reference.
        """
        for name, expected in reference.items():
            if name not in candidate:
                raise InputError(
                    f"the candidate model has no output {name!r}; its outputs are "
                    f"{', '.join(candidate)}"
                )
            theirs = dict(_leaves(name, candidate[name]))
            ours = dict(_leaves(name, expected))
            for leaf in {**ours, **theirs}:
                sums = self._sums.setdefault(leaf, _Sums())
                if leaf in ours and leaf in theirs:
                    sums.add(ours[leaf], theirs[leaf])
                else:
                    sums.incomparable = True

    def merge(self, other: ErrorAccumulator) -> None:
        """Add what another one was told."""
        for name, sums in other._sums.items():
            self._sums.setdefault(name, _Sums()).merge(sums)

    def result(self) -> list[OutputError]:
        """Return one error per output, in the order in which the outputs were first seen."""
        return [sums.result(name) for name, sums in self._sums.items()]


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Array]]:
    """Yield the arrays of an output: itself, or the elements of a sequence or map."""
    if isinstance(value, Mapping):
        for key, element in value.items():
            yield from _leaves(f"{name}[{key}]", element)
    elif isinstance(value, list | tuple):
        for index, element in enumerate(value):
            yield from _leaves(f"{name}[{index}]", element)
    else:
        yield name, np.asarray(value)

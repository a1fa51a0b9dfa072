"""Which way to round a product's weight leaves the least error."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxq.needs import Need
from onnxq.observe import Observations
from onnxq.passes.notes import node_name
from onnxq.passes.tuned import Tensors, tuned_weight
from onnxq.quant import dequantize
from onnxq.tune.tuner import Tuner
from onnxq.tune.weight_matrix import WeightMatrix

Float64Array = npt.NDArray[np.float64]

_MOST_DB = 200.0
"""What a gain counts for where nothing is lost."""


@dataclass(frozen=True)
class Contest:
    """A weight for which methods compete.

    Attributes:
        matrix: The weight.
        rivals: The methods; plain rounding is another one.
    """

    matrix: WeightMatrix
    rivals: Sequence[Tuner]

    @property
    def needs(self) -> Sequence[Need]:
        """What has to be observed of samples that no method was fitted to."""
        crosses = any(rival.is_sequential for rival in self.rivals)
        return (self.matrix.gram, *((self.matrix.cross_gram,) if crosses else ()))

    def verdict(
        self, made: Mapping[str, Tensors], read: Observations, exact: Observations
    ) -> Verdict:
        """Who wins.

        Args:
            made: What rivals computed, by their text form.
            read: What the layer reads, once everything before it is quantized if a rival is
                sequential.
            exact: What it reads in the float model.
        """
        grams = [seen.get(self.matrix.gram) for seen in (read, exact)]
        cross = read.get(self.matrix.cross_gram)
        matrices = [None if seen is None else seen.matrix for seen in (*grams, cross)]
        ours, floats = matrices[:2]
        if ours is None or floats is None or not _are_finite(matrices):
            return Verdict(self.rivals[0], 0.0)
        errors = Errors(self.matrix, ours, floats, matrices[2])
        plain = errors.of({})
        winner, least = None, plain
        for rival in self.rivals:
            tensors = made.get(str(rival), {})
            error = errors.of(tensors) if tensors else math.inf
            if error < least:
                winner, least = rival, error
        if winner is None:
            return Verdict(None, 0.0)
        ratio = plain / least if least > 0 else math.inf
        return Verdict(winner, min(10 * math.log10(ratio), _MOST_DB))


@dataclass(frozen=True)
class Verdict:
    """Which tuner won, none for plain rounding, and by how much over that."""

    winner: Tuner | None
    gain_db: float


@dataclass(frozen=True)
class Errors:
    """Relative squared errors |XW - X̂Q|² / |XW|² of what a product gives.

    Attributes:
        matrix: The weight W.
        read: X̂ᵀX̂ of what it is multiplied with.
        exact: XᵀX of what it is multiplied with in the float model.
        cross: X̂ᵀX; None where both are the same.
    """

    matrix: WeightMatrix
    read: Float64Array
    exact: Float64Array
    cross: Float64Array | None = None

    def of(self, tensors: Tensors) -> float:
        """That of what a tuner computed; of the weight rounded as its layout says without any."""
        numbers = self.matrix.numbers()
        whole, quantized = map(self.matrix.matrices, (numbers, self._quantized(tensors, numbers)))
        power = _products(whole, self.exact, whole)
        if self.cross is None:
            lost = whole - quantized
            error = _products(lost, self.read, lost)
        else:
            error = power - 2 * _products(quantized, self.cross, whole)
            error += _products(quantized, self.read, quantized)
        return max(error, 0.0) / power if power > 0 else 0.0

    def _quantized(self, tensors: Tensors, numbers: npt.NDArray[np.float32]) -> np.ndarray:
        layout, name = self.matrix.layout, self.matrix.weight.value.name
        if "scale" not in tensors:
            stored = self.matrix.rounding(numbers, layout.own_granularity, name)
            return stored.dequantize()
        weight = tuned_weight(
            tensors,
            node_name(self.matrix.node),
            self.matrix.rounding.format,
            layout.own_granularity,
            numbers.shape,
            bounds=self.matrix.rounding.bounds,
            zero_point=layout.zero_point,
        )
        stored = weight.part((slice(None),) * numbers.ndim, numbers, name)
        return dequantize(stored.values, stored.qparams)


def _products(left: np.ndarray, middle: Float64Array, right: np.ndarray) -> float:
    """tr(Lᵀ M R), summed over the groups."""
    parts = zip(left, middle, right, strict=True)
    return sum(float(np.sum(own * (gram @ other))) for own, gram, other in parts)


def _are_finite(matrices: Iterable[Float64Array | None]) -> bool:
    return all(m is None or bool(np.isfinite(m).all()) for m in matrices)

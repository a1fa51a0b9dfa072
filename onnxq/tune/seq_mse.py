"""SeqMSE: scales of the least error of what layers give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.needs import Need
from onnxq.observe import Observations
from onnxq.passes.tuned import Tensors
from onnxq.quant import from_storage, qparams_from_range, to_storage, weight_qparams
from onnxq.tune.layer import Layer
from onnxq.tune.tuner import Tuner
from onnxq.tune.weight_matrix import WeightMatrix, gram_of, matrix_of, weight_matrix

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SeqMse(Tuner):
    """Scales with the least tr((W - Q)ᵀ H (W - Q)) of some, H = X̂ᵀX̂, Q the rounded W.

    As AIMET's sequential MSE: for each scale parts of the range that it is of are tried, from all
    of it down, and judged by what the layer gives for the inputs X̂ that it has once everything
    before it is quantized. Blocks are gone through one after the other, each judged with the
    errors that the others have by then; one scale for all of a weight is judged by all of it.

    It needs Gram matrices, and without any takes the scales of least squared error.

    Attributes:
        trials: How many parts of the range are tried.
        smallest: The smallest.

    Raises:
        InputError: Less than 2 trials, or a part that is none.
    """

    name: ClassVar[str] = "seq-mse"
    description: ClassVar[str] = "scales of weights with the least error of what layers give"
    promise: ClassVar[float] = 0.15
    is_sequential: ClassVar[bool] = True

    trials: int = 20
    smallest: float = 0.3

    def __post_init__(self) -> None:
        if self.trials < 2 or not 0 < self.smallest < 1:
            raise InputError(f"{self.name} tries 2 parts or more, the smallest between 0 and 1")

    def refusal(self, layer: Layer) -> str:
        """See `Tuner`."""
        found = weight_matrix(layer)
        return found if isinstance(found, str) else ""

    def needs(self, layer: Layer) -> Sequence[Need]:
        """See `Tuner`."""
        return (matrix_of(layer).gram,)

    def tune(self, layer: Layer, observations: Observations) -> Tensors:
        """See `Tuner`."""
        matrix = matrix_of(layer)
        numbers, rounding = matrix.numbers(), matrix.rounding
        if not np.isfinite(numbers).all():
            return {}
        granularity = matrix.layout.own_granularity
        plain = weight_qparams(numbers, rounding.format, rounding.scheme, granularity)
        scale = plain.scale.reshape(-1)
        zero_point = from_storage(plain.zero_point, rounding.format).reshape(-1)
        search = _Search(matrix, self, scale, zero_point)
        places = matrix.spread(np.arange(scale.size).reshape(plain.scale.shape))
        weights, grams = matrix.matrices(numbers), gram_of(matrix, observations)
        if granularity.axis is None:
            search.whole(weights.astype(np.float64), grams)
        else:
            for group in zip(weights.astype(np.float64), grams, places, strict=True):
                search.blocks(*group)
        zeros = to_storage(zero_point.reshape(plain.scale.shape), rounding.format)
        return {"scale": scale.reshape(plain.scale.shape), "zero_point": zeros}


@dataclass
class _Search:
    """Puts better scales and zero-points in the place of plain ones.

    Attributes:
        matrix: What is rounded.
        options: What is tried.
        scale: All scales.
        zero_point: All zero-points.
    """

    matrix: WeightMatrix
    options: SeqMse
    scale: npt.NDArray[np.float32]
    zero_point: npt.NDArray[np.float32]

    def whole(self, weights: Float64Array, grams: Float64Array) -> None:
        """One scale for matrices [groups, inputs, outputs]."""
        least = np.inf
        for scale, zero in self._tried(weights.min(), weights.max()):
            error = self._error(weights, scale, zero)
            loss = float((error * (grams @ error)).sum())
            if loss < least:
                least, self.scale[:], self.zero_point[:] = loss, scale, zero

    def blocks(
        self, weights: Float64Array, gram: Float64Array, places: npt.NDArray[np.intp]
    ) -> None:
        """The scales of a matrix [inputs, outputs], whose numbers have theirs at some places."""
        errors = self._error(weights, self.scale[places], self.zero_point[places])
        _, first, block_of = np.unique(places[:, 0], return_index=True, return_inverse=True)
        for block, place in enumerate(first):
            rows = np.flatnonzero(block_of == block)
            own, part, at = gram[np.ix_(rows, rows)], weights[rows], places[place]
            others = gram[rows] @ errors - own @ errors[rows]
            least = np.sum(errors[rows] * (own @ errors[rows] + 2 * others), axis=0)
            for scale, zero in self._tried(part.min(axis=0), part.max(axis=0)):
                error = self._error(part, scale, zero)
                loss = np.sum(error * (own @ error + 2 * others), axis=0)
                better = loss < least
                least = np.where(better, loss, least)
                self.scale[at[better]] = scale[better]
                self.zero_point[at[better]] = zero[better]
                errors[rows] = np.where(better, error, errors[rows])

    def _tried(
        self, low: Float64Array, high: Float64Array
    ) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
        rounding, found, axis = self.matrix.rounding, [], 0 if low.ndim else None
        how = rounding.format, rounding.scheme
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        for share in np.linspace(1, self.options.smallest, self.options.trials):
            made = qparams_from_range(low * share, high * share, *how, axis=axis)
            found.append((made.scale, from_storage(made.zero_point, rounding.format)))
        return found

    def _error(
        self,
        weights: Float64Array,
        scale: npt.NDArray[np.float32],
        zero_point: npt.NDArray[np.float32],
    ) -> Float64Array:
        codes = np.rint(weights / scale) + zero_point
        np.clip(codes, *self.matrix.rounding.bounds, out=codes)
        return np.asarray(weights - (codes - zero_point) * scale.astype(np.float64))

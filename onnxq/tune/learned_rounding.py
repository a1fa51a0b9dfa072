"""Learned rounding: codes and scales of weights, changed as long as the error falls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.needs import Need
from onnxq.observe import Observations
from onnxq.passes.tuned import Tensors
from onnxq.passes.weights.stored_weights import SLICE
from onnxq.quant import from_storage
from onnxq.tune.gptq import Gptq, damped
from onnxq.tune.layer import Layer
from onnxq.tune.matrix_tuner import MatrixTuner
from onnxq.tune.weight_matrix import WeightMatrix, cross_gram_of, gram_of

Float64Array = npt.NDArray[np.float64]

_BLOCK = 64
"""Inputs whose errors are up to date at any time, where no fewer share a scale."""

_ENOUGH = 0.01
"""Share of all that was gained that a round has to gain for another one to follow."""

_LARGEST_CHANGE = 0.5
"""Share of a scale by which it may change at once."""


@dataclass(frozen=True)
class LearnedRounding(MatrixTuner):
    """Learns codes Q and scales s so that tr((W - s Q)ᵀ H (W - s Q)) is small, H = X̂ᵀX̂ + λI.

    It starts from what `gptq` gives. Input by input, each code becomes the best one with all others
    as they are, the rounded (wᵢ - Σ Hᵢⱼ eⱼ / Hᵢᵢ) / s over j ≠ i with e = s q - w (coordinate
    descent; Behdin et al., 2023, QuantEase), and each scale the best one for its codes,
    s - qᵀHe / qᵀHq. So the error falls with every change, and no step has to be chosen. It is
    AdaRound's error (Nagel et al., 2020), and all codes are possible, not only the two nearest.

    X̂ is what the layer reads once everything before it is quantized, and with ``asymmetric`` W is
    what gives the float model's product best from X̂, as in `gptq`. The error is that of a linear
    layer: what comes behind it does not count.

    Attributes:
        damping: λ, in units of the mean of the diagonal of X̂ᵀX̂.
        asymmetric: See above.
        rounds: How often all codes and scales are gone through at most.

    Raises:
        InputError: The damping is not above 0, or there are no rounds.
    """

    name: ClassVar[str] = "learned-rounding"
    description: ClassVar[str] = "codes and scales of weights, learned from what layers read"
    promise: ClassVar[float] = 0.5
    is_sequential: ClassVar[bool] = True

    damping: float = 0.05
    asymmetric: bool = True
    rounds: int = 20

    def __post_init__(self) -> None:
        if not 0 < self.damping < math.inf or self.rounds < 1:
            raise InputError(f"{self.name} takes a damping above 0 and 1 round or more")

    @property
    def start(self) -> Gptq:
        """What it starts from."""
        return Gptq(damping=self.damping, asymmetric=self.asymmetric)

    def refusal(self, layer: Layer) -> str:
        """See `Tuner`."""
        return self.start.refusal(layer)

    def needs(self, layer: Layer) -> Sequence[Need]:
        """See `Tuner`."""
        return self.start.needs(layer)

    def tune_matrix(self, matrix: WeightMatrix, observations: Observations) -> Tensors:
        """See `MatrixTuner`."""
        start = self.start.tune_matrix(matrix, observations)
        if not start:
            return {}
        weights, grams = matrix.matrices(matrix.numbers()), gram_of(matrix, observations)
        cross = cross_gram_of(matrix, observations) if self.asymmetric else None
        pull = np.zeros((1, 1, 1)) if cross is None else (cross - grams) @ weights
        pull = np.broadcast_to(pull, weights.shape)
        grams = np.stack([damped(gram, self.damping) for gram in grams])
        scale, values = np.array(start["scale"], np.float32), np.array(start["values"])
        zeros = from_storage(start["zero_point"], matrix.rounding.format).astype(np.float64)
        codes = matrix.matrices(values)
        places = matrix.spread(np.arange(scale.size).reshape(scale.shape))
        rows = _rows_of_a_scale(places)
        # One scale for all is found from all outputs, others from some outputs at a time.
        step = weights.shape[2] if scale.size == 1 else max(1, SLICE // weights[..., 0].size)
        for at in range(0, weights.shape[2], step):
            part = np.s_[:, :, at : at + step]
            where = places[part][:, ::rows]
            zero = zeros.reshape(-1)[where]
            descent = _Descent(
                grams,
                weights[part],
                pull[part],
                codes[part] - zero.repeat(rows, axis=1)[:, : weights.shape[1]],
                scale.reshape(-1)[where].astype(np.float64),
                (matrix.rounding.bounds[0] - zero, matrix.rounding.bounds[1] - zero),
                rows,
                scale.size == 1,
            )
            if descent.lower(self.rounds):
                found = descent.codes + zero.repeat(rows, axis=1)[:, : weights.shape[1]]
                codes[part], scale.reshape(-1)[where] = found, descent.scale
        return {"scale": scale, "zero_point": start["zero_point"], "values": values}


def _rows_of_a_scale(places: npt.NDArray[np.int64]) -> int:
    """How many inputs in a row share a scale; ``places`` are those of each number's scale."""
    return int(np.argmax(np.append(places[0, :, 0] != places[0, 0, 0], True)))


class _Descent:
    """Matrices [groups, inputs, outputs] in rounded form, and how far that is from the best.

    Args:
        grams: What errors are measured with, [groups, inputs, inputs].
        weights: The matrices.
        pull: What is best for the gradient at the weights to be, 0 where that is the weights.
        codes: Quantized values less zero-points.
        scale: [groups, blocks of inputs, outputs].
        bounds: Smallest and largest code, for each scale.
        rows: Inputs that share a scale.
        is_one: Whether all numbers share one.
    """

    def __init__(
        self,
        grams: Float64Array,
        weights: Float64Array,
        pull: Float64Array,
        codes: Float64Array,
        scale: Float64Array,
        bounds: tuple[Float64Array, Float64Array],
        rows: int,
        is_one: bool,
    ) -> None:
        self._grams, self._pull = grams, pull
        self._weights = np.ascontiguousarray(weights, np.float64)
        self._low, self._high = bounds
        self._rows, self._is_one = rows, is_one
        self.codes = np.ascontiguousarray(codes, np.float64)
        self.scale = scale

    def lower(self, rounds: int) -> bool:
        """Change codes and scales; gives whether the error is lower afterwards."""
        before = self._error()
        errors = self._numbers() - self._weights
        slopes = self._grams @ errors - self._pull
        last = before
        for _ in range(rounds):
            self._round(errors, slopes)
            left = float(np.sum(errors * (slopes - self._pull)))
            if last - left <= _ENOUGH * (before - left):
                break
            last = left
        return self._error() < before

    def _numbers(self) -> Float64Array:
        wide = self.scale.repeat(self._rows, axis=1)[:, : self.codes.shape[1]]
        return np.asarray(self.codes * wide)

    def _error(self) -> float:
        errors = self._numbers() - self._weights
        return float(np.sum(errors * (self._grams @ errors - 2 * self._pull)))

    def _round(self, errors: Float64Array, slopes: Float64Array) -> None:
        """Go through all codes and scales once, and keep errors and slopes up to date."""
        inputs, rows = self.codes.shape[1], self._rows
        size = rows if rows < inputs else _BLOCK
        for start in range(0, inputs, size):
            block, place = slice(start, start + size), start // rows
            before = errors[:, block].copy()
            slope = self._change_codes(block, place, errors, slopes)
            if rows < inputs:
                codes = self.codes[:, block]
                change = self._change_of_scale(
                    codes, slope, self._grams[:, block, block] @ codes, place
                )
                self.scale[:, place] += change[:, 0]
                errors[:, block] += change * codes
            slopes += self._grams[:, :, block] @ (errors[:, block] - before)
        if rows >= inputs:
            products = self._grams @ self.codes
            change = self._change_of_scale(self.codes, slopes, products)
            self.scale += change
            errors += change * self.codes
            slopes += change * products

    def _change_codes(
        self, block: slice, place: int, errors: Float64Array, slopes: Float64Array
    ) -> Float64Array:
        """Let each code of a block be the best one; gives the block's slopes afterwards."""
        slope, gram = slopes[:, block].copy(), self._grams[:, block, block]
        scale, low, high = (a[:, place] for a in (self.scale, self._low, self._high))
        for row in range(slope.shape[1]):
            at = block.start + row
            weight, error = self._weights[:, at], errors[:, at]
            best = weight + error - slope[:, row] / gram[:, row, row, np.newaxis]
            code = np.clip(np.rint(best / scale), low, high)
            found = code * scale - weight
            slope += gram[:, :, row, np.newaxis] * (found - error)[:, np.newaxis]
            self.codes[:, at], errors[:, at] = code, found
        return slope

    def _change_of_scale(
        self, codes: Float64Array, slopes: Float64Array, products: Float64Array, place: int = 0
    ) -> Float64Array:
        """What makes scales the best ones for codes, [groups, 1, outputs], whose Hq is given."""
        down, up = (np.sum(codes * of, axis=1, keepdims=True) for of in (slopes, products))
        if self._is_one:
            down, up = down.sum(keepdims=True), up.sum(keepdims=True)
        scale = self.scale[:, place : place + 1]
        change = np.divide(-down, up, out=np.zeros_like(down), where=up > 0)
        return np.where(np.abs(change) < _LARGEST_CHANGE * np.abs(scale), change, 0.0)

"""Methods that compute some outputs of a weight without the others."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from onnxq.observe import Observations
from onnxq.passes.tuned import Tensors
from onnxq.tune.layer import Layer
from onnxq.tune.tuner import Tuner
from onnxq.tune.weight_matrix import WeightMatrix, matrix_of


@dataclass(frozen=True)
class MatrixTuner(Tuner):
    """A method for matrices whose outputs do not depend on each other.

    What it gives is that of the matrix's parts, whoever computes them, see `WeightMatrix.parts`.
    """

    @abstractmethod
    def tune_matrix(self, matrix: WeightMatrix, observations: Observations) -> Tensors:
        """What it computes for a matrix or a part of it; none where that cannot be stored."""

    def parts(self, layer: Layer) -> int:
        """See `Tuner`."""
        return len(matrix_of(layer).parts())

    def tune_part(self, layer: Layer, observations: Observations, number: int) -> Tensors:
        """See `Tuner`."""
        return self.tune_matrix(matrix_of(layer).parts()[number], observations)

    def joined(self, layer: Layer, tensors: Sequence[Tensors]) -> Tensors:
        """See `Tuner`."""
        return matrix_of(layer).joined(tensors) if all(tensors) else {}

    def tune(self, layer: Layer, observations: Observations) -> Tensors:
        """See `Tuner`."""
        numbers = range(self.parts(layer))
        return self.joined(layer, [self.tune_part(layer, observations, n) for n in numbers])

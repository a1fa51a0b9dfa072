"""Whether the label is among the largest outputs."""

from __future__ import annotations

import numpy as np

from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.metrics.metric import Floats
from onnxq.verify.metrics.scored import ScoredMetric


class Ranked(ScoredMetric):
    """Share of positions whose label is among the `k` largest outputs.

    Of equal outputs the one with the lower index counts as larger, as in `numpy.argmax`.
    Positions with a NaN among the outputs are wrong.
    """

    k: int
    is_share = True

    def right_or_wrong(self) -> bool:
        """Tell whether no sample has more than one position, right (1) or wrong (0)."""
        return all(bool((weights <= 1).all()) for weights in self._weights)

    def _score(self, logits: Floats, labels: Array) -> Floats:
        if self.k >= logits.shape[-1]:
            raise InputError(
                f"metric {self.name}: the label is always among the {self.k} largest of "
                f"{logits.shape[-1]} classes; set option 'k' to fewer"
            )
        target = np.take_along_axis(logits, labels[..., np.newaxis], axis=-1)
        before = np.arange(logits.shape[-1]) < labels[..., np.newaxis]
        rank = ((logits > target) | ((logits == target) & before)).sum(axis=-1)
        valid = ~np.isnan(logits).any(axis=-1)
        return np.where(valid & (rank < self.k), 1.0, 0.0)

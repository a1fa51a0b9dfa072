"""Channels of activations that count scaled up in the weights that multiply them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxq.needs import Need
from onnxq.observe import Observations
from onnxq.passes.channels.groups import ChannelGroup, Consumer
from onnxq.passes.notes import node_name
from onnxq.quant import QParams, fake_quantize, weight_qparams
from onnxq.tune.layer import Layer
from onnxq.tune.migration import (
    Floats,
    Noise,
    changed,
    each_once,
    gain_db,
    halves,
    largest,
    needs_of,
    own_factors,
    seen_of,
)
from onnxq.tune.transformation import Change, Subject, Transformation
from onnxq.tune.weight_matrix import WeightMatrix, weight_matrix

_STRENGTHS = tuple(n / 20 for n in range(1, 20))
_COLUMNS = 256
"""Outputs of a product that are looked at."""

_LEAST_DB = 0.1
"""What has to be gained on the rows not fitted to."""

_FLOOR = 1e-4
"""Of the mean magnitude of channels: the least that counts."""


@dataclass(frozen=True)
class Awq(Transformation):
    """Multiplies the rows of weights by ``s = mean|X|^a`` and divides the channels of X by it.

    Lin et al., AWQ: Activation-aware Weight Quantization (MLSys 2024), equations 4 and 5: a weight
    that is multiplied by s is rounded with an error that is s times smaller where its block's scale
    stays, so the rows that multiply large activations gain. The strength ``a`` is searched for each
    group of channels: that with the least squared error of what its products give, with weights
    rounded as their precision does, on sampled rows; it is kept if the error falls on other rows,
    too. Factors are normalized to ``sqrt(max s · min s) = 1``. The paper's clipping is left to
    the methods that choose scales.

    Anything that takes up factors may stand before the products, see
    `onnxq.passes.channels.groups`.
    """

    name: ClassVar[str] = "awq"
    description: ClassVar[str] = "rows of weights that count scaled up before they are rounded"

    def refusal(self, subject: Subject) -> str:
        """See `Transformation`."""
        able = next(self._groups(subject), None)
        return "" if able else "no product by weights in few bits reads channels that can be scaled"

    def needs(self, subject: Subject) -> Sequence[Need]:
        """See `Transformation`."""
        return [
            need
            for _, own in self._groups(subject)
            for consumer, _ in own
            for need in needs_of(consumer)
        ]

    def transform(self, subject: Subject, observations: Observations) -> Sequence[Change]:
        """See `Transformation`."""
        product = partial(_product, observations=observations)
        return [*changed(self._groups(subject), product, _fitted, lambda _: _LEAST_DB)]

    def _groups(
        self, subject: Subject
    ) -> Iterator[tuple[ChannelGroup, list[tuple[Consumer, WeightMatrix]]]]:
        """Groups, and their consumers in few bits."""
        groups = subject.groups.folded.values()
        return each_once(groups, lambda c: (c, m) if (m := _matrix(c, subject)) else None)


@dataclass(frozen=True, eq=False)
class _Product:
    """What a consumer multiplies.

    Attributes:
        channels: The group's channel of each of its input channels.
        rows: Sampled activations.
        magnitude: Mean magnitude of each input channel.
        weight: Some of its outputs' weights, a row for each input channel.
        matrix: How the weight is rounded.
    """

    channels: npt.NDArray[np.int32]
    rows: Floats
    magnitude: npt.NDArray[np.float64]
    weight: Floats
    matrix: WeightMatrix

    def noise(self, factors: Floats) -> Noise:
        """Relative squared error of what it gives, for the rows fitted to and for the others."""
        own = own_factors(self.channels, factors)[:, None]
        scaled = self.weight * own
        wrong = fake_quantize(scaled, self._qparams(scaled)) / own - self.weight
        return halves(self.rows @ wrong, self.rows @ self.weight)

    def _qparams(self, weight: Floats) -> QParams:
        rounding = self.matrix.rounding
        return weight_qparams(weight, rounding.format, rounding.scheme, self.matrix.granularity)


def _matrix(consumer: Consumer, subject: Subject) -> WeightMatrix | None:
    """How the weight of a product is rounded that may get few bits and no integer activations."""
    if not consumer.node.is_op("MatMul", "Gemm"):
        return None
    for precision in subject.precisions.get(node_name(consumer.node), ()):
        if precision.activation_bits == 32 and precision.weight_bits < 8:
            found = weight_matrix(Layer(consumer.node, precision, subject.target))
            return found if isinstance(found, WeightMatrix) else None
    return None


def _product(found: tuple[Consumer, WeightMatrix], observations: Observations) -> _Product | None:
    consumer, matrix = found
    seen = seen_of(consumer, observations)
    if seen is None or not np.isfinite(seen[1].magnitude).all():
        return None
    rows, channels = seen
    (weight,) = matrix.matrices(matrix.numbers())
    return _Product(
        consumer.channels,
        rows,
        channels.magnitude / np.maximum(channels.count, 1),
        np.ascontiguousarray(weight[:, :: -(-weight.shape[1] // _COLUMNS)]),
        matrix,
    )


def _fitted(group: ChannelGroup, products: Sequence[_Product]) -> tuple[Floats, float]:
    """Factors of the least error on some rows, and the gain in dB on the others."""
    plain = np.ones(group.size, np.float32)
    magnitude = largest(group, [(p.channels, p.magnitude) for p in products])
    magnitude = np.maximum(magnitude, max(_FLOOR * float(magnitude.mean()), 1e-30))

    def noise(factors: Floats) -> Noise:
        return np.asarray(np.sum([product.noise(factors) for product in products], axis=0))

    before = noise(plain)
    factors, after = plain, before
    for strength in _STRENGTHS:
        tried = magnitude.astype(np.float64) ** strength
        own = tried[group.free]
        tried = np.where(group.free, tried / math.sqrt(own.max() * own.min()), 1)
        found = noise(tried.astype(np.float32))
        if found[0] < after[0]:
            factors, after = tried.astype(np.float32), found
    return factors, gain_db(before, after)

"""Outlier channels of activations moved into the weights that multiply them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from onnxq.needs import Need
from onnxq.observe import Observations
from onnxq.passes.channels.groups import ChannelGroup, Consumer
from onnxq.passes.notes import node_name
from onnxq.quant import INT8, fake_quantize, qparams_from_range, weight_qparams
from onnxq.targets import Target
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

_STRENGTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_NEAR = 0.15
_SHARES = (0.5, 0.25, 0.125)
"""Of the smaller side of a range to its larger one. Behind a Gelu, which gives nothing below -0.17,
channels without large values would otherwise fill the negative side of the range."""

_COLUMNS = 512
"""Outputs of a product that are looked at."""

_LEAST_DB, _LEAST_INSERTED_DB = 1.0, 3.0
"""What has to be gained on the rows not fitted to, also where a Mul has to be put in."""

_FEWEST_OUTPUTS = 256
"""Outputs of products below which a Mul in front would cost more than a few percent of them."""

_FLOOR = 1e-2
"""Of the mean magnitude of channels: the least that counts, because what hardly shows on the
calibration data may be larger on other data."""


@dataclass(frozen=True)
class SmoothQuant(Transformation):
    """Divides channels by ``s = max|X|^a / |W|^(1 - a)`` and multiplies the weights' rows by it.

    That is equation 4 of Xiao et al., SmoothQuant: Accurate and Efficient Post-Training
    Quantization for Large Language Models (ICML 2023). The maxima are over all calibration data,
    and over all products that read a channel. ``|W|`` is the root mean square of a row, where the
    paper has the maximum: with that, a sentence encoder of six layers has 23.5 dB instead of 24.0
    (MiniLM in `int8`, 17.3 dB without smoothing). The strength ``a`` is searched for each group of
    channels: that with the least squared error of what its products give, with activations and
    weights in 8 bits, on sampled rows; it is kept if the error falls by 1 dB on other rows, too.

    Values of the rarer sign may count for more than their magnitude, in a ratio that is searched as
    well: ranges with a zero-point need not be symmetric.

    Attributes:
        insert: Whether to put a Mul in front of products where nothing takes up the factors, as
            behind a Gelu, if that gains 3 dB. A Mul takes about 2 % of the time of the products
            behind it (onnxruntime 1.32, x86-64 with VNNI).
    """

    name: ClassVar[str] = "smooth-quant"
    description: ClassVar[str] = "outlier channels of activations moved into the weights"
    promise: ClassVar[float] = 2.6

    insert: bool = True

    def refusal(self, subject: Subject) -> str:
        """See `Transformation`."""
        able = next(self._groups(subject), None)
        return "" if able else "no product in 8-bit integers reads channels that can be scaled"

    def needs(self, subject: Subject) -> Sequence[Need]:
        """See `Transformation`."""
        return [
            need
            for _, own in self._groups(subject)
            for consumer in own
            for need in needs_of(consumer)
        ]

    def transform(self, subject: Subject, observations: Observations) -> Sequence[Change]:
        """See `Transformation`."""
        product = partial(_product, observations=observations, target=subject.target)
        return [*changed(self._groups(subject), product, _fitted, _least_db)]

    def _groups(self, subject: Subject) -> Iterator[tuple[ChannelGroup, list[Consumer]]]:
        """Groups, and their consumers that are to be in 8 bits."""
        groups, target = subject.groups, subject.target
        inserted = groups.inserted.values() if self.insert else ()
        wanted = partial(_wanted, subject=subject)
        return each_once((*groups.folded.values(), *inserted), wanted, partial(_is_worth, target))


@dataclass(frozen=True, eq=False)
class _Product:
    """What a consumer multiplies.

    Attributes:
        channels: The group's channel of each of its input channels.
        rows: Sampled activations.
        low: Smallest value of each input channel, negated; not below 0.
        high: Largest value of each, not below 0.
        weight: Some of its outputs' weights, a row for each input channel.
        exact: What these give for the rows.
        magnitude: Root mean square of each row of all its weights.
        target: Says how numbers become integers.
    """

    channels: npt.NDArray[np.int32]
    rows: Floats
    low: Floats
    high: Floats
    weight: Floats
    exact: Floats
    magnitude: Floats
    target: Target

    def noise(self, factors: Floats) -> Noise:
        """Relative squared error of what it gives, for the rows fitted to and for the others."""
        own = own_factors(self.channels, factors)
        format = self.target.activation_format_of(8)
        low, high = -float((self.low / own).max()), float((self.high / own).max())
        range_ = qparams_from_range(low, high, format, self.target.scheme_of(format))
        weight = self.weight * own[:, None]
        granularity = self.target.weight_granularity(1)
        scales = weight_qparams(weight, INT8, self.target.weight_scheme, granularity)
        given = fake_quantize(self.rows / own, range_) @ fake_quantize(weight, scales)
        return halves(given - self.exact, self.exact)


def _wanted(consumer: Consumer, subject: Subject) -> Consumer | None:
    """A product that may get both activations and weights in 8-bit integers."""
    precisions = subject.precisions.get(node_name(consumer.node), ())
    is_wanted = consumer.node.is_op("MatMul", "Gemm") and any(
        p.activation_bits == p.weight_bits == 8 for p in precisions
    )
    return consumer if is_wanted else None


def _is_worth(target: Target, group: ChannelGroup, own: Sequence[Consumer]) -> bool:
    """Whether scaling a group can cost nothing that is not looked at."""
    if group.producer is None:
        return not target.everything and sum(map(_outputs, own)) >= _FEWEST_OUTPUTS
    # With a scale for each output, those of a product may have any factors.
    is_product = group.producer.is_op("MatMul", "Gemm", "Conv", "ConvTranspose")
    return not is_product or target.weight_granularity(0).axis is not None


def _least_db(group: ChannelGroup) -> float:
    return _LEAST_DB if group.producer else _LEAST_INSERTED_DB


def _weight(consumer: Consumer) -> Floats:
    """The weight with a row for each input channel."""
    value = consumer.node.input(1)
    assert value is not None
    numbers = value.numpy()
    return numbers.T if consumer.node.get("transB", 0) else numbers


def _outputs(consumer: Consumer) -> int:
    return int(_weight(consumer).shape[1])


def _product(consumer: Consumer, observations: Observations, target: Target) -> _Product | None:
    seen = seen_of(consumer, observations)
    if seen is None or not np.isfinite(seen[1].absmax).all():
        return None
    weight, (drawn, channels) = _weight(consumer), seen
    low, high = np.maximum(-drawn.min(axis=0), 0), np.maximum(drawn.max(axis=0), 0)
    # The side on which the sampled values are larger is taken to be that of the largest of all.
    is_low = low > high
    some = np.ascontiguousarray(weight[:, :: -(-weight.shape[1] // _COLUMNS)])
    return _Product(
        consumer.channels,
        drawn,
        np.where(is_low, channels.absmax, low),
        np.where(is_low, high, channels.absmax),
        some,
        drawn @ some,
        np.sqrt(np.square(weight).mean(axis=1)),
        target,
    )


def _fitted(group: ChannelGroup, products: Sequence[_Product]) -> tuple[Floats, float]:
    """Factors of the least error on some rows, and the gain in dB on the others."""
    plain = np.ones(group.size, np.float32)
    low, high, weights = (
        largest(group, [(p.channels, getattr(p, name)) for p in products])
        for name in ("low", "high", "magnitude")
    )
    if low.max() > high.max():
        low, high = high, low
    weights = _floored(weights)

    def smoothing(strength: float, share: float) -> tuple[Floats, Noise]:
        """Equation 4, with a geometric mean of 1, and the noise with it."""
        activations = _floored(np.maximum(low / share, high))
        found = strength * np.log(activations) - (1 - strength) * np.log(weights)
        factors = np.exp(found - found[group.free].mean())
        factors = np.where(group.free, factors, 1).astype(np.float32)
        return factors, noise(factors)

    def noise(factors: Floats) -> Noise:
        return np.asarray(np.sum([product.noise(factors) for product in products], axis=0))

    before = noise(plain)
    best, factors, after = (0.0, 1.0), plain, before

    def try_all(strengths: Iterable[float], shares: Iterable[float]) -> None:
        nonlocal best, factors, after
        for strength, share in itertools.product(strengths, shares):
            tried, found = smoothing(strength, share)
            if found[0] < after[0]:
                best, factors, after = (strength, share), tried, found

    try_all(_STRENGTHS, (1.0,))
    try_all(best[:1], _SHARES)
    try_all([a for a in _STRENGTHS if 0 < abs(a - best[0]) < _NEAR], best[1:])
    return factors, gain_db(before, after)


def _floored(numbers: Floats) -> Floats:
    return np.maximum(numbers, _FLOOR * max(float(numbers.mean()), 1e-30))

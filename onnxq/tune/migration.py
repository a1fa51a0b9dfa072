"""What methods share that move factors of channels from activations into weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from onnxq.ir import Node
from onnxq.needs import ChannelsOf, RowsOf
from onnxq.observe import Observations
from onnxq.observe.statistics import ChannelStatistics
from onnxq.passes.channels.groups import ChannelGroup, Consumer
from onnxq.passes.channels.labels import NO_CHANNEL
from onnxq.passes.channels.scale_channels import ScaleChannels
from onnxq.tune.transformation import Change

Floats = npt.NDArray[np.float32]
Noise = npt.NDArray[np.float64]
"""Relative squared errors: on what factors are fitted to, and on what they are not."""

FEWEST_ROWS = 64
"""Rows of activations below which the magnitudes of channels are too much a matter of chance: with
8 rows, smoothing gained 2.6 dB on those that it was not fitted to, and lost 7 dB on other data."""

_ROWS = 512

Found = TypeVar("Found")
Product = TypeVar("Product")


def each_once(
    groups: Iterable[ChannelGroup],
    wanted: Callable[[Consumer], Found | None],
    is_worth: Callable[[ChannelGroup, list[Found]], bool] = lambda _, __: True,
) -> Iterator[tuple[ChannelGroup, list[Found]]]:
    """Groups with what is found of the consumers that are wanted, each consumer in one group only.

    Groups of fewer tensors come first: the vector of a Mul before the product in front of it; those
    that need a Mul put in come last.
    """
    taken: set[Node] = set()
    for group in sorted(groups, key=lambda group: (group.producer is None, len(group.changed))):
        own = {c.node: found for c in group.consumers if (found := wanted(c)) is not None}
        all_found = [*own.values()]
        if own and not own.keys() & taken and is_worth(group, all_found):
            taken |= own.keys()
            yield group, all_found


def needs_of(consumer: Consumer) -> tuple[RowsOf, ChannelsOf]:
    """What is observed of what a product reads."""
    name = consumer.read.name
    return RowsOf(name, _ROWS), ChannelsOf(name, consumer.axis)


def seen_of(
    consumer: Consumer, observations: Observations
) -> tuple[Floats, ChannelStatistics] | None:
    """Rows of what a product reads, and statistics by channel; None where these are too few."""
    rows, channels = map(observations.get, needs_of(consumer))
    if rows is None or channels is None or len(rows.rows) < FEWEST_ROWS:
        return None
    return np.asarray(rows.rows[:_ROWS]), channels


def changed(
    groups: Iterable[tuple[ChannelGroup, Sequence[Found]]],
    product: Callable[[Found], Product | None],
    fitted: Callable[[ChannelGroup, Sequence[Product]], tuple[Floats, float]],
    least_db: Callable[[ChannelGroup], float],
) -> Iterator[Change]:
    """The changes of groups that gain enough.

    Args:
        groups: Groups, and what is found of their consumers.
        product: What a consumer multiplies; None where too little was observed of it, which leaves
            out its group.
        fitted: Factors for a group, and the gain in dB.
        least_db: The least gain for a group.
    """
    for group, consumers in groups:
        found = [product(consumer) for consumer in consumers]
        products = [own for own in found if own is not None]
        if len(products) < len(found):
            continue
        factors, gain = fitted(group, products)
        if gain >= least_db(group):
            name = group.tensor.name
            yield Change(ScaleChannels.name, name, factors, group.nodes, gain)


def largest(
    group: ChannelGroup, numbers: Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[np.floating]]]
) -> Floats:
    """The largest of all products' numbers for each channel of a group, of none 0."""
    found = np.zeros(group.size, np.float32)
    for channels, own in numbers:
        known = channels != NO_CHANNEL
        np.maximum.at(found, channels[known], own[known].astype(np.float32))
    return found


def own_factors(channels: npt.NDArray[np.int32], factors: Floats) -> Floats:
    """The factor of each input channel of a product; 1 for those that the group has not."""
    return np.where(channels == NO_CHANNEL, np.float32(1), factors[channels])


def halves(error: npt.NDArray[np.floating], exact: npt.NDArray[np.floating]) -> Noise:
    """Squared error relative to what is exact, of the first half of rows and of the second."""
    lost, power = (np.square(n).sum(axis=1, dtype=np.float64) for n in (error, exact))
    half = len(lost) // 2
    parts = slice(half), slice(half, None)
    return np.array([lost[p].sum() / max(power[p].sum(), 1e-30) for p in parts])


def gain_db(before: Noise, after: Noise) -> float:
    """What is gained on what factors are not fitted to."""
    is_known = before[1] > 0 and after[1] > 0
    return 10 * math.log10(before[1] / after[1]) if is_known else 0.0

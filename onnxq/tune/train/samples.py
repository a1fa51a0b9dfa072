"""Training data in memory: parts, order, feeds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from onnxq.data import Batch, Dataset
from onnxq.data.batch import Fed
from onnxq.errors import InputError
from onnxq.tune.train.augmentation import Augment
from onnxq.tune.train.dtypes import to_torch

_SHOWING = 1024
"""So many samples show the statistics of BatchNormalization."""


@dataclass(frozen=True)
class Labels:
    """Labels of the real samples of a feed.

    Attributes:
        values: One a sample or more: classes, negative ones left out, or numbers.
        weight: What their loss counts beside the feed's other losses: see `weighted`.
    """

    values: torch.Tensor
    weight: float = 1.0

    @property
    def count(self) -> int:
        """How many say something."""
        are_numbers = self.values.is_floating_point()
        return self.values.numel() if are_numbers else int((self.values >= 0).sum())


@dataclass(frozen=True)
class Feed:
    """One feed as tensors.

    Attributes:
        feeds: By input.
        labels: None without; two where samples are blended with others.
        valid: Real samples: those behind them are copies that fill up a fixed batch.
        size: Samples with these.
        is_divisible: Whether a model may as well be fed them a few at a time.
        is_part: Whether other processes have other parts of what was one feed.
    """

    feeds: Mapping[str, torch.Tensor]
    labels: tuple[Labels, ...]
    valid: int
    size: int
    is_divisible: bool = False
    is_part: bool = False

    def trim(self, output: torch.Tensor) -> torch.Tensor:
        """An output without what belongs to copies."""
        is_batched = output.ndim > 0 and output.shape[0] == self.size
        return output[: self.valid] if is_batched and self.valid < self.size else output

    def to(self, device: torch.device) -> Feed:
        """The same on a device, images with their channels last in memory: see `channels_last`."""
        feeds = {name: channels_last(t.to(device)) for name, t in self.feeds.items()}
        labels = tuple(replace(own, values=own.values.to(device)) for own in self.labels)
        return replace(self, feeds=feeds, labels=labels)

    def split(self, count: int) -> list[Feed]:
        """So many feeds of about as many samples each; itself alone if it cannot be split."""
        if not self.is_divisible or self.size < count:
            return [self]
        sizes = [len(part) for part in np.array_split(np.arange(self.size), count)]
        columns = {name: tensor.split(sizes) for name, tensor in self.feeds.items()}
        parts = [own.values.split(sizes) for own in self.labels]
        labels = [
            tuple(
                replace(own, values=part[i]) for own, part in zip(self.labels, parts, strict=True)
            )
            for i in range(count)
        ]
        return weighted(
            Feed({n: t[i] for n, t in columns.items()}, own, size, size, True, True)
            for i, (size, own) in enumerate(zip(sizes, labels, strict=True))
        )


def weighted(feeds: Iterable[Feed]) -> list[Feed]:
    """Parts of what is one batch, whose labels count alike wherever they are.

    A part's losses are means, and count by its samples; that of labels leaves out the negative
    ones, and has to count by those that it is the mean of.
    """
    feeds = list(feeds)
    samples = sum(f.valid for f in feeds)
    counts = [
        sum(own.count for own in each) for each in zip(*(f.labels for f in feeds), strict=True)
    ]

    def moved(own: Labels, count: int, valid: int) -> Labels:
        return (
            replace(own, weight=own.weight * own.count / count * samples / valid) if count else own
        )

    return [
        replace(
            f,
            labels=tuple(
                moved(own, count, f.valid) for own, count in zip(f.labels, counts, strict=True)
            ),
        )
        for f in feeds
    ]


class Samples:
    """Units that can be fed together, single samples, or feeds that stay as they are."""

    def __init__(self, units: Sequence[Batch], is_divisible: bool) -> None:
        self._units = units
        self._is_divisible = is_divisible

    @classmethod
    def of(cls, data: Dataset, inputs: Sequence[Fed]) -> Samples:
        """All samples of a dataset."""
        batches = list(data.batches())
        if not all(batch.is_divisible(inputs) for batch in batches):
            return cls(batches, False)
        return cls([b.rows(i, i + 1) for b in batches for i in range(b.size)], True)

    def __len__(self) -> int:
        """Number of samples."""
        return sum(unit.valid for unit in self._units)

    @property
    def units(self) -> int:
        """Number of units."""
        return len(self._units)

    @property
    def first(self) -> Batch:
        """One unit, to look at."""
        return self._units[0]

    @property
    def labels(self) -> Iterator[np.ndarray]:
        """Labels of all units that have some."""
        return (u.labels[: u.valid] for u in self._units if u.labels is not None)

    def drawn(self, share: float, seed: int) -> list[int]:
        """Places of about so large a share of the units.

        Raises:
            InputError: there is only one unit.
        """
        if len(self._units) < 2:
            raise InputError(
                "the training data holds one sample, and some are needed to tell which epoch was "
                "best; give more"
            )
        order = np.random.RandomState(seed).permutation(len(self._units))
        count = min(max(1, round(share * len(order))), len(order) - 1)
        return sorted(order[:count].tolist())

    def split(self, places: Sequence[int]) -> tuple[Samples, Samples]:
        """The units that are not at some places, and those that are."""
        there = {*places}
        first = [unit for at, unit in enumerate(self._units) if at not in there]
        second = [unit for at, unit in enumerate(self._units) if at in there]
        return Samples(first, self._is_divisible), Samples(second, self._is_divisible)

    def updates(self, batch_size: int) -> int:
        """Updates in an epoch."""
        return -(-len(self._units) // self._per_update(batch_size))

    def epoch(
        self, order: np.random.RandomState | None, batch_size: int, parts: int = 1
    ) -> Iterator[list[list[int]]]:
        """For each update, the units of its parts.

        Args:
            order: Shuffles; the order is the data's own if None.
            batch_size: Samples in an update.
            parts: Into how many feeds an update is split.
        """
        count, size = len(self._units), self._per_update(batch_size)
        units = np.arange(count) if order is None else order.permutation(count)
        for start in range(0, count, size):
            chosen = units[start : start + size]
            pieces = np.array_split(chosen, min(parts, len(chosen)))
            if not self._is_divisible:
                pieces = [chosen[i : i + 1] for i in range(len(chosen))]
            yield [piece.tolist() for piece in pieces]

    def feed(
        self, units: Sequence[int], augment: Augment | None = None, seed: Sequence[int] = ()
    ) -> Feed:
        """Some units together, changed at random by a seed that is theirs with them."""
        chosen = [self._units[i] for i in units]
        feeds = {
            name: np.concatenate([u.feeds[name] for u in chosen])
            if len(chosen) > 1
            else chosen[0].feeds[name]
            for name in chosen[0].feeds
        }
        valid, size = (sum(getattr(u, what) for u in chosen) for what in ("valid", "size"))
        given = [u.labels[: u.valid] for u in chosen if u.labels is not None]
        labels: tuple[Labels, ...] = (Labels(to_torch(np.concatenate(given))),) if given else ()
        if augment is not None:
            feeds, blend = augment(feeds, np.random.RandomState([*seed, units[0]]), valid)
            if blend is not None:
                labels = tuple(
                    replace(own, values=own.values[rows], weight=share)
                    for own in labels
                    for rows, share in blend.parts
                )
        tensors = {name: to_torch(array) for name, array in feeds.items()}
        return Feed(tensors, labels, valid, size, self._is_divisible)

    def shown(self, batch_size: int, seed: Sequence[int]) -> Iterator[Feed]:
        """Feeds, drawn by the seed, that show the statistics of what is computed."""
        updates = self.epoch(np.random.RandomState(seed), batch_size)
        for parts in islice(updates, -(-_SHOWING // batch_size)):
            yield from map(self.feed, parts)

    def _per_update(self, batch_size: int) -> int:
        """Units in an update."""
        return max(1, batch_size // (1 if self._is_divisible else self._units[0].size))


def channels_last(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers as convolutions compute them fastest: a tenth faster on the processor."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

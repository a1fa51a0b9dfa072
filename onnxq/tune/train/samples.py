"""Training data in memory: parts, order, augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from onnxq.data import Batch, Dataset
from onnxq.data.batch import Fed
from onnxq.errors import InputError
from onnxq.tune.train.dtypes import to_torch

Augment = Callable[[dict[str, np.ndarray], np.random.RandomState], dict[str, np.ndarray]]

_COLOURS = (1, 3, 4)
"""Channels that images have."""

_SHIFT = 8
"""A crop moves an image by up to this part of its side."""

_SHOWING = 1024
"""So many samples show the statistics of BatchNormalization."""


@dataclass(frozen=True)
class Feed:
    """One feed as tensors.

    Attributes:
        feeds: By input.
        labels: Of the real samples, None without.
        valid: Real samples: those behind them are copies that fill up a fixed batch.
        size: Samples with these.
        is_divisible: Whether a model may as well be fed them a few at a time.
        is_part: Whether other processes have other parts of what was one feed.
        label_weight: What the loss of the labels counts beside the feed's other losses: see
            `weighted`.
    """

    feeds: Mapping[str, torch.Tensor]
    labels: torch.Tensor | None
    valid: int
    size: int
    is_divisible: bool = False
    is_part: bool = False
    label_weight: float = 1.0

    @property
    def labelled(self) -> int:
        """How many labels say something."""
        if self.labels is None:
            return 0
        are_numbers = self.labels.is_floating_point()
        return self.labels.numel() if are_numbers else int((self.labels >= 0).sum())

    def trim(self, output: torch.Tensor) -> torch.Tensor:
        """An output without what belongs to copies."""
        is_batched = output.ndim > 0 and output.shape[0] == self.size
        return output[: self.valid] if is_batched and self.valid < self.size else output

    def to(self, device: torch.device) -> Feed:
        """The same on a device, images with their channels last in memory: see `channels_last`."""
        feeds = {name: channels_last(t.to(device)) for name, t in self.feeds.items()}
        labels = None if self.labels is None else self.labels.to(device)
        return replace(self, feeds=feeds, labels=labels)

    def split(self, count: int) -> list[Feed]:
        """So many feeds of about as many samples each; itself alone if it cannot be split."""
        if not self.is_divisible or self.size < count:
            return [self]
        sizes = [len(part) for part in np.array_split(np.arange(self.size), count)]
        columns = {name: tensor.split(sizes) for name, tensor in self.feeds.items()}
        labels = [None] * count if self.labels is None else self.labels.split(sizes)
        weight = self.label_weight
        return weighted(
            Feed({n: t[i] for n, t in columns.items()}, labels[i], size, size, True, True, weight)
            for i, size in enumerate(sizes)
        )


def weighted(feeds: Iterable[Feed]) -> list[Feed]:
    """Parts of what is one batch, whose labels count alike wherever they are.

    A part's losses are means, and count by its samples; that of labels leaves out the negative
    ones, and has to count by those that it is the mean of.
    """
    feeds = list(feeds)
    labelled, samples = sum(f.labelled for f in feeds), sum(f.valid for f in feeds)
    if not labelled:
        return feeds
    shares = [f.labelled / labelled * samples / f.valid for f in feeds]
    return [
        replace(f, label_weight=f.label_weight * by) for f, by in zip(feeds, shares, strict=True)
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
    def first(self) -> Batch:
        """One unit, to look at."""
        return self._units[0]

    @property
    def labels(self) -> Iterator[np.ndarray]:
        """Labels of all units that have some."""
        return (u.labels[: u.valid] for u in self._units if u.labels is not None)

    def split(self, share: float, seed: int) -> tuple[Samples, Samples]:
        """Two parts, of which the second has about so large a share.

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
        parts = (sorted(order[count:]), sorted(order[:count]))
        first, second = ([self._units[i] for i in part] for part in parts)
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
        if augment is not None:
            feeds = augment(feeds, np.random.RandomState([*seed, units[0]]))
        given = [u.labels[: u.valid] for u in chosen if u.labels is not None]
        labels = to_torch(np.concatenate(given)) if given else None
        tensors = {name: to_torch(array) for name, array in feeds.items()}
        valid, size = (sum(getattr(u, what) for u in chosen) for what in ("valid", "size"))
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


def augmenting(names: Sequence[str], batch: Batch) -> Augment | None:
    """A function that changes images at random; None if nothing is wanted.

    Args:
        names: ``flip``, ``crop``.
        batch: Shows which input is images, see `image_of`.

    Raises:
        InputError: there is not just one such input.
    """
    if not names:
        return None
    image = image_of(batch)
    if image is None:
        has = ", ".join(f"{name} {list(array.shape)}" for name, array in batch.feeds.items())
        raise InputError(
            f"augmentation is for one input of images, and the model's are {has}; leave --augment "
            "out"
        )
    channels_first = _channels_at(batch.feeds[image]) == 1

    def augment(
        feeds: dict[str, np.ndarray], random: np.random.RandomState
    ) -> dict[str, np.ndarray]:
        array = feeds[image] if channels_first else np.moveaxis(feeds[image], 3, 1)
        array = array.copy()
        if "flip" in names:
            mirrored = random.rand(len(array)) < 0.5
            array[mirrored] = array[mirrored, :, :, ::-1]
        if "crop" in names:
            array = _moved(array, random)
        return {**feeds, image: array if channels_first else np.moveaxis(array, 1, 3)}

    return augment


def image_of(batch: Batch) -> str | None:
    """The input that is images, if there is just one: four axes and 1, 3 or 4 channels."""
    images = [name for name, array in batch.feeds.items() if _channels_at(array) is not None]
    return images[0] if len(images) == 1 else None


def _channels_at(array: np.ndarray) -> int | None:
    if array.ndim != 4:
        return None
    return next((axis for axis in (1, 3) if array.shape[axis] in _COLOURS), None)


def _moved(array: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Every image moved by some pixels, with zeros where nothing was."""
    by = [max(1, side // _SHIFT) for side in array.shape[2:]]
    padded = np.pad(array, ((0, 0), (0, 0), *((n, n) for n in by)))
    moved = np.empty_like(array)
    starts = [random.randint(0, 2 * n + 1, len(array)) for n in by]
    for at, (top, left) in enumerate(zip(*starts, strict=True)):
        moved[at] = padded[at, :, top : top + array.shape[2], left : left + array.shape[3]]
    return moved

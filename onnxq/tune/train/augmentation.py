"""What is done to images at random while a model is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.data import Batch
from onnxq.errors import InputError


@dataclass(frozen=True)
class Blend:
    """With what samples are blended.

    Attributes:
        partners: For each real sample, the one that is blended with it.
        share: What is left of each itself, 0 to 1.
    """

    partners: np.ndarray
    share: float

    @property
    def parts(self) -> tuple[tuple[np.ndarray, float], ...]:
        """Which samples are mixed, each with its share."""
        return (np.arange(len(self.partners)), self.share), (self.partners, 1 - self.share)


Augment = Callable[
    [dict[str, np.ndarray], np.random.RandomState, int],
    tuple[dict[str, np.ndarray], Blend | None],
]
"""Changes feeds, of which so many samples are real."""

_COLOURS = (1, 3, 4)
"""Channels that images have."""

_SHIFT = 8
"""A crop moves an image by up to this part of its side."""

_CUT = 2
"""A square that is cut out has this part of a side."""


def augmenting(names: Sequence[str], batch: Batch) -> Augment | None:
    """A function that changes images at random; None if nothing is wanted.

    Args:
        names: As `onnxq.tune.training.TrainOptions.augment`.
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
        feeds: dict[str, np.ndarray], random: np.random.RandomState, valid: int
    ) -> tuple[dict[str, np.ndarray], Blend | None]:
        array = feeds[image] if channels_first else np.moveaxis(feeds[image], 3, 1)
        array = array.copy()
        if "flip" in names:
            mirrored = random.rand(len(array)) < 0.5
            array[mirrored] = array[mirrored, :, :, ::-1]
        if "crop" in names:
            array = _moved(array, random)
        if "cutout" in names:
            _cut_out(array, random)
        blend = _blended(array, random, valid) if "mixup" in names else None
        return {**feeds, image: array if channels_first else np.moveaxis(array, 1, 3)}, blend

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


def _cut_out(array: np.ndarray, random: np.random.RandomState) -> None:
    """Put zeros in a square of each image, of which some may lie outside.

    DeVries & Taylor, Improved Regularization of Convolutional Neural Networks with Cutout (2017),
    section 3.
    """
    sides = array.shape[2:]
    half = max(1, min(sides) // _CUT // 2)
    centres = [random.randint(0, side, len(array)) for side in sides]
    for at, (row, column) in enumerate(zip(*centres, strict=True)):
        rows, columns = (slice(max(0, c - half), c + half) for c in (row, column))
        array[at, :, rows, columns] = 0


def _blended(array: np.ndarray, random: np.random.RandomState, valid: int) -> Blend:
    """Mix each real image with another one, all by the same share.

    Zhang et al., mixup: Beyond Empirical Risk Minimization (ICLR 2018), equation 2 with shares from
    Beta(1, 1).
    """
    blend = Blend(random.permutation(valid), random.rand())
    own = array[:valid].astype(np.float64)
    mixed = sum(share * own[rows] for rows, share in blend.parts)
    array[:valid] = np.rint(mixed) if array.dtype.kind in "iu" else mixed
    return blend

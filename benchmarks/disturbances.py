"""Streams of photographs in which something changes: light, focus, noise, or what is in them.

Changes are made to pixels from 0 to 1 before a model normalizes them, and not clipped, as a camera
with more bits than its calibration used gives them. Strengths were tried on held-out photographs
with all nodes in int8 (minmax or automatic ranges, onnxruntime 1.32). A model that was calibrated
as a stream begins, and then sees photographs as they are, loses while float gains:

    cifar_resnet20    gain 0.5 -11.2 points, offset +0.3 -8.4, offset -0.3 -2.1, contrast 0.35 -0.9
    cifar_mobilenet   gain 0.5 -13.3, offset +0.3 -8.7, offset -0.3 -2.3, contrast 0.35 -1.2
    digits_vit        gain 0.7 -8.0, offset -0.3 -7.8, contrast 0.35 -15.5, contrast 0.7 -1.5

One that was calibrated on photographs as they are loses against float, which loses as well:

    cifar_resnet20    gain 2 -3.4 (float 71.3 % instead of 80.2), offset -0.5 -21.1 (float 70.1),
                      offset +0.5 -12.5 (float 68.2); contrast 2 gains 1.0
    digits_vit        nothing: where ranges clip, int8 does better than float (gain 2 +13.1)

Blur, noise, low contrast and other classes cost int8 no more than float, at any strength that was
tried (blur to 1.5 pixels, noise to 0.15, 2 of 10 classes). Blur of 1.5 pixels leaves the CIFAR-10
models 27 %, noise of 0.15 leaves them 33 %, and digits_vit 88 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from cases import CIFAR_MEAN, CIFAR_STD, MODELS, Arrays, cifar_case
from scipy.ndimage import gaussian_filter

Pixels = np.ndarray
"""Float32 [samples, channels, height, width]."""


@dataclass(frozen=True)
class Change:
    """What becomes of photographs, to a degree from 0 to 1.

    Attributes:
        name: What it is, in a few words.
        apply: Changes pixels fully, given a generator of random numbers.
        classes: Those of which there are photographs; all if empty.
    """

    name: str
    apply: Callable[[Pixels, np.random.Generator], Pixels]
    classes: tuple[int, ...] = ()

    def __call__(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """The changed photographs."""
        return self.apply(pixels, rng).astype(np.float32)


NONE = Change("as they are", lambda pixels, rng: pixels)


def gain(factor: float) -> Change:
    """Brighter or darker by a factor."""
    return Change(f"gain {factor:g}", lambda pixels, rng: pixels * factor)


def offset(step: float) -> Change:
    """Brighter or darker by a step."""
    return Change(f"offset {step:+g}", lambda pixels, rng: pixels + step)


def contrast(factor: float) -> Change:
    """More or less different from each photograph's mean."""

    def apply(pixels: Pixels, rng: np.random.Generator) -> Pixels:
        mean = pixels.mean((1, 2, 3), keepdims=True)
        return (pixels - mean) * factor + mean

    return Change(f"contrast {factor:g}", apply)


def blur(width: float) -> Change:
    """Out of focus by a Gaussian."""
    return Change(
        f"blur {width:g}", lambda pixels, rng: gaussian_filter(pixels, (0, 0, width, width))
    )


def noise(deviation: float) -> Change:
    """Noise of a sensor."""
    return Change(
        f"noise {deviation:g}", lambda pixels, rng: pixels + rng.normal(0, deviation, pixels.shape)
    )


def both(first: Change, second: Change) -> Change:
    """One after the other."""
    return Change(
        f"{first.name}, {second.name}", lambda pixels, rng: second(first(pixels, rng), rng)
    )


def only(*classes: int) -> Change:
    """Photographs of some classes alone."""
    return Change(f"classes {', '.join(map(str, classes))}", lambda pixels, rng: pixels, classes)


@dataclass(frozen=True)
class Photographs:
    """A model's photographs: those to calibrate on, and held-out ones; labels; how it reads them.

    Attributes:
        calibration: Pixels and labels.
        held_out: Pixels and labels.
        mean: What is subtracted from pixels.
        deviation: What they are divided by then.
    """

    calibration: tuple[Pixels, np.ndarray]
    held_out: tuple[Pixels, np.ndarray]
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, name: str) -> Photographs:
        """Those of a model; of CIFAR-10 where ONNXQ_CORPUS has them."""
        if name.startswith("cifar"):
            case = cifar_case(name, MODELS / f"{name}.onnx", 512)
            assert isinstance(case.data, dict) and case.eval_data is not None
            mean, deviation = (side.reshape(1, 3, 1, 1) for side in (CIFAR_MEAN, CIFAR_STD))
            calibration, held_out = (
                (part["image"] * deviation + mean, part["labels"])
                for part in (case.data, case.eval_data)
            )
            return cls(calibration, held_out, mean, deviation)
        with np.load(MODELS / "digits.npz") as file:
            image, labels, split = file["image"], file["labels"], file["split"]
        parts = [(image[split == side], labels[split == side]) for side in (0, 1)]
        return cls(parts[0], parts[1], np.zeros(1, np.float32), np.ones(1, np.float32))

    def usual(self, change: Change, seed: int = 0) -> Arrays:
        """What to calibrate on where photographs are changed."""
        pixels, labels = _chosen(self.calibration, change)
        return self._fed(change(pixels, np.random.default_rng(seed)), labels)

    def stream(self, parts: Sequence[tuple[int, Change, Change]], seed: int = 0) -> Arrays:
        """Held-out photographs in a random order, used again when all were.

        Args:
            parts: How many, as what they begin, and as what they end: between these they change
                evenly.
            seed: Of their order and of noise.
        """
        rng = np.random.default_rng(seed)
        pieces, labels = [], []
        for count, first, last in parts:
            pixels, own = _chosen(self.held_out, last)
            order = np.concatenate(
                [rng.permutation(len(own)) for _ in range(-(-count // len(own)))]
            )
            order = order[:count]
            ended = last(pixels[order], rng)
            if first is not last:
                degree = np.linspace(0, 1, count, dtype=np.float32).reshape(-1, 1, 1, 1)
                ended = (1 - degree) * first(pixels[order], rng) + degree * ended
            pieces.append(ended)
            labels.append(own[order])
        return self._fed(np.concatenate(pieces), np.concatenate(labels))

    def _fed(self, pixels: Pixels, labels: np.ndarray) -> Arrays:
        image = ((pixels - self.mean) / self.deviation).astype(np.float32)
        return {"image": image, "labels": labels}


def _chosen(photographs: tuple[Pixels, np.ndarray], change: Change) -> tuple[Pixels, np.ndarray]:
    pixels, labels = photographs
    if not change.classes:
        return pixels, labels
    kept = np.isin(labels, change.classes)
    return pixels[kept], labels[kept]

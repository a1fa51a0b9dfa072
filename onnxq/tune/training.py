"""How to train, and what came of it; needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

from onnxq.errors import InputError

LossKind = Literal["task", "distill", "both"]
Method = Literal["lsq", "lsq+", "ste"]
AUGMENTATIONS = ("flip", "crop", "cutout", "mixup")
AUTO, NONE = ("auto",), ("none",)
FEWEST_UPDATES = 500
"""So many there are at least, unless epochs are asked for."""


@dataclass(frozen=True)
class TrainOptions:
    """How a quantized model is trained.

    Attributes:
        method: ``lsq`` learns the steps together with the weights, ``lsq+`` zero-points of
            activations, too, where there are values below and above zero, ``ste`` leaves them as
            calibration found them.
        loss: ``both`` takes labels and the float model's outputs, ``task`` labels alone, and
            ``distill`` outputs alone.
        features: Weight of the distance from the float model at the tensors that every way through
            the model leads through; none at 0.
        batch_norm: ``live`` trains BatchNormalization that is behind a convolution or product with
            the statistics of batches, and folds it into scales and biases at the end; ``restored``
            puts one behind those, too, that the file has none behind, as if it had not been folded
            when the model was exported; ``frozen`` trains what the model is after it was folded.
        epochs: Passes over the training data; at 0 ten, or as many as `FEWEST_UPDATES` take.
        batch_size: Samples in an update. Models with a fixed batch take it feed by feed.
        accumulate: Parts into which an update's samples are split, to save memory.
        lr: Largest learning rate, relative to the size of what is learned: of a channel's weights
            the root of their mean square, of biases a tenth of that, of steps a tenth of each. At 0
            that of `rate`.
        optimizer: ``adamw``, or ``sgd`` with momentum, whose gradients are those by what is learned
            as a multiple of its size.
        weight_decay: Of weights, apart from gradients: an update takes away the learning rate times
            this part of each.
        average: Decay by update, such as 0.999, of moving averages of all that is learned: epochs
            are judged with these, and the best ones kept; none at 0.
        schedule: ``cosine`` falls to 0; ``one-cycle`` rises for long and falls further.
        warmup: Share of all updates in which the learning rate rises.
        augment: What is done to images at random: ``flip`` (left and right), ``crop`` (moved by up
            to an eighth, filled up with zeros), ``cutout`` (zeros in a square of half a side, of
            which some may lie outside), ``mixup`` (blended with another image of the batch, labels
            likewise). ``auto`` is those of the first two under which the float model decides most
            images as before, in every class, where it decides about images, and ``none`` nothing.
        held_out: Share of the training data that nothing is trained on. It says which epoch was
            best.
        patience: Stop after so many epochs that were no better; never at 0.
        device: ``auto``, ``cpu``, ``cuda`` or as torch names it.
        mixed_precision: Compute products in bfloat16, where that is faster: on CUDA, and on
            processors that have it.
        processes: How many compute an update together, each its share of it. What they learn is
            what one process learns, but for rounding; only distances relative to a batch
            (``features``, outputs that decide nothing) are relative to a share, or to one of the
            parts of ``accumulate``.
        checkpoint_every: Updates between checkpoints; one is made after each epoch, too.
        seed: Of order and augmentation.
        through: Bits that the model is trained in before, one after another and each as long, so
            that weights do not come to few bits at once. What is learned in them is begun with in
            the next.
    """

    method: Method = "lsq"
    loss: LossKind = "both"
    features: float = 0.0
    batch_norm: Literal["frozen", "live", "restored"] = "frozen"
    epochs: int = 0
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 0.0
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.0
    average: float = 0.0
    schedule: Literal["cosine", "one-cycle"] = "cosine"
    warmup: float = 0.05
    augment: tuple[str, ...] = AUTO
    held_out: float = 0.1
    patience: int = 0
    device: str = "auto"
    mixed_precision: bool = False
    processes: int = 1
    checkpoint_every: int = 100
    seed: int = 0
    through: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuse what cannot be.

        Raises:
            InputError: naming the option.
        """
        for field, wanted, holds in _LIMITS:
            value = getattr(self, field)
            if not holds(value):
                raise InputError(f"training takes {field} {wanted}, not {value}")
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                known = ", ".join(allowed)
                raise InputError(
                    f"training knows no {field} '{getattr(self, field)}'; use one of {known}"
                )
        for field in ("augment", "through"):
            value = getattr(self, field)
            if isinstance(value, str):
                raise InputError(f"training takes {field} as a list: write [{value!r}]")
        for name in self.augment if self.augment not in (AUTO, NONE) else ():
            if name not in AUGMENTATIONS:
                raise InputError(
                    f"there is no augmentation '{name}'; use some of {', '.join(AUGMENTATIONS)}"
                )

    def basis(self) -> dict[str, str]:
        """What a run that is resumed has to have in common with the one that was broken off.

        The learning rate may be another one, as after a loss that was not finite.
        """
        free = ("lr", "device", "processes", "checkpoint_every")
        return {f.name: str(getattr(self, f.name)) for f in fields(self) if f.name not in free}


def _is_positive(value: float) -> bool:
    return value > 0


def _is_no_less(value: float) -> bool:
    return value >= 0


def _is_share(value: float) -> bool:
    return 0 <= value < 1


_LIMITS: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    *((name, "above 0", _is_positive) for name in ("batch_size", "accumulate", "processes")),
    ("checkpoint_every", "above 0", _is_positive),
    *((name, "of at least 0", _is_no_less) for name in ("epochs", "lr", "patience")),
    *((name, "of at least 0", _is_no_less) for name in ("features", "weight_decay")),
    *((name, "from 0 to below 1", _is_share) for name in ("average", "warmup")),
    ("held_out", "between 0 and 1", lambda v: 0 < v < 1),
)

_CHOICES = {
    "method": ("lsq", "lsq+", "ste"),
    "loss": ("task", "distill", "both"),
    "batch_norm": ("frozen", "live", "restored"),
    "optimizer": ("adamw", "sgd"),
    "schedule": ("cosine", "one-cycle"),
}


_RATES = ((3, 1e-2), (4, 5e-3), (8, 1e-3))
"""Learning rates of weights of up to so many bits."""


def rate(bits: float) -> float:
    """The largest learning rate for weights of so many bits: few have far to the next integer."""
    return next(value for most, value in _RATES if bits <= most)


@dataclass(frozen=True)
class EpochFacts:
    """What an epoch came to.

    ``loss`` is the mean while it was trained, None before the first; ``held_out_loss`` and
    ``score`` are of data never trained on. ``score`` is the accuracy for labels of one class a
    sample, None for other losses.
    """

    epoch: int
    loss: float | None
    held_out_loss: float
    score: float | None
    lr: float


@dataclass(frozen=True)
class TrainingFacts:
    """How a model was trained.

    ``best`` is the epoch whose numbers it has, 0 for untrained; ``augment`` what was done to
    images.
    """

    method: str
    loss: str
    epochs: int
    steps: int
    best: int
    samples: int
    seconds: float
    device: str
    history: tuple[EpochFacts, ...]
    augment: tuple[str, ...] = ()

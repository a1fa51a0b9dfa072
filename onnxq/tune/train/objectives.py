"""What training makes small: the loss of labels, the distance from the float model, or both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from onnxq.data import Batch
from onnxq.errors import InputError
from onnxq.tune.train.executor import Executor
from onnxq.tune.train.samples import Feed, Samples
from onnxq.tune.training import LossKind

Outputs = Mapping[str, torch.Tensor]

_RAREST = 1e-6
"""Probability that what is given as 0, as by integers, is taken to have."""


class Head(Protocol):
    """What an output decides, as `onnxq.verify.decisions.Decision`."""

    @property
    def output(self) -> str:
        """The output's name."""

    @property
    def kind(self) -> str:
        """``classes``, ``threshold`` or another."""

    @property
    def axis(self) -> int:
        """The axis of the classes."""

    @property
    def are_probabilities(self) -> bool:
        """Whether the numbers are probabilities, not scores."""


class Tap(nn.Module):
    """Keeps what passes a place of a graph."""

    def __init__(self) -> None:
        super().__init__()
        self.held: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pass it on."""
        self.held = x
        return x


class Objective:
    """The loss of a batch, and the share of right decisions where labels are classes."""

    def __init__(
        self,
        kind: LossKind,
        teacher: Executor | None,
        heads: Sequence[Head] = (),
        features: Mapping[str, tuple[Tap, Tap]] | None = None,
        features_weight: float = 0.0,
    ) -> None:
        """Say what counts.

        Args:
            kind: Labels, the float model, or both.
            teacher: The float model, where it counts.
            heads: What its outputs decide. Those that decide nothing are compared as numbers.
            features: By value, where the float and the quantized model are looked at, too.
            features_weight: How much that counts.
        """
        self._kind = kind
        self._teacher = teacher
        self._heads = {head.output: head for head in heads}
        self._features = features or {}
        self._weight = features_weight

    def loss(self, feed: Feed, outputs: Outputs) -> torch.Tensor:
        """The mean loss of the samples of a feed."""
        total = torch.zeros((), device=next(iter(outputs.values())).device)
        if self._kind != "distill":
            ours = {k: feed.trim(v) for k, v in outputs.items()}
            for own in feed.labels:
                total = total + own.weight * task_loss(ours, own.values)
        if self._teacher is not None:
            with torch.no_grad():
                wanted = self._teacher(feed.feeds)
            if self._kind != "task":
                for name, exact in wanted.items():
                    if exact.is_floating_point():
                        head, learned = self._heads.get(name), feed.trim(outputs[name])
                        total = total + distance(head, feed.trim(exact), learned)
            for first, second in self._features.values():
                assert first.held is not None and second.held is not None
                near = _relative(feed.trim(first.held), feed.trim(second.held))
                total = total + self._weight * near / len(self._features)
        return total

    def right(self, feed: Feed, outputs: Outputs) -> tuple[int, int] | None:
        """How many decisions are right, of how many; None where labels are not one class each."""
        if self._kind == "distill" or not feed.labels:
            return None
        labels = feed.labels[0].values
        if labels.is_floating_point() or labels.ndim != 1:
            return None
        scores = _scored({k: feed.trim(v) for k, v in outputs.items()}, labels)
        counted = labels >= 0
        return int(((scores.argmax(-1) == labels) & counted).sum()), int(counted.sum())


def task_loss(outputs: Outputs, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of labels that are classes, negative ones left out, else squared error.

    Raises:
        InputError: no output goes with the labels.
    """
    scores = _scored(outputs, labels)
    if labels.is_floating_point():
        return (scores - labels).square().mean()
    classes = scores.shape[-1]
    wanted = labels.reshape(-1).long()
    ignored = torch.where(wanted < 0, -100, wanted)
    rows = scores.reshape(-1, classes)
    total = functional.cross_entropy(rows, ignored, ignore_index=-100, reduction="sum")
    return total / (wanted >= 0).sum().clamp_min(1)


def _scored(outputs: Outputs, labels: torch.Tensor) -> torch.Tensor:
    """The output that labels are for: of their shape, with an axis of classes for integers."""
    for value in outputs.values():
        if value.is_floating_point():
            shape, has_classes = value.shape, not labels.is_floating_point()
            if (shape[:-1] if has_classes else shape) == labels.shape:
                return value
    wanted = [*labels.shape, *(() if labels.is_floating_point() else ("classes",))]
    has = ", ".join(f"{name} {list(value.shape)}" for name, value in outputs.items())
    raise InputError(
        f"labels {list(labels.shape)} need an output [{', '.join(map(str, wanted))}], and the "
        f"model's outputs are {has}; give other labels, or train with --loss distill"
    )


def distance(head: Head | None, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """How far an output is from the float model's: a divergence, or relative squared error."""
    if head is None or head.kind not in ("classes", "threshold"):
        return _relative(ours, theirs)
    if head.kind == "threshold":
        return functional.binary_cross_entropy(_inner(theirs), _inner(ours))
    p, q = (_logarithms(head, side) for side in (ours, theirs))
    return (p.exp() * (p - q)).sum(-1).mean()


def _logarithms(head: Head, values: torch.Tensor) -> torch.Tensor:
    values = values.movedim(head.axis, -1)
    if head.are_probabilities:
        values = values.clamp_min(_RAREST).log()
    return functional.log_softmax(values, -1)


def _inner(values: torch.Tensor) -> torch.Tensor:
    return values.clamp(_RAREST, 1 - _RAREST)


def _relative(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    return (ours - theirs).square().mean() / ours.square().mean().clamp_min(_RAREST)


def check_labels(samples: Samples, kind: LossKind, run: Callable[[Batch], Outputs]) -> None:
    """Refuse before training what labels cannot be for.

    Args:
        samples: The training data.
        kind: Which loss is wanted.
        run: Gives the float model's outputs of a feed.

    Raises:
        InputError: they are missing, have a wrong shape, or are no classes of the model.
    """
    if kind == "distill":
        return
    first = samples.first
    if first.labels is None:
        raise InputError(
            f"training with --loss {kind} needs labels, and the data has no array 'labels'; add "
            "it, or train with --loss distill"
        )
    kind_of_labels = first.labels.dtype.kind
    if kind_of_labels not in "iuf":
        raise InputError(
            f"training takes whole numbers or floats as labels, not {first.labels.dtype}; number "
            "the classes from 0"
        )
    outputs = run(first)
    scores = _scored(outputs, torch.from_numpy(np.asarray(first.labels)))
    if kind_of_labels == "f":
        return
    highest = max(int(labels.max(initial=-1)) for labels in samples.labels)
    if highest < 0:
        raise InputError(
            "no label is a class: negative ones are left out, and all are; correct the labels"
        )
    if highest >= scores.shape[-1]:
        raise InputError(
            f"label {highest} is beyond the model's {scores.shape[-1]} classes; correct the labels"
        )


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Without gradients and as a model that is used."""
    were = [module.training for module in modules]
    for module in modules:
        module.eval()
    with torch.no_grad():
        yield
    for module, mode in zip(modules, were, strict=True):
        module.train(mode)

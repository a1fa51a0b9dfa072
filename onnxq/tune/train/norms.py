"""BatchNormalization that lives while a quantized model trains."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor, nn

from onnxq.errors import InputError
from onnxq.ir import Graph
from onnxq.tune.train.straight_through import at_least

_EPSILON = 1e-5
_MOMENTUM = 0.1
"""Share that a batch has in the running statistics."""

_LIVES_UNTIL = 0.8
"""Share of the training after which statistics of batches count no more."""

_LEAST = 1e-3
"""A gain never gets smaller than this part of what it was."""


class _SumOfProcesses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


class LiveNorm(nn.Module):
    """Normalizes what a convolution or product with a quantized weight gives, channel by channel.

    While it lives, training mode normalizes by the batch's statistics, and keeps running ones. Else
    it is what the emitted model computes: a factor in the scale of the weight, and an addend in the
    bias (`factor`, `bias`). The integers of the weight are the same either way, so that what is
    trained is the folded weight as it is stored (Krishnamoorthi, 2018; Nagel et al., 2021): with a
    scale for each channel, quantizing and then scaling a channel is scaling and then quantizing it.

    Args:
        bias: Of the folded layer. `measure` finds out how much of it is the mean.
    """

    def __init__(self, bias: Tensor) -> None:
        super().__init__()
        self.is_live = True
        self.is_part = False
        self.momentum = _MOMENTUM
        self.gain = nn.Parameter(torch.ones_like(bias))
        self.shift = nn.Parameter(bias.detach().clone())
        self.mean: Tensor
        self.variance: Tensor
        self._least: Tensor
        self.register_buffer("mean", torch.zeros_like(bias))
        self.register_buffer("variance", torch.full_like(bias, 1 - _EPSILON))
        self.register_buffer("_least", torch.full_like(bias, _LEAST))
        self._seen: list[list[Tensor]] | None = None

    @property
    def statistics(self) -> tuple[Tensor, ...]:
        """What is not trained and yet changes."""
        return self.mean, self.variance, self._least

    @property
    def normalizes(self) -> bool:
        """Whether it uses a batch's statistics now."""
        return self.training and self.is_live

    @property
    def factor(self) -> Tensor:
        """What the scale of the weight is multiplied by in the emitted model."""
        return self._positive() * torch.rsqrt(self.variance + _EPSILON)

    @property
    def bias(self) -> Tensor:
        """What is added in the emitted model."""
        return self.shift - self.mean * self.factor

    def forward(self, x: Tensor) -> Tensor:
        """Normalize while it lives; else the scale and the bias have done it."""
        if self._seen is not None:
            self._see(x)
        if not self.normalizes:
            return x
        if x.numel() == x.shape[1] and not self.is_part:
            # One number has no variance.
            shape = _around(x)
            return x * self.factor.reshape(shape) + self.bias.reshape(shape)
        if not self.is_part:
            gain, kept = self._positive(), (self.mean, self.variance)
            return F.batch_norm(x, *kept, gain, self.shift, True, self.momentum, _EPSILON)
        return self._with_others(x)

    def begin(self) -> None:
        """From here on look at what passes, without changing it."""
        self._seen = []

    def end(self) -> None:
        """Begin with the statistics of what was looked at, so that nothing changes by them."""
        assert self._seen
        count, total, squares = (sum(part[1:], part[0]) for part in zip(*self._seen, strict=True))
        self._seen = None
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        with torch.no_grad():
            # The scale and the bias of the folded layer give what was looked at.
            self.mean.copy_(mean - self.shift)
            self.variance.copy_(variance)
            self.shift.copy_(mean)
            self.gain.copy_(torch.sqrt(self.variance + _EPSILON))
            self._least.copy_(self.gain * _LEAST)

    def _see(self, x: Tensor) -> None:
        wide, axes = x.double(), _axes(x)
        count = torch.tensor(float(x.numel() // x.shape[1]))
        assert self._seen is not None
        self._seen.append([count, wide.sum(axes), wide.square().sum(axes)])

    def _with_others(self, x: Tensor) -> Tensor:
        """The same with the statistics of the parts of a batch that all processes have."""
        axes, shape = _axes(x), _around(x)
        own = torch.cat([x.sum(axes), x.new_tensor([x.numel() // x.shape[1]])])
        *_, count = total = _SumOfProcesses.apply(own)
        mean = total[:-1] / count
        centred = x - mean.reshape(shape)
        variance = _SumOfProcesses.apply(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.mean.lerp_(mean, _MOMENTUM)
            self.variance.lerp_(variance * (count / (count - 1)), _MOMENTUM)
        factor = self._positive() * torch.rsqrt(variance + _EPSILON)
        return centred * factor.reshape(shape) + self.shift.reshape(shape)

    def _positive(self) -> Tensor:
        return at_least(self.gain, self._least)


def lives(done: float) -> bool:
    """Whether statistics of batches count when so much of the training is over."""
    return done < _LIVES_UNTIL


@contextmanager
def averaging(norms: Collection[LiveNorm]) -> Iterator[Callable[[], None]]:
    """Let running statistics become the means of all batches that pass meanwhile.

    While weights change from one integer to the next, running ones are of models that are no more
    (Nagel et al., 2022).

    Yields:
        What is to be called before each batch.
    """
    were, count = [norm.is_live for norm in norms], 0

    def another() -> None:
        nonlocal count
        count += 1
        for norm in norms:
            norm.momentum = 1 / count

    for norm in norms:
        norm.is_live, norm.is_part = True, False
    yield another
    for norm, was in zip(norms, were, strict=True):
        norm.is_live, norm.momentum = was, _MOMENTUM


def _axes(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]


def _around(x: Tensor) -> tuple[int, ...]:
    return (1, -1, *[1] * (x.ndim - 2))


def normalized(graph: Graph) -> tuple[str, ...]:
    """What convolutions and products that BatchNormalization alone reads are called once folded.

    Raises:
        InputError: there are none.
    """
    found = []
    for node in graph.nodes():
        if node.is_op("Conv", "ConvTranspose", "Gemm"):
            readers = [use.node for use in node.output.uses]
            if len(readers) == 1 and readers[0].is_op("BatchNormalization"):
                # Without a name of its own, what it is folded into is called by what both give.
                found.append(node.name or readers[0].output.name)
    if not found:
        raise InputError(
            "the model has no BatchNormalization behind a Conv, ConvTranspose or Gemm that could "
            "live: it was folded when the model was exported; say --batch-norm restored, or leave "
            "it out"
        )
    return tuple(found)


def restorable(graph: Graph) -> tuple[str, ...]:
    """Names of the convolutions and products of a folded graph that may have had one behind them.

    It begins as the identity, so that it does no harm where there was none. What the graph itself
    gives had none: nobody normalizes scores.
    """
    return tuple(
        node.name
        for node in graph.nodes()
        if node.is_op("Conv", "ConvTranspose", "Gemm") and node.output not in graph.outputs
    )

"""Moving averages of what is trained, which are judged and kept in its place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch


class MovingAverages:
    """Exponential moving averages of parameters over updates (Polyak and Juditsky, 1992).

    In few bits weights go to and fro over the border between two integers until the end (Nagel et
    al., 2022); their averages stay on one side. torch's `AveragedModel` copies the whole module,
    whose functions would go on reading the parameters of the first.

    Args:
        parameters: What is averaged.
        decay: Part of an average that an update leaves of it. In update n it is (1 + n) / (10 + n)
            at most, as in TensorFlow's ``ExponentialMovingAverage``: averages of short trainings
            forget the beginning, too.
    """

    def __init__(self, parameters: Sequence[torch.Tensor], decay: float) -> None:
        self._parameters = parameters
        self._decay = decay
        self.numbers = _copied(parameters)

    def begin(self) -> None:
        """Be the parameters as they are."""
        self.numbers = _copied(self._parameters)

    def move(self, update: int) -> None:
        """Take in what an update came to; the first is 1."""
        decay = min(self._decay, (1 + update) / (10 + update))
        for number, parameter in zip(self.numbers, self._parameters, strict=True):
            number.lerp_(parameter.detach(), 1 - decay)

    def load(self, numbers: Iterable[torch.Tensor]) -> None:
        """Be what `numbers` was."""
        _fill(self.numbers, numbers)

    @contextmanager
    def in_place(self, others: Sequence[torch.Tensor]) -> Iterator[None]:
        """Let parameters be their averages meanwhile; ``others`` are put back at the end, too."""
        changed = (*self._parameters, *others)
        before = _copied(changed)
        _fill(self._parameters, self.numbers)
        try:
            yield
        finally:
            _fill(changed, before)


def _copied(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def _fill(tensors: Iterable[torch.Tensor], numbers: Iterable[torch.Tensor]) -> None:
    for tensor, found in zip(tensors, numbers, strict=True):
        tensor.copy_(found)

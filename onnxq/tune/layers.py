"""Tuning layers that do not depend on each other, here or in other processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from onnxq.observe import Observations
from onnxq.passes.tuned import Tensors
from onnxq.runtime.executor import Executor, Work
from onnxq.tune.layer import Layer
from onnxq.tune.tuner import Tuner


def tune_layers(
    layers: Sequence[tuple[Tuner, Layer]], observations: Observations, executor: Executor
) -> Iterator[Tensors]:
    """What tuners compute for layers, in their order.

    Args:
        layers: The layers, each with its tuner.
        observations: What they need.
        executor: Where they are tuned.
    """
    if not executor.is_spread:
        yield from executor.map(_Tuning(tuple(layers), observations), [*range(len(layers))])
        return
    assert executor.folder is not None
    executor.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=executor.folder, ignore_cleanup_errors=True) as name:
        # What was seen of a layer may be large: workers map what they need of it.
        observations.save(name)
        yield from executor.map(_Tuning(tuple(layers), None, Path(name)), [*range(len(layers))])


@dataclass(frozen=True)
class _Tuning(Work[int, Tensors]):
    """Tunes layers.

    Attributes:
        layers: All layers, each with its tuner.
        observations: What they need; None where it lies in a folder.
        folder: The folder.
    """

    layers: tuple[tuple[Tuner, Layer], ...]
    observations: Observations | None = field(compare=False)
    folder: Path | None = None

    @contextmanager
    def open(self) -> Iterator[Callable[[int], Tensors]]:
        """See `Work`."""
        seen = self.observations
        if seen is None:
            assert self.folder is not None
            seen = Observations.load(self.folder)

        def run(number: int) -> Tensors:
            tuner, layer = self.layers[number]
            return tuner.tune(layer, seen)

        yield run

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
        yield from _joined(_Tuning(tuple(layers), observations), executor)
        return
    assert executor.folder is not None
    executor.folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=executor.folder, ignore_cleanup_errors=True) as name:
        # What was seen of a layer may be large: workers map what they need of it.
        observations.save(name)
        yield from _joined(_Tuning(tuple(layers), None, Path(name)), executor)


def _joined(work: _Tuning, executor: Executor) -> Iterator[Tensors]:
    """What is computed for each layer, of its parts."""
    counts = [tuner.parts(layer) for tuner, layer in work.layers]
    items = [(number, part) for number, count in enumerate(counts) for part in range(count)]
    found = executor.map(work, items)
    for (tuner, layer), count in zip(work.layers, counts, strict=True):
        yield tuner.joined(layer, [next(found) for _ in range(count)])


@dataclass(frozen=True)
class _Tuning(Work[tuple[int, int], Tensors]):
    """Tunes parts of layers.

    Attributes:
        layers: All layers, each with its tuner.
        observations: What they need; None where it lies in a folder.
        folder: The folder.
    """

    layers: tuple[tuple[Tuner, Layer], ...]
    observations: Observations | None = field(compare=False)
    folder: Path | None = None

    @contextmanager
    def open(self) -> Iterator[Callable[[tuple[int, int]], Tensors]]:
        """See `Work`."""
        seen = self.observations
        if seen is None:
            assert self.folder is not None
            seen = Observations.load(self.folder)

        def run(item: tuple[int, int]) -> Tensors:
            number, part = item
            tuner, layer = self.layers[number]
            return tuner.tune_part(layer, seen, part)

        yield run

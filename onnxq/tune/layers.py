"""Tuning layers that do not depend on each other, here or in other processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from onnxq.observe import Observations
from onnxq.passes.tuned import Tensors
from onnxq.runtime.executor import Executor, Work
from onnxq.scratch import scratch_folder
from onnxq.tune.layer import Layer
from onnxq.tune.tuner import Tuner

Tune = Callable[[Sequence[int], Observations], Iterator[Tensors]]
"""What some layers, by number, get from what was observed."""


def tune_layers(
    layers: Sequence[tuple[Tuner, Layer]], observations: Observations, executor: Executor
) -> Generator[Tensors, None, None]:
    """What tuners compute for layers, in their order.

    Args:
        layers: The layers, each with its tuner.
        observations: What they need.
        executor: Where they are tuned.
    """
    with open_layers(layers, executor) as tune:
        yield from tune(range(len(layers)), observations)


@contextmanager
def open_layers(layers: Sequence[tuple[Tuner, Layer]], executor: Executor) -> Iterator[Tune]:
    """Make layers ready that are tuned some at a time, in any order.

    Args:
        layers: The layers, each with its tuner.
        executor: Where they are tuned.
    """
    with executor.open(_Tuning(tuple(layers))) as do:

        def tune(numbers: Sequence[int], observations: Observations) -> Iterator[Tensors]:
            counts = {number: layers[number][0].parts(layers[number][1]) for number in numbers}
            with _seen(observations, executor) as seen:
                found = do([_Part(n, part, seen) for n in numbers for part in range(counts[n])])
                for number in numbers:
                    tuner, layer = layers[number]
                    yield tuner.joined(layer, [next(found) for _ in range(counts[number])])
                # It ends only when asked for more.
                next(found, None)

        yield tune


@contextmanager
def _seen(observations: Observations, executor: Executor) -> Iterator[Observations | Path]:
    """Observations as whoever tunes finds them: they may be large, and are mapped from files."""
    if not executor.is_spread:
        yield observations
        return
    assert executor.folder is not None
    executor.folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(executor.folder) as folder:
        observations.save(folder)
        yield folder


@dataclass(frozen=True)
class _Part:
    """A part of a layer, by their numbers, and what was observed of it or where that lies."""

    layer: int
    part: int
    seen: Observations | Path


@dataclass(frozen=True)
class _Tuning(Work[_Part, Tensors]):
    """Tunes parts of layers.

    Attributes:
        layers: All layers, each with its tuner.
    """

    is_resumable: ClassVar[bool] = False

    layers: tuple[tuple[Tuner, Layer], ...]

    @contextmanager
    def open(self) -> Iterator[Callable[[_Part], Tensors]]:
        """See `Work`."""
        loaded: tuple[Path, Observations] | None = None

        def run(item: _Part) -> Tensors:
            nonlocal loaded
            seen = item.seen
            if isinstance(seen, Path):
                if loaded is None or loaded[0] != seen:
                    loaded = seen, Observations.load(seen)
                seen = loaded[1]
            tuner, layer = self.layers[item.layer]
            return tuner.tune_part(layer, seen, item.part)

        yield run

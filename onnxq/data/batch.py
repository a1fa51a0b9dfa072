"""Batches of samples, and how rows become batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from onnxq.runtime.specs import Array

Block = tuple[dict[str, Array], Array | None]
"""Arrays by input name and labels; the first axis of each runs over samples."""


class Fed(Protocol):
    """An input of a model."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def shape(self) -> Sequence[int | str | None] | None:
        """Its declared shape, in which only numbers are fixed."""


@dataclass(frozen=True)
class Batch:
    """What one run of the model is fed.

    `feeds` holds one array per graph input, of the input's dtype and shape. `labels`, where there
    are any, has one entry per sample along its first axis. `size` is the number of samples fed and
    `valid` the number of real ones: the last batch of a model with a fixed batch size is filled up
    by repeating its last sample, in feeds and labels alike.
    """

    feeds: dict[str, Array]
    labels: Array | None
    valid: int
    size: int

    def trim(self, outputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return a run's outputs without the rows of repeated samples.

        Outputs whose first dimension is not the batch's size are returned whole.
        """
        if self.valid == self.size:
            return dict(outputs)
        return {name: self._real_rows(value) for name, value in outputs.items()}

    def _real_rows(self, value: Any) -> Any:
        batched = isinstance(value, np.ndarray) and value.shape[:1] == (self.size,)
        return value[: self.valid] if batched else value

    def is_divisible(self, inputs: Iterable[Fed]) -> bool:
        """Whether a model with some inputs may as well be fed the rows a few at a time."""
        return self.valid == self.size and all(
            i.shape and not isinstance(i.shape[0], int) and len(self.feeds[i.name]) == self.size
            for i in inputs
        )

    def rows(self, start: int, stop: int) -> Batch:
        """Some of a divisible batch's rows."""
        feeds = {name: array[start:stop] for name, array in self.feeds.items()}
        labels = None if self.labels is None else self.labels[start:stop]
        return Batch(feeds, labels, stop - start, stop - start)

    def parts(self, rows: int) -> Iterator[Batch]:
        """A divisible batch's rows, about evenly, at most ``rows`` at a time."""
        count = math.ceil(self.size / rows)
        if count <= 1:
            yield self
            return
        ends = [self.size * i // count for i in range(count + 1)]
        yield from (self.rows(*part) for part in pairwise(ends))


def stack_rows(blocks: Iterable[Block], size: int, *, fill: bool) -> Iterator[Batch]:
    """Join blocks of rows into batches of `size` rows, in order.

    A batch is shorter at the end, or where the next row has another shape than the rows before
    it; with `fill`, such a batch is filled up to `size` with copies of its last row.
    """
    pending: list[Block] = []
    count = 0
    for block in blocks:
        if pending and _row_shapes(block) != _row_shapes(pending[0]):
            yield _join(pending, size if fill else count)
            pending, count = [], 0
        start, rows = 0, _row_count(block)
        while start < rows:
            stop = min(rows, start + size - count)
            pending.append(_slice(block, start, stop))
            count += stop - start
            start = stop
            if count == size:
                yield _join(pending, size)
                pending, count = [], 0
    if pending:
        yield _join(pending, size if fill else count)


def fill_rows(array: Array, size: int) -> Array:
    """Repeat the last row of an array until it has `size` rows."""
    missing = size - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def _row_count(block: Block) -> int:
    return len(next(iter(block[0].values())))


def _row_shapes(block: Block) -> dict[str, tuple[int, ...]]:
    feeds, labels = block
    shapes = {name: array.shape[1:] for name, array in feeds.items()}
    return shapes if labels is None else {**shapes, "": labels.shape[1:]}


def _slice(block: Block, start: int, stop: int) -> Block:
    feeds, labels = block
    rows = {name: array[start:stop] for name, array in feeds.items()}
    return rows, None if labels is None else labels[start:stop]


def _join(blocks: list[Block], size: int) -> Batch:
    feeds = {name: _stack([block[0][name] for block in blocks], size) for name in blocks[0][0]}
    parts = [labels for _, labels in blocks if labels is not None]
    valid = sum(_row_count(block) for block in blocks)
    return Batch(feeds, _stack(parts, size) if parts else None, valid, size)


def _stack(parts: list[Array], size: int) -> Array:
    return fill_rows(parts[0] if len(parts) == 1 else np.concatenate(parts), size)

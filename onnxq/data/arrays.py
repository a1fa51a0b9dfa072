"""Samples in arrays named after the graph inputs: a mapping, an .npz file, a folder of them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from onnxq.data.batch import Batch, Block, stack_rows
from onnxq.data.dataset import Indices, Source
from onnxq.data.tensors import check_names, check_shape, conform
from onnxq.errors import InputError
from onnxq.runtime.specs import Array, TensorSpec

LABELS, SPLIT = "labels", "split"

_CHECKED_BYTES = 1 << 24


@dataclass(frozen=True)
class _Fit:
    """How one array relates to its input.

    `rows`: same rank, one feed takes `fixed` rows, or any number where that is None; `element`:
    one rank more, each element is one feed; `constant`: a scalar that every feed gets.
    """

    kind: Literal["rows", "element", "constant"]
    fixed: int | None = None

    def feed_count(self, array: Array) -> int:
        return len(array) // (self.fixed or 1)

    def take(self, array: Array, unit: int) -> Array:
        if self.kind == "constant":
            return array
        if self.kind == "element":
            return np.asarray(array[unit])
        rows = self.fixed or 1
        return array[unit * rows : (unit + 1) * rows]


@dataclass(frozen=True)
class _Layout:
    """How the arrays of one part fall into units.

    With `size` set, a unit is one row, and rows are stacked to batches of that size, filled up if
    `fill`. Otherwise a unit is a whole feed of `samples` samples.
    """

    fits: dict[str, _Fit]
    count: int
    samples: int = 1
    size: int | None = None
    fill: bool = False


@dataclass(frozen=True)
class _Part:
    name: str
    load: Callable[[], Mapping[str, Array]]
    layout: _Layout
    split: Array | None
    labels_ndim: int | None


class ArraySource(Source):
    """Samples in one or several sets of arrays; see `onnxq.data.read` for the conventions."""

    def __init__(self, name: str, inputs: Sequence[TensorSpec], parts: Sequence[_Part]) -> None:
        self.name = name
        self._inputs = inputs
        self._parts = parts
        counts = [part.layout.count for part in parts]
        self._offsets = np.cumsum([0, *counts])
        self.samples = np.repeat([part.layout.samples for part in parts], counts).astype(np.int64)
        first = parts[0]
        self.labels_ndim = first.labels_ndim
        self.stacked = first.layout.size or 1
        for part in parts[1:]:
            if (part.layout.size is None) != (first.layout.size is None):
                raise InputError(
                    f"{part.name} holds whole feeds and {first.name} single samples, or the "
                    "other way round; give all files the same rank"
                )
            others = part.labels_ndim != first.labels_ndim
            if others or (part.split is None) != (first.split is None):
                raise InputError(
                    f"{part.name} and {first.name} do not both have the same arrays 'labels' and "
                    "'split'"
                )
        splits = [part.split for part in parts if part.split is not None]
        self.split = np.concatenate(splits) if splits else None

    def batches(self, units: Indices) -> Iterator[Batch]:
        """Yield the chosen units as batches; files of a folder are loaded one at a time."""
        layout = self._parts[0].layout
        if layout.size is None:
            for feeds, labels in self._feeds(units):
                samples = layout.samples
                yield Batch(feeds, labels, samples, samples)
        else:
            yield from stack_rows(self._rows(units, layout.size), layout.size, fill=layout.fill)

    def _chosen(self, units: Indices) -> Iterator[tuple[_Part, Mapping[str, Array], Indices]]:
        for index, part in enumerate(self._parts):
            low, high = np.searchsorted(units, self._offsets[index : index + 2])
            if low < high:
                yield part, part.load(), units[low:high] - self._offsets[index]

    def _rows(self, units: Indices, size: int) -> Iterator[Block]:
        for part, arrays, chosen in self._chosen(units):
            for start in range(0, len(chosen), size):
                rows = chosen[start : start + size]
                feeds = {
                    spec.name: conform(arrays[spec.name][rows], spec, _where(part, spec))
                    for spec in self._inputs
                }
                labels = None if part.labels_ndim is None else arrays[LABELS][rows]
                yield feeds, labels

    def _feeds(self, units: Indices) -> Iterator[Block]:
        for part, arrays, chosen in self._chosen(units):
            for unit in chosen.tolist():
                feeds = {
                    spec.name: conform(
                        part.layout.fits[spec.name].take(arrays[spec.name], unit),
                        spec,
                        _where(part, spec),
                    )
                    for spec in self._inputs
                }
                labels = None
                if part.labels_ndim is not None:
                    labels = _feed_labels(arrays[LABELS], unit, part.layout.samples)
                yield feeds, labels


def mapping_source(
    name: str,
    arrays: Mapping[str, Any],
    inputs: Sequence[TensorSpec],
    batch_size: int,
) -> ArraySource:
    """Return the samples of a mapping from input names to arrays.

    Raises:
        InputError: the arrays do not fit the model's inputs.
    """
    loaded = {str(key): np.asarray(value) for key, value in arrays.items()}
    part = _part(name, lambda: loaded, inputs, batch_size)
    return ArraySource(name, inputs, [part])


def folder_source(
    folder: Path, paths: Sequence[Path], inputs: Sequence[TensorSpec], batch_size: int
) -> ArraySource:
    """Return the samples of several .npz files, one file in memory at a time.

    Raises:
        InputError: a file cannot be read or does not fit the model's inputs.
    """
    parts = [
        _part(f"'{path}'", lambda path=path: read_npz(path), inputs, batch_size)  # type: ignore[misc]
        for path in paths
    ]
    return ArraySource(f"'{folder}'", inputs, parts)


def read_npz(path: Path) -> dict[str, Array]:
    """Read all arrays of an .npz file; pickled objects are refused.

    Raises:
        InputError: the file is missing, damaged, no .npz file, or holds pickled objects.
    """
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise InputError(f"'{path}' is one bare array; save it with numpy.savez by name")
            with archive:
                arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise InputError(f"'{path}': no such file") from error
    except InputError:
        raise
    except Exception as error:
        # zipfile, zlib, tokenize and numpy each raise errors of their own on damaged files.
        if "allow_pickle" in str(error) and zipfile.is_zipfile(path):
            raise InputError(
                f"'{path}' holds pickled objects, which are not read; save plain arrays"
            ) from error
        raise InputError(f"'{path}' is damaged or no .npz file") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise InputError(f"'{path}': {name!r} is not an array")
    return arrays


def _part(
    name: str,
    load: Callable[[], Mapping[str, Array]],
    inputs: Sequence[TensorSpec],
    batch_size: int,
) -> _Part:
    """Check one set of arrays and lay it out."""
    arrays = load()
    reserved = frozenset({LABELS, SPLIT} - {spec.name for spec in inputs})
    check_names(arrays, inputs, reserved, name)
    layout = _layout(name, arrays, inputs, batch_size)
    extra = arrays.keys() & reserved
    split = _checked_split(name, arrays[SPLIT], layout.count) if SPLIT in extra else None
    labels_ndim = _checked_labels(name, arrays[LABELS], layout) if LABELS in extra else None
    part = _Part(name, load, layout, split, labels_ndim)
    for spec in inputs:
        _check_values(arrays[spec.name], spec, _where(part, spec))
    return part


def _layout(
    name: str, arrays: Mapping[str, Array], inputs: Sequence[TensorSpec], batch_size: int
) -> _Layout:
    """Decide from ranks and fixed first dimensions what a unit is."""
    fits = {spec.name: _fit(name, arrays[spec.name], spec) for spec in inputs}
    fixed = {fit.fixed for fit in fits.values() if fit.fixed is not None}
    if {fit.kind for fit in fits.values()} == {"rows"} and len(fixed) <= 1:
        size = max(fixed, default=batch_size)
        count = _common_count(name, {key: len(arrays[key]) for key in fits})
        return _Layout(fits, count, size=size, fill=bool(fixed))
    counts = {}
    for key, fit in fits.items():
        if fit.fixed and len(arrays[key]) % fit.fixed:
            raise InputError(
                f"{name}: array {key!r} has {len(arrays[key])} rows, which is no multiple of the "
                f"{fit.fixed} that one run of the model takes"
            )
        if fit.kind != "constant":
            counts[key] = fit.feed_count(arrays[key])
    count = _common_count(name, counts) if counts else 1
    feed = [fit.take(arrays[key], 0).shape for key, fit in fits.items()]
    return _Layout(fits, count, samples=common_first(feed))


def _fit(name: str, array: Array, spec: TensorSpec) -> _Fit:
    where = f"{name}: array {spec.name!r}"
    if spec.shape is None:
        if array.ndim == 0:
            raise InputError(f"{where} is a single number; its first axis must be samples")
        return _Fit("rows")
    if array.ndim == len(spec.shape) + 1:
        check_shape(array.shape[1:], spec, f"an element of {where}")
        return _Fit("element")
    if array.ndim == len(spec.shape) == 0:
        return _Fit("constant")
    first = spec.shape[0] if spec.shape else None
    if array.ndim != len(spec.shape) or not isinstance(first, int):
        check_shape(array.shape, spec, where)
        return _Fit("rows")
    check_shape((first, *array.shape[1:]), spec, where)
    return _Fit("rows", max(1, first))


def _common_count(name: str, counts: Mapping[str, int]) -> int:
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{key} {count}" for key, count in counts.items())
        raise InputError(f"{name}: its arrays differ in their number of samples: {listed}")
    count = next(iter(counts.values()))
    if count == 0:
        raise InputError(f"{name} holds no samples")
    return count


def _checked_split(name: str, split: Array, count: int) -> Array:
    if split.shape != (count,) or split.dtype.kind not in "biu" or not np.isin(split, [0, 1]).all():
        raise InputError(
            f"{name}: array 'split' must hold one 0 (calibration) or 1 (held-out) for each of the "
            f"{count} samples"
        )
    return split


def _checked_labels(name: str, labels: Array, layout: _Layout) -> int:
    if labels.ndim == 0 or len(labels) != layout.count:
        raise InputError(
            f"{name}: array 'labels' has shape {list(labels.shape)}, but there are "
            f"{layout.count} samples"
        )
    if layout.size is not None:
        return labels.ndim
    one = _feed_labels(labels, 0, layout.samples)
    if len(one) != layout.samples:
        raise InputError(
            f"{name}: array 'labels' has shape {list(labels.shape)}, but each of the "
            f"{layout.count} feeds holds {layout.samples} samples"
        )
    return one.ndim


def _check_values(array: Array, spec: TensorSpec, where: str) -> None:
    """Check dtype and values a few rows at a time, so that no second copy is needed."""
    if array.ndim == 0:
        conform(array, spec, where)
        return
    step = max(1, _CHECKED_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        conform(array[start : start + step], spec, where, start)


def common_first(shapes: Sequence[tuple[int, ...]]) -> int:
    """Return the number of samples in a feed: the first dimension all inputs share, else 1."""
    firsts = {shape[0] for shape in shapes if shape}
    return firsts.pop() if len(firsts) == 1 else 1


def _feed_labels(labels: Array, unit: int, samples: int) -> Array:
    """Return one feed's labels: its element where that has an entry per sample, else its row."""
    if labels.ndim > 1 and labels.shape[1] == samples:
        return np.asarray(labels[unit])
    return labels[unit : unit + 1]


def _where(part: _Part, spec: TensorSpec) -> str:
    return f"{part.name}: array {spec.name!r}"

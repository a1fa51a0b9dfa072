"""Sources that give whole feeds one after another: iterables and calibration readers."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from onnxq.data.arrays import LABELS, common_first
from onnxq.data.batch import Batch, fill_rows
from onnxq.data.dataset import Indices, Source
from onnxq.data.functions import failure
from onnxq.data.tensors import check_names, check_shape, conform
from onnxq.errors import InputError
from onnxq.runtime.specs import Array, TensorSpec

Feed = Mapping[str, Any]


@runtime_checkable
class FeedReader(Protocol):
    """onnxruntime's CalibrationDataReader: feeds one after another, then None."""

    def get_next(self) -> Feed | None:
        """Return the next feed, None at the end."""
        ...


class FeedSource(Source):
    """A sequence of feeds that is read anew on each pass.

    The first pass, at construction, checks all feeds and counts their samples. Later passes must
    give the same feeds: a source that shuffles would let calibration see held-out samples.

    Args:
        name: what messages call the source.
        open_feeds: starts a pass.
        inputs: the model's inputs.
        limit: stop reading at this number of samples.

    Raises:
        InputError: a feed does not fit the model's inputs, or there is none.
    """

    def __init__(
        self,
        name: str,
        open_feeds: Callable[[], Iterable[Feed]],
        inputs: Sequence[TensorSpec],
        limit: int | None = None,
    ) -> None:
        self.name = name
        self._open = open_feeds
        self._inputs = inputs
        self._checksums: list[int] = []
        samples: list[int] = []
        for index, feed in enumerate(self._raw()):
            batch = make_batch(feed, inputs, self._where(index))
            ndim = None if batch.labels is None else batch.labels.ndim
            if index and ndim != self.labels_ndim:
                raise InputError(
                    f"{self._where(index)} has other labels than the items before it: every item "
                    "must have them, with the same number of dimensions, or none"
                )
            self.labels_ndim = ndim
            self._checksums.append(_checksum(batch))
            samples.append(batch.valid)
            if limit is not None and sum(samples) >= limit:
                break
        if not samples:
            raise InputError(f"{name} holds no samples")
        self.samples = np.asarray(samples, dtype=np.int64)

    def batches(self, units: Indices) -> Iterator[Batch]:
        """Yield the chosen feeds, each as one batch."""
        chosen = set(units.tolist())
        last = max(chosen, default=-1)
        seen = -1
        for seen, feed in enumerate(self._raw()):
            if seen in chosen:
                batch = make_batch(feed, self._inputs, self._where(seen))
                if _checksum(batch) != self._checksums[seen]:
                    raise self._changed()
                yield batch
            if seen >= last:
                break
        if seen < last:
            raise self._changed()

    def _changed(self) -> InputError:
        return InputError(
            f"{self.name} gives other data on each pass; turn off shuffling and random "
            "augmentation, or give a list"
        )

    def _where(self, index: int) -> str:
        return f"{self.name}: item {index}"

    def _raw(self) -> Iterator[Feed]:
        """Yield the feeds; what the user's code raises becomes an InputError."""
        try:
            yield from self._open()
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{self.name}: {failure(error, 'reading data')}") from error


def iterable_source(
    name: str,
    data: Any,
    inputs: Sequence[TensorSpec],
    limit: int | None = None,
) -> FeedSource:
    """Return the feeds of an iterable of dicts or of a calibration reader.

    What can be read only once (a generator, a reader without `rewind()`) is copied into memory.

    Args:
        name: what messages call the source.
        data: the iterable or reader; its items are dicts of one array per input, and
            optionally `labels`.
        inputs: the model's inputs.
        limit: stop reading at this number of samples.

    Raises:
        InputError: an item does not fit the model's inputs, or there is none.
    """
    if isinstance(data, FeedReader):
        if callable(getattr(data, "rewind", None)):
            return FeedSource(name, lambda: _rewound(data), inputs, limit)
        return _materialised(name, iter(data.get_next, None), inputs, limit)
    if isinstance(data, Iterator):
        return _materialised(name, data, inputs, limit)
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise InputError(
            f"{name} is neither a path, a dict of arrays, an iterable of dicts nor a calibration "
            "reader"
        )
    return FeedSource(name, lambda: data, inputs, limit)


def make_batch(feed: Any, inputs: Sequence[TensorSpec], where: str) -> Batch:
    """Return one feed, checked and cast, as a batch.

    Where the model has a fixed batch size and the feed holds fewer samples, it is filled up.

    Raises:
        InputError: the feed does not fit the model's inputs.
    """
    if not isinstance(feed, Mapping):
        raise InputError(f"{where} is a {type(feed).__name__}, not a dict of arrays")
    reserved = frozenset({LABELS} - {spec.name for spec in inputs})
    check_names([str(name) for name in feed], inputs, reserved, where)
    arrays = {spec.name: np.asarray(feed[spec.name]) for spec in inputs}
    labels = np.atleast_1d(np.asarray(feed[LABELS])) if LABELS in feed.keys() & reserved else None
    valid = _sample_count(arrays, labels, where)
    size = _fixed_size(arrays, inputs, valid)
    if size > valid:
        arrays = {name: fill_rows(array, size) for name, array in arrays.items()}
        labels = None if labels is None else fill_rows(labels, size)
    feeds = {}
    for spec in inputs:
        place = f"{where}, array {spec.name!r}"
        check_shape(arrays[spec.name].shape, spec, place)
        feeds[spec.name] = conform(arrays[spec.name], spec, place)
    return Batch(feeds, labels, valid, size)


def _sample_count(arrays: Mapping[str, Array], labels: Array | None, where: str) -> int:
    if any(array.ndim and not len(array) for array in arrays.values()):
        raise InputError(f"{where} holds no samples")
    count = common_first([array.shape for array in arrays.values()])
    if labels is None:
        return count
    # One label, or inputs that do not share their first dimension: the labels tell the count.
    same = len({array.shape[0] for array in arrays.values() if array.ndim}) <= 1
    if len(labels) != count and len(labels) != 1 and same:
        raise InputError(f"{where} has {len(labels)} labels for {count} samples")
    return len(labels)


def _fixed_size(arrays: Mapping[str, Array], inputs: Sequence[TensorSpec], valid: int) -> int:
    """Return the model's fixed batch size if all inputs share one and the feed is below it."""
    firsts = {spec.shape[0] if spec.shape else None for spec in inputs}
    first = firsts.pop() if len(firsts) == 1 else None
    if not isinstance(first, int) or first <= valid:
        return valid
    partial = all(array.ndim and len(array) == valid for array in arrays.values())
    return first if partial else valid


def _materialised(
    name: str, feeds: Iterator[Any], inputs: Sequence[TensorSpec], limit: int | None
) -> FeedSource:
    kept: list[Feed] = []

    def reading() -> Iterator[Feed]:
        yield from kept
        for feed in feeds:
            # Copied, because a generator may fill the same buffers again for its next item.
            if isinstance(feed, Mapping):
                feed = {key: np.array(value) for key, value in feed.items()}
            kept.append(feed)
            yield feed

    return FeedSource(name, reading, inputs, limit)


def _rewound(reader: Any) -> Iterator[Feed]:
    reader.rewind()
    return iter(reader.get_next, None)


def _checksum(batch: Batch) -> int:
    value = 0
    arrays = [*batch.feeds.values(), *([] if batch.labels is None else [batch.labels])]
    for array in arrays:
        if array.dtype.kind == "O":
            content = repr(array.tolist()).encode()
        else:
            content = np.ascontiguousarray(array).tobytes()
        value = zlib.crc32(content, value)
    return value

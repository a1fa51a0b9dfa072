"""Values that wait on disk until they are wanted."""

from __future__ import annotations

import pickle
import tempfile
import weakref
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Spool(Generic[T]):
    """What an iterable gives, in a temporary file that no folder lists.

    It can be gone through any number of times, also several at a time, and goes when nothing holds
    it any more.

    Args:
        items: Taken one by one, and written, now.
    """

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._file = tempfile.TemporaryFile(prefix="onnxq-")  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._places: list[int] = []
        for item in items:
            self.add(item)

    def add(self, item: T) -> None:
        """Write one item more."""
        self._places.append(self._file.seek(0, 2))
        pickle.dump(item, self._file, protocol=5)

    def __getitem__(self, number: int) -> T:
        self._file.seek(self._places[number])
        item: T = pickle.load(self._file)
        return item

    def __iter__(self) -> Iterator[T]:
        yield from map(self.__getitem__, range(len(self._places)))

    def items(self) -> Iterator[T]:
        """The items in their order, once: the disk has its room back after the last."""
        with self._file:
            yield from self

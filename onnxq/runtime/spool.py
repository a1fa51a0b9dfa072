"""Values that wait on disk until they are wanted."""

from __future__ import annotations

import pickle
import shutil
import tempfile
import uuid
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from onnxq.ir.saving import replacing

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


class Shelf(Generic[T]):
    """What waits for other processes: an item in a file of its own, by number, in a folder.

    Its files go when nothing in the process that made it holds it any more.

    Args:
        folder: Where to make the folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / f"shelf-{uuid.uuid4().hex}"
        self._folder.mkdir(parents=True)
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def __reduce__(self) -> Any:
        return _seen, (self._folder,)

    def fingerprint(self) -> object:
        """What tells it from others."""
        return self._folder.name

    def put(self, number: int, item: T) -> None:
        """Write an item, whole or not at all."""
        with replacing(self._folder / str(number)) as file:
            pickle.dump(item, file, protocol=5)

    def __getitem__(self, number: int) -> T:
        item: T = pickle.loads((self._folder / str(number)).read_bytes())
        return item


def _seen(folder: Path) -> Shelf[Any]:
    """A shelf as other processes see it, which leave its files there."""
    shelf = Shelf.__new__(Shelf)
    shelf._folder = folder
    return shelf

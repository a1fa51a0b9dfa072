"""Values that wait on disk until they are wanted."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Spool(Generic[T]):
    """What an iterable gives, in a temporary file that no folder lists.

    Args:
        items: Taken one by one, and written, now.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._file = tempfile.TemporaryFile(prefix="onnxq-")  # noqa: SIM115, closed by `items`
        self._count = 0
        try:
            for item in items:
                pickle.dump(item, self._file, protocol=5)
                self._count += 1
        except BaseException:
            self._file.close()
            raise

    def items(self) -> Iterator[T]:
        """The items in their order, once."""
        with self._file as file:
            file.seek(0)
            for _ in range(self._count):
                yield pickle.load(file)

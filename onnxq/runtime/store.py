"""Results by their keys in a folder that several processes write to."""

from __future__ import annotations

import os
import pickle
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable


@runtime_checkable
class _Savable(Protocol):
    """A result with files of its own."""

    def save(self, path: Path) -> None: ...

    @classmethod
    def load(cls, path: Path) -> Self: ...


class Store:
    """Results in a folder, each there as a whole or not at all.

    Whoever comes second with a result leaves the first one there, so that work that is done twice
    counts once.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __contains__(self, key: str) -> bool:
        return (self._folder / key).exists()

    def put(self, key: str, result: object) -> None:
        """Keep a result.

        Raises:
            OSError: it cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        made = self._folder / f"making-{uuid.uuid4().hex}"
        try:
            made.mkdir()
            kind = type(result) if isinstance(result, _Savable) else None
            if isinstance(result, _Savable):
                result.save(made / "saved")
            body = (kind, None if kind is not None else result)
            with (made / "result").open("wb") as file:
                pickle.dump(body, file, protocol=5)
            with suppress(FileExistsError):
                self._place(made, self._folder / key)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _place(self, made: Path, path: Path) -> None:
        try:
            os.rename(made, path)
        except OSError:
            if not path.exists():
                raise

    def get(self, key: str) -> Any:
        """A result that is there.

        Raises:
            OSError: it is not, or cannot be read.
        """
        path = self._folder / key
        with (path / "result").open("rb") as file:
            kind, result = pickle.load(file)
        return result if kind is None else kind.load(path / "saved")

    def drop(self, key: str) -> None:
        """Give the room of a result back."""
        shutil.rmtree(self._folder / key, ignore_errors=True)

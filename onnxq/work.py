"""A folder that keeps what a run found out, so that the next one need not find it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from onnxq.data import Dataset
from onnxq.errors import InputError
from onnxq.runtime import load_backend


class Savable(Protocol):
    """A stage's result that round-trips through a file."""

    def save(self, path: Path) -> None:
        """Write the file."""

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the file."""


S = TypeVar("S", bound=Savable)


class WorkFolder:
    """Results by stage and by all that they depend on, the versions of the software included.

    Args:
        folder: Where to keep them; None keeps nothing.
        basis: What every result depends on: model, data, recipe, target.
    """

    def __init__(self, folder: Path | None = None, *basis: str) -> None:
        self._folder = folder
        self._basis = basis

    def get(
        self,
        stage: str,
        kind: type[S],
        make: Callable[[], S],
        keeps: Callable[[S], bool] = lambda _: True,
        **depends: Any,
    ) -> S:
        """What was found before under the same conditions, or what ``make`` finds now.

        Args:
            stage: Name of the stage, the beginning of the file's name.
            kind: The result's class.
            make: Finds it.
            keeps: Whether what was found is worth keeping.
            depends: What the result depends on beyond the basis.

        Raises:
            InputError: the folder cannot be written to.
        """
        if self._folder is None:
            return make()
        versions = [version("onnxq"), load_backend("onnxruntime").version]
        key = json.dumps([versions, self._basis, depends], sort_keys=True, default=str)
        name = f"{stage}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
        path = self._folder / name
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"the work folder '{self._folder}' cannot be made: {error.strerror}"
            ) from error
        if path.exists():
            try:
                return kind.load(path)
            except InputError:
                # A file of another version, or a damaged one, is found again.
                path.unlink(missing_ok=True)
        found = make()
        if keeps(found):
            found.save(path)
        return found


def data_digest(data: Dataset) -> str:
    """SHA-256 of all samples in their order."""
    digest = hashlib.sha256()
    for batch in data.batches():
        for name in sorted(batch.feeds):
            array = batch.feeds[name]
            digest.update(f"{name}{array.dtype}{array.shape}{batch.valid}".encode())
            # Arrays of objects, such as texts, hold pointers.
            plain = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
            digest.update(plain)
    return digest.hexdigest()

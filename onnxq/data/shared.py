"""Samples as other processes find them: where they lie, or in files that were written for that."""

from __future__ import annotations

import hashlib
import os
import pickle
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from onnxq.data.batch import Batch
from onnxq.data.dataset import Dataset, Indices, Origin, Source
from onnxq.errors import InputError


def shared(data: Dataset, folder: Path) -> Dataset:
    """The same samples in the same batches, which processes that see a folder can open.

    What only this process has, as what a function gives, is written into the folder once.

    Raises:
        InputError: the folder cannot be written to.
    """
    if data.origin is not None:
        return data
    batches, samples, ndim = [], [], None
    try:
        for batch in data.batches():
            batches.append(_written(batch, folder / "data"))
            samples.append(batch.valid)
            ndim = None if batch.labels is None else batch.labels.ndim
    except OSError as error:
        raise InputError(
            f"the folder '{folder}' cannot be written to: {error.strerror}; make room, or name "
            "another one by --work-dir"
        ) from error
    origin = _Written(data.source, str(folder / "data"), tuple(batches), tuple(samples), ndim)
    return Dataset(origin.open())


def _written(batch: Batch, folder: Path) -> str:
    """Write a batch under the hash of its content; gives that."""
    body = pickle.dumps(batch, protocol=5)
    name = hashlib.sha256(body).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / name).exists():
        made = folder / f"making-{uuid.uuid4().hex}"
        try:
            made.write_bytes(body)
            os.replace(made, folder / name)
        finally:
            with suppress(OSError):
                made.unlink()
    # It is still wanted.
    os.utime(folder / name)
    return name


@dataclass(frozen=True)
class _Written(Origin):
    """Batches in files."""

    name: str
    folder: str
    files: tuple[str, ...]
    samples: tuple[int, ...]
    labels_ndim: int | None

    def open(self) -> Source:
        return _Batches(self)

    def settled(self) -> Self:
        return self


class _Batches(Source):
    """A source whose units are batches in files."""

    def __init__(self, written: _Written) -> None:
        self.name, self.labels_ndim = written.name, written.labels_ndim
        self.samples = np.array(written.samples, np.int64)
        self.origin = written
        self._files = [Path(written.folder) / file for file in written.files]

    def batches(self, units: Indices) -> Iterator[Batch]:
        """See `Source`."""
        for unit in units.tolist():
            batch: Batch = pickle.loads(self._files[unit].read_bytes())
            yield batch

"""Bytes of constant data that lie in files: a model's external data, and what memory is short for.

Nothing here keeps more than a piece in memory. What is mapped leaves memory with the array that
was made of it, so a large model passes through a small process.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from onnxq.errors import InputError

PIECE = 1 << 22
"""Bytes that are read or written at a time."""

_MOST_SENT = 1 << 24
"""Bytes that the system is asked to copy at a time; in between, a process can be interrupted."""

_SEGMENT_BYTES = 1 << 30
"""Length from which a temporary file takes no more; its space is free when all in it is gone."""


class _File(Protocol):
    def open(self) -> contextlib.AbstractContextManager[int]:
        """A descriptor, good inside the block.

        Raises:
            InputError: the file is gone or is no longer the same.
        """


class Stored:
    """A range of a file that does not change."""

    def __init__(self, file: _File, offset: int, length: int) -> None:
        self._file = file
        self.offset = offset
        self.length = length

    def pieces(self, size: int = PIECE, start: int = 0) -> Iterator[bytes]:
        """The bytes in order from one of them on, at most ``size`` at a time."""
        end = self.offset + self.length
        with self._file.open() as descriptor:
            for at in range(self.offset + start, end, size):
                piece = os.pread(descriptor, min(size, end - at), at)
                if len(piece) != min(size, end - at):
                    raise InputError("a file of constant data became shorter while it was read")
                yield piece

    def copy_to(self, file: BinaryIO) -> None:
        """Write the bytes to a file, or let the system do so where it can."""
        file.flush()
        start, done = file.tell(), 0
        # Some systems send to nothing but sockets, or nothing from these files.
        with self._file.open() as descriptor, contextlib.suppress(OSError, AttributeError):
            while done < self.length:
                left = min(self.length - done, _MOST_SENT)
                sent = os.sendfile(file.fileno(), descriptor, self.offset + done, left)
                if not sent:
                    break
                done += sent
        file.seek(start + done)
        for piece in self.pieces(start=done):
            file.write(piece)

    def map(self) -> np.ndarray:
        """The bytes as an array that cannot be written to; read from the file when touched."""
        if not self.length:
            return np.zeros(0, dtype=np.uint8)
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        with self._file.open() as descriptor:
            mapped = mmap.mmap(
                descriptor,
                self.length + self.offset - start,
                access=mmap.ACCESS_READ,
                offset=start,
            )
        return np.frombuffer(mapped, dtype=np.uint8, count=self.length, offset=self.offset - start)


# External data


def _identity(status: os.stat_result) -> tuple[int, ...]:
    """What tells whether a path still leads to the same data."""
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


class DataFile:
    """A file of external data, as it was when the model was loaded.

    It is opened anew for each use, for a model may have thousands. Only before onnxq itself puts
    another file in its place (`keep_readable`) it is opened for good.

    Attributes:
        path: Where it is.
        size: Bytes it holds.
    """

    def __init__(self, path: Path, status: os.stat_result) -> None:
        self.path = path
        self.size = status.st_size
        self._identity = _identity(status)
        self._kept: int | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[int]:
        """See `_File.open`."""
        if self._kept is not None:
            if _identity(os.fstat(self._kept)) != self._identity:
                raise self._changed()
            yield self._kept
            return
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise InputError(
                f"the data file '{self.path}' cannot be read any more ({error.strerror}); put it "
                "back and load the model again"
            ) from error
        with file:
            if _identity(os.fstat(file.fileno())) != self._identity:
                raise self._changed()
            yield file.fileno()

    def _changed(self) -> InputError:
        return InputError(
            f"the data file '{self.path}' has changed since the model was loaded; load the model "
            "again"
        )

    def keep(self) -> None:
        """Stay readable when the path comes to lead elsewhere."""
        if self._kept is None:
            with contextlib.suppress(InputError), self.open() as descriptor:
                self._kept = os.dup(descriptor)
                weakref.finalize(self, os.close, self._kept)


_data_files: weakref.WeakValueDictionary[tuple[object, ...], DataFile] = (
    weakref.WeakValueDictionary()
)


def data_file(path: Path) -> DataFile:
    """The data file at a path, one object for all the tensors in it.

    Raises:
        OSError: it cannot be looked at.
    """
    status = path.stat()
    key = path, *_identity(status)
    found = _data_files.get(key)
    if found is None:
        found = _data_files[key] = DataFile(path, status)
    return found


def keep_readable(path: Path) -> None:
    """Let graphs in memory go on reading a data file that is about to be replaced."""
    resolved = Path(os.path.realpath(path))
    for file in list(_data_files.values()):
        if file.path == resolved:
            file.keep()


class External(Stored):
    """A range of a data file."""


# What memory is short for


class _Segment:
    """A temporary file that no folder lists, so that nothing of it outlives the process."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.length = 0
        self._file = tempfile.TemporaryFile(prefix="onnxq-", buffering=0)  # noqa: SIM115

    @contextlib.contextmanager
    def open(self) -> Iterator[int]:
        yield self._file.fileno()

    def __del__(self) -> None:
        # Mapped arrays hold descriptors of their own.
        if hasattr(self, "_file"):
            self._file.close()

    def write(self, pieces: Iterable[bytes | memoryview]) -> int:
        """Append; gives the offset."""
        start = at = -(-self.length // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
        self._file.seek(start)
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[self._file.write(rest) :]
            at += len(piece)
        self.length = at
        return start


class Spilled(Stored):
    """A range of a temporary file; its space is given back when the last one in it is gone."""


_lock = threading.Lock()
_newest: weakref.ref[_Segment] | None = None


def spill(pieces: Iterable[bytes | memoryview], length: int) -> Spilled:
    """Put bytes into a temporary file, in the folder that ``TMPDIR`` names or the system's.

    Raises:
        OSError: there is no room.
    """
    global _newest
    with _lock:
        segment = None if _newest is None else _newest()
        # A forked process has a copy of the segment, but the file is its parent's to write to.
        if segment is None or segment.length >= _SEGMENT_BYTES or segment.process != os.getpid():
            segment = _Segment()
            _newest = weakref.ref(segment)
        return Spilled(segment, segment.write(pieces), length)

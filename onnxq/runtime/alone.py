"""Processes that share a machine, and stand aside while one of them times something.

They hold a lock together while they compute. Who wants to time closes a gate, so that the others
stop where they next tell of progress, waits until all of them have, and opens it again afterwards.
Where the system has no such locks, nobody waits.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from onnxq.errors import InputError
from onnxq.locks import LOCKS, lock, unlock
from onnxq.progress import SILENT, Progress


class _Machine:
    """The locks, and whether this process holds its share."""

    def __init__(self) -> None:
        self.machine: BinaryIO | None = None
        self.gate: BinaryIO | None = None
        self.is_alone = False


_ours = _Machine()


@contextmanager
def sharing(folder: Path | None = None) -> Iterator[Progress]:
    """Compute among other processes that do likewise; gives what is to be told of progress.

    Args:
        folder: Where the locks lie; a folder that only this user can write to, in that of the
            machine for temporary files, if None.

    Raises:
        InputError: somebody else made that folder, or it cannot be made.
    """
    if not LOCKS or _ours.machine is not None:
        yield SILENT
        return
    folder = folder or _own_folder()
    with _open(folder / "machine.lock") as machine, _open(folder / "gate.lock") as gate:
        _ours.machine, _ours.gate = machine, gate
        try:
            _take_share()
            yield _Yielding()
        finally:
            _ours.machine = _ours.gate = None


@contextmanager
def alone() -> Iterator[None]:
    """Time something with all others that share the machine standing aside."""
    machine, gate = _ours.machine, _ours.gate
    if machine is None or gate is None or _ours.is_alone:
        yield
        return
    unlock(machine)
    lock(gate)
    lock(machine)
    _ours.is_alone = True
    try:
        yield
    finally:
        _ours.is_alone = False
        unlock(machine)
        unlock(gate)
        _take_share()


class _Yielding:
    """Progress, where a process stands aside if another one waits."""

    def stage(self, name: str, total: int | None = None) -> None:
        """See `Progress`."""
        self.advance(0)

    def advance(self, done: int) -> None:
        """See `Progress`."""
        machine, gate = _ours.machine, _ours.gate
        if machine is None or gate is None or _ours.is_alone:
            return
        if lock(gate, waits=False):
            unlock(gate)
        else:
            unlock(machine)
            _take_share()

    def finish(self) -> None:
        """See `Progress`."""


def _take_share() -> None:
    """Hold the machine together with others, as soon as nobody waits to be alone."""
    machine, gate = _ours.machine, _ours.gate
    assert machine is not None and gate is not None
    lock(gate)
    lock(machine, shared=True)
    unlock(gate)


def _own_folder() -> Path:
    """A folder of this user, in which nobody else can be first with a lock."""
    folder = Path(tempfile.gettempdir()) / f"onnxq-{os.getuid()}"
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
    except OSError as error:
        raise InputError(
            f"cannot make the folder '{folder}' ({error.strerror}); name another place for "
            "temporary files by TMPDIR"
        ) from error
    if found.st_uid != os.getuid() or found.st_mode & 0o77 or not stat.S_ISDIR(found.st_mode):
        raise InputError(
            f"the folder '{folder}' may be written to by others; remove it, or name another place "
            "for temporary files by TMPDIR"
        )
    return folder


def _open(path: Path) -> BinaryIO:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb")

"""Folders for temporary files, which go even if the process that made them was killed."""

from __future__ import annotations

import contextlib
import glob
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from onnxq.locks import LOCKS, lock

_PREFIX = f"onnxq-{re.sub('[^A-Za-z0-9.]', '_', platform.node())[:64]}-"
_NAME = re.compile(f"{re.escape(_PREFIX)}[a-z0-9_]{{8}}")

_MARK = ".onnxq-scratch"
_MARKED = b"Temporary files of onnxq: it removes this folder once no process holds its lock.\n"


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder that goes away afterwards.

    It is locked as long as it is needed, and holds a file that says what it is. The first time that
    a process makes one, it removes those beside it that hold this file and that nobody holds a lock
    on: who made them was killed. A lock may not be seen by other machines, so their folders, which
    bear their names, are left to them. Where a folder cannot be locked (Windows, NFS), those of
    killed processes stay.

    Args:
        parent: Where to make it; in the machine's folder for temporary files if None.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    _remove_abandoned(parent)
    # What is still mapped cannot be removed everywhere.
    made = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True)
    with made as name, _locked(Path(name)) as locked:
        folder = Path(name)
        # Only behind the lock: what is marked and not locked is taken for abandoned.
        if locked:
            (folder / _MARK).write_bytes(_MARKED)
        yield folder


@cache
def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{glob.escape(_PREFIX)}*"):
        if _NAME.fullmatch(folder.name) and _is_marked(folder):
            with _locked(folder) as locked:
                if locked:
                    shutil.rmtree(folder, ignore_errors=True)


def _is_marked(folder: Path) -> bool:
    mark = folder / _MARK
    with contextlib.suppress(OSError):
        return mark.is_file() and mark.read_bytes() == _MARKED
    return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Lock a folder that nobody else has locked, if that is possible; gives whether it is."""
    with contextlib.ExitStack() as held:
        descriptor = None
        if LOCKS:
            with contextlib.suppress(OSError):
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                held.callback(os.close, descriptor)
        yield descriptor is not None and lock(descriptor, waits=False)

"""Folders for temporary files, which go even if the process that made them was killed."""

from __future__ import annotations

import contextlib
import glob
import importlib
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

fcntl: Any = importlib.import_module("fcntl") if os.name == "posix" else None
"""None where the system has no such locks."""

_PREFIX = f"onnxq-{re.sub('[^A-Za-z0-9.]', '_', platform.node())[:64]}-"


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Make a folder that goes away afterwards.

    It is locked as long as it is needed. The first time that a process makes one, it removes those
    beside it that nobody holds a lock on: who made them was killed. A lock may not be seen by other
    machines, so their folders, which bear their names, are left to them. Where a folder cannot be
    locked (Windows, NFS), those of killed processes stay.

    Args:
        parent: Where to make it; in the machine's folder for temporary files if None.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    _remove_abandoned(parent)
    with contextlib.ExitStack() as held:
        while True:
            # What is still mapped cannot be removed everywhere.
            made = tempfile.TemporaryDirectory(
                prefix=_PREFIX, dir=parent, ignore_cleanup_errors=True
            )
            folder = Path(held.enter_context(made))
            held.enter_context(_lock(folder, waits=True))
            # Before it was locked, another process may have taken it for abandoned.
            if folder.exists():
                break
        yield folder


@cache
def _remove_abandoned(parent: Path) -> None:
    for folder in parent.glob(f"{glob.escape(_PREFIX)}*"):
        with _lock(folder, waits=False) as locked:
            if locked:
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path, *, waits: bool) -> Iterator[bool]:
    """Lock a folder, if that is possible; gives whether it is locked now."""
    if fcntl is None:
        yield False
        return
    with contextlib.ExitStack() as held:
        locked = False
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            held.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            locked = True
        yield locked

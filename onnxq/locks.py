"""Locks on files and folders, which go with the process that holds them."""

from __future__ import annotations

import contextlib
import sys
from typing import IO

if sys.platform != "win32":
    import fcntl

LOCKS = sys.platform != "win32"
"""Whether the system has such locks."""


def lock(file: int | IO[bytes], *, shared: bool = False, waits: bool = True) -> bool:
    """Lock an open file or folder, or change the lock that is held on it.

    Args:
        file: The file, or a descriptor of the file or folder.
        shared: Whether others may hold such a lock at once.
        waits: Whether to wait while others hold it.

    Returns:
        Whether it is locked: others hold it otherwise, or it cannot be locked where it lies.
    """
    if sys.platform == "win32":
        return False
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(file, kind if waits else kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def unlock(file: int | IO[bytes]) -> None:
    """Give a lock back before the file is closed."""
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)

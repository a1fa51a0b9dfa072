"""Keeping Python's garbage collector out of the way while a graph is built."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Let no cyclic garbage collection run inside; it runs again afterwards if it did before.

    Building a graph makes millions of objects that all stay. Each collection looks at every one
    of them and frees nothing: without the pause, loading takes half as long again, and copying
    three times as long.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()

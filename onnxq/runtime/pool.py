"""Memory and processors that sessions share whose speed nobody measures."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import TypeVar

import onnxruntime as ort

from onnxq.runtime.failures import RUNTIME_FAILURES

K = TypeVar("K")

SMALLEST_ROOM = 1 << 26
"""Bytes of weights that every session may hold, however little memory is allowed."""

MODELS_BYTES = 1 << 30
"""Constants of models that are in memory to be timed in turn."""

RUN_BYTES = 64 << 20
"""What the values of one run may take; batches that take more are fed in parts where the model
leaves the batch open."""

AT_ONCE_BYTES = 4 * RUN_BYTES
"""What the values of runs beside each other may take."""

SHARED_ARENA = {
    "session.use_env_allocators": "1",
    # Weights go by themselves, or holes would stay in the arena where a session was.
    "session.use_device_allocator_for_initializers": "1",
}
"""Configuration of a session that takes its memory from the arena of `share_arena`."""


@cache
def share_arena() -> None:
    """Make the arena that sessions with `SHARED_ARENA` share, once in a process.

    A session's own arena keeps the memory of its largest run for as long as the session lives,
    and the sessions of an analysis are hundreds.
    """
    kinds = ort.OrtAllocatorType, ort.OrtMemType
    cpu = ort.OrtMemoryInfo("Cpu", kinds[0].ORT_ARENA_ALLOCATOR, 0, kinds[1].DEFAULT)
    # No limit, and no more than is asked for at a time.
    settings = ort.OrtArenaCfg(0, 1, -1, -1)
    try:
        ort.create_and_register_allocator(cpu, settings)
    except RUNTIME_FAILURES:
        # The process around has made one.
        return


def model_room(memory_limit: int | None) -> int:
    """Bytes of weights that a session may hold: larger models run segment by segment.

    A quarter of what was allowed, or of the machine's memory: weights are in memory twice while a
    session packs them, and there are other things.
    """
    if memory_limit is None:
        memory_limit = machine_memory()
    return max(SMALLEST_ROOM, (memory_limit or 1 << 33) // 4)


def machine_memory() -> int | None:
    """Bytes of memory of this machine; None where the system does not say."""
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def at_a_time(sizes: Mapping[K, int], room: int) -> list[list[K]]:
    """Groups, in order, of what takes no more than ``room`` together; larger ones are alone."""
    groups: list[list[K]] = []
    left = 0
    for key, size in sizes.items():
        if not groups or size > left:
            groups.append([])
            left = room
        groups[-1].append(key)
        left -= size
    return groups


def give_back() -> None:
    """Give memory that nothing holds any more back to the system, where that can be asked for."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)


@cache
def keep_memory() -> None:
    """Let this process keep what arrays took for further ones, where that can be asked for.

    Dask starts workers so that they give memory back to the system whenever an array goes, and
    arrays that are made anew take it page by page, which takes a third of the time of tuning.
    """
    if sys.platform == "linux":
        trim_threshold, mmap_threshold = -1, -3
        with suppress(OSError, AttributeError):
            allocator = ctypes.CDLL(None)
            # As far as glibc goes by itself, unless it is told of one of them.
            allocator.mallopt(mmap_threshold, 32 << 20)
            allocator.mallopt(trim_threshold, 64 << 20)


_most = 0


def use_processors(count: int) -> None:
    """Let `processors` be no more than so many, where several processes share a machine."""
    global _most
    _most = count


def is_worker() -> bool:
    """Whether this is one of several processes that share a machine."""
    return bool(_most)


def processors() -> int:
    """Number of processors that this process may use."""
    if _most:
        return _most
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

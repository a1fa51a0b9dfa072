"""Memory and processors that sessions share whose speed nobody measures."""

from __future__ import annotations

import os
from functools import cache

import onnxruntime as ort

from onnxq.runtime.failures import RUNTIME_FAILURES

RUN_BYTES = 64 << 20
"""What the values of one run may take; batches that take more are fed in parts where the model
leaves the batch open."""

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


def processors() -> int:
    """Number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

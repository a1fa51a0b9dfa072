"""How much memory this process takes or took, as Linux tells it."""

from __future__ import annotations

from pathlib import Path


def memory_bytes(field: str, process: str = "self") -> int:
    """A size in a process's status: ``VmHWM``, its peak, ``VmRSS`` or ``RssAnon``.

    ``resource.getrusage`` is no use for the peak: it begins with that of the process that started
    this one.
    """
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"this system does not tell {field}: the measurement needs Linux")

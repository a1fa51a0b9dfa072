"""Measurements kept on disk, so that nothing is measured twice on one machine."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sqlite3
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

from onnxq.runtime import load_backend
from onnxq.saved import cache_folder

FILE = "costs.sqlite"


class Measurements:
    """Costs in milliseconds by signature, in an SQLite file.

    A signature names all that a measurement depends on: the machine, the provider, the number of
    threads, the backend's version, and what was measured. Several processes may share the file.

    Args:
        folder: Where the file lies; `cache_folder` if None. A folder that cannot be written to
            costs the memory, not the run: measurements are then kept for this run only.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._fresh: dict[str, dict[str, float]] = {}
        self._path: Path | None = (folder or cache_folder()) / FILE
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._open() as connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS costs (signature TEXT PRIMARY KEY, ms TEXT)"
                )
        except (OSError, sqlite3.Error):
            self._path = None

    def get(self, signature: str) -> Mapping[str, float] | None:
        """What was measured under a signature, by name; None if nothing was."""
        if signature in self._fresh or self._path is None:
            return self._fresh.get(signature)
        try:
            with self._open() as connection:
                row = connection.execute(
                    "SELECT ms FROM costs WHERE signature = ?", (signature,)
                ).fetchone()
            found = (
                None if row is None else {str(k): float(v) for k, v in json.loads(row[0]).items()}
            )
        except (sqlite3.Error, ValueError, AttributeError, TypeError):
            return None
        return found

    def put(self, signature: str, ms: Mapping[str, float]) -> None:
        """Keep a measurement."""
        self._fresh[signature] = dict(ms)
        if self._path is None:
            return
        with contextlib.suppress(sqlite3.Error), self._open() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO costs VALUES (?, ?)", (signature, json.dumps(dict(ms)))
            )

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        assert self._path is not None
        connection = sqlite3.connect(self._path, timeout=10)
        try:
            with connection:
                yield connection
        finally:
            connection.close()


def machine(provider: str, threads: int, backend: str = "onnxruntime") -> dict[str, str]:
    """All about this machine that a latency depends on."""
    return {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "provider": provider,
        "threads": str(threads),
        backend: load_backend(backend).version,
    }


@cache
def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if "model name" in line]
        if names:
            return names[0]
    except OSError:
        pass
    return platform.processor() or platform.machine()

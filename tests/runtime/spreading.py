"""Work that goes through files as on a cluster, in this process and in any order."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from onnxq.runtime import pool
from onnxq.runtime.executor import Executor, Work
from onnxq.runtime.sharing import Sharing, loads
from onnxq.runtime.store import Store


class Spread(Executor):
    """Does items in an order drawn by a seed, each from files alone."""

    is_spread: ClassVar[bool] = True

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder: Path = folder
        self._random = random.Random(seed)
        self.done = 0

    @contextmanager
    def open(self, work: Work[Any, Any]) -> Iterator[Callable[[Sequence[Any]], Iterator[Any]]]:
        """See `Executor`."""
        sharing, store = Sharing(self.folder), Store(self.folder / "results")
        name, dumped = sharing.fingerprint(work), sharing.dump(work)
        with loads(dumped).open() as run:

            def do(items: Sequence[Any]) -> Iterator[Any]:
                keys = [f"{name}-{sharing.fingerprint(item)}" for item in items]
                for place in self._random.sample(range(len(items)), len(items)):
                    store.put(keys[place], run(items[place]))
                    self.done += 1
                yield from map(store.get, keys)

            yield do


def one_thread(monkeypatch: Any) -> None:
    """Let all of this process run on one thread, as workers do."""
    monkeypatch.setattr(pool, "_most", 1)

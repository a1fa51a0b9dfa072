"""Several things at a time, where what comes out does not depend on how many."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[tuple[T, R]]:
    """Each item with what work makes of it, in the order of the items.

    Sessions of one thread each that run beside each other give the same numbers on any number of
    processors, which one session of several threads does not.

    Args:
        work: Called on other threads if there are several workers.
        items: Taken one by one, no more than ``workers`` ahead.
        workers: How many are worked on at a time.
    """
    if workers < 2:
        for item in items:
            yield item, work(item)
        return
    pending: deque[tuple[T, Future[R]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="onnxq") as pool:
        try:
            for item in items:
                pending.append((item, pool.submit(work, item)))
                if len(pending) >= workers:
                    done, result = pending.popleft()
                    yield done, result.result()
            while pending:
                done, result = pending.popleft()
                yield done, result.result()
        finally:
            for _, left in pending:
                left.cancel()

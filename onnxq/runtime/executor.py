"""Work on many items, in this process or spread over others: what comes out is the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from onnxq.errors import InputError
from onnxq.runtime.parallel import in_order
from onnxq.runtime.pool import processors

T = TypeVar("T")
R = TypeVar("R")

HANGS_AFTER = 900.0
"""Seconds in which no worker gives anything, after which those that are at work count as hung."""


class Work(ABC, Generic[T, R]):
    """What is done with each of some items: a dataclass of all that it depends on.

    The same item gives the same result in whatever process and order.

    Class variables:
        is_reentrant: Whether several threads may do it at a time.
        is_resumable: Whether another run that does the same can use its results. It cannot where
            items, or the work, name what this run alone has, as values in a temporary folder.
    """

    is_reentrant: ClassVar[bool] = False
    is_resumable: ClassVar[bool] = True

    @abstractmethod
    def open(self) -> AbstractContextManager[Callable[[T], R]]:
        """Make ready what all items need; gives what is called for each."""

    def given_up(self, item: T, sentence: str) -> R:
        """What stands for an item that no worker can do.

        Raises:
            InputError: of the sentence, where work cannot go on without the item.
        """
        raise InputError(sentence)


class Executor(ABC):
    """Where work is done.

    Attributes:
        is_spread: Whether it is done in other processes, which open data and models themselves.
        folder: A folder that all of these see; None where there is none.
    """

    is_spread: ClassVar[bool] = False
    folder: Path | None = None

    @abstractmethod
    def open(
        self, work: Work[T, R]
    ) -> AbstractContextManager[Callable[[Sequence[T]], Iterator[R]]]:
        """Make work ready; gives what does some items, and then others.

        It gives their results in the order of the items.

        Raises:
            InputError: some item cannot be done.
        """

    def map(self, work: Work[T, R], items: Sequence[T]) -> Iterator[R]:
        """The results of all items, in the order of the items.

        Raises:
            InputError: some item cannot be done.
        """
        with self.open(work) as do:
            yield from do(items)

    def alone(self, numbers: Sequence[int]) -> list[list[int]]:
        """Numbers of shards as they are to be done: together here, one by one elsewhere."""
        return [[number] for number in numbers] if self.is_spread else [list(numbers)]


class InProcess(Executor):
    """Does work in this process, on its processors."""

    @contextmanager
    def open(self, work: Work[T, R]) -> Iterator[Callable[[Sequence[T]], Iterator[R]]]:
        """See `Executor`."""
        with work.open() as run:
            workers = processors() if work.is_reentrant else 1
            yield lambda items: (found for _, found in in_order(run, items, workers))


IN_PROCESS = InProcess()


@contextmanager
def open_executor(
    workers: int | None,
    scheduler: str | None,
    folder: Path,
    *,
    memory_limit: int | None = None,
    hangs_after: float = HANGS_AFTER,
    per_machine: int | None = None,
    modules: Sequence[str] = (),
) -> Iterator[Executor]:
    """Where work is to be done: here, in processes of this machine, or on a cluster.

    Args:
        workers: Number of processes to start on this machine.
        scheduler: Address of a Dask scheduler.
        folder: A folder that all processes see under this name.
        memory_limit: Bytes that each of the processes that are started may hold.
        hangs_after: See `HANGS_AFTER`.
        per_machine: Workers of one machine that are used; all if None.
        modules: Names of modules and packages that workers load while nothing is there to do yet.

    Raises:
        InputError: both are asked for, Dask is missing, or nothing answers at the address.
    """
    if workers is None and scheduler is None:
        yield IN_PROCESS
        return
    if workers is not None and scheduler is not None:
        raise InputError(
            "workers are started here or found at a scheduler; name --workers or --scheduler"
        )
    try:
        from onnxq.runtime import cluster
    except ImportError as error:
        raise InputError(
            f"several workers need the package {error.name}; install them with "
            "`pip install onnxq[cluster]`"
        ) from error
    with cluster.connected(workers, scheduler, memory_limit) as connection:
        connection.load(modules)
        yield cluster.Cluster(connection, folder, hangs_after, per_machine)

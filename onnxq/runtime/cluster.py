"""Work spread over the workers of a Dask cluster, which the extra ``cluster`` installs.

What goes through the scheduler are names alone: workers read what to do from files in a folder that
all machines see, open models and data themselves, and put results into files by their keys.
"""

from __future__ import annotations

import errno
import logging
import os
import queue
import re
import shutil
import time
from asyncio import Future as Task
from asyncio import ensure_future, to_thread
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from importlib import import_module
from math import inf
from pathlib import Path
from pkgutil import walk_packages
from threading import RLock, Timer
from typing import Any, ClassVar, TypeVar

import dask
from distributed import Client, Future, KilledWorker, LocalCluster, get_worker
from distributed.security import Security
from tornado.ioloop import PeriodicCallback

from onnxq.errors import InputError
from onnxq.ir.saving import replacing
from onnxq.runtime import pool
from onnxq.runtime.executor import Executor, Work
from onnxq.runtime.sharing import Sharing, loads
from onnxq.runtime.store import Store

T = TypeVar("T")
R = TypeVar("R")

_TRIES = 3
"""Times that an item is tried whose worker has trouble of its own, as a full disk, or hangs."""

_LOOKS = 5
"""Times that workers are looked at before one counts as hung."""

_KEEPS_OPEN = 60.0
"""Seconds for which a worker keeps work open that it has nothing to do for."""

_WANTED_FOR = 30 * 86400
"""Seconds after which what runs have left in the folder, and none has used again, goes."""

_ANSWERS_WITHIN = 30.0
"""Seconds in which a scheduler that was started again has to be there."""

_MENDS_EVERY = 10.0
"""Seconds between two looks at the processes that were started here."""

_WORKS_WITHIN = 120.0
"""Seconds in which one worker at least has to be there; busy machines take some to start one."""

_TASK_TAKES = 0.2
"""Seconds that a task is to take at most that does several items."""

_SHORTEST = 1e-3
"""Seconds that all items took at least; some clocks go on more rarely than every millisecond."""

_SETTINGS = {
    # Workers that may die with one item.
    "distributed.scheduler.allowed-failures": 6,
    # Nothing that workers hold can be spilled, and one that pauses would never go on.
    "distributed.worker.memory.target": False,
    "distributed.worker.memory.spill": False,
    "distributed.worker.memory.pause": False,
    "distributed.worker.memory.terminate": 0.95,
    # It looks at what workers do a hundred times a second.
    "distributed.worker.profile.enabled": False,
    # Nor does anybody ask how their loops feel, fifty times a second.
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "5s",
    # What their pages tell is for nobody.
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
}


class Connection:
    """A way to a cluster.

    Args:
        address: Its scheduler's address, or the cluster itself.
    """

    def __init__(self, address: Any) -> None:
        self._address = address
        self._clients: list[Client] = []
        self._dead: set[Any] = set()
        self._closing: set[Task[Any]] = set()
        self._looking: PeriodicCallback | None = None
        if isinstance(address, LocalCluster):
            self._looking = PeriodicCallback(self._replace_dead, _MENDS_EVERY * 1000)
            # It runs on the loop of the thread that starts it.
            address.loop.add_callback(self._looking.start)

    def client(self) -> Client:
        """A client that is connected: another one where the last has lost the scheduler.

        Raises:
            InputError: nothing answers at the address.
        """
        if not self._clients or self._clients[-1].status != "running":
            try:
                client = Client(self._address, timeout=_ANSWERS_WITHIN, set_as_default=False)
            except (OSError, ValueError, TypeError) as error:
                raise InputError(
                    f"no Dask scheduler answers at '{self._address}' ({_told(error)}); check the "
                    "address and, where it uses TLS, the settings of distributed.comm.tls"
                ) from error
            self._clients.append(client)
        return self._clients[-1]

    def load(self, modules: Sequence[str]) -> None:
        """Let the workers that are there load modules, which takes most of a second each.

        Nobody waits for it; who comes later loads what work needs.
        """
        if not modules:
            return
        client = self.client()

        def load() -> None:
            with suppress(Exception):
                client.run(_load, [*modules], wait=False, on_error="ignore")

        # Dask waits until each of them has heard of it, for ever where one hangs.
        _later(0, load)

    def _replace_dead(self) -> None:
        """Start workers of this machine again that died while they started, or were given up.

        Dask itself starts those again only that die later, takes some seconds for it, and gives up
        those that it has not seen for 15 seconds.
        """
        cluster, before = self._address, self._dead
        self._dead = {n for n, nanny in cluster.workers.items() if not nanny.is_alive()}
        # One that is found dead once may be about to be started again.
        for name in self._dead & before:
            # What nobody holds may be collected before it is done.
            task = ensure_future(cluster.workers.pop(name).close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._dead -= before
        if {*cluster.worker_spec} - {*cluster.workers}:
            cluster.scale(len(cluster.worker_spec))

    def close(self) -> None:
        """Leave the cluster."""
        if self._looking is not None:
            self._address.loop.add_callback(self._looking.stop)
        for client in self._clients:
            with suppress(Exception):
                client.close(timeout=5)


@contextmanager
def connected(
    workers: int | None, scheduler: str | None, memory_limit: int | None
) -> Iterator[Connection]:
    """A way to a cluster: one that is there, or one of processes that end afterwards.

    A cluster that is started listens on the loopback interface only, and where the package
    cryptography is there, as the extra installs it, by TLS with keys that nobody else has.

    Raises:
        InputError: nothing answers at the address.
    """
    with ExitStack() as stack, dask.config.set(_SETTINGS):
        for name in ("distributed", "distributed.nanny", "distributed.scheduler"):
            stack.enter_context(_quiet(name))
        address: Any = scheduler
        if address is None:
            address = stack.enter_context(_local(workers, memory_limit))
        connection = Connection(address)
        stack.callback(connection.close)
        connection.client()
        yield connection


def _security() -> Security:
    """Keys for one run, without which nobody on this machine can connect; none if they can't be."""
    try:
        return Security.temporary()
    except ImportError:
        # The extra brings what makes them.
        return Security()


def _local(workers: int | None, memory_limit: int | None) -> Any:
    """A cluster of processes of this machine, of which one may die before it has begun."""
    for left in reversed(range(_TRIES)):
        try:
            return LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                worker_dashboard_address="127.0.0.1:0",
                memory_limit=memory_limit or 0,
                # What there is to see is told by the command.
                scheduler_kwargs={"dashboard": False},
                security=_security(),
                silence_logs=logging.CRITICAL,
            )
        except RuntimeError as error:
            if not left:
                raise InputError(f"workers cannot be started here: {_told(error)}") from error
    raise AssertionError("not reached")


class Cluster(Executor):
    """Does work on the workers of a Dask cluster, each item by one thread.

    Args:
        connection: The way to it.
        folder: A folder that all machines see under this name.
        hangs_after: Seconds without any result after which workers count as hung.
        per_machine: Workers of one machine that are used; all if None.
    """

    is_spread: ClassVar[bool] = True

    def __init__(
        self, connection: Connection, folder: Path, hangs_after: float, per_machine: int | None
    ) -> None:
        self.folder: Path = folder.resolve()
        _tidy(self.folder)
        self._connection = connection
        self._hangs_after = hangs_after
        self._per_machine = per_machine
        self._takes: dict[type, float] = {}

    @contextmanager
    def open(self, work: Work[T, R]) -> Iterator[Callable[[Sequence[T]], Iterator[R]]]:
        """See `Executor`; results that are in the folder already are not found again."""
        sharing = Sharing(self.folder)
        name = sharing.fingerprint(work)
        path = self.folder / "work" / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                file.write(sharing.dump(work))
        except OSError as error:
            raise _no_room(self.folder, error) from error
        store, taken = Store(self.folder / "results"), list[str]()

        def do(items: Sequence[T]) -> Iterator[R]:
            keys = [f"{name}-{sharing.fingerprint(item)[:16]}" for item in items]
            named = dict(zip(keys, items, strict=True))
            settings = (self._connection, self._hangs_after, self._per_machine)
            at_once = _TASK_TAKES / self._takes.get(type(work), inf)
            run = _Map(*settings, store, str(path), named, int(at_once))
            try:
                for key in keys:
                    sentence = run.wait_for(key)
                    yield work.given_up(named[key], sentence) if sentence else store.get(key)
            finally:
                run.cancel()
                if not work.is_resumable:
                    for key in keys:
                        store.drop(key)
            taken.extend(keys)
            if run.sent:
                self._takes[type(work)] = run.took * run.workers / run.sent

        yield do
        # What comes to an end otherwise goes on from there.
        for key in taken:
            store.drop(key)


class _Map:
    """The items of one call of `Cluster.map` on their way.

    Attributes:
        workers: How many there were to do them in the beginning.
        sent: How many items had no result in the beginning.
    """

    def __init__(
        self,
        connection: Connection,
        hangs_after: float,
        per_machine: int | None,
        store: Store,
        work: str,
        items: dict[str, Any],
        at_once: int,
    ) -> None:
        self._connection, self._hangs_after, self._store = connection, hangs_after, store
        self._per_machine = per_machine
        self._work, self._items = work, items
        self._futures: dict[str, Future] = {}
        self._done: queue.SimpleQueue[tuple[Sequence[str], Future]] = queue.SimpleQueue()
        self._tries: dict[str, int] = {}
        self._given_up: dict[str, str] = {}
        self._bound: dict[str, Collection[str]] = {}
        self._at: dict[str, tuple[Any, float]] = {}
        self._began = self._ended = self._seen = time.monotonic()
        missing = [key for key in items if key not in store]
        self._missing = {*missing}
        self.workers, self.sent = len(self._workers()), len(missing)
        self._submit(_bundled(missing, self.workers, at_once))

    @property
    def took(self) -> float:
        """Seconds until the last result came, whoever took them when; never zero."""
        return max(self._ended - self._began, _SHORTEST)

    def wait_for(self, key: str) -> str:
        """Return when an item is done, or given up: a sentence says why then.

        Raises:
            InputError: its work refuses it, or there are no workers.
        """
        while key in self._missing:
            with suppress(queue.Empty):
                done, future = self._done.get(timeout=self._hangs_after / _LOOKS)
                self._take([key for key in done if self._futures.get(key) is future], future)
            if time.monotonic() - self._seen >= self._hangs_after / _LOOKS:
                self._look()
        return self._given_up.get(key, "")

    def cancel(self) -> None:
        """Let what is not done be."""
        if self._futures:
            with suppress(Exception):
                self._connection.client().cancel([*self._futures.values()])

    def _take(self, keys: Sequence[str], future: Future) -> None:
        """See to the items of one task that has come to an end, but for those that others have."""
        for key in keys:
            del self._futures[key]
            self._bound.pop(key, None)
        # Those before the one that went wrong are done.
        left = [k for k in keys if future.status != "finished" and k not in self._store]
        self._missing.difference_update({*keys} - {*left})
        if not left:
            return
        if future.status in ("cancelled", "lost"):
            # The scheduler was lost, and with it what it knew.
            self._workers()
            self._submit([left])
            return
        error = future.exception()
        if isinstance(error, KilledWorker):
            self._workers()
            self._submit([[key] for key in left if self._is_innocent(key)])
        elif not isinstance(error, OSError | MemoryError):
            raise error
        elif self._may_be_tried(left[0], f"a worker could not do its part ({_told(error)})"):
            self._submit([left], [w for w in self._workers() if w != getattr(error, "worker", "")])
        else:
            self._submit([left[1:]])

    def _is_innocent(self, key: str) -> bool:
        """Whether workers that ended are no reason to give an item up.

        Dask blames all that the workers had, those that waited there, too.
        """
        if len(list(_begun(self._work, key, "").parent.glob(f"{key}-*"))) < _TRIES:
            return self._may_be_tried(key, "workers ended one after another")
        self._give_up(
            key,
            "workers ended one after another with the same item; it may need more memory "
            "than --memory-limit allows, and the workers' logs may say more",
        )
        return False

    def _look(self) -> None:
        """Find workers that have been at the same items for too long."""
        self._seen = now = time.monotonic()
        before, self._at = self._at, {}
        try:
            client = self._connection.client()
            held = client.processing()
            known = client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, RuntimeError):
            # The client is about to find a scheduler again, or to give up.
            return
        ours: dict[str, list[str]] = {}
        for key, future in self._futures.items():
            ours.setdefault(future.key, []).append(key)
        for worker, futures in held.items():
            own = [key for future in futures for key in ours.get(future, ())]
            keys = frozenset(key for key in own if _begun(self._work, key, worker).exists())
            # Others wait, maybe for what somebody else does there, while the worker gives signs.
            state = keys or known.get(worker, {}).get("last_seen")
            since = before[worker][1] if before.get(worker, ("",))[0] == state else now
            self._at[worker] = state, since
            if own and now - since >= self._hangs_after:
                self._move(worker, keys or own, own)
        workers = self._workers()
        # Dask would wait for those to come back.
        self._submit([[key] for key, own in self._bound.items() if not {*own} & {*workers}])

    def _move(self, hung: str, keys: Collection[str], own: Collection[str]) -> None:
        """Give the items of a worker that hangs to others, and start the worker again.

        Args:
            hung: The worker.
            keys: The items that it hangs at.
            own: These and those that wait there.
        """
        del self._at[hung]
        why = f"a worker gave nothing in {self._hangs_after:g} seconds"
        again = [key for key in own if key not in keys or self._may_be_tried(key, why)]
        others = [worker for worker in self._workers() if worker != hung]
        # Without others the task itself goes on there, but not behind what was given up.
        self._submit([[key] for key in again if others or key not in keys], others)
        with suppress(Exception):
            # One without a nanny cannot be.
            self._connection.client().restart_workers(
                [hung], timeout=_ANSWERS_WITHIN, raise_for_error=False
            )

    def _may_be_tried(self, key: str, why: str) -> bool:
        """Count another try of an item; it is given up after too many."""
        self._tries[key] = self._tries.get(key, 1) + 1
        if self._tries[key] <= _TRIES:
            return True
        self._give_up(key, f"{why}, {_TRIES} times; what is done is kept in the work folder")
        return False

    def _give_up(self, key: str, sentence: str) -> None:
        self._given_up[key] = sentence
        self._missing.discard(key)
        self._futures.pop(key, None)
        self._bound.pop(key, None)

    def _few(self, workers: Sequence[str]) -> list[str]:
        """As many of some workers as may be used of each machine."""
        machines: dict[str, list[str]] = {}
        for worker in workers:
            machines.setdefault(worker.rpartition(":")[0], []).append(worker)
        return [worker for own in machines.values() for worker in own[: self._per_machine]]

    def _submit(self, bundles: Sequence[Sequence[str]], workers: Sequence[str] = ()) -> None:
        """Send items on their way, each bundle to one of some workers, or of all that may be used.

        Where one waits for a worker, those that follow it in its bundle wait, too.
        """
        bundles = [bundle for bundle in bundles if bundle]
        if not bundles:
            return
        if self._per_machine is not None and not workers:
            workers = self._workers()
        # Together they take the scheduler less time than one after the other.
        futures = self._connection.client().map(
            run_items,
            [self._work] * len(bundles),
            [[(self._items[key], key) for key in bundle] for bundle in bundles],
            # A key of an earlier try would be taken for that.
            key=[f"{bundle[0]}-{time.monotonic_ns()}" for bundle in bundles],
            workers=workers or None,
            pure=False,
        )
        for bundle, future in zip(bundles, futures, strict=True):
            for key in bundle:
                self._futures[key] = future
                self._bound.pop(key, None)
                if workers:
                    self._bound[key] = workers
            future.add_done_callback(partial(self._note, bundle))

    def _note(self, bundle: Sequence[str], future: Future) -> None:
        self._ended = time.monotonic()
        self._done.put((bundle, future))

    def _workers(self) -> list[str]:
        """Addresses of the workers there are, of which one at least is waited for."""
        began = time.monotonic()
        while True:
            with suppress(OSError, RuntimeError):
                client = self._connection.client()
                if found := sorted(client.scheduler_info(n_workers=-1)["workers"]):
                    return self._few(found)
            if time.monotonic() > began + _WORKS_WITHIN:
                raise InputError("the cluster has no workers; start some with `dask worker`")
            time.sleep(0.1)


def _bundled(keys: Sequence[str], workers: int, most: int) -> list[Sequence[str]]:
    """Items that workers are given together: up to so many at first, one at a time in the end.

    A task takes the scheduler and a worker some milliseconds each, as long as many an item does. No
    worker is given more than half of its share of what is left, so that all end together.
    """
    bundles, at = [], 0
    while at < len(keys):
        count = max(1, min(most, -(-(len(keys) - at) // (2 * workers))))
        bundles.append(keys[at : at + count])
        at += count
    return bundles


class _Opened:
    """The work that this process did last, which is kept open for further items for a while."""

    lock: ClassVar[RLock] = RLock()
    name: ClassVar[str] = ""
    used: ClassVar[float] = 0.0
    stack: ClassVar[ExitStack] = ExitStack()
    run: ClassVar[Callable[[Any], Any]]

    @classmethod
    def of(cls, work: str) -> Callable[[Any], Any]:
        """What does an item of the work in a file."""
        if cls.name != work:
            if not cls.name:
                _later(_KEEPS_OPEN, cls.close_when_idle)
            cls.close()
            cls.run = cls.stack.enter_context(loads(Path(work).read_bytes()).open())
            cls.name = work
        return cls.run

    @classmethod
    def close(cls) -> None:
        """Give back what the work holds."""
        cls.stack.close()
        cls.name = ""

    @classmethod
    def close_when_idle(cls) -> None:
        """Give it back unless it was used of late, or see to it again later."""
        with cls.lock:
            left = cls.used + _KEEPS_OPEN - time.monotonic()
            if left <= 0:
                cls.close()
            else:
                _later(left, cls.close_when_idle)


async def _load(modules: Sequence[str]) -> None:
    """Load modules, and what packages hold, beside whatever else a worker does."""

    def load() -> None:
        with suppress(ImportError):
            for module in map(import_module, modules):
                for inner in walk_packages(getattr(module, "__path__", ()), f"{module.__name__}."):
                    import_module(inner.name)

    await to_thread(load)


def _later(seconds: float, do: Callable[[], None]) -> None:
    timer = Timer(seconds, do)
    timer.daemon = True
    timer.start()


def run_items(work: str, items: Sequence[tuple[Any, str]]) -> None:
    """Do some items on a worker, one after the other; see `run_item`.

    Args:
        work: File of the work.
        items: The items, each with the key of its result.
    """
    for item, key in items:
        run_item(work, item, key)


def run_item(work: str, item: Any, key: str) -> None:
    """Do one item on a worker, unless its result is there, and put that into the folder.

    Args:
        work: File of the work.
        item: The item.
        key: Key of its result.
    """
    store = Store(Path(work).parents[1] / "results")
    if key in store:
        return
    # One thread at a time: so many workers, so many processors.
    with _Opened.lock:
        pool.use_processors(1)
        pool.keep_memory()
        address = get_worker().address
        begun = _begun(work, key, address)
        try:
            begun.parent.mkdir(exist_ok=True)
            begun.touch()
            store.put(key, _Opened.of(work)(item))
        except (OSError, MemoryError) as error:
            vars(error)["worker"] = address
            raise
        except RecursionError as error:
            too_deep = str(error)
        else:
            return
        finally:
            _Opened.used = time.monotonic()
            with suppress(OSError):
                begun.unlink()
    # Dask cannot send a traceback of a thousand frames, and would wait for ever.
    raise RecursionError(too_deep)


def _begun(work: str, key: str, worker: str) -> Path:
    """The file that says that a worker is at an item."""
    return Path(work).parents[1] / "begun" / f"{key}-{re.sub(r'[^0-9A-Za-z]', '-', worker)}"


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """What goes wrong on the way is ours to tell, or to put right."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def _tidy(folder: Path) -> None:
    """Remove what nobody has wanted for long from a folder that outlives runs."""
    for path in folder.glob("*/*"):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - _WANTED_FOR:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _told(error: BaseException) -> str:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return os.strerror(errno.ENOSPC)
    return str(error) or type(error).__name__


def _no_room(folder: Path, error: OSError) -> InputError:
    return InputError(f"the folder '{folder}' cannot be written to: {_told(error)}; make room")

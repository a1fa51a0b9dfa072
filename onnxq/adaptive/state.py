"""What adaptive sessions on one bundle know together, in a file that survives them."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from onnxq.adaptive.deployment import Deployment
from onnxq.adaptive.events import Event, Journal
from onnxq.errors import InputError
from onnxq.plain import finite, read, to_plain

_T = TypeVar("_T")

_VERSION = 1
_TABLES = (
    "CREATE TABLE bundle (identity TEXT NOT NULL)",
    "CREATE TABLE events (number INTEGER PRIMARY KEY AUTOINCREMENT, event TEXT NOT NULL)",
    "CREATE TABLE generations (number INTEGER PRIMARY KEY, deployment TEXT NOT NULL,"
    " reason TEXT NOT NULL, worker TEXT NOT NULL, time REAL NOT NULL)",
    "CREATE TABLE statistics (worker TEXT PRIMARY KEY, body TEXT NOT NULL, time REAL NOT NULL)",
)
_MAGIC = b"SQLite format 3\0"
_BUSY_SECONDS = 2.0
_STATE = "the file of the state"


@dataclass(frozen=True)
class Generation:
    """What answers, and since which change.

    Attributes:
        number: Of changes; 0 for what the bundle begins with.
        deployment: What answers.
        reason: Why.
    """

    number: int
    deployment: Deployment
    reason: str = ""


class _UnavailableError(Exception):
    """The file cannot be used now."""


class _DamagedError(Exception):
    """What is in the file is not what was written."""


class _ForeignError(Exception):
    """The file is somebody else's, who may be at work on it."""


class State:
    """Generations, events and statistics, in a SQLite file that processes share.

    Models are not in it. It is opened for every use, so that it may be damaged, replaced or
    missing at any time, and a process may be forked. Where it cannot be used, everything goes on
    from memory, and what was to be written is written later. No method raises.

    Args:
        path: The file; None for memory alone.
        bundle: What tells the bundle from others.
        variants: How many it has.
        first: What answers before any change.
        journal: Where faults are told, and from where events are taken.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        bundle: str,
        variants: int,
        first: Deployment,
        journal: Journal,
    ) -> None:
        self.path = path
        self._bundle = bundle
        self._variants = variants
        self._first = Generation(0, first)
        self._journal = journal
        self._lock = threading.RLock()
        self._known = self._first
        self._kept: list[Event] = []
        self._own: str | None = None

    def newest(self) -> Generation:
        """The newest generation that is known, by whatever worker."""
        with self._lock, suppress(_UnavailableError):
            self._keep_newer(self._use(self._newest_in))
        return self._known

    def before(self, number: int) -> list[Generation]:
        """Generations before one, the newest first; the last is what the bundle begins with."""
        earlier: list[Generation] = []
        with suppress(_UnavailableError):
            earlier = self._use(lambda file: self._generations(file, "WHERE number < ?", number))
        return [*earlier, self._first]

    def change(self, expected: Generation, new: Generation) -> bool:
        """Let a generation follow on an expected one, unless another worker was faster."""

        def insert(file: sqlite3.Connection) -> Generation:
            self._catch_up(file, expected)
            newest = self._newest_in(file)
            if newest != expected:
                return newest
            self._insert(file, new)
            return new

        with self._lock:
            try:
                self._known = self._use(insert)
            except _UnavailableError:
                self._known = new
            return self._known is new

    def save(self, statistics: Mapping[str, Any] | None = None) -> Generation:
        """Write what waits, and this worker's statistics.

        Returns:
            The newest generation.
        """
        body = None if statistics is None else json.dumps(finite(to_plain(statistics)))
        self._own = body or self._own

        def write(file: sqlite3.Connection) -> Generation:
            self._catch_up(file, self._known)
            file.executemany(
                "INSERT INTO events (event) VALUES (?)",
                [(json.dumps(finite(to_plain(event))),) for event in events],
            )
            if body is not None:
                file.execute(
                    "INSERT OR REPLACE INTO statistics VALUES (?, ?, ?)",
                    (self._journal.worker, body, self._journal.wall()),
                )
            return self._newest_in(file)

        with self._lock, suppress(_UnavailableError):
            events = self._journal.waiting()
            if self.path is None:
                self._kept += events
            else:
                self._keep_newer(self._use(write))
                # Not told where reading works: a full disk can be read.
                self._journal.works(_STATE)
            self._journal.taken(events)
        return self._known

    def events(self) -> list[Event]:
        """All events in order, of all workers and earlier runs too."""
        stored: list[Event] = []
        with self._lock:
            with suppress(_UnavailableError):
                stored = self._use(self._events_in)
            return [*stored, *self._kept, *self._journal.waiting()]

    def statistics(self) -> dict[str, Any]:
        """Statistics that workers saved, by worker."""

        def saved(file: sqlite3.Connection) -> dict[str, Any]:
            rows = file.execute("SELECT worker, body FROM statistics ORDER BY worker").fetchall()
            return {worker: _parsed(body) for worker, body in rows}

        found: dict[str, Any] = {}
        with suppress(_UnavailableError):
            found = self._use(saved)
        # Where the file cannot be written they are in memory alone.
        own = {} if self._own is None else {self._journal.worker: json.loads(self._own)}
        return {**found, **own}

    def inherit(self, alive: Callable[[str, float], bool]) -> Any:
        """Take over the newest statistics of a worker that is no more; None without any.

        Args:
            alive: Tells whether a worker is still at work, by its name and when it saved them.
        """

        def take(file: sqlite3.Connection) -> Any:
            order = "SELECT worker, body, time FROM statistics ORDER BY time DESC, worker"
            for worker, body, saved in file.execute(order).fetchall():
                if not alive(worker, saved):
                    # They stay there until they are replaced: the heir, too, may be killed.
                    file.execute(
                        "UPDATE OR REPLACE statistics SET worker = ? WHERE worker = ?",
                        (self._journal.worker, worker),
                    )
                    return _parsed(body)
            return None

        with suppress(_UnavailableError):
            return self._use(take)
        return None

    def _keep_newer(self, found: Generation) -> None:
        # A file that was begun anew knows less than we do.
        if found.number >= self._known.number:
            self._known = found

    def _use(self, action: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do something with the file in one transaction; what is damaged is set aside before."""
        if self.path is None:
            raise _UnavailableError
        for _ in range(2):
            seen = _identity(self.path)
            try:
                with self._opened(self.path) as file:
                    result = action(file)
            except (
                *(_DamagedError, _ForeignError, InputError),
                *(sqlite3.Error, OSError),
            ) as error:
                if not _is_damage(error, self.path) or not self._set_aside(self.path, seen, error):
                    self._journal.fault(
                        _STATE,
                        f"{_STATE} '{self.path}' cannot be used ({error}); what is learned stays "
                        "in memory until it can",
                    )
                    raise _UnavailableError from error
            else:
                return result
        raise _UnavailableError

    @contextmanager
    def _opened(self, path: Path) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(path, timeout=_BUSY_SECONDS, isolation_level=None)) as file:
            # Before anything is written: the file may be another application's.
            file.execute("BEGIN")
            is_new = _is_new(file)
            file.execute("COMMIT")
            if is_new:
                _begin_log(file)
            file.execute("PRAGMA synchronous=NORMAL")
            file.execute("BEGIN IMMEDIATE")
            try:
                self._check(file)
                yield file
            except BaseException:
                with suppress(sqlite3.Error):
                    file.execute("ROLLBACK")
                raise
            file.execute("COMMIT")

    def _check(self, file: sqlite3.Connection) -> None:
        """Make the tables of a new file; see to it that an old one is of this bundle."""
        if _is_new(file):
            for table in _TABLES:
                file.execute(table)
            file.execute("INSERT INTO bundle VALUES (?)", (self._bundle,))
            file.execute(f"PRAGMA user_version={_VERSION}")
        elif (version := _version(file)) != _VERSION:
            raise _ForeignError(f"it has version {version}, not {_VERSION}")
        elif file.execute("SELECT identity FROM bundle").fetchall() != [(self._bundle,)]:
            raise _ForeignError("it belongs to another bundle")

    def _catch_up(self, file: sqlite3.Connection, known: Generation) -> None:
        """Write a generation that was made while the file could not be used."""
        if known.number > self._newest_in(file).number:
            self._insert(file, known)

    def _insert(self, file: sqlite3.Connection, new: Generation) -> None:
        file.execute(
            "INSERT INTO generations VALUES (?, ?, ?, ?, ?)",
            (
                new.number,
                json.dumps(to_plain(new.deployment)),
                new.reason,
                self._journal.worker,
                self._journal.wall(),
            ),
        )

    def _newest_in(self, file: sqlite3.Connection) -> Generation:
        found = self._generations(file, "WHERE number = (SELECT max(number) FROM generations)")
        return found[0] if found else self._first

    def _generations(self, file: sqlite3.Connection, where: str, *values: int) -> list[Generation]:
        rows = file.execute(
            f"SELECT number, deployment, reason FROM generations {where} ORDER BY number DESC",
            values,
        )
        return [Generation(n, self._deployment(text), reason) for n, text, reason in rows]

    def _deployment(self, text: str) -> Deployment:
        deployment: Deployment = read(Deployment, _parsed(text), _STATE)
        if not 0 <= deployment.variant < self._variants:
            raise _DamagedError(f"it names variant {deployment.variant}, which the bundle has not")
        return deployment

    def _events_in(self, file: sqlite3.Connection) -> list[Event]:
        rows = file.execute("SELECT event FROM events ORDER BY number")
        return [read(Event, _parsed(text), _STATE) for (text,) in rows]

    def _set_aside(self, path: Path, seen: int | None, error: Exception) -> bool:
        """Rename a damaged file; a new one is begun at the next use."""
        aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
        if _identity(path) != seen:
            # Another worker was faster.
            return True
        try:
            # The log first: a new file would take an old one for its own.
            for suffix in ("-wal", "-shm", ""):
                with suppress(FileNotFoundError):
                    os.replace(f"{path}{suffix}", f"{aside}{suffix}")
        except OSError:
            return False
        self._journal.tell(
            "fault",
            f"{_STATE} '{path}' is damaged ({error}); it is kept as '{aside.name}', and a new one "
            "is begun",
            what=_STATE,
        )
        return True


def _identity(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError) as error:
        raise _DamagedError(f"an entry is no JSON: {error}") from error


def _version(file: sqlite3.Connection) -> int:
    (version,) = file.execute("PRAGMA user_version").fetchone()
    return int(version)


def _is_new(file: sqlite3.Connection) -> bool:
    """Whether nothing is in the file yet; in a transaction, as others may begin it.

    Raises:
        _ForeignError: another application's tables are.
    """
    version, tables = _version(file), {n for (n,) in file.execute("SELECT name FROM sqlite_master")}
    if not version and not tables:
        return True
    if not version or "bundle" not in tables:
        raise _ForeignError("it holds something else")
    return False


def _is_damage(error: Exception, path: Path) -> bool:
    if not isinstance(error, sqlite3.Error):
        return isinstance(error, _DamagedError | InputError)
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        # What never was one is somebody's.
        with suppress(OSError), path.open("rb") as content:
            return content.read(len(_MAGIC)) == _MAGIC
        return False
    # What SQLite calls just an error is a table or column that is missing.
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)


def _begin_log(file: sqlite3.Connection) -> None:
    """Let readers and a writer not wait for each other; on some network drives it cannot be."""
    for _ in range(100):
        try:
            file.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            # Another worker does the same, and SQLite does not wait here.
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(0.02)
        else:
            return

"""Several processes that train one model: each computes its share of every update.

This process keeps what is learned and says what to compute; the others hold a copy of the module,
and end when it does.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from onnxq.errors import InputError
from onnxq.ir import infer_types, load, save
from onnxq.scratch import scratch_folder
from onnxq.tune.train.executor import Executor
from onnxq.tune.train.learner import Judgement, Learner, Subject
from onnxq.tune.train.quantized import QuantizedModule
from onnxq.tune.train.samples import Feed

_SUBJECT, _SOURCE, _QUANTIZED, _STORE = "subject", "source.onnx", "quantized.onnx", "store"
_PATIENCE = timedelta(days=7)
"""A process that waits is told when another one ends: no time is too long."""

_GLANCE = 0.5
"""Seconds after which a process looks again whether the first one is there."""

_Found = TypeVar("_Found")


class LostProcessError(InputError):
    """A process of the training ended before its time."""


@dataclass(frozen=True)
class _Order:
    """What a process is told to compute: see `Learner`."""

    feeds: Sequence[Feed]
    done: float = 0.0
    samples: int = 0
    learns: bool = False
    takes_numbers: bool = False


class Team(Learner):
    """A learner that shares its feeds with other processes.

    Args:
        own: This process' learner.
        others: The other processes.
        logs: What they print.
    """

    def __init__(
        self, own: Learner, others: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path]
    ) -> None:
        self.module, self.device = own.module, own.device
        self._own = own
        self._others, self._logs = others, logs

    def learn(self, feeds: Sequence[Feed], done: float, samples: int) -> float:
        """See `Learner.learn`.

        Raises:
            LostProcessError: another process ended; parameters and statistics are as before.
        """
        order = _Order((), done, samples, learns=True, takes_numbers=True)
        statistics = self.module.statistics
        before = [n.clone() for n in statistics]

        def together() -> float:
            share = self._tell(order, feeds)
            return _reduced(self.module, self._own.learn(share, done, samples))

        try:
            return self._watched(together)
        except LostProcessError:
            for number, old in zip(statistics, before, strict=True):
                number.copy_(old)
            raise

    def judge(self, feeds: Iterable[Feed]) -> Judgement:
        """See `Learner.judge`.

        Raises:
            LostProcessError: another process ended.
        """

        def together() -> Judgement:
            found, order = Judgement(), _Order((), takes_numbers=True)
            for feed in feeds:
                share = self._tell(order, [feed])
                found += _summed(self._own.judge(share))
                order = _Order(())
            return found

        return self._watched(together)

    def average(self, feeds: Iterable[Feed]) -> None:
        """See `Learner.average`; this process does it, and the others hear of it."""
        self._own.average(feeds)

    def _tell(self, order: _Order, feeds: Sequence[Feed]) -> list[Feed]:
        """Tell the others what to compute; gives this process' share of it."""
        # Statistics of a batch are of one that all processes have a part of, or of the first's.
        shares = _shares(feeds, len(self._others) + 1, keeps_whole=bool(self.module.norms))
        dist.scatter_object_list([None], [replace(order, feeds=share) for share in shares], src=0)
        if order.takes_numbers:
            _share_numbers(self.module)
        return shares[0]

    def _watched(self, together: Callable[[], _Found]) -> _Found:
        try:
            return together()
        except RuntimeError as error:
            # The other side of a connection closes a moment before its process has ended.
            for other in self._others:
                with suppress(subprocess.TimeoutExpired):
                    other.wait(1.0)
            _refuse_ended(self._others, self._logs, error)
            raise


@contextmanager
def team(subject: Subject, own: Learner) -> Iterator[Learner]:
    """Start the processes that the options want, and end them.

    Args:
        subject: What the learners are made of.
        own: This process' learner, with the parameters to be trained.

    Raises:
        InputError: this process is part of another group already.
        LostProcessError: a process could not begin.
    """
    count = subject.options.processes
    if count == 1:
        yield own
        return
    if dist.is_initialized():
        raise InputError(
            "this program uses torch.distributed already; train with one process, or from another "
            "program"
        )
    threads = torch.get_num_threads()
    each = max(1, threads // count)
    with scratch_folder() as folder:
        _write(subject, own, each, folder)
        logs = [folder / f"{rank}.log" for rank in range(1, count)]
        others = [_started(folder, rank, log) for rank, log in enumerate(logs, 1)]
        try:
            torch.set_num_threads(each)
            while not all(_ready(folder, rank).exists() for rank in range(1, count)):
                _refuse_ended(others, logs)
                time.sleep(0.02)
            _join(folder, 0, count)
            yield Team(own, others, logs)
        finally:
            for other in others:
                other.kill()
                other.wait()
            if dist.is_initialized():
                dist.destroy_process_group()
            torch.set_num_threads(threads)


def _shares(feeds: Iterable[Feed], count: int, *, keeps_whole: bool) -> list[list[Feed]]:
    """The feeds of each process: an equal part of each that can be split, else whole ones.

    Args:
        feeds: All feeds.
        count: Of processes.
        keeps_whole: Whether the first process keeps what cannot be split.
    """
    found: list[list[Feed]] = [[] for _ in range(count)]
    for at, feed in enumerate(feeds):
        parts = feed.split(count)
        first = 0 if keeps_whole else at
        for number, part in enumerate(parts, first):
            found[number % count].append(part)
    return found


# Between processes


def _trained(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [p for p in module.parameters() if p.requires_grad]


def _share_numbers(module: QuantizedModule) -> None:
    """Give all processes the numbers of the first."""
    numbers = [*(p.detach() for p in _trained(module)), *module.statistics]
    flat = torch.cat([n.reshape(-1) for n in numbers]).cpu()
    dist.broadcast(flat, 0)
    for number, found in zip(numbers, flat.split([n.numel() for n in numbers]), strict=True):
        number.copy_(found.reshape(number.shape))


def _reduced(module: torch.nn.Module, loss: float) -> float:
    """Add up gradients and losses of all processes in the first."""
    parameters = _trained(module)
    parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = torch.cat([*(p.reshape(-1).cpu() for p in parts), torch.tensor([loss])])
    dist.reduce(flat, 0)
    *sums, total = flat.split([*(p.numel() for p in parameters), 1])
    for parameter, found in zip(parameters, sums, strict=True):
        if parameter.grad is not None:
            parameter.grad.copy_(found.reshape(parameter.shape))
    return float(total)


def _summed(part: Judgement) -> Judgement:
    """Add up what all processes found in the first."""
    numbers = [part.loss, part.samples, part.right, part.decided]
    flat = torch.tensor(numbers, dtype=torch.float64)
    dist.reduce(flat, 0)
    loss, *counts = flat.tolist()
    return Judgement(loss, *map(int, counts))


# Beginning and end


def _ready(folder: Path, rank: int) -> Path:
    """A file that is there when a process can begin."""
    return folder / f"{rank}.ready"


def _join(folder: Path, rank: int, count: int) -> None:
    """Become one group; all processes have to be there."""
    at = (folder / _STORE).as_uri()
    dist.init_process_group("gloo", at, rank=rank, world_size=count, timeout=_PATIENCE)


def _write(subject: Subject, own: Learner, threads: int, folder: Path) -> None:
    """Keep for the others what learners are made of."""
    save(subject.source, folder / _SOURCE)
    save(subject.quantized, folder / _QUANTIZED)
    names = [name for name, p in own.module.named_parameters() if p.requires_grad]
    plain = (subject.grids, subject.heads, subject.options, subject.norms, subject.shifts)
    rest = (plain, own.device, threads, names)
    (folder / _SUBJECT).write_bytes(pickle.dumps(rest))


def _read(folder: Path, rank: int) -> tuple[Learner, int]:
    """A learner as `_write` kept it, and how many there are."""
    source, quantized = load(folder / _SOURCE), load(folder / _QUANTIZED)
    for graph in (source, quantized):
        infer_types(graph)
    rest = pickle.loads((folder / _SUBJECT).read_bytes())
    plain, device, threads, names = rest
    torch.set_num_threads(threads)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", rank % torch.cuda.device_count())
    subject = Subject(source, quantized, *plain)
    found = subject.learner(Executor(source), device)
    parameters = dict(found.module.named_parameters())
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    for name in names:
        parameters[name].requires_grad_(True)
    return found, subject.options.processes


def _started(folder: Path, rank: int, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    # Without -P, files in the working folder would be taken for modules.
    command = [sys.executable, "-P", "-m", __name__, str(folder), str(rank), str(os.getpid())]
    with log.open("wb") as file:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )


def _refuse_ended(
    others: Sequence[subprocess.Popen[bytes]],
    logs: Sequence[Path],
    cause: Exception | None = None,
) -> None:
    for rank, (other, log) in enumerate(zip(others, logs, strict=True), 2):
        code = other.poll()
        if code is not None:
            last = log.read_text(errors="replace").strip().splitlines()[-1:]
            why = (
                f"by {signal.Signals(-code).name}" if code < 0 else "".join(last) or f"code {code}"
            )
            raise LostProcessError(
                f"process {rank} of {len(others) + 1} that train together ended ({why}); with "
                "--resume, training goes on from the last checkpoint"
            ) from cause


def _work(folder: Path, rank: int, first: int) -> None:
    """Compute what the first process, which may be gone by now, says until it ends."""
    # Whoever interrupts a training means the first process, which ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_watch, args=(first, folder), daemon=True).start()
    learner, count = _read(folder, rank)
    _ready(folder, rank).touch()
    try:
        _join(folder, rank, count)
        while True:
            given: list[Any] = [None]
            dist.scatter_object_list(given, src=0)
            order: _Order = given[0]
            if order.takes_numbers:
                _share_numbers(learner.module)
            if order.learns:
                loss = learner.learn(order.feeds, order.done, order.samples)
                _reduced(learner.module, loss)
            else:
                _summed(learner.judge(order.feeds))
    except RuntimeError:
        # If the first process was killed, `_watch` sees it and clears up.
        time.sleep(2 * _GLANCE)
        raise


def _watch(first: int, folder: Path) -> None:
    """End with the first process, even if it was killed and could not say so."""
    while os.getppid() == first:
        time.sleep(_GLANCE)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


if __name__ == "__main__":
    _work(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

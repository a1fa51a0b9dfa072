"""Work for the tests of clusters, which worker processes import."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from onnxq.errors import InputError
from onnxq.runtime.executor import Work


@dataclass(frozen=True)
class Squares(Work[int, int]):
    """Squares numbers, and notes in a folder each time that it does.

    Attributes:
        folder: The folder.
        trouble: What happens to the number 3 the first time: ``killed``, ``stopped``, ``disk``;
            every time: ``always killed``, ``always disk``, ``refused``, ``always endless``.
        instead: What stands for a number that was given up; it is an error if None.
    """

    folder: Path
    trouble: str = ""
    instead: int | None = None
    seconds: float = 0.02

    @contextmanager
    def open(self) -> Iterator[Callable[[int], int]]:
        yield self._square

    def given_up(self, item: int, sentence: str) -> int:
        return super().given_up(item, sentence) if self.instead is None else self.instead

    def _square(self, number: int) -> int:
        tries = len(list(self.folder.glob(f"{number}-*")))
        (self.folder / f"{number}-{tries}-{os.getpid()}").touch()
        time.sleep(self.seconds)
        if number == 3 and (not tries or self.trouble.startswith(("always", "refused"))):
            match self.trouble.removeprefix("always "):
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "disk":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                case "endless":
                    _endless()
                case "refused":
                    raise InputError("three cannot be squared")
        return number * number


def _endless() -> None:
    _endless()


@dataclass(frozen=True)
class Momentary(Squares):
    """The same, of no use for another run."""

    is_resumable: ClassVar[bool] = False

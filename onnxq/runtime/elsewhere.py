"""An onnxruntime of another environment, in a process of that environment's interpreter.

Two packages that bring the module onnxruntime cannot live in one environment. The other one needs
nothing but its onnxruntime, and what that needs: the process runs the text of
`onnxq.runtime.bare`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import pickle
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import IO, Any

from onnxq.errors import InputError
from onnxq.ir.loading import ModelLike
from onnxq.runtime.bare import packed, unpacked
from onnxq.runtime.failures import one_sentence
from onnxq.runtime.providers import Offer
from onnxq.runtime.session import Session, operator_name
from onnxq.runtime.specs import Array

_STARTING = 120.0
"""Seconds in which a process has to say what it is."""

_ENDING = 5.0
"""Seconds in which a process that stopped answering ends by itself."""

_OLDEST = (1, 24)
"""Version of onnxruntime that tells which provider runs what."""

_NEEDED = ".".join(map(str, _OLDEST))

_START = "import sys; sys.path[:] = filter(None, sys.path); exec(sys.argv[1]); serve()"
"""What runs a module's text; ``-c`` puts the current folder first, whose modules are not meant."""

_OURS = re.compile(r"ModuleNotFoundError: No module named '(numpy|onnxruntime)\b")
_OLD = re.compile(r"SyntaxError: |ModuleNotFoundError: No module named 'importlib\b")

_keys = itertools.count()


class Elsewhere:
    """The onnxruntime of an interpreter's environment.

    A process that ended is started again for the next session.

    Args:
        python: The interpreter.
        patience: Seconds in which it has to answer, after which it counts as hung.

    Raises:
        InputError: it is no interpreter, or there is no onnxruntime that works.
    """

    def __init__(self, python: str, patience: float) -> None:
        self.python, self._patience = python, patience
        self._process = _Process(python)
        about = self._process.ask("being started", _STARTING, "hello")
        self.packages: tuple[str, ...] = tuple(about["packages"])
        self.offer = Offer(about["version"], tuple(about["providers"]), python)
        numbers = tuple(int(part) for part in self.offer.version.split(".")[:2])
        if numbers < _OLDEST:
            raise InputError(
                f"'{python}' has onnxruntime {self.offer.version}; install {_NEEDED} or newer there"
            )

    @property
    def version(self) -> str:
        """The module's version and the packages that bring it."""
        return f"{self.offer.version} ({', '.join(self.packages) or 'no package'})"

    def process(self) -> _Process:
        """The process that runs, or a new one."""
        if self._process.has_ended:
            self._process = _Process(self.python)
        return self._process

    def ask(self, process: _Process, doing: str, what: str, *arguments: Any) -> Any:
        """What a process answers; see `_Process.ask`."""
        return process.ask(doing, self._patience, what, *arguments)


@cache
def elsewhere(python: str, patience: float) -> Elsewhere:
    """The onnxruntime of an interpreter's environment; one process for all who ask.

    Raises:
        InputError: as `Elsewhere`.
    """
    return Elsewhere(python, patience)


class SessionElsewhere(Session):
    """A model in the process of another environment, which takes the time of inferences, too.

    Args:
        there: The environment.
        model: As `Session`.
        options: As `Session`; nothing is ``pooled`` there.

    Raises:
        InputError: as `Session`, or the process ended or hangs.
    """

    def __init__(self, there: Elsewhere, model: ModelLike, **options: Any) -> None:
        self._there = there
        super().__init__(model, **{**options, "pooled": False})
        if self._needs_values:
            raise InputError(
                f"{self._label} has inputs or outputs of a type that numpy does not know, which "
                "do not reach other environments"
            )

    @property
    def _offer(self) -> Offer:
        return self._there.offer

    def _opened(
        self,
        source: str | bytes,
        config: Mapping[str, str],
        save_optimized: str,
        provider: tuple[str, dict[str, str]],
        settings: Mapping[str, Any],
    ) -> _Remote:
        what = source, config, save_optimized, provider, settings
        return _Remote(self._there, self._label, *what)

    def spend(self, feeds: Mapping[str, Array], inferences: int, *, own: bool) -> float:
        """See `Away.spend`."""
        fed = packed(dict(feeds))
        return float(self._asked("run", "spend", self._output_names, fed, inferences, own))

    def end_profile(self) -> Path:
        """See `Session.end_profile`."""
        return Path(self._asked("tell the times of", "end_profile"))

    def assigned(self) -> dict[str, Counter[str]]:
        """See `Session.assigned`."""
        found: dict[str, Counter[str]] = {}
        for provider, nodes in self._asked("tell which provider runs what of", "assigned"):
            found.setdefault(provider, Counter()).update(
                operator_name(domain, op_type) for domain, op_type in nodes
            )
        return found

    def _asked(self, doing: str, what: str, *arguments: Any) -> Any:
        held: _Remote = self._session
        try:
            return held.ask(what, *arguments)
        except RuntimeError as error:
            raise InputError(
                f"onnxruntime cannot {doing} {self._label}: {one_sentence(error)}"
            ) from error


class _Remote:
    """What `onnxruntime.InferenceSession` is here, of a session in the other process."""

    def __init__(self, there: Elsewhere, label: str, *what: Any) -> None:
        self._there, self._label = there, label
        self._process, self._key = there.process(), next(_keys)
        self._providers, *ends = self.ask("open", *what)
        self._inputs, self._outputs = ([_Argument(*end) for end in each] for each in ends)
        weakref.finalize(self, self._process.dropped.append, self._key)

    def ask(self, what: str, *arguments: Any) -> Any:
        """See `Elsewhere.ask`."""
        doing = "loading" if what == "open" else "running"
        return self._there.ask(self._process, f"{doing} {self._label}", what, self._key, *arguments)

    def get_providers(self) -> list[str]:
        return list(self._providers)

    def get_inputs(self) -> list[_Argument]:
        return self._inputs

    def get_outputs(self) -> list[_Argument]:
        return self._outputs

    def run(self, names: Sequence[str], feeds: Mapping[str, Array]) -> list[Any]:
        return list(unpacked(self.ask("run", list(names), packed(dict(feeds)))))


class _Argument:
    """What `onnxruntime.NodeArg` is here."""

    def __init__(self, name: str, type: str, shape: list[Any]) -> None:
        self.name, self.type, self.shape = name, type, shape


class _Process:
    """An interpreter that answers requests one after another."""

    def __init__(self, python: str) -> None:
        self.python = python
        self.dropped: list[int] = []
        self._why = ""
        # It is open as long as the process writes to it.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        text = files("onnxq.runtime").joinpath("bare.py").read_text(encoding="utf-8")
        try:
            self._process = subprocess.Popen(
                [python, "-c", _START, text],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=_surroundings(python),
            )
        except OSError as error:
            self._errors.close()
            raise InputError(
                f"'{python}' cannot be started: {error.strerror}; name a Python interpreter whose "
                "environment has onnxruntime"
            ) from error
        weakref.finalize(self, _end, self._process, self._errors)
        self._answers: queue.SimpleQueue[tuple[bool, Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        threading.Thread(
            target=_read, args=(self._process.stdout, self._answers), daemon=True
        ).start()

    @property
    def has_ended(self) -> bool:
        """Whether it answers no more."""
        return bool(self._why)

    def ask(self, doing: str, patience: float, what: str, *arguments: Any) -> Any:
        """What it answers to a request.

        Args:
            doing: What it does then, for messages.
            patience: Seconds in which it has to answer.
            what: The request, see `onnxq.runtime.bare.Server`.
            arguments: Of the request.

        Raises:
            RuntimeError: what was asked for failed there.
            InputError: the process has ended, or does not answer.
        """
        with self._lock:
            while self.dropped:
                self._told(doing, patience, "close", self.dropped.pop())
            has_worked, answer = self._told(doing, patience, what, *arguments)
        if not has_worked:
            raise RuntimeError(answer)
        return answer

    def _told(self, doing: str, patience: float, what: str, *arguments: Any) -> tuple[bool, Any]:
        answer = None
        if not self._why:
            assert self._process.stdin is not None
            try:
                pickle.dump((what, arguments), self._process.stdin, protocol=4)
                self._process.stdin.flush()
                answer = self._answers.get(timeout=patience)
            except OSError:
                # It has ended, and how is told by its code.
                pass
            except queue.Empty:
                self._process.kill()
                self._why = f"gave no answer within {patience:g} s while {doing}"
            except BaseException:
                # Its answer would be taken for that to the next request.
                self._process.kill()
                self._why = f"was interrupted while {doing}"
                raise
        if answer is None:
            self._why = self._why or f"ended while {doing}: {self._last_words()}"
            raise InputError(f"the onnxruntime of '{self.python}' {self._why}")
        return answer

    def _last_words(self) -> str:
        """The signal that ended the process, or the last that it said."""
        try:
            code = self._process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return "it answers as no interpreter does"
        if code < 0:
            return f"signal {signal.Signals(-code).name}"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        if _OURS.match(said):
            said += "; install onnxruntime, or a package of its kind, in its environment"
        elif _OLD.match(said):
            said += f"; its Python is too old for onnxruntime {_NEEDED}, name a newer one"
        return f"exit code {code}, {said}"


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    process.kill()
    process.wait()
    errors.close()
    # What nobody has read is written when it is closed.
    with contextlib.suppress(OSError):
        assert process.stdin is not None
        process.stdin.close()


def _read(stream: Any, answers: queue.SimpleQueue[tuple[bool, Any] | None]) -> None:
    """Hand answers on; None at their end."""
    with stream:
        while True:
            try:
                answer = pickle.load(stream)
            except Exception:  # A program that is no interpreter may write anything.
                answers.put(None)
                return
            answers.put(answer)


def _surroundings(python: str) -> dict[str, str]:
    """The environment variables of a process: nothing of this interpreter's for another one."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    if os.path.abspath(python) == os.path.abspath(sys.executable):
        ours["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    return ours

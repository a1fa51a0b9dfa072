"""The backend onnxruntime: any version from 1.24, in any package that brings the module."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx.parser
import onnxruntime as ort

from onnxq.errors import InputError
from onnxq.ir.loading import ModelLike
from onnxq.runtime.alone import alone
from onnxq.runtime.backend import Backend, NodeTime
from onnxq.runtime.bare import packages
from onnxq.runtime.elsewhere import Elsewhere, SessionElsewhere, elsewhere
from onnxq.runtime.executor import HANGS_AFTER
from onnxq.runtime.operators import INTEGER_OPERATORS, optimized_operators
from onnxq.runtime.providers import Offer, missing_provider, offered_here
from onnxq.runtime.session import Session
from onnxq.runtime.specs import Array
from onnxq.scratch import scratch_folder

_SUFFIX = "_kernel_time"
_SMALLEST = '<ir_version: 8, opset_import: ["": 13]> g (float[1] x) => (float[1] y) { y = Relu(x) }'


@dataclass(frozen=True)
class Onnxruntime(Backend):
    """onnxruntime on one of its execution providers.

    Attributes:
        python: Interpreter of the environment whose onnxruntime it is; this one's if empty.
        patience: Seconds in which that has to answer, after which it counts as hung.
    """

    python: str = ""
    patience: float = HANGS_AFTER

    name = "onnxruntime"
    integer_operators = INTEGER_OPERATORS

    @property
    def _there(self) -> Elsewhere | None:
        return elsewhere(self.python, self.patience) if self.python else None

    @property
    def _open(self) -> Callable[..., Session]:
        there = self._there
        return Session if there is None else partial(SessionElsewhere, there)

    @property
    def version(self) -> str:
        """See `Backend.version`: the module's version, and the package unless it is of its name."""
        there = self._there
        return _version() if there is None else there.version

    def missing(self, provider: str) -> str:
        """See `Backend.missing`."""
        return missing_provider(provider, self.offer)

    @property
    def offer(self) -> Offer:
        """What it offers."""
        there = self._there
        return offered_here() if there is None else there.offer

    def check(self, provider: str) -> None:
        """See `Backend.check`: a model of one operator is loaded."""
        if self.missing(provider):
            return
        try:
            self._open(onnx.parser.parse_model(_SMALLEST), provider=provider)
        except InputError as error:
            raise InputError(f"provider '{provider}' does not take its options: {error}") from error

    def session(
        self, model: ModelLike, *, provider: str = "cpu", threads: int = 1, pooled: bool = False
    ) -> Session:
        """See `Backend.session`."""
        return self._open(model, provider=provider, threads=threads, pooled=pooled)

    def operators(self, model: ModelLike, *, provider: str = "cpu") -> Counter[str]:
        """See `Backend.operators`."""
        return optimized_operators(model, provider=provider, session=self._open)

    def left(self, model: ModelLike, *, provider: str = "cpu") -> tuple[int, Counter[str]]:
        """See `Backend.left`."""
        session = self._open(model, provider=provider, record=True)
        given = session.assigned()
        taken = given.pop(session.provider, Counter[str]())
        return taken.total(), sum(given.values(), Counter[str]())

    def profile(
        self,
        models: Sequence[ModelLike],
        feeds: Mapping[str, Array] | Sequence[Mapping[str, Array]],
        *,
        provider: str = "cpu",
        threads: int = 1,
        rounds: int = 24,
    ) -> list[list[NodeTime]]:
        """See `Backend.profile`; the times are those of onnxruntime's own profiler."""
        per_model = [feeds] * len(models) if isinstance(feeds, Mapping) else list(feeds)
        with scratch_folder() as folder:
            sessions = [
                self._open(model, provider=provider, threads=threads, profile=folder / str(at))
                for at, model in enumerate(models)
            ]
            runs = max(3, rounds)
            with alone():
                for _ in range(runs):
                    for session, feed in zip(sessions, per_model, strict=True):
                        session.run(feed)
            return [_node_times(session.end_profile(), runs) for session in sessions]


@cache
def _version() -> str:
    names = packages()
    if names in ([], ["onnxruntime"]):
        return str(ort.__version__)
    return f"{ort.__version__} ({', '.join(names)})"


def _node_times(path: Path, runs: int) -> list[NodeTime]:
    """Time of every operator; one in a Loop or Scan is timed in every iteration."""
    events = json.loads(path.read_text(encoding="utf-8"))
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            key = (event["name"].removesuffix(_SUFFIX), event["args"]["op_name"])
            times.setdefault(key, []).append(event["dur"] / 1000)
    return [NodeTime(*key, _least_disturbed(found, runs)) for key, found in times.items()]


def _least_disturbed(times: Sequence[float], runs: int) -> float:
    """Milliseconds per run of the tenth that took the least time; the first two do not count."""
    each = len(times) / runs
    return float(np.percentile(times[int(2 * each) :], 10)) * each

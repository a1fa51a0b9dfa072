"""Gates: promises about a report that either held or did not."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from numbers import Real
from typing import Any

from onnxq.errors import InputError
from onnxq.plain import as_list
from onnxq.verify.paths import check_path, numbers
from onnxq.verify.result import GateFacts, Report

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}

_DISTANCES: dict[str, Callable[[float, float], float]] = {
    "<=": lambda value, bound: value,
    "<": lambda value, bound: value,
    ">=": lambda value, bound: -value,
    ">": lambda value, bound: -value,
    "==": lambda value, bound: 0.0 if value == bound else abs(value - bound),
    "!=": lambda value, bound: 0.0 if value == bound else -abs(value - bound),
}
"""What is larger for the worse of two values."""

_TIMED = re.compile(r"(latency|latencies|throughput)\..*|(.*\.)?(speedup|\w+_ms|\w+_per_second)")
"""Quantities and paths that speak of what a clock says."""

QUANTITIES: dict[str, tuple[str, Callable[[Report], float | None]]] = {
    "drop": (
        "float metric minus candidate metric",
        lambda r: None if r.metric is None else r.metric.drop,
    ),
    "metric": (
        "the candidate's metric",
        lambda r: None if r.metric is None else r.metric.candidate,
    ),
    "agreement": (
        "share of decisions that equal the float model's",
        lambda r: None if r.agreement is None else r.agreement.value,
    ),
    "speedup": (
        "float time over candidate time, of the provider that gains least",
        lambda r: min(
            (x.speedup for x in r.latencies if r.latency is None or x.of == r.latency.of),
            default=None,
        ),
    ),
    "sqnr": ("SQNR of the worst output in dB", lambda r: r.sqnr_db),
    "cosine": (
        "cosine similarity of the worst output",
        lambda r: min((o.cosine for o in r.outputs), default=1.0),
    ),
    "max_abs": (
        "largest absolute difference of any output",
        lambda r: max((o.max_abs for o in r.outputs), default=0.0),
    ),
    "size_ratio": ("float bytes over candidate bytes", lambda r: r.size.ratio),
    "candidate_ms": (
        "the candidate's latency in ms",
        lambda r: None if r.latency is None else r.latency.candidate_ms,
    ),
}
"""What a gate can speak of by a short name, with its meaning."""


@dataclass(frozen=True)
class Gate:
    """A promise ``quantity operator bound``, as ``drop<=0.01``.

    The quantity is one of `QUANTITIES`, or the path of a number in the JSON report, as
    ``latency.speedup``. In ``outputs.*.sqnr_db`` every element has to keep the promise, and the
    worst one is reported; elements whose number was not measured do not count.
    """

    quantity: str
    comparison: str
    bound: float

    def __post_init__(self) -> None:
        """See that a report can be held against it.

        Raises:
            InputError: naming what it cannot be held against.
        """
        text = f"the gate '{self.quantity}{self.comparison}{self.bound}'"
        if self.comparison not in _OPERATORS:
            raise InputError(f"{text} has none of the comparisons {', '.join(_OPERATORS)}")
        if self.quantity not in QUANTITIES:
            check_path(self.quantity, text, QUANTITIES)
        bound: object = self.bound
        if not isinstance(bound, Real) or math.isnan(bound):
            raise InputError(f"{text} compares with '{bound}', which is no number")

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read ``"drop<=0.01"``.

        Raises:
            InputError: naming what cannot be read.
        """
        if not isinstance(text, str):
            raise InputError(f"a gate is a text as 'drop<=0.01', not {text!r}")
        found = re.fullmatch(r"\s*([^\s<>=!]+)\s*(<=|>=|==|!=|<|>)\s*([^\s=]\S*)\s*", text)
        if found is None:
            raise InputError(
                f"cannot read the gate '{text}'; write a quantity, a comparison and a number, "
                'as "drop<=0.01"'
            )
        bound: Any = found[3]
        with suppress(ValueError):
            bound = float(bound)
        return cls(found[1], found[2], bound)

    def __str__(self) -> str:
        short = f"{self.bound:g}"
        bound = short if float(short) == self.bound else repr(self.bound)
        return f"{self.quantity}{self.comparison}{bound}"

    @classmethod
    def listed(cls, given: Iterable[str | Gate]) -> tuple[Gate, ...]:
        """Gates of which some are texts.

        Raises:
            InputError: one cannot be read, or it is no list of them.
        """
        return tuple(g if isinstance(g, Gate) else cls.parse(g) for g in as_list(given, "gates"))

    @property
    def is_timed(self) -> bool:
        """Whether latency has to be measured for it."""
        return _TIMED.fullmatch(self.quantity) is not None

    def check(self, report: Report) -> GateFacts:
        """Hold a report against the promise; a quantity that was not measured breaks it."""
        if self.quantity in QUANTITIES:
            value = QUANTITIES[self.quantity][1](report)
        else:
            value = max(numbers(report, self.quantity), key=self._badness, default=None)
        return GateFacts(str(self), value, value is not None and self.holds(value))

    def holds(self, value: float) -> bool:
        """Whether a value keeps the promise, as NaN never does."""
        return not math.isnan(value) and _OPERATORS[self.comparison](value, self.bound)

    def _badness(self, value: float) -> tuple[bool, float]:
        return math.isnan(value), _DISTANCES[self.comparison](value, self.bound)

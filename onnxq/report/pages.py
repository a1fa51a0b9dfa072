"""Pages and files made from the templates beside this module."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from onnxq.report import words
from onnxq.report.certainty import allowed_drops
from onnxq.report.grouping import left_in_float, methods
from onnxq.verify.precision import counts
from onnxq.verify.result import Report


def to_html(report: Report) -> str:
    """One self-contained page: inline style and SVG, no scripts, nothing from the network."""
    return render("report.html.jinja", report=report)


def to_junit(report: Report) -> str:
    """JUnit XML, which continuous integration services read: each gate is a test case.

    A gate that did not hold is a failure whose message has the measured value. What was measured
    stands in the suite's properties.
    """
    return render("junit.xml.jinja", report=report)


def render(template: str, **data: object) -> str:
    """Fill in a template of the folder ``templates``.

    Names come from models that nobody has to trust: all text is escaped, and what is not
    printable in it is written as an escape, too.
    """
    return _environment().get_template(template).render(data)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("onnxq.report"),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    named = (allowed_drops, axis, colour, counts, largest, left_in_float, methods, share, ticks)
    environment.globals.update({f.__name__: f for f in named}, Path=Path, words=words)
    return environment


def _printable(value: object) -> object:
    """Text made printable; finished parts of a page, which are `Markup`, hold only such text."""
    return words.printable(value) if type(value) is str else value


def colour(precision: str) -> str:
    """The style sheet's colour of a precision: float, plain 8-bit integer, or any other."""
    if precision.startswith(("float", "bfloat", "double")):
        return "float"
    return "candidate" if precision == "int8" else "other"


def largest(values: Iterable[float | None]) -> float:
    """The largest finite number, 0 if there is none."""
    return max((v for v in values if v is not None and math.isfinite(v)), default=0.0)


def share(value: float, longest: float) -> float:
    """Length of a bar as a share of the longest; infinite values are as long as any."""
    if value == math.inf:
        return 1.0
    if longest <= 0.0 or not math.isfinite(value):
        return 0.0
    return min(max(value / longest, 0.0), 1.0)


def axis(marks: Iterable[float]) -> Callable[[float], float]:
    """Where a number lies on an axis that holds zero and the finite marks: from 0 to 1."""
    finite = [0.0, *(mark for mark in marks if math.isfinite(mark))]
    margin = 0.08 * (max(finite) - min(finite) or 1.0)
    low, high = min(finite) - margin, max(finite) + margin

    def position(mark: float) -> float:
        return 0.0 if math.isnan(mark) else (min(max(mark, low), high) - low) / (high - low)

    return position


def ticks(decibels: float) -> range:
    """Marks of an axis from zero to at least so many decibels."""
    step = 10 if decibels <= 60 else 20
    return range(0, max(1, math.ceil(decibels / step)) * step + 1, step)

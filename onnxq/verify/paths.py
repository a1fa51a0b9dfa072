"""Paths to the numbers of a report, by the keys of its JSON: ``outputs.*.sqnr_db``."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from onnxq.errors import InputError
from onnxq.verify.result import Report

EVERY = "*"
"""Stands for every element of a list and every entry of a table."""

_VERDICTS = ("gates", "passed")
"""What gates decide, so that they cannot speak of it."""


def check_path(path: str, of: str, others: Iterable[str]) -> None:
    """Find out, before anything is measured, whether reports have a number at this path.

    Args:
        path: Keys and places with dots between them.
        of: Who speaks of it, for messages.
        others: What else could be spoken of.

    Raises:
        InputError: they have none; the message says what there is.
    """
    kind: Any = Report
    parts = path.split(".")
    for at, part in enumerate(parts):
        if get_origin(kind) is dict:
            # Names of operators have dots in them.
            kind = _without_none(get_args(kind)[1])
            break
        below = _below(kind)
        name = EVERY if EVERY in below and re.fullmatch("[0-9]{1,9}", part) else part
        if name not in below:
            here = ".".join(parts[:at])
            known = _offer(here, below)
            if EVERY in below:
                known = f"'{here}' is a list; write '{here}.*' for every element or '{here}.0'"
            if not here:
                known = f"known: {', '.join(others)}, and in the JSON report {', '.join(below)}"
            raise InputError(f"{of} speaks of '{path}'; {known}")
        kind = below[name]
    if kind not in (int, float):
        raise InputError(
            f"{of} speaks of '{path}', which is no number; {_offer(path, _below(kind))}"
        )


def numbers(report: Report, path: str) -> list[float]:
    """The numbers at a path that `check_path` found to be one; several where it has a ``*``.

    What was not measured is left out.
    """
    return [value for value in _ends(report, path.split(".")) if value is not None]


@cache
def _below(kind: Any) -> Mapping[str, Any]:
    """What a part of a report has, by the names that may follow in a path."""
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        names = [f.name for f in dataclasses.fields(kind)]
        return {n: _without_none(hints[n]) for n in names if kind is not Report or _is_open(n)}
    if get_origin(kind) in (tuple, dict):
        return {EVERY: _without_none(get_args(kind)[get_origin(kind) is dict])}
    return {}


def _is_open(name: str) -> bool:
    return name not in _VERDICTS


def _without_none(kind: Any) -> Any:
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (arg for arg in get_args(kind) if arg is not NoneType)
    return kind


def _offer(here: str, names: Iterable[str]) -> str:
    return f"'{here}' has {', '.join(names) or 'nothing below it'}"


def _ends(value: Any, parts: Sequence[str]) -> Iterator[Any]:
    if value is None or not parts:
        yield value
        return
    for inner, rest in _steps(value, parts):
        yield from _ends(inner, rest)


def _steps(value: Any, parts: Sequence[str]) -> Iterator[tuple[Any, Sequence[str]]]:
    """What stands one step further along a path, and the rest of the path."""
    if isinstance(value, dict):
        key = ".".join(parts)
        yield from ((own, ()) for name, own in value.items() if key in (EVERY, name))
    elif isinstance(value, tuple):
        chosen = value if parts[0] == EVERY else value[int(parts[0]) :][:1]
        yield from ((own, parts[1:]) for own in chosen)
    else:
        yield getattr(value, parts[0]), parts[1:]

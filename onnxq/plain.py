"""Dataclasses as plain data, what JSON and TOML hold, and the way back by their annotations.

A class that is written in another form than its fields has ``to_plain(self)``, which gives that
form, and the class method ``from_plain(form)``, whose annotation says as what the form is read.
Where that raises ValueError its text follows the name of the entry.

Options of functions that are lists are checked here, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import reprlib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from onnxq.errors import InputError

_Given = TypeVar("_Given")


def entry(name: str = "", *, sparse: bool = False, **default: Any) -> Any:
    """A dataclass field that is written in its own way.

    Args:
        name: Its name in files, as ``predicted.cost`` for one in an inner table.
        sparse: Whether it is left out where it is false or empty.
        default: As `dataclasses.field` takes it.
    """
    return dataclasses.field(metadata={"entry": name, "sparse": sparse}, **default)


def to_plain(value: Any) -> Any:
    """Dataclasses as tables, tuples as lists; anything else as it is."""
    if hasattr(value, "to_plain"):
        return to_plain(value.to_plain())
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    if not dataclasses.is_dataclass(value):
        return value
    table: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        own = getattr(value, field.name)
        if not field.metadata.get("sparse") or own:
            outer, _, name = _place(field).rpartition(".")
            (table.setdefault(outer, {}) if outer else table)[name] = to_plain(own)
    return table


def finite(value: Any) -> Any:
    """Plain data that JSON can hold: infinite numbers and NaN become texts, which `read` takes."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def read_toml(text: str, of: str) -> dict[str, Any]:
    """The entries of a TOML file; ``of`` names it in messages.

    Raises:
        InputError: it is no TOML.
    """
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{of} is not valid TOML: {error}") from error


def read(kind: Any, value: Any, of: str, entry: str = "") -> Any:
    """A plain value as an annotation has it: lists become tuples, tables dataclasses.

    Args:
        kind: A type, Literal, tuple, mapping with text keys, dataclass, class with ``from_plain``,
            union of such, or one of such Annotated with a function that checks what was read and
            raises ValueError as ``from_plain`` does.
        value: What the file holds.
        of: What messages call the file, as ``the plan 'p.toml'``.
        entry: The entry's name, as ``operators.Conv.role``; empty for the whole file.

    Raises:
        InputError: the value is of another type, or a table has an unknown entry or lacks one.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is Annotated:
        return _made(args[1], read(args[0], value, of, entry), of, entry)
    if hasattr(kind, "from_plain"):
        form = next(iter(_hints(kind.from_plain).values()))
        return _made(kind.from_plain, read(form, value, of, entry), of, entry)
    if origin in (Union, UnionType):
        if value is None and NoneType in args:
            return None
        kinds = [arg for arg in args if arg is not NoneType]
        if len(kinds) == 1:
            return read(kinds[0], value, of, entry)
        for each in kinds:
            with contextlib.suppress(InputError):
                return read(each, value, of, entry)
    elif origin is Literal:
        if value in args:
            return value
    elif origin is tuple:
        items = args[:1] * len(value) if ... in args and isinstance(value, list) else args
        if isinstance(value, list) and len(value) == len(items):
            return tuple(
                read(item, value[at], of, f"{entry}[{at}]") for at, item in enumerate(items)
            )
    elif origin in (Mapping, dict):
        if isinstance(value, dict):
            return {
                k: read(args[1], v, of, f"{entry}.{k}" if entry else k) for k, v in value.items()
            }
    elif dataclasses.is_dataclass(kind):
        if isinstance(value, dict):
            return _read_fields(kind, value, of, entry and f"{entry}.")
    elif kind is float and (type(value) in (int, float) or value in ("inf", "-inf", "nan")):
        return float(value)
    elif type(value) is kind:
        return value
    raise InputError(f"{_named(of, entry)} takes {_words(kind)}, not {reprlib.repr(value)}")


def as_list(given: Iterable[_Given], option: str) -> tuple[_Given, ...]:
    """What an option lists; a text alone would be a list of its characters.

    Raises:
        InputError: a text is given, or nothing that has elements.
    """
    if isinstance(given, str):
        raise InputError(f"option '{option}' is a list; write [{given!r}], not {given!r}")
    if not isinstance(given, Iterable):
        raise InputError(f"option '{option}' is a list, not {given!r}")
    return tuple(given)


def _read_fields(kind: Any, table: Mapping[str, Any], of: str, prefix: str) -> Any:
    hints, fields = _hints(kind), {_place(f): f for f in dataclasses.fields(kind) if f.init}
    inner = {place.rpartition(".")[0] for place in fields} & table.keys()
    given = {key: value for key, value in table.items() if key not in inner}
    for name in inner:
        own = read(dict[str, Any], table[name], of, f"{prefix}{name}")
        given |= {f"{name}.{key}": value for key, value in own.items()}
    for key in given:
        if key not in fields:
            raise InputError(
                f"{of} has an unknown entry '{prefix}{key}'; known there: {', '.join(fields)}"
            )
    for key, field in fields.items():
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed and key not in given:
            raise InputError(f"{of} lacks the entry '{prefix}{key}'")
    values = {fields[key].name: (key, value) for key, value in given.items()}
    return kind(
        **{name: read(hints[name], v, of, f"{prefix}{k}") for name, (k, v) in values.items()}
    )


def _amount(number: float) -> float:
    if not 0 <= number < math.inf:
        raise ValueError(f"is {number}, no finite number from 0 on")
    return number


Amount: TypeAlias = Annotated[float, _amount]
"""A number that is finite and not below 0."""


def _made(make: Callable[[Any], Any], value: Any, of: str, entry: str) -> Any:
    try:
        return make(value)
    except ValueError as error:
        raise InputError(f"{_named(of, entry)} {error}") from error


def _named(of: str, entry: str) -> str:
    return f"entry '{entry}' of {of}" if entry else f"the whole of {of}"


def _place(field: dataclasses.Field[Any]) -> str:
    return field.metadata.get("entry") or field.name


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _words(kind: Any) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(_words, args))
    if origin is Literal:
        return " or ".join(f"'{arg}'" for arg in args)
    if origin is tuple:
        return "a list" if ... in args else f"a list of {len(args)}"
    names = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(kind, "a table")

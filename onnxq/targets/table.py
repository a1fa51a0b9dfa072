"""Reading a target's TOML table: every entry is checked against the type that it is to have."""

from __future__ import annotations

import contextlib
import dataclasses
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from onnxq.errors import InputError


@cache
def available_targets() -> tuple[str, ...]:
    """Names of the built-in targets."""
    names = (entry.name for entry in files("onnxq.targets").iterdir())
    return tuple(sorted(n.removesuffix(".toml") for n in names if n.endswith(".toml")))


def table_text(name: str) -> str:
    """What a built-in table or a file holds.

    Raises:
        InputError: the file cannot be read.
    """
    built_in = name in available_targets()
    source = files("onnxq.targets") / f"{name}.toml" if built_in else Path(name)
    try:
        return source.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"cannot read the target '{name}': {reason}") from error


def parse_table(name: str, text: str) -> dict[str, Any]:
    """A table's entries over those of the built-in one it ``extends``.

    It has operators in addition to the other's, ``without`` some of those; any other entry
    takes the place of the other's.

    Raises:
        InputError: it is no TOML, or extends or leaves out what there is not.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the target '{name}' is not valid TOML: {error}") from error
    base = table.pop("extends", None)
    left_out = read(tuple[str, ...], table.pop("without", []), name, "without")
    if base is not None:
        if base not in available_targets():
            raise InputError(
                f"entry 'extends' of target '{name}' takes the name of a built-in target, not "
                f"{base!r}; there are {', '.join(available_targets())}"
            )
        below = parse_table(base, table_text(base))
        own = read(Mapping[str, Any], table.get("operators", {}), name, "operators")
        table = {**below, **table, "operators": {**below["operators"], **own}}
    for op_type in left_out:
        if op_type not in table.get("operators", {}):
            raise InputError(
                f"entry 'without' of target '{name}' names {op_type}, which is not among its "
                "operators"
            )
        del table["operators"][op_type]
    return table


def read(kind: Any, value: Any, target: str, entry: str) -> Any:
    """A TOML value as an annotation has it: lists become tuples, tables dataclasses.

    Args:
        kind: A type, Literal, tuple, Mapping with text keys, dataclass, or union of such.
        value: What the file holds.
        target: The target's name, for messages.
        entry: The entry's name, as ``operators.Conv.role``.

    Raises:
        InputError: the value is of another type, or a table has an unknown entry or lacks one.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, UnionType):
        kinds = [arg for arg in args if arg is not NoneType]
        if len(kinds) == 1:
            return read(kinds[0], value, target, entry)
        for each in kinds:
            with contextlib.suppress(InputError):
                return read(each, value, target, entry)
    elif origin is Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, list) and len(value) == (len(args) if ... not in args else len(value)):
            return tuple(
                read(args[0], item, target, f"{entry}[{at}]") for at, item in enumerate(value)
            )
    elif origin is Mapping:
        if isinstance(value, dict):
            return {k: read(args[1], v, target, f"{entry}.{k}") for k, v in value.items()}
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if isinstance(value, dict):
            return read_fields(kind, value, target, f"{entry}.")
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    raise InputError(f"entry '{entry}' of target '{target}' takes {_words(kind)}, not {value!r}")


def read_fields(kind: Any, table: Mapping[str, Any], target: str, prefix: str = "") -> Any:
    """A dataclass whose fields are a table's entries; ``prefix`` comes before their names.

    Raises:
        InputError: see `read`.
    """
    hints = _hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for key in table:
        if key not in fields:
            raise InputError(
                f"target '{target}' has an unknown entry '{prefix}{key}'; known there: "
                f"{', '.join(fields)}"
            )
    for key, field in fields.items():
        needed = field.default is field.default_factory is dataclasses.MISSING
        if needed and key not in table:
            raise InputError(f"target '{target}' lacks the entry '{prefix}{key}'")
    return kind(**{k: read(hints[k], v, target, f"{prefix}{k}") for k, v in table.items()})


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


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

"""Named kinds of things: found in a package, and read from and written to their text form.

Passes, calibrators, precisions and tuners are frozen dataclasses whose fields are their options;
recipes, plans and the command line write them as ``name{option=value}``.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import inspect
import pkgutil
import re
import typing
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any, TypeVar

from onnxq.errors import InputError

T = TypeVar("T")

_FORM = re.compile(r"([\w-]+)\s*(?:\{(.*)\})?", re.DOTALL)


def kinds_in(module: ModuleType, base: type[T]) -> Iterator[type[T]]:
    """Every class derived from ``base`` that a module, or a package's modules, define."""
    modules = [module]
    if hasattr(module, "__path__"):
        found = pkgutil.walk_packages(module.__path__, f"{module.__name__}.")
        modules += [importlib.import_module(name) for name in sorted(m.name for m in found)]
    for each in modules:
        for _, kind in inspect.getmembers(each, inspect.isclass):
            own = kind.__module__ == each.__name__ and not inspect.isabstract(kind)
            if own and issubclass(kind, base):
                yield kind


def to_form(thing: Any) -> str:
    """The text form of an instance, with the options that are not at their default."""
    changed = [
        f"{f.name}={getattr(thing, f.name)!r}"
        for f in dataclasses.fields(thing)
        if getattr(thing, f.name) != default_of(f)
    ]
    return f"{thing.name}{{{', '.join(changed)}}}" if changed else str(thing.name)


def from_form(text: str, kinds: Mapping[str, type[T]], what: str) -> T:
    """Read a text form.

    Args:
        text: As ``percentile{percentile=99.9}``.
        kinds: The dataclasses there are, by name.
        what: What they are called in messages, as ``pass``.

    Raises:
        InputError: naming the thing, option or value that is wrong.
    """
    matched = _FORM.fullmatch(text.strip())
    if matched is None:
        raise InputError(f"cannot read the {what} '{text}'; write name or name{{option=value}}")
    kind = kinds.get(matched[1])
    if kind is None:
        raise InputError(f"there is no {what} '{matched[1]}'; available: {', '.join(kinds)}")
    name = f"{what} {matched[1]}"
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    for option in split_forms(matched[2] or ""):
        key, separator, given = (s.strip() for s in option.partition("="))
        if key not in fields or not separator:
            raise InputError(
                f"the {name} has no option '{key or option}'; it has: "
                f"{', '.join(fields) or 'none'}"
            )
        values[key] = _value(kind, fields[key], given, name)
    for key, field in fields.items():
        if key not in values and default_of(field) is dataclasses.MISSING:
            form = f"{matched[1]}{{{key}=...}}"
            raise InputError(f"the {name} needs its option '{key}'; write {form}")
    return kind(**values)


def split_forms(text: str) -> list[str]:
    """Parts between commas that are in no bracket or quotation."""
    parts, depth, start, quote, escaped = [], 0, 0, "", False
    for at, char in enumerate(text):
        if quote:
            quote = "" if char == quote and not escaped else quote
            escaped = char == "\\" and not escaped
        elif char in "'\"":
            quote = char
        elif char in "{[(":
            depth += 1
        elif char in "}])":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    parts.append(text[start:])
    return [p.strip() for p in parts if p.strip()]


def default_of(option: dataclasses.Field[Any]) -> Any:
    """An option's default, ``dataclasses.MISSING`` if it has none."""
    if option.default_factory is not dataclasses.MISSING:
        return option.default_factory()
    return option.default


def _value(kind: type, option: dataclasses.Field[Any], text: str, name: str) -> Any:
    hint = typing.get_type_hints(kind)[option.name]
    choices = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    expected = tuple(typing.get_origin(c) or c for c in choices)
    try:
        value = ast.literal_eval(text.capitalize() if text.lower() in _WORDS else text)
    except (ValueError, SyntaxError):
        value = text
    if float in expected and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            value = float(text)
    if str in expected and not isinstance(value, expected):
        value = text
    if not isinstance(value, expected) or (type(value) is bool and bool not in expected):
        wanted = " or ".join(e.__name__ for e in expected if e is not type(None))
        raise InputError(f"option '{option.name}' of {name} takes {wanted}, not '{text}'")
    return value


_WORDS = ("true", "false", "none")

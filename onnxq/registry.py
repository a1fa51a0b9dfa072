"""Named kinds of things: found in a package, and read from and written to their text form.

Passes, calibrators, precisions and tuners are frozen dataclasses whose fields are their options;
recipes, plans and the command line write them as ``name{option=value}``. Fields with ``repr=False``
are no options: code alone sets them.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import metadata
from importlib.metadata import EntryPoints
from types import ModuleType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from onnxq.errors import InputError

T = TypeVar("T")

_FORM = re.compile(r"([\w-]+)\s*(?:\{(.*)\})?", re.DOTALL)


def kinds_in(
    module: ModuleType, base: type[T], *, nested: bool = True, without: Collection[str] = ()
) -> Sequence[type[T]]:
    """Every class derived from ``base`` that a module, or a package's modules, define.

    Those without a name, or that are abstract, are bases of others. Without ``nested`` packages
    within the package are left alone. So are the modules named in ``without``: those that need what
    an extra installs.

    Raises:
        ImportError: one of the modules cannot be imported.
    """
    # What another package has may be asked for while that is being imported, and be incomplete.
    is_own = module.__name__.partition(".")[0] == __name__.partition(".")[0]
    find = _kinds_once if is_own else _kinds
    return find(module, base, nested, tuple(without))  # type: ignore[arg-type]


def _kinds(
    module: ModuleType, base: type[Any], nested: bool, without: tuple[str, ...]
) -> tuple[type[Any], ...]:
    return tuple(
        kind
        for each in _modules(module, nested, without)
        for _, kind in sorted(vars(each).items())
        if isinstance(kind, type) and kind.__module__ == each.__name__
        if issubclass(kind, base) and hasattr(kind, "name") and not inspect.isabstract(kind)
    )


_kinds_once = cache(_kinds)
"""The same, looked for once: each plan that is read or applied asks for all passes."""


@cache
def _modules(module: ModuleType, nested: bool, without: tuple[str, ...]) -> list[ModuleType]:
    """The module and, of a package, those within; looked for once, as that reads every folder."""
    if not hasattr(module, "__path__"):
        return [module]
    prefix = f"{module.__name__}."
    if nested:
        found = pkgutil.walk_packages(module.__path__, prefix, lambda name: None)
    else:
        found = (m for m in pkgutil.iter_modules(module.__path__, prefix) if not m.ispkg)
    names = {m.name for m in found} - {f"{prefix}{name}" for name in without}
    return [module, *map(_imported, sorted(names))]


def installed_kinds(group: str, base: type[T], what: str) -> dict[str, type[T]]:
    """The kinds of all installed packages by name, found through their entry points of a group.

    An entry names such a class, or a module or package in which every one counts.

    Raises:
        InputError: an entry point cannot be loaded, or two kinds share a name.
    """
    found: dict[str, type[T]] = {}
    for entry in entry_points(group):
        try:
            loaded = entry.load()
            kinds: Sequence[Any] = ()
            if isinstance(loaded, ModuleType):
                kinds = kinds_in(loaded, base)
            elif isinstance(loaded, type) and issubclass(loaded, base):
                kinds = (loaded,)
        except Exception as error:  # Any module may be brought, and raise anything.
            raise InputError(
                f"the {what} entry point '{entry.name}' ({entry.value}) cannot be loaded: {error}; "
                "reinstall or remove the package that brings it"
            ) from error
        for kind in kinds:
            name: str = kind.name
            if found.setdefault(name, kind) is not kind:
                modules = f"{found[name].__module__} and {kind.__module__}"
                raise InputError(
                    f"each of two packages has a {what} '{name}': {modules}; remove one package"
                )
    return dict(sorted(found.items()))


def entry_points(group: str) -> EntryPoints:
    """The entry points of a group in what is installed on the path."""
    return _entry_points(group, tuple(sys.path))


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> EntryPoints:
    """The same, looked for once, as that reads a file of everything that is installed."""
    return metadata.entry_points(group=group)


def to_form(thing: Any) -> str:
    """The text form of an instance, with the options that are not at their default."""
    changed = [
        f"{name}={getattr(thing, name)!r}"
        for name, option in _options(type(thing)).items()
        if getattr(thing, name) != _default_of(option)
    ]
    return f"{thing.name}{{{', '.join(changed)}}}" if changed else str(thing.name)


def from_form(text: str, kinds: Mapping[str, type[T]], what: str) -> T:
    """Read a text form.

    Args:
        text: As ``percentile{percentile=99.9}``.
        kinds: The classes there are, by name; those that are no dataclasses have no options.
        what: What they are called in messages, as ``pass``.

    Raises:
        InputError: naming the thing, option or value that is wrong.
    """
    matched = _FORM.fullmatch(text.strip())
    if matched is None:
        raise InputError(f"cannot read the {what} '{text}'; write name or name{{option=value}}")
    name = matched[1]
    if name not in kinds:
        raise InputError(f"there is no {what} '{name}'; available: {', '.join(kinds)}")
    options = _options(kinds[name])
    values: dict[str, Any] = {}
    for part in split_forms(matched[2] or ""):
        key, separator, value = (s.strip() for s in part.partition("="))
        if key not in options:
            raise InputError(
                f"the {what} {name} has no option '{key or part}'; it has: "
                f"{', '.join(options) or 'none'}"
            )
        if not separator:
            raise InputError(f"the {what} {name} needs a value; write {name}{{{key}=...}}")
        values[key] = _value(kinds[name], options[key], value, f"{what} {name}")
    for key, option in options.items():
        if key not in values and _default_of(option) is dataclasses.MISSING:
            raise InputError(f"the {what} {name} needs option '{key}'; write {name}{{{key}=...}}")
    return kinds[name](**values)


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


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ImportError(f"module {name}: {error}") from error


def _options(kind: type) -> dict[str, dataclasses.Field[Any]]:
    if not dataclasses.is_dataclass(kind):
        return {}
    return {f.name: f for f in dataclasses.fields(kind) if f.init and f.repr}


def _value(kind: type, option: dataclasses.Field[Any], text: str, what: str) -> Any:
    accepted = _accepted(kind, option)
    words = {"true": "True", "false": "False", "none": "None"}
    try:
        value = ast.literal_eval(words.get(text.lower(), text))
    except (ValueError, SyntaxError):
        value = text
    if type(value) in accepted:
        return value
    if float in accepted and not isinstance(value, bool):
        with contextlib.suppress(ValueError):
            return float(text)
    if str in accepted:
        return text
    if object in accepted or (isinstance(value, accepted) and not isinstance(value, bool)):
        return value
    names = " or ".join("None" if t is NoneType else t.__name__ for t in accepted)
    raise InputError(f"option '{option.name}' of {what} takes {names}, not '{text}'")


def _accepted(kind: type, option: dataclasses.Field[Any]) -> tuple[type, ...]:
    """Types of an option's values: those it is annotated with, else that of its default."""
    try:
        hint = get_type_hints(kind)[option.name]
    except NameError:
        # Annotated with something that is imported for type checkers only.
        default = _default_of(option)
        known = default is not None and default is not dataclasses.MISSING
        return (type(default) if known else object,)
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    found: list[type] = []
    for one in hints:
        literal = get_origin(one) is Literal
        found += map(type, get_args(one)) if literal else [get_origin(one) or one]
    return tuple(object if t is Any or not isinstance(t, type) else t for t in found)


def _default_of(option: dataclasses.Field[Any]) -> Any:
    """The default, MISSING without one."""
    if option.default_factory is not dataclasses.MISSING:
        return option.default_factory()
    return option.default

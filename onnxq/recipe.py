"""Recipes: what `optimize` does, as a small file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from onnxq.errors import InputError
from onnxq.ir import Pass, default_passes, parse_passes
from onnxq.ir.textfile import read_text
from onnxq.observe import parse_calibrator
from onnxq.precision import FLOAT, available_precisions, parse_precision, require_searchable


@dataclass(frozen=True)
class Recipe:
    """Float passes, and the plan that follows: every node in one precision, or a search for one.

    Attributes:
        description: One line for people.
        passes: Float passes in text form, or ``default`` for the default float pipeline.
        precision: What all nodes get that can have it, as ``int4-weight{block_size=64}``; a search
            chooses node by node if empty.
        precisions: What the search may choose from; the target's if empty.
        calibrator: How activation ranges are found, as ``percentile{percentile=99.9}``.
        keep_float: Names of nodes that are to stay in float.
    """

    description: str = ""
    passes: str = "default"
    precision: str = ""
    precisions: tuple[str, ...] = ()
    calibrator: str = "minmax"
    keep_float: tuple[str, ...] = ()

    @property
    def is_search(self) -> bool:
        """Whether every node gets a precision of its own."""
        return not self.precision

    def float_passes(self) -> tuple[Pass, ...]:
        """The passes that rewrite the float graph before quantization.

        Raises:
            InputError: the text names a pass or option that does not exist.
        """
        return default_passes() if self.passes == "default" else parse_passes(self.passes)


def load_recipe(name: str | Recipe) -> Recipe:
    """A built-in recipe by name, or one from a TOML file by path.

    The name of a precision, with options if need be, is the recipe that gives it to all nodes.

    Raises:
        InputError: there is no such recipe or file, or the file has an unknown or wrong entry.
    """
    if isinstance(name, Recipe):
        return name
    if name in _files():
        text = (files("onnxq") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
        return _parse(name, text)
    if name.partition("{")[0].strip() in built_in_recipes():
        return Recipe(parse_precision(name).description, precision=name)
    path = Path(name)
    if path.suffix != ".toml":
        raise InputError(
            f"there is no recipe '{name}'; built in: {', '.join(built_in_recipes())}; "
            "or name a .toml file"
        )
    return _parse(name, read_text(path, "the recipe"))


def built_in_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with onnxq: those with a file, and one for each precision."""
    return tuple(sorted({*_files(), *available_precisions()} - {FLOAT}))


def _files() -> list[str]:
    folder = files("onnxq") / "recipes"
    return [e.name.removesuffix(".toml") for e in folder.iterdir() if e.name.endswith(".toml")]


def _parse(name: str, text: str) -> Recipe:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"the recipe '{name}' is not valid TOML: {error}") from error
    known = {f.name for f in fields(Recipe)}
    for key, value in table.items():
        if key not in known:
            raise InputError(
                f"the recipe '{name}' has an unknown entry '{key}'; known: "
                f"{', '.join(sorted(known))}"
            )
        table[key] = _checked(name, key, value)
    recipe = Recipe(**table)
    checks: tuple[tuple[str, Callable[[], object]], ...] = (
        ("a calibrator", lambda: parse_calibrator(recipe.calibrator)),
        ("a precision", lambda: recipe.is_search or parse_precision(recipe.precision)),
        ("precisions", lambda: require_searchable(recipe.precisions)),
    )
    for what, check in checks:
        try:
            check()
        except InputError as error:
            raise InputError(f"the recipe '{name}' names {what}, but {error}") from error
    return recipe


def _checked(name: str, key: str, value: Any) -> Any:
    if key in ("keep_float", "precisions"):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise InputError(f"entry '{key}' of recipe '{name}' takes a list of names")
    if not isinstance(value, str):
        raise InputError(f"entry '{key}' of recipe '{name}' takes a text in quotation marks")
    return value

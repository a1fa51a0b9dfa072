"""Recipes: what `optimize` does, as a small file."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from onnxq.errors import InputError
from onnxq.ir import Pass, default_passes, parse_passes
from onnxq.ir.textfile import read_text
from onnxq.observe import parse_calibrator

MIXED = "mixed"


@dataclass(frozen=True)
class Recipe:
    """A named pipeline with its options.

    Attributes:
        description: One line for people.
        passes: Float passes in text form, or ``default`` for the default float pipeline.
        calibrator: How activation ranges are found, as ``percentile{percentile=99.9}``.
        quantization: How to quantize: passes in text form, or ``mixed`` for a search over
            precisions node by node.
        precisions: What the search may choose from; the target's if empty.
        keep_float: Names of nodes that are to stay in float.
    """

    description: str = ""
    passes: str = "default"
    quantization: str = "insert-qdq"
    precisions: tuple[str, ...] = ()
    calibrator: str = "minmax"
    keep_float: tuple[str, ...] = ()

    def float_passes(self) -> tuple[Pass, ...]:
        """The passes that rewrite the float graph before quantization.

        Raises:
            InputError: the text names a pass or option that does not exist.
        """
        return default_passes() if self.passes == "default" else parse_passes(self.passes)

    @property
    def is_mixed(self) -> bool:
        """Whether every node gets a precision of its own."""
        return self.quantization == MIXED

    def quantizing_passes(self) -> tuple[Pass, ...]:
        """The passes that quantize, where the recipe is not mixed.

        Raises:
            InputError: the text names a pass or option that does not exist.
        """
        return parse_passes(self.quantization)


def load_recipe(name: str) -> Recipe:
    """A built-in recipe by name, or one from a TOML file by path.

    Raises:
        InputError: there is no such recipe or file, or the file has an unknown or wrong entry.
    """
    if name in built_in_recipes():
        text = (files("onnxq") / "recipes" / f"{name}.toml").read_text(encoding="utf-8")
        return _parse(name, text)
    path = Path(name)
    if path.suffix != ".toml":
        raise InputError(
            f"there is no recipe '{name}'; built in: {', '.join(built_in_recipes())}; "
            "or name a .toml file"
        )
    return _parse(name, read_text(path, "the recipe"))


def built_in_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with onnxq."""
    folder = files("onnxq") / "recipes"
    return tuple(
        sorted(e.name.removesuffix(".toml") for e in folder.iterdir() if e.name.endswith(".toml"))
    )


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
    try:
        parse_calibrator(recipe.calibrator)
    except InputError as error:
        raise InputError(f"the recipe '{name}' names a calibrator, but {error}") from error
    if not recipe.is_mixed:
        try:
            recipe.quantizing_passes()
        except InputError as error:
            raise InputError(f"the recipe '{name}' names a quantization, but {error}") from error
    return recipe


def _checked(name: str, key: str, value: Any) -> Any:
    if key in ("keep_float", "precisions"):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise InputError(f"entry '{key}' of recipe '{name}' takes a list of names")
    if not isinstance(value, str):
        raise InputError(f"entry '{key}' of recipe '{name}' takes a text in quotation marks")
    return value

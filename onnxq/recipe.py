"""Recipes: what `optimize` does, as a small file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxq.errors import InputError
from onnxq.observe import parse_calibrator
from onnxq.plain import read, read_toml
from onnxq.precision import FLOAT, available_precisions, parse_precision, require_searchable
from onnxq.saved import built_in, toml_text
from onnxq.tune import AUTOMATIC, parse_methods


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
        methods: What may compute weights and scales: ``auto``, ``none``, or names of methods.
        keep_float: Names of nodes that are to stay in float.
    """

    description: str = ""
    passes: str = "default"
    precision: str = ""
    precisions: tuple[str, ...] = ()
    calibrator: str = "minmax"
    methods: tuple[str, ...] = AUTOMATIC
    keep_float: tuple[str, ...] = ()

    @property
    def is_search(self) -> bool:
        """Whether every node gets a precision of its own."""
        return not self.precision


def load_recipe(name: str | Recipe) -> Recipe:
    """A built-in recipe by name, or one from a TOML file by path.

    The name of a precision, with options if need be, is the recipe that gives it to all nodes.

    Raises:
        InputError: there is no such recipe or file, or the file has an unknown or wrong entry.
    """
    if isinstance(name, Recipe):
        return name
    files = built_in("onnxq.recipes")
    if name not in files and name.partition("{")[0].strip() in built_in_recipes():
        return Recipe(parse_precision(name).description, precision=name)
    if name not in files and not name.endswith(".toml"):
        raise InputError(
            f"there is no recipe '{name}'; built in: {', '.join(built_in_recipes())}; "
            "or name a .toml file"
        )
    of = f"the recipe '{name}'"
    recipe: Recipe = read(Recipe, read_toml(toml_text(name, "onnxq.recipes", "the recipe"), of), of)
    if recipe.precisions and not recipe.is_search:
        raise InputError(f"{of} has both a precision for all nodes and precisions to choose from")
    checks: tuple[tuple[str, Callable[[], object]], ...] = (
        ("a calibrator", lambda: parse_calibrator(recipe.calibrator)),
        ("a precision", lambda: recipe.is_search or parse_precision(recipe.precision)),
        ("methods", lambda: parse_methods(recipe.methods)),
        ("precisions", lambda: require_searchable(recipe.precisions)),
    )
    for what, check in checks:
        try:
            check()
        except InputError as error:
            raise InputError(f"{of} names {what}, but {error}") from error
    return recipe


def built_in_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with onnxq: those with a file, and one for each precision."""
    return tuple(sorted({*built_in("onnxq.recipes"), *available_precisions()} - {FLOAT}))

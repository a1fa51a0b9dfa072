"""Recipes: what `optimize` does, as a small file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from onnxq.errors import InputError
from onnxq.ir import Pass, default_passes, parse_passes
from onnxq.observe import parse_calibrator
from onnxq.plain import read, read_toml
from onnxq.precision import parse_precision, require_searchable
from onnxq.saved import built_in, toml_text


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

    Raises:
        InputError: there is no such recipe or file, or the file has an unknown or wrong entry.
    """
    if isinstance(name, Recipe):
        return name
    if name not in built_in_recipes() and not name.endswith(".toml"):
        raise InputError(
            f"there is no recipe '{name}'; built in: {', '.join(built_in_recipes())}; "
            "or name a .toml file"
        )
    of = f"the recipe '{name}'"
    recipe: Recipe = read(Recipe, read_toml(toml_text(name, "onnxq.recipes", "the recipe"), of), of)
    checks: tuple[tuple[str, Callable[[], object]], ...] = (
        ("a calibrator", lambda: parse_calibrator(recipe.calibrator)),
        ("a precision", lambda: recipe.is_search or parse_precision(recipe.precision)),
        ("precisions", lambda: require_searchable(recipe.precisions)),
    )
    for what, check in checks:
        try:
            check()
        except InputError as error:
            raise InputError(f"{of} names {what}, but {error}") from error
    return recipe


def built_in_recipes() -> tuple[str, ...]:
    """Names of the recipes that come with onnxq."""
    return built_in("onnxq.recipes")

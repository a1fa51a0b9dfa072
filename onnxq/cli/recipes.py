"""``onnxq recipes``."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from rich.console import Group
from rich.text import Text

from onnxq.cli.terminal import Outcome, table
from onnxq.precision import parse_precision
from onnxq.progress import Progress
from onnxq.recipe import Recipe, built_in_recipes, load_recipe
from onnxq.tune import AUTOMATIC, available_methods

HELP = "list the recipes there are, and the methods that they may use"

EXAMPLES = """examples:
  onnxq recipes --json recipes.json
  onnxq optimize model.onnx --data samples.npz -o out.onnx --recipe llm-4bit
"""

NEEDS = ""
TAKES = ""


def run(_: argparse.Namespace, __: Progress) -> Outcome:
    """Run the command."""
    recipes = {name: load_recipe(name) for name in built_in_recipes()}
    methods = {name: kind.description for name, kind in available_methods().items()}
    body = {
        "schema": "onnxq/recipes/1",
        "recipes": [_facts(name, recipe) for name, recipe in recipes.items()],
        "methods": [{"name": name, "description": text} for name, text in methods.items()],
    }
    rows = (
        (name, ", ".join(_means(name, recipe)), recipe.description)
        for name, recipe in recipes.items()
    )
    return Outcome(
        body,
        Group(
            table(rows, ("recipe", "precision and methods", "what it does")),
            Text(),
            table(methods.items(), ("method", "what it computes")),
        ),
    )


def _means(name: str, recipe: Recipe) -> Iterator[str]:
    """Its precision, unless it has the name of that, and its methods, if it has any."""
    if recipe.precision != name:
        yield recipe.precision or "a search"
    yield from (method for method in _methods(recipe) if method != "none")


def _facts(name: str, recipe: Recipe) -> dict[str, Any]:
    return {
        "name": name,
        "description": recipe.description,
        "passes": recipe.passes,
        "precision": recipe.precision,
        "precisions": list(recipe.precisions),
        "calibrator": recipe.calibrator,
        "methods": list(_methods(recipe)),
    }


def _methods(recipe: Recipe) -> tuple[str, ...]:
    """Those that it may use, by name where its precision names them."""
    if recipe.methods != AUTOMATIC or recipe.is_search:
        return recipe.methods
    return parse_precision(recipe.precision).tuners or ("none",)

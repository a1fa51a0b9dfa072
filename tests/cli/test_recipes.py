"""``onnxq recipes``."""

from __future__ import annotations

import json
from pathlib import Path

from onnxq.recipe import built_in_recipes, load_recipe
from onnxq.tune import available_methods
from tests.cli.conftest import Command


def test_it_lists_every_recipe_and_method(onnxq: Command) -> None:
    found = onnxq("recipes")
    assert (found.code, found.err) == (0, "")
    first = {line.split()[0] for line in found.out.splitlines() if line and line[0] != " "}
    assert all(load_recipe(name).precision in found.out for name in built_in_recipes())
    assert {*built_in_recipes(), *available_methods(), "recipe", "method"} <= first


def test_json(onnxq: Command, tmp_path: Path) -> None:
    path = tmp_path / "recipes.json"
    assert onnxq("recipes", "--json", path).code == 0
    body = json.loads(path.read_text())
    assert body["schema"] == "onnxq/recipes/1"
    recipes = {recipe["name"]: recipe for recipe in body["recipes"]}
    assert set(recipes) == set(built_in_recipes())
    assert recipes["fast"]["methods"] == ["none"]
    assert recipes["mixed"]["methods"] == ["auto"]
    assert "weighted-mse" in recipes["int4-weight"]["methods"]
    assert recipes["llm-4bit"]["precision"] == load_recipe("llm-4bit").precision
    assert {method["name"] for method in body["methods"]} == set(available_methods())

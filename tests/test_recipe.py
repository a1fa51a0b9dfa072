"""Recipes: the built-in ones, files, and what is wrong with a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxq.errors import InputError
from onnxq.ir import default_passes
from onnxq.recipe import Recipe, built_in_recipes, load_recipe


@pytest.mark.parametrize("name", built_in_recipes())
def test_a_built_in_recipe_can_be_carried_out(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.description
    assert recipe.float_passes()


def test_the_default_recipe() -> None:
    assert "int8" in built_in_recipes()
    recipe = load_recipe("int8")
    assert recipe.float_passes() == default_passes()
    assert (recipe.calibrator, recipe.keep_float) == ("minmax", ())


def _file(folder: Path, text: str) -> str:
    (folder / "mine.toml").write_text(text)
    return str(folder / "mine.toml")


def test_a_file(tmp_path: Path) -> None:
    text = """description = "mine"
        passes = "fold-constants,eliminate-dead"
        keep_float = ["conv1", "fc"]"""
    recipe = load_recipe(_file(tmp_path, text))
    assert recipe == Recipe("mine", "fold-constants,eliminate-dead", "minmax", ("conv1", "fc"))
    assert [p.name for p in recipe.float_passes()] == ["fold-constants", "eliminate-dead"]
    assert load_recipe(_file(tmp_path, "")) == Recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("passes =", "mine.toml' is not valid TOML"),
        ("pases = 'x'", "unknown entry 'pases'; known: calibrator, description, keep_float, pass"),
        ("passes = 3", "entry 'passes' of recipe .* takes a text in quotation marks"),
        ("keep_float = 'conv1'", "'keep_float' of recipe .* takes a list of node names"),
        ("keep_float = [1]", "'keep_float' of recipe .* takes a list of node names"),
        ("calibrator = 'median'", "there is no calibrator 'median'; available: minmax"),
    ],
)
def test_what_is_wrong_with_a_file(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        load_recipe(_file(tmp_path, text))


def test_a_pass_that_is_not_there(tmp_path: Path) -> None:
    recipe = load_recipe(_file(tmp_path, "passes = 'make-better'"))
    with pytest.raises(InputError, match="no pass 'make-better'"):
        recipe.float_passes()


def test_a_recipe_that_cannot_be_found(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no recipe 'int7'; built in: .*int8.*; or name a .toml"):
        load_recipe("int7")
    with pytest.raises(InputError, match=r"cannot read the recipe '.*none.toml': No such file"):
        load_recipe(str(tmp_path / "none.toml"))
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary.toml': it is no text"):
        load_recipe(str(tmp_path / "binary.toml"))

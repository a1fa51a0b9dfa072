from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import onnxq
from onnxq.ir import available_passes

ROOT = Path(__file__).parents[1]

ROWS = (
    ("errors", "locks"),
    ("progress", "needs", "registry", "scratch"),
    ("plain",),
    ("ir",),
    ("saved", "time_budget"),
    ("quant",),
    ("targets",),
    ("runtime",),
    ("data",),
    ("passes",),
    ("observe",),
    ("precision",),
    ("tune",),
    ("sensitivity", "cost", "verify"),
    ("plan",),
    ("adaptive",),
    ("report",),
    ("the API",),
    ("cli",),
)
"""Parts of the package, lowest first: each imports only from rows before its own."""

STRANGERS = {
    "ir": {"onnxruntime"},
    "quant": {"ir", "onnxruntime"},
    "targets": {"ir", "onnxruntime"},
    "runtime": {"quant", "targets"},
    "data": {"quant"},
}
"""What a part knows nothing of, though the order would allow it."""

TRAINING = "onnxq.tune.train"
"""The only place where torch is imported, which is an extra."""

NO_TORCH = importlib.util.find_spec("torch") is None

API = {
    *("__init__", "batching", "benchmark", "bundling", "comparison", "distributions", "doctor"),
    *("fastest", "forms", "found", "gguf", "inspection", "job", "optimization"),
    *(
        "options",
        "planning",
        "prepare",
        "promise",
        "proof",
        "proposals",
        "recipe",
        "recipes",
        "reporting",
    ),
    "rewriting",
    *("search", "sequential", "study", "testing", "training", "transforming", "tuning"),
    *("watching", "work"),
}
"""Modules that put the stages together: they import each other."""


@dataclass(frozen=True)
class Import:
    """One name that a module imports, or the module itself where no name is given."""

    importer: str
    module: str
    name: str
    place: str


def part(module: str) -> str:
    """The row's entry to which a module belongs; of another package, its name."""
    package, _, rest = module.partition(".")
    top = rest.partition(".")[0] or "__init__"
    if package != "onnxq":
        return package
    return "the API" if top in API else "cli" if top in ("__main__", "starting") else top


def sources() -> dict[str, Path]:
    """The files of the package by module."""
    folders = {"onnxq": ROOT / "onnxq", "onnxq.passes": ROOT / "passes"}
    found = {}
    for package, folder in folders.items():
        for path in folder.rglob("*.py"):
            inner = path.relative_to(folder).with_suffix("").parts
            if package == "onnxq" and inner[0] == "passes":
                continue
            found[".".join((package, *inner)).removesuffix(".__init__")] = path
    return found


def imports(module: str, path: Path) -> Iterator[Import]:
    file = path.relative_to(ROOT)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        place = f"{file}:{node.lineno}"
        if isinstance(node, ast.Import):
            yield from (Import(module, alias.name, "", place) for alias in node.names)
        else:
            assert node.level == 0 and node.module, f"{place}: a relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in SOURCES:
                    yield Import(module, inner, "", place)
                else:
                    yield Import(module, node.module, alias.name, place)


@cache
def all_imports() -> tuple[Import, ...]:
    """Those of the whole package; read by the tests, as each process of a run collects them all."""
    return tuple(found for module, path in SOURCES.items() for found in imports(module, path))


SOURCES = sources()
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
PASSES = sorted(
    (kind.name, kind) for kind in available_passes().values() if kind.__module__ in SOURCES
)


def test_every_module_has_a_row() -> None:
    assert {part(module) for module in SOURCES} == set(RANK)


def test_modules_import_from_lower_rows_only() -> None:
    wrong = [
        f"{i.place}: {part(i.importer)} imports {i.module}"
        for i in all_imports()
        if part(i.module) in RANK
        and part(i.module) != part(i.importer)
        and RANK[part(i.module)] >= RANK[part(i.importer)]
        # The command line prints the version of the package.
        and (i.module, i.name) != ("onnxq", "__version__")
    ]
    assert not wrong


def test_parts_know_nothing_of_their_strangers() -> None:
    wrong = [
        f"{i.place}: {part(i.importer)} imports {i.module}"
        for i in all_imports()
        if part(i.module) in STRANGERS.get(part(i.importer), ())
    ]
    assert not wrong


def test_no_pass_is_imported_by_a_pass_or_its_helpers() -> None:
    passes = {kind.__module__ for _, kind in PASSES}
    wrong = [
        f"{i.place}: imports {i.module}"
        for i in all_imports()
        if part(i.importer) == "passes" and i.module in passes
    ]
    assert not wrong


def test_no_public_name_hides_the_module_of_its_name() -> None:
    hidden = []
    for module, path in SOURCES.items():
        if path.name == "__init__.py" and not (module.startswith(TRAINING) and NO_TORCH):
            public = getattr(importlib.import_module(module), "__all__", ())
            hidden += [f"{module}.{name}" for name in public if f"{module}.{name}" in SOURCES]
    assert not hidden


def test_public_names_are_found_where_the_types_say() -> None:
    said = {(i.module, i.name) for i in all_imports() if i.importer == "onnxq"}
    homes = {(f"onnxq.{home}", name) for home, names in onnxq._HOMES.items() for name in names}
    assert {(module, name) for module, name in said if part(module) in RANK} == homes
    assert {name for _, name in homes} | {"__version__"} == set(onnxq.__all__)
    assert all(getattr(onnxq, name) is not None for name in onnxq.__all__)


def test_networkx_is_imported_by_the_ir_only() -> None:
    assert {part(i.importer) for i in all_imports() if part(i.module) == "networkx"} == {"ir"}


def test_torch_is_imported_where_gradients_are_only() -> None:
    importers = {i.importer for i in all_imports() if part(i.module) == "torch"}
    assert importers
    assert all(module.startswith(TRAINING) for module in importers)


def test_private_names_stay_where_they_are() -> None:
    wrong = [
        f"{i.place}: {i.module} {i.name}"
        for i in all_imports()
        if part(i.module) in RANK
        and (
            (i.name.startswith("_") and not i.name.startswith("__"))
            or ("._" in i.module and part(i.module) != part(i.importer))
        )
    ]
    assert not wrong


@pytest.mark.parametrize(("name", "kind"), PASSES, ids=[name for name, _ in PASSES])
def test_a_pass_has_tests_of_its_own(name: str, kind: type) -> None:
    path = SOURCES[kind.__module__]
    file = path.name
    assert (ROOT / "tests" / "passes" / path.parent.name / f"test_{file}").is_file()
    assert file == f"{name.replace('-', '_')}.py", "a pass's file has its name"


@pytest.mark.parametrize(("name", "kind"), PASSES, ids=[name for name, _ in PASSES])
def test_a_pass_says_what_it_does_not_rewrite(name: str, kind: type) -> None:
    said = inspect.getdoc(kind) or ""
    assert re.search("^(Not rewritten|Not touched|Left)", said, re.MULTILINE), name

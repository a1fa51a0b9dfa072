"""Text forms of passes, calibrators, precisions and tuners."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq import registry
from onnxq.errors import InputError
from onnxq.ir import available_passes
from onnxq.observe import CALIBRATORS, parse_calibrator
from onnxq.precision import Precision, available_precisions, parse_precision
from onnxq.registry import from_form, kinds_in, split_forms, to_form
from onnxq.tune import Tuner, available_methods, parse_method


@dataclass(frozen=True)
class Thing:
    """Options of all kinds."""

    name: ClassVar[str] = "thing"

    limit: int
    share: float = 0.5
    word: str = "plain"
    is_on: bool = False
    most: int | None = None
    mode: Literal["fast", "slow"] = "fast"
    names: tuple[str, ...] = ()
    hidden: int = field(default=3, repr=False)
    fresh: list[int] = field(default_factory=list)


KINDS = {"thing": Thing}


def read(text: str) -> Thing:
    return from_form(text, KINDS, "thing")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("thing{limit=3}", Thing(3)),
        (" thing { limit = 3 , share=1 } ", Thing(3, share=1)),
        ("thing{limit=3, share=1e-3}", Thing(3, share=0.001)),
        ("thing{limit=3, share=nan_}", None),
        ("thing{limit=3, word=quick}", Thing(3, word="quick")),
        ("thing{limit=3, word='a, b}'}", Thing(3, word="a, b}")),
        ("thing{limit=3, word=7}", Thing(3, word="7")),
        ("thing{limit=3, is_on=true}", Thing(3, is_on=True)),
        ("thing{limit=3, most=4}", Thing(3, most=4)),
        ("thing{limit=3, most=none}", Thing(3)),
        ("thing{limit=3, mode=slow}", Thing(3, mode="slow")),
        ("thing{limit=3, names=('a', 'b')}", Thing(3, names=("a", "b"))),
        ("thing{limit=3, fresh=[1, 2]}", Thing(3, fresh=[1, 2])),
    ],
)
def test_forms(text: str, wanted: Thing | None) -> None:
    if wanted is None:
        with pytest.raises(InputError, match="option 'share' of thing thing takes float, not"):
            read(text)
        return
    assert read(text) == wanted
    assert read(to_form(wanted)) == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read the thing ''; write name or name{option=value}"),
        ("thing{limit=3", "cannot read the thing"),
        ("other", "there is no thing 'other'; available: thing"),
        ("thing", "the thing thing needs option 'limit'; write thing{limit=...}"),
        ("thing{limit=three}", "option 'limit' of thing thing takes int, not 'three'"),
        ("thing{limit=1.5}", "takes int, not '1.5'"),
        ("thing{limit=true}", "takes int, not 'true'"),
        ("thing{limit=3, most=x}", "takes int or None, not 'x'"),
        ("thing{limit=3, is_on=1}", "takes bool, not '1'"),
        ("thing{limit=3, share=true}", "takes float, not 'true'"),
        ("thing{limit=3, colour=red}", "has no option 'colour'; it has: limit, share, word"),
        ("thing{limit=3, hidden=4}", "has no option 'hidden'"),
        ("thing{3}", "has no option '3'"),
    ],
)
def test_what_is_wrong_with_a_form(text: str, message: str) -> None:
    with pytest.raises(InputError) as found:
        read(text)
    assert message in str(found.value) and "\n" not in str(found.value)


@given(
    st.builds(
        Thing,
        st.integers(),
        share=st.floats(allow_nan=False, allow_infinity=False),
        word=st.text(min_size=1),
        is_on=st.booleans(),
        most=st.none() | st.integers(),
        mode=st.sampled_from(["fast", "slow"]),
        names=st.lists(st.text()).map(tuple),
    )
)
def test_a_form_says_all(thing: Thing) -> None:
    assert read(to_form(thing)) == thing


def test_an_annotation_that_only_type_checkers_know_is_read_by_its_default() -> None:
    @dataclass(frozen=True)
    class Odd:
        name: ClassVar[str] = "odd"
        count: Unknown = 3  # type: ignore[name-defined]  # noqa: F821

    assert from_form("odd{count=4}", {"odd": Odd}, "thing").count == 4
    with pytest.raises(InputError, match="takes int, not 'x'"):
        from_form("odd{count=x}", {"odd": Odd}, "thing")


def test_only_what_differs_from_defaults_is_written() -> None:
    assert to_form(Thing(3)) == "thing{limit=3}"
    assert to_form(Thing(3, hidden=9, word="x")) == "thing{limit=3, word='x'}"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", []),
        ("a, b", ["a", "b"]),
        ("a{x=1, y=[2, 3]}, b", ["a{x=1, y=[2, 3]}", "b"]),
        ("a{x='},'}, b,", ["a{x='},'}", "b"]),
        (r"a{x='\',}'}, b", [r"a{x='\',}'}", "b"]),
        (r"a{x='\\'}, b", [r"a{x='\\'}", "b"]),
    ],
)
def test_parts_of_a_list(text: str, parts: list[str]) -> None:
    assert split_forms(text) == parts


def _forms() -> Iterator[tuple[str, Any, Any]]:
    """Everything that can be written without options, and how it is read."""
    passes = available_passes()
    for name in passes:
        yield name, passes[name], lambda text: from_form(text, passes, "pass")
    yield from ((name, CALIBRATORS[name], parse_calibrator) for name in CALIBRATORS)
    yield from ((name, kind, parse_precision) for name, kind in available_precisions().items())
    yield from ((name, kind, parse_method) for name, kind in available_methods().items())


@pytest.mark.parametrize(("name", "kind", "parse"), [pytest.param(*f, id=f[0]) for f in _forms()])
def test_every_kind_has_a_form(name: str, kind: type, parse: Any) -> None:
    try:
        thing = parse(name)
    except InputError as error:
        assert f"{name} needs option '" in str(error)
        return
    assert type(thing) is kind
    assert str(thing) == name
    assert parse(str(thing)) == thing


@pytest.mark.parametrize(
    ("form", "same"),
    [
        ("int4-weight{ block_size = 64 }", "int4-weight{block_size=64}"),
        ("int4-weight{block_size=32}", "int4-weight"),
        (
            "int4-weight{scheme=absmax, block_size=16}",
            "int4-weight{block_size=16, scheme='absmax'}",
        ),
        ("int8-dynamic{convolutions=true}", "int8-dynamic{convolutions=True}"),
    ],
)
def test_forms_of_precisions(form: str, same: str) -> None:
    assert str(parse_precision(form)) == same
    assert parse_precision(same) == parse_precision(form)


@pytest.mark.parametrize("kind", [*available_precisions().values(), *available_methods().values()])
def test_every_kind_has_a_file_of_its_own_and_says_what_it_is(kind: Any) -> None:
    assert kind.__module__.rpartition(".")[2] == kind.name.replace("-", "_")
    assert kind.description and kind.description[-1] != "."


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package with a base, a module of two kinds, and one in a folder below."""
    (tmp_path / "stock" / "inner").mkdir(parents=True)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "stock" / "__init__.py").write_text("")
    (tmp_path / "stock" / "base.py").write_text(
        "from abc import ABC, abstractmethod\n"
        "class Base(ABC):\n    @abstractmethod\n    def go(self): ...\n"
    )
    (tmp_path / "stock" / "one.py").write_text(
        "from stock.base import Base\n"
        "class One(Base):\n    name = 'one'\n    def go(self): ...\n"
        "class Nameless(Base):\n    def go(self): ...\n"
        "class Abstract(Base):\n    name = 'abstract'\n"
    )
    (tmp_path / "stock" / "inner" / "__init__.py").write_text("")
    (tmp_path / "stock" / "inner" / "two.py").write_text(
        "from stock.one import One\nclass Two(One):\n    name = 'two'\n"
    )
    yield "stock"
    for name in [name for name in sys.modules if name.partition(".")[0] == "stock"]:
        del sys.modules[name]


def test_kinds_are_found_wherever_they_stand(package: str, tmp_path: Path) -> None:
    stock = importlib.import_module(package)
    base = importlib.import_module("stock.base").Base
    assert [kind.name for kind in kinds_in(stock, base)] == ["two", "one"]
    one = importlib.import_module("stock.one")
    assert [kind.name for kind in kinds_in(one, base)] == ["one"]
    (tmp_path / "stock" / "broken.py").write_text("import nothing_of_that_name")
    importlib.invalidate_caches()
    del sys.modules[package]
    stock = importlib.import_module(package)
    with pytest.raises(ImportError, match=r"module stock\.broken: No module named"):
        list(kinds_in(stock, base))


def test_kinds_of_a_package_that_asks_for_them_before_it_has_them(
    package: str, tmp_path: Path
) -> None:
    (tmp_path / "stock" / "asking.py").write_text(
        "import sys\nfrom onnxq.registry import kinds_in\nfrom stock.base import Base\n"
        "early = kinds_in(sys.modules[__name__], Base)\n"
        "class Late(Base):\n    name = 'late'\n    def go(self): ...\n"
    )
    asking = importlib.import_module(f"{package}.asking")
    assert list(asking.early) == []
    assert [kind.name for kind in kinds_in(asking, asking.Base)] == ["late"]


def test_a_precision_of_a_module_that_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """One file is all that a precision takes."""
    from onnxq.precision import int4_weight
    from onnxq.precision.stored import StoredWeights

    @dataclass(frozen=True)
    class Int6Weight(StoredWeights):
        """As its file would hold it."""

        name: ClassVar[str] = "int6-weight"
        description: ClassVar[str] = "weights in 6-bit integers"
        format: ClassVar[str] = "int6"
        weight_bits: ClassVar[float] = 8

    Int6Weight.__module__ = int4_weight.__name__
    monkeypatch.setattr(int4_weight, "Int6Weight", Int6Weight, raising=False)
    caches = (registry._kinds_once, available_precisions, parse_precision)
    for cached in caches:
        cached.cache_clear()  # type: ignore[attr-defined]
    try:
        from onnxq.precision import searchable

        assert type(parse_precision("int6-weight{block_size=16}")) is Int6Weight
        assert "int6-weight" in searchable()
    finally:
        for cached in caches:
            cached.cache_clear()  # type: ignore[attr-defined]


def test_bases_are_no_kinds() -> None:
    names = set(available_precisions()) | set(available_methods())
    assert not any(kind in (Precision, Tuner) for kind in available_precisions().values())
    assert "" not in names and {"float32", "int3-weight", "mse"} <= names

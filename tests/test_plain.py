"""Dataclasses as plain data: what is written, read back, and refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.plain import Amount, entry, finite, read, read_toml, to_plain


@dataclass(frozen=True)
class Colour:
    """Written as one text."""

    red: int

    def to_plain(self) -> str:
        return f"#{self.red:02x}"

    @classmethod
    def from_plain(cls, text: str) -> Colour:
        if not text.startswith("#"):
            raise ValueError("has no #")
        return cls(int(text[1:], 16))


def _even(numbers: tuple[int, ...]) -> tuple[int, ...]:
    if any(n % 2 for n in numbers):
        raise ValueError("holds an odd number")
    return numbers


@dataclass(frozen=True)
class Inner:
    name: str
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True)
class Whole:
    title: str
    size: Amount = entry("measured.size", default=0.0)
    exact: bool = entry("measured.exact", default=False)
    parts: tuple[Inner, ...] = entry("part", sparse=True, default=())
    pair: tuple[float, int] | None = None
    by_name: Mapping[str, Inner] = field(default_factory=dict)
    colour: Colour = Colour(255)
    even: Annotated[tuple[int, ...], _even] = ()
    slot: int | Literal["none"] = 0
    anything: Any = entry(sparse=True, default=None)


FULL = Whole(
    "t", 1.5, True, (Inner("x"),), (0.5, 2), {"k": Inner("y", "b")}, Colour(1), (2,), "none"
)


def test_what_is_written() -> None:
    assert to_plain(FULL) == {
        "title": "t",
        "measured": {"size": 1.5, "exact": True},
        "part": [{"name": "x", "kind": "a"}],
        "pair": [0.5, 2],
        "by_name": {"k": {"name": "y", "kind": "b"}},
        "colour": "#01",
        "even": [2],
        "slot": "none",
    }
    assert "part" not in to_plain(Whole("t")) and to_plain(Whole("t"))["pair"] is None


def test_what_is_read() -> None:
    assert read(Whole, to_plain(FULL), "it") == FULL
    assert read(Whole, {"title": "t"}, "it") == Whole("t")
    assert read(Whole, {"title": "t", "anything": [1, {}]}, "it").anything == [1, {}]
    assert read(dict[str, tuple[int, ...]], {"a": [1, 2]}, "it") == {"a": (1, 2)}
    whole = read(float, 3, "it")
    assert whole == 3.0 and type(whole) is float


@given(st.floats())
def test_any_number_is_written_as_json_and_read(number: float) -> None:
    plain = finite({"a": [number]})["a"][0]
    assert isinstance(plain, str) or math.isfinite(plain)
    assert repr(read(float, plain, "it")) == repr(number)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"colours": 1}, "^it has an unknown entry 'colours'; known there: title, measured.size, "),
        ({"measured": {"speed": 1}}, "it has an unknown entry 'measured.speed'"),
        ({"measured": 3}, "entry 'measured' of it takes a table, not 3"),
        ({"measured": {"size": -1}}, "entry 'measured.size' of it is -1.0, no finite number from"),
        ({"measured": {"size": "inf"}}, "is inf, no finite"),
        ({"measured": {"exact": 1}}, "entry 'measured.exact' of it takes true or false, not 1"),
        ({"part": [{}]}, r"it lacks the entry 'part\[0\].name'"),
        ({"part": [{"name": "x", "kind": "c"}]}, r"'part\[0\].kind' of it takes 'a' or 'b', not"),
        ({"part": {}}, "'part' of it takes a list, not {}"),
        ({"pair": [1.0]}, r"'pair' of it takes a list of 2, not \[1.0\]"),
        ({"pair": [1.0, 2.0]}, r"'pair\[1\]' of it takes a whole number, not 2.0"),
        ({"pair": 1}, "'pair' of it takes a list of 2, not 1"),
        ({"by_name": {"k": 1}}, "'by_name.k' of it takes a table, not 1"),
        ({"by_name": [1]}, r"'by_name' of it takes a table, not \[1\]"),
        ({"colour": "red"}, "entry 'colour' of it has no #"),
        ({"colour": 3}, "entry 'colour' of it takes a text, not 3"),
        ({"even": [2, 3]}, "entry 'even' of it holds an odd number"),
        ({"slot": "x"}, "'slot' of it takes a whole number or 'none', not 'x'"),
        ({"title": 3}, "'title' of it takes a text, not 3"),
    ],
)
def test_what_is_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        read(Whole, {"title": "t", **change}, "it")


def test_the_whole_is_refused_too_and_long_values_are_cut() -> None:
    with pytest.raises(InputError, match=r"the whole of it takes a table, not \[\]"):
        read(Whole, [], "it")
    with pytest.raises(InputError) as found:
        read(float, "long" * 99, "it")
    assert len(str(found.value)) < 80


def test_toml() -> None:
    assert read_toml("a = 1", "it") == {"a": 1}
    with pytest.raises(InputError, match="it is not valid TOML"):
        read_toml("a =", "it")

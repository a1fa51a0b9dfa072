"""The file of ranges: what is written reads back, and anything else is one clear sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.calibrate import Range, Ranges
from onnxq.errors import InputError

RANGES = Ranges("ab12", "minmax", 3, {"y": Range(-1.5, 2.0), "x": Range(0.0, 1e-30)})


def test_the_text_is_the_contract() -> None:
    body = json.loads(RANGES.to_json())
    assert body == {
        "schema": "onnxq/ranges/1",
        "model_sha256": "ab12",
        "calibrator": "minmax",
        "samples": 3,
        "ranges": {"x": {"min": 0.0, "max": 1e-30}, "y": {"min": -1.5, "max": 2.0}},
    }
    assert list(body["ranges"]) == ["x", "y"]


def test_the_order_of_tensors_changes_no_byte() -> None:
    other = Ranges("ab12", "minmax", 3, dict(reversed(RANGES.ranges.items())))
    assert other.to_json() == RANGES.to_json()


@settings(max_examples=30)
@given(
    st.dictionaries(
        st.text(), st.builds(Range, st.floats(width=32), st.floats(width=32)), max_size=4
    )
)
def test_round_trip(ranges: dict[str, Range]) -> None:
    wanted = Ranges("", "minmax", 0, ranges)
    found = Ranges.from_json(wanted.to_json())
    # By text, in which NaN is equal to NaN.
    assert repr(dict(sorted(found.ranges.items()))) == repr(dict(sorted(ranges.items())))
    assert found.to_json() == wanted.to_json()


def test_round_trip_through_a_file(tmp_path: Path) -> None:
    RANGES.save(tmp_path / "ranges.json")
    assert Ranges.load(tmp_path / "ranges.json") == RANGES
    assert [p.name for p in tmp_path.iterdir()] == ["ranges.json"]


def test_whether_a_range_is_finite() -> None:
    assert Range(-1.0, 1.0).is_finite
    assert not Range(-math.inf, 1.0).is_finite
    assert not Range(0.0, math.nan).is_finite


def _edited(**changes: object) -> str:
    body = json.loads(RANGES.to_json())
    body.update(changes)
    return json.dumps({k: v for k, v in body.items() if v is not None})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "7",
        "null",
        _edited(schema=None),
        _edited(samples=None),
        _edited(samples="many"),
        _edited(ranges=None),
        _edited(ranges=[1]),
        _edited(ranges={"x": [0, 1]}),
        _edited(ranges={"x": {"min": 0}}),
        _edited(ranges={"x": {"min": "low", "max": 1}}),
    ],
)
def test_what_is_no_file_of_ranges(text: str) -> None:
    with pytest.raises(
        InputError, match=r"'r.json' is no file of ranges.*calibrate again"
    ) as found:
        Ranges.from_json(text, "'r.json'")
    assert "\n" not in str(found.value)


def test_another_schema() -> None:
    with pytest.raises(InputError, match="has schema 'onnxq/ranges/9', not 'onnxq/ranges/1'"):
        Ranges.from_json(_edited(schema="onnxq/ranges/9"))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ranges '.*missing.json': No such file"):
        Ranges.load(tmp_path / "missing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"binary.json': it is no text"):
        Ranges.load(tmp_path / "binary.json")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the folder '.*nowhere' does not exist"):
        RANGES.save(tmp_path / "nowhere" / "ranges.json")

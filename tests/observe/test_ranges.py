"""The file of ranges: what is written reads back, and anything else is one clear sentence."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.observe import (
    CALIBRATORS,
    Range,
    Ranges,
    Statistics,
    merge,
    parse_calibrator,
)
from onnxq.quant import ABSMAX, INT4
from tests.observe.observing import observed

SEEN = {"min": 0, "max": 1, "seen": [0, 1], "count": 1, "not_finite": 0}
RANGES = Ranges("ab12", "minmax", 3, {"y": Range(-1.5, 2.0), "x": Range(0.0, 1e-30)})


def test_the_text_is_the_contract() -> None:
    body = json.loads(RANGES.to_json())
    assert body == {
        "schema": "onnxq/ranges/1",
        "model_sha256": "ab12",
        "calibrator": "minmax",
        "format": "uint8",
        "scheme": {
            "symmetric": False,
            "narrow_range": False,
            "power_of_two": False,
            "reduced_range": False,
        },
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
    ("text", "told"),
    [
        ("", "'r.json' is not valid JSON"),
        ("{", "'r.json' is not valid JSON"),
        ("[]", r"'r.json' takes a table, not \[\]"),
        ("7", "'r.json' takes a table, not 7"),
        ("null", "'r.json' takes a table, not None"),
        (_edited(schema=None), "'r.json' has schema 'None'"),
        (_edited(samples=None), "'r.json' lacks the entry 'samples'"),
        (_edited(samples="many"), "entry 'samples' of 'r.json' takes a whole number, not 'many'"),
        (_edited(ranges=None), "entry 'ranges' of 'r.json' takes a table"),
        (_edited(ranges=[1]), "entry 'ranges' of 'r.json' takes a table"),
        (_edited(ranges={"x": [0, 1]}), "entry 'ranges.x' of 'r.json' takes a table"),
        (_edited(ranges={"x": {"min": 0}}), "'r.json' lacks the entry 'ranges.x.max'"),
        (_edited(ranges={"x": {"min": "low", "max": 1}}), "'ranges.x.min' .* a number, not 'low'"),
        (_edited(ranges={"x": {"min": 0, "max": 1, "seen": [0]}}), "lacks .* 'ranges.x.count'"),
        (
            _edited(ranges={"x": {"min": 0, "max": 1, "seen": [0, 1], "count": 1}}),
            "lacks the entry 'ranges.x.not_finite'",
        ),
        (_edited(ranges={"x": {**SEEN, "histogram": "AAE"}}), "'ranges.x.histogram' .* no base64"),
        (_edited(ranges={"x": {**SEEN, "moving": [1]}}), "'ranges.x.moving' .* a list of 4"),
        (_edited(format="uint3"), "'format' of 'r.json' is 'uint3', which is no format"),
        (_edited(scheme={"even": True}), "unknown entry 'scheme.even'; known there: symmetric"),
    ],
)
def test_what_is_no_file_of_ranges(text: str, told: str) -> None:
    with pytest.raises(InputError, match=f"{told}.*; calibrate again") as found:
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


def test_files_of_before_there_were_statistics_are_read() -> None:
    body = json.loads(RANGES.to_json())
    del body["format"], body["scheme"]
    assert Ranges.from_json(json.dumps(body)) == RANGES


# Statistics: choosing again, and merging


def _statistics(values: np.ndarray, momentum: float | None = None) -> Statistics:
    return observed([values], True, momentum)


def _ranges(values: np.ndarray, calibrator: str, samples: int = 1) -> Ranges:
    momentum = 0.1 if calibrator == "moving-average" else None
    seen = {"t": _statistics(values, momentum), "u": _statistics(np.maximum(values, 0), momentum)}
    return Ranges.choose(seen, parse_calibrator(calibrator), samples=samples, model_sha256="ab")


VALUES = np.random.default_rng(5).standard_normal(4096).astype(np.float32)


@pytest.mark.parametrize("name", CALIBRATORS)
def test_another_calibrator_through_the_file_is_as_if_chosen_at_once(name: str) -> None:
    wanted = _ranges(VALUES, name, 7)
    first = _ranges(VALUES, "moving-average" if name == "moving-average" else "minmax", 7)
    found = Ranges.from_json(first.to_json()).with_calibrator(name)
    assert found == wanted and found.to_json() == wanted.to_json()
    assert found.calibrator == name and found.samples == 7


def test_another_format() -> None:
    first = _ranges(VALUES, "mse")
    found = first.with_calibrator("mse", format=INT4, scheme=ABSMAX)
    assert found.ranges["u"] != first.ranges["u"]
    again = Ranges.from_json(found.to_json())
    assert (again.format, again.scheme) == (INT4, ABSMAX)
    assert again.with_calibrator("mse") == found


def test_ranges_without_statistics_stay_as_they_are() -> None:
    with pytest.raises(InputError, match="'y' comes without statistics"):
        RANGES.with_calibrator("mse")
    with pytest.raises(InputError, match="'y' comes without statistics and cannot be merged"):
        merge([RANGES, RANGES])


@pytest.mark.parametrize("name", [n for n in CALIBRATORS if n != "moving-average"])
def test_eight_shards_merged_are_the_whole_bit_for_bit(name: str) -> None:
    wanted = _ranges(VALUES, name, 8)
    shuffled = np.random.default_rng(6).permutation(VALUES)
    shards = [_ranges(part, name) for part in np.split(shuffled, 8)]
    shards = [Ranges.from_json(shard.to_json()) for shard in shards]
    assert merge(shards).to_json() == wanted.to_json()
    assert merge(shards[::-1]).to_json() == wanted.to_json()


def test_a_tensor_may_be_empty_in_a_shard() -> None:
    seen = _statistics(VALUES)
    one = Ranges.choose({"t": seen}, parse_calibrator("mse"), samples=1)
    none = Ranges.choose({}, parse_calibrator("mse"), samples=2)
    found = merge([none, one])
    assert found.ranges == one.ranges and found.samples == 3


def test_what_cannot_be_merged() -> None:
    with pytest.raises(InputError, match="no ranges to merge"):
        merge([])
    first = _ranges(VALUES, "minmax")
    with pytest.raises(InputError, match="calibrator 'minmax' and 'mse' cannot be merged"):
        merge([first, _ranges(VALUES, "mse")])
    with pytest.raises(InputError, match=r"scheme .* cannot be merged; calibrate all shards alike"):
        merge([first, first.with_calibrator("minmax", scheme=ABSMAX)])
    slow, fast = (
        Ranges.choose(
            {"t": _statistics(VALUES, momentum)},
            parse_calibrator(f"moving-average{{momentum={momentum}}}"),
            samples=1,
        )
        for momentum in (0.25, 0.5)
    )
    with pytest.raises(InputError, match=r"calibrator .* cannot be merged"):
        merge([slow, fast])

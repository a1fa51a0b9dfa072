"""The plan as a file: read back equal, edited by hand, compared, refused in a sentence."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.plan import Pin, Plan, PlanNode, difference
from onnxq.plan.plan import BY_HAND

PLAN = Plan(
    "abc",
    "cpu-x64",
    passes="fold-constants",
    opset=17,
    keep_overridable=True,
    calibrator="percentile{percentile=99.9}",
    seed=3,
    promise=("drop<=0.01",),
    cost=1.5,
    float_cost=3.0,
    loss=1e-4,
    exact=False,
    measured={"speedup": 2.0},
    measured_on={"processor": "one"},
    nodes=(
        PlanNode("stem", "Conv", "int8", "faster", 1e-5, 0.5, 1.0, planned="int8"),
        PlanNode("body/1", "Conv", "float32", "too noisy", 0.0, 1.0, 1.0, planned="float32"),
        PlanNode("body/2", "MatMul", "int8-dynamic", "faster", 2e-5, planned="int8-dynamic"),
    ),
    pins=(Pin("head*", "float32"),),
    ranges={"x": (-1.0, 0.1 + 0.2), 'strange "name"': (0.0, 1e-30)},
)


def edited(change: dict[str, object]) -> str:
    return tomli_w.dumps(tomllib.loads(PLAN.to_toml()) | change)


def test_round_trip(tmp_path: Path) -> None:
    PLAN.save(tmp_path / "p.toml")
    assert Plan.load(tmp_path / "p.toml") == PLAN
    assert Plan.from_toml(PLAN.to_toml()).to_toml() == PLAN.to_toml()


@given(
    st.dictionaries(
        st.text(max_size=5), st.tuples(st.floats(-1e30, 0), st.floats(0, 1e30)), max_size=3
    ),
    st.lists(st.text(min_size=1, max_size=4), unique=True, max_size=3),
)
def test_ranges_and_names_keep_every_bit(
    ranges: dict[str, tuple[float, float]], names: list[str]
) -> None:
    nodes = tuple(PlanNode(name, "Conv", "int8", planned="int8") for name in names)
    plan = Plan("abc", "cpu-x64", ranges=ranges, nodes=nodes)
    assert Plan.from_toml(plan.to_toml()) == plan


TUNED = {
    "stem": {
        "scale": np.array([[0.1], [0.2]], np.float32),
        "zero_point": np.zeros((2, 1), ml_dtypes.int2),
        "values": np.array([[-2, 1], [0, -1]], ml_dtypes.int2),
    },
    'odd: "name"': {"scale": np.array(0.5, np.float32)},
}


def test_methods_and_tensors_outlive_the_file(tmp_path: Path) -> None:
    nodes = (replace(PLAN.nodes[0], method="mse"), *PLAN.nodes[1:])
    plan = replace(PLAN, nodes=nodes, tuned=TUNED)
    plan.save(tmp_path / "p.toml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.safetensors", "p.toml"]
    found = Plan.load(tmp_path / "p.toml")
    assert [node.method for node in found.nodes] == ["mse", "", ""]
    assert found.tuned.keys() == TUNED.keys()
    for node, own in TUNED.items():
        assert found.tuned[node].keys() == own.keys()
        for what, array in own.items():
            read = found.tuned[node][what]
            assert read.shape == array.shape
            np.testing.assert_array_equal(read.astype(np.float32), array.astype(np.float32))
    assert found.to_toml() == plan.to_toml() and found.tuned_sha256 == plan.tuned_sha256
    written = (tmp_path / "p.safetensors").read_bytes()
    assert plan.tuned_sha256 == hashlib.sha256(written).hexdigest()
    turned = {node: dict(reversed(own.items())) for node, own in reversed(TUNED.items())}
    assert replace(plan, tuned=turned).tuned_sha256 == plan.tuned_sha256
    changed = {**TUNED, "stem": {**TUNED["stem"], "scale": np.ones((2, 1), np.float32)}}
    (difference_,) = difference(replace(plan, pins=()), replace(plan, pins=(), tuned=changed))
    assert difference_.what == "tuned_sha256"


def test_tensors_that_are_none(tmp_path: Path) -> None:
    replace(PLAN, tuned=TUNED).save(tmp_path / "p.toml")
    (tmp_path / "p.safetensors").write_text("no tensors")
    text = (tmp_path / "p.toml").read_text()
    wrong = hashlib.sha256(b"no tensors").hexdigest()
    (tmp_path / "p.toml").write_text(text.replace(replace(PLAN, tuned=TUNED).tuned_sha256, wrong))
    with pytest.raises(InputError, match=r"p.safetensors' holds no tensors: .*; plan again"):
        Plan.load(tmp_path / "p.toml")


def test_ranges_found_in_another_order_make_the_same_text() -> None:
    turned = replace(PLAN, ranges=dict(reversed(PLAN.ranges.items())))
    assert turned.to_toml() == PLAN.to_toml()


def test_numbers_are_short_but_for_ranges() -> None:
    text = replace(PLAN, cost=1 / 3).to_toml()
    assert "cost = 0.333333\n" in text
    assert "0.30000000000000004" in text


def test_precisions_and_pins() -> None:
    plan = replace(PLAN, pins=(Pin("body/*", "int8"), Pin("*/2", "float32")))
    assert plan.precisions() == {"stem": "int8", "body/1": "int8", "body/2": "float32"}
    assert plan.by_hand() == ["body/1", "body/2"]
    assert plan.reasons() == {"stem": "faster", "body/1": BY_HAND, "body/2": BY_HAND}
    with pytest.raises(InputError, match=r"pin 'head\*' matches no node"):
        PLAN.precisions()


def test_a_precision_edited_in_the_file_is_marked() -> None:
    text = replace(PLAN, pins=()).to_toml()
    text = text.replace('precision = "int8"', 'precision = "float32"', 1)
    plan = Plan.from_toml(text)
    assert plan.precisions()["stem"] == "float32"
    assert plan.by_hand() == ["stem"]
    assert plan.reasons()["stem"] == BY_HAND
    assert Plan.from_toml(plan.to_toml()).by_hand() == ["stem"], "and stays so"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("head*=float32", Pin("head*", "float32")),
        (" a = int8 ", Pin("a", "int8")),
        ("a=b=int8", Pin("a=b", "int8")),
        ("a = int4-weight{block_size=64}", Pin("a", "int4-weight{block_size=64}")),
        ("a=b=q8_0{copies=true, x=1}", Pin("a=b", "q8_0{copies=true, x=1}")),
    ],
)
def test_pins_as_text(text: str, wanted: Pin) -> None:
    assert Pin.parse(text) == wanted


@pytest.mark.parametrize("text", ["", "head", "=int8", "head=", " = "])
def test_text_that_is_no_pin(text: str) -> None:
    with pytest.raises(InputError, match="PATTERN=PRECISION"):
        Pin.parse(text)


def test_differences() -> None:
    assert difference(replace(PLAN, pins=()), replace(PLAN, pins=(), cost=9.0, measured={})) == []
    nodes = (replace(PLAN.nodes[0], precision="float32"), *PLAN.nodes[2:])
    other = replace(
        PLAN,
        pins=(),
        nodes=nodes,
        seed=4,
        target="generic",
        promise=("sqnr>=30", "speedup>=1"),
        ranges={"x": (-2.0, 1.0)},
    )
    found = [(d.what, d.first, d.second) for d in difference(replace(PLAN, pins=()), other)]
    assert found == [
        ("target", "cpu-x64", "generic"),
        ("promise", "drop<=0.01", "sqnr>=30, speedup>=1"),
        ("stem", "int8", "float32"),
        ("body/1", "float32", "absent"),
        ("range of x", "-1 to 0.3", "-2 to 1"),
        ('range of strange "name"', "0 to 1e-30", "absent"),
    ]


NODE = {"name": "a", "op_type": "Conv", "precision": "int8"}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("schema = ", "not valid TOML"),
        ("", "schema 'None'"),
        (edited({"schema": "onnxq/plan/9"}), "'onnxq/plan/9', not 'onnxq/plan/1'; correct it"),
        ('schema = "onnxq/plan/1"', "lacks the entry 'model_sha256'"),
        (edited({"colour": "red"}), "unknown entry 'colour'; known there: model"),
        (edited({"predicted": {"speed": 1.0}}), "unknown entry 'predicted.speed'"),
        (
            edited({"node": [{**NODE, "format": "int8"}]}),
            r"unknown entry 'node\[0\].format'; known there: name",
        ),
        (
            edited({"node": [{**NODE, "loss": "much"}]}),
            r"'node\[0\].loss' of .* takes a number, not 'much'",
        ),
        (edited({"node": [{"name": "a", "op_type": "Conv"}]}), "precision"),
        (edited({"node": [NODE, NODE]}), "'node' of .* has two nodes of one name"),
        (edited({"pin": [{"nodes": "a"}]}), "precision"),
        (edited({"target": 3}), "'target' of .* takes a text, not 3"),
        (
            edited({"ranges": {"x": [1.0, -1.0]}}),
            "'ranges.x' of .* is 1.0 to -1.0, no finite range",
        ),
        (edited({"ranges": {"x": [0.0, float("inf")]}}), "'ranges.x' of .* is 0.0 to inf"),
        (edited({"ranges": {"x": [0.0]}}), "'ranges.x' of .* takes a list of 2"),
        (edited({"tuned": {"file": "p.safetensors"}}), "lacks the entry 'tuned.sha256'"),
    ],
)
def test_other_files_are_refused(text: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(InputError, match=part) as found:
        Plan.load(tmp_path / "p.toml")
    assert "p.toml" in str(found.value) and "\n" not in str(found.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        Plan.load(tmp_path / "none.toml")
    (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="no text"):
        Plan.load(tmp_path / "b.toml")

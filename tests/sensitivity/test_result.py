"""The file of an analysis: read back equal, refused in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from onnxq.errors import InputError
from onnxq.sensitivity import NodeSensitivity, Sensitivity

FOUND = Sensitivity(
    "abc",
    "noise",
    "suffix",
    12,
    0.98,
    (
        NodeSensitivity(
            "a",
            "Conv",
            {"weights:int8": 1e-5, "activations:int8": 2e-5},
            {"int8": ("weights:int8", "activations:int8")},
        ),
        NodeSensitivity("b", "Add", {"activations:int8": 4e-5}, {"int8": ("activations:int8",)}),
        NodeSensitivity(
            "c",
            "MatMul",
            {"weights:int8": 0.0, "activations:dynamic": 1e-7},
            {"int8-dynamic": ("weights:int8", "activations:dynamic")},
        ),
    ),
)


def test_round_trip(tmp_path: Path) -> None:
    FOUND.save(tmp_path / "s.json")
    assert Sensitivity.load(tmp_path / "s.json") == FOUND
    assert Sensitivity.from_json(FOUND.to_json()).to_json() == FOUND.to_json()


def test_methods_lower_the_losses_of_weights() -> None:
    scaled = replace(FOUND, scales={"int8": 3.0, "int8-dynamic": 0.5})
    found = scaled.with_gains({"int8": {"a": 10.0}})
    a, b, c = found.nodes
    # Of 3e-5 a third came from weights; 2.1e-5 are left, 6.1e-5 of 7e-5 in all.
    assert a.loss("int8") == pytest.approx(2.1e-5)
    assert a.part("int8", "weights") == pytest.approx(1e-6)
    assert a.part("int8", "activations") == 2e-5
    assert (b, c) == FOUND.nodes[1:]
    assert found.scales["int8"] == pytest.approx(1 + 2 * 6.1 / 7)
    assert found.scales["int8-dynamic"] == 0.5
    whole = NodeSensitivity("a", "Conv", {"int8": 4.0}, {"int8": ("int8",)})
    assert whole.with_gains({"int8": 20.0}).loss("int8") == pytest.approx(0.04)
    assert whole.with_gains({"int8": 0.0}) == whole


@pytest.mark.parametrize("gains", [{"int8": 10.0, "int8-dynamic": 0.0}, {"int8": 10.0}])
def test_what_methods_gain_in_one_precision_is_no_gain_in_another(gains: dict[str, float]) -> None:
    shared = {"int8": ("weights:int8", "activations:int8"), "int8-dynamic": ("weights:int8",)}
    node = NodeSensitivity("a", "Gemm", {"weights:int8": 1.0, "activations:int8": 2.0}, shared)
    for order in (gains, dict(reversed(gains.items()))):
        found = node.with_gains(order)
        assert (found.loss("int8"), found.loss("int8-dynamic")) == (2.1, 1.0)


def test_ranking() -> None:
    assert FOUND.ranking("int8") == [("b", 4e-5), ("a", pytest.approx(3e-5))]
    assert FOUND.ranking("int8-dynamic") == [("c", 1e-7)]
    assert FOUND.precisions() == ["int8", "int8-dynamic"]
    a, _, c = FOUND.nodes
    assert (a.loss("float32"), a.loss("int8-dynamic"), c.loss("int8")) == (0.0, None, None)
    assert (c.part("int8-dynamic", "weights"), c.part("int8", "weights")) == (0.0, None)


def test_what_is_predicted_lies_between_the_sum_and_what_all_nodes_lose() -> None:
    found = replace(FOUND, scales={"int8": 0.5})
    assert found.predicted({"a": "int8", "b": "int8"}) == pytest.approx(3.5e-5)
    assert found.predicted({"a": "int8"}) == pytest.approx(3e-5 * (1 - 0.5 * 3 / 7))
    assert found.predicted({"a": "float32", "c": "int8-dynamic"}) == pytest.approx(1e-7)
    assert found.predicted({}) == 0.0


NODE = {"node": "a", "op_type": "Conv", "losses": {}, "precisions": {}}


def _changed(**entries: object) -> str:
    return json.dumps(json.loads(FOUND.to_json()) | entries)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "sensitivity analysis .* is not valid JSON"),
        ("[]", r"takes a table, not \[\]"),
        ("{}", "schema 'None'"),
        (_changed(schema="onnxq/report/1"), "'onnxq/report/1', not 'onnxq/sensitivity/2'; analyse"),
        (_changed(colour="red"), "unknown entry 'colour'"),
        (_changed(nodes=[{"node": "a"}]), r"lacks the entry 'nodes\[0\].op_type'"),
        (_changed(nodes=[{**NODE, "losses": {"x": -1}}]), r"losses.x' of .* is -1.0, no finite"),
        (_changed(nodes=[{**NODE, "losses": {"x": "1e999"}}]), "losses.x' of .* takes a number"),
        (_changed(nodes=[{**NODE, "precisions": ["int8"]}]), "precisions' of .* takes a table"),
    ],
)
def test_other_files_are_refused(text: str, part: str, tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(InputError, match=part) as found:
        Sensitivity.load(tmp_path / "s.json")
    assert "s.json" in str(found.value) and "\n" not in str(found.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        Sensitivity.load(tmp_path / "none.json")
    (tmp_path / "b.json").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="no text"):
        Sensitivity.load(tmp_path / "b.json")

"""The report's JSON: the keys that others rely on, and the way back."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.runtime import OutputError
from onnxq.verify import Report
from onnxq.verify.result import EndFacts, GraphFacts, RepeatFacts
from tests.verify.reports import a_report

CONTRACT = {
    "model": {"path", "sha256", "nodes", "opset"},
    "output": {"path", "sha256", "nodes", "opset"},
    "metric": {"name", "float", "candidate", "drop", "samples", "confidence"},
    "latency": {"provider", "threads", "float_ms", "candidate_ms", "speedup"},
    "size": {"float_bytes", "candidate_bytes", "ratio"},
    "outputs": {"name", "sqnr_db", "cosine", "max_abs"},
    "layers": {"node", "op_type", "precision", "sqnr_db", "sensitivity", "reason"},
    "gates": {"expr", "value", "passed"},
    "passes": {"name", "rewrites", "seconds"},
}


def test_the_keys_of_the_contract() -> None:
    body = json.loads(a_report().to_json())
    assert body["schema"] == "onnxq/report/1"
    assert next(iter(body)) == "schema"
    assert {"versions", "seconds", "peak_rss_bytes", "peak_stage", "passed"} <= set(body)
    for part, keys in CONTRACT.items():
        for entry in body[part] if isinstance(body[part], list) else [body[part]]:
            assert keys <= set(entry), part
    assert body["metric"]["confidence"] == [-0.002, 0.012]
    assert body["passed"] is False


def test_round_trip() -> None:
    report = a_report()
    assert Report.from_json(report.to_json()) == report
    assert Report.from_json(report.to_json()).to_json() == report.to_json()


def test_round_trip_of_what_was_not_measured() -> None:
    report = a_report(metric=None, latency=None, latencies=(), layers=(), passes=(), gates=())
    assert Report.from_json(report.to_json()) == report


@given(st.lists(st.floats(), min_size=3, max_size=3))
def test_round_trip_of_any_number(numbers: list[float]) -> None:
    report = a_report(outputs=(OutputError("y", *numbers),))
    text = report.to_json()
    assert "NaN" not in text and "Infinity" not in text, "which is no JSON"
    assert repr(Report.from_json(text).outputs) == repr(report.outputs)


def test_infinities_are_text() -> None:
    body = a_report().to_dict()
    assert [o["sqnr_db"] for o in body["outputs"]] == [35.5, "inf"]


def test_the_worst_output_counts() -> None:
    assert a_report().sqnr_db == 35.5
    assert a_report(outputs=()).sqnr_db == math.inf


def _edited(part: str, value: object) -> str:
    body = a_report().to_dict()
    body[part] = value
    return json.dumps(body)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the report is not valid JSON"),
        ("[]", r"the report takes a table, not \[\]"),
        ("7", "the report takes a table, not 7"),
        ("null", "the report takes a table"),
        (_edited("size", None), "entry 'size' of the report takes a table"),
        (_edited("size", {"ratio": 1}), "lacks the entry 'size.float_bytes'"),
        (_edited("outputs", [{"name": "y"}]), r"lacks the entry 'outputs\[0\].sqnr_db'"),
        (_edited("outputs", 3), "entry 'outputs' of the report takes a list, not 3"),
        (_edited("surprise", 3), "unknown entry 'surprise'; known there: model, "),
        (_edited("seconds", "long"), "entry 'seconds' of the report takes a number, not 'long'"),
        (
            _edited("metric", {**a_report().to_dict()["metric"], "confidence": [1]}),
            "entry 'metric.confidence' of the report takes a list of 2",
        ),
    ],
)
def test_what_is_no_report(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Report.from_json(text)


def test_another_schema() -> None:
    with pytest.raises(InputError, match="schema 'onnxq/report/2', not 'onnxq/report/1'"):
        Report.from_json(_edited("schema", "onnxq/report/2"))
    with pytest.raises(InputError, match="schema 'None'"):
        Report.from_json("{}")


GRAPH = GraphFacts(((0, 1),), ("", ""), (1, 2), (), (EndFacts("x", (0,)),), ())


@pytest.mark.parametrize(
    "wrong",
    [
        {"links": ((0, 2),)},
        {"links": ((0, 1), (1, 0))},
        {"types": ("",)},
        {"sections": (1, 9)},
        {"outputs": (EndFacts("y", (-1,)),)},
        {"repeats": (RepeatFacts(1, 0, 2),)},
        {"repeats": (RepeatFacts(1, 1, 9),)},
    ],
)
def test_a_graph_is_that_of_the_layers(wrong: dict[str, Any]) -> None:
    assert Report.from_json(a_report(graph=GRAPH).to_json()).graph == GRAPH
    text = a_report(graph=replace(GRAPH, **wrong)).to_json()
    with pytest.raises(InputError, match="entry 'graph' of the report is not that of its 2 layers"):
        Report.from_json(text)

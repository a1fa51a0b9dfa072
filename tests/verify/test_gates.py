"""Gates: what can be said, and what a report says to it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.runtime import OutputError
from onnxq.verify import QUANTITIES, Gate, with_gates
from onnxq.verify.result import LatencyFacts
from tests.verify.reports import a_report


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("drop<=0.01", Gate("drop", "<=", 0.01)),
        (" speedup >= 1.5 ", Gate("speedup", ">=", 1.5)),
        ("sqnr>30", Gate("sqnr", ">", 30.0)),
        ("max_abs<1e-3", Gate("max_abs", "<", 1e-3)),
        ("metric==1", Gate("metric", "==", 1.0)),
        ("cosine!=-1", Gate("cosine", "!=", -1.0)),
        ("sqnr<=inf", Gate("sqnr", "<=", math.inf)),
    ],
)
def test_parse(text: str, wanted: Gate) -> None:
    assert Gate.parse(text) == wanted


@given(
    st.sampled_from(sorted(QUANTITIES)),
    st.sampled_from(["<=", ">=", "==", "!=", "<", ">"]),
    st.integers(-99999, 99999).map(lambda n: n / 100),
)
def test_the_text_of_a_gate_reads_back(quantity: str, comparison: str, bound: float) -> None:
    gate = Gate(quantity, comparison, bound)
    assert Gate.parse(str(gate)) == gate


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read the gate ''; write a quantity, a comparison and a number"),
        ("drop", "cannot read the gate 'drop'"),
        ("drop=0.1", "cannot read the gate 'drop=0.1'"),
        ("drop<=", "cannot read the gate 'drop<='"),
        ("0.1>=drop", "speaks of '0'|cannot read"),
        ("loss<=1", "speaks of 'loss'; known: drop, metric, agreement, speedup, sqnr"),
        ("drop<=small", "compares with 'small', which is no number"),
        ("drop<=1%", "compares with '1%', which is no number"),
        ("drop<=nan", "compares with 'nan', which is no number"),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gate.parse(text)


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        ("drop", 0.005),
        ("metric", 0.985),
        ("agreement", 0.9875),
        ("speedup", 1.2),
        ("sqnr", 35.5),
        ("cosine", 0.9999),
        ("max_abs", 0.25),
        ("size_ratio", 4.0),
        ("candidate_ms", 2.0),
    ],
)
def test_what_a_quantity_is(quantity: str, value: float) -> None:
    report = a_report()
    assert QUANTITIES[quantity][0]
    assert Gate(quantity, "==", value).check(report).value == value
    outcomes = {c: Gate(quantity, c, value).check(report).passed for c in ("<=", ">=", "==")}
    assert outcomes == {"<=": True, ">=": True, "==": True}
    assert not any(Gate(quantity, c, value).check(report).passed for c in ("<", ">", "!="))
    above = math.nextafter(value, math.inf)
    assert Gate(quantity, "<", above).check(report).passed
    assert not Gate(quantity, ">=", above).check(report).passed


def test_every_quantity_is_tried_above() -> None:
    (cases,) = [m for m in test_what_a_quantity_is.pytestmark if m.name == "parametrize"]
    assert {quantity for quantity, _ in cases.args[1]} == set(QUANTITIES)


@pytest.mark.parametrize("quantity", ["drop", "metric", "agreement", "speedup", "candidate_ms"])
@pytest.mark.parametrize("comparison", ["<=", ">=", "!="])
def test_what_was_not_measured_breaks_every_promise(quantity: str, comparison: str) -> None:
    report = a_report(metric=None, agreement=None, latency=None, latencies=())
    facts = Gate(quantity, comparison, 0.0).check(report)
    assert facts.value is None and not facts.passed


def test_a_model_without_outputs_to_compare_is_equal() -> None:
    report = a_report(outputs=())
    assert Gate("sqnr", ">=", 1e9).check(report).passed
    assert Gate("cosine", "==", 1).check(report).passed
    assert Gate("max_abs", "==", 0).check(report).passed


def test_a_speedup_is_that_of_the_latency_that_counts() -> None:
    token = LatencyFacts("cpu", 1, 3.0, 1.0, 3.0, 1, "token")
    prompt = LatencyFacts("cpu", 1, 30.0, 60.0, 0.5, 1, "prompt")
    report = a_report(latency=token, latencies=(token, prompt))
    assert Gate("speedup", ">=", 3).check(report).passed


def test_nan_breaks_a_promise() -> None:
    report = a_report(outputs=(OutputError("y", math.nan, math.nan, math.nan),))
    assert not Gate("sqnr", ">=", 0).check(report).passed


def test_a_report_passes_when_every_gate_does() -> None:
    held, broken = Gate("drop", "<=", 0.01), Gate("speedup", ">=", 2)
    assert with_gates(a_report(), [held]).passed
    assert with_gates(a_report(), []).passed
    report = with_gates(a_report(), [held, broken])
    assert not report.passed
    assert [(g.expr, g.value, g.passed) for g in report.gates] == [
        ("drop<=0.01", 0.005, True),
        ("speedup>=2", 1.2, False),
    ]

"""Gates: what can be said, and what a report says to it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.runtime import OutputError
from onnxq.verify import QUANTITIES, Gate, Report, with_gates
from onnxq.verify.result import GateFacts, LatencyFacts
from tests.verify.reports import METRIC, a_report


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
        ("metric.drop<=0.01", Gate("metric.drop", "<=", 0.01)),
        ("outputs.*.sqnr_db >= 30", Gate("outputs.*.sqnr_db", ">=", 30.0)),
        ("peak_rss_bytes<1e9", Gate("peak_rss_bytes", "<", 1e9)),
    ],
)
def test_parse(text: str, wanted: Gate) -> None:
    assert Gate.parse(text) == wanted


@given(
    st.sampled_from(sorted(QUANTITIES)),
    st.sampled_from(["<=", ">=", "==", "!=", "<", ">"]),
    st.floats(allow_nan=False),
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
        ("0.1>=drop", "speaks of '0.1'; known: drop"),
        ("loss<=1", "speaks of 'loss'; known: drop, metric, agreement, speedup, sqnr"),
        ("metric.dorp<=1", "speaks of 'metric.dorp'; 'metric' has name, float, candidate, drop"),
        ("outputs.sqnr_db>1", r"'outputs' is a list; write 'outputs.\*' for every element or"),
        ("outputs.-1.sqnr_db>1", r"'outputs' is a list; write 'outputs.\*' for every element or"),
        ("metric.__class__>1", "speaks of 'metric.__class__'; 'metric' has name"),
        ("size>1", "'size', which is no number; 'size' has float_bytes, candidate_bytes, ratio"),
        ("versions.onnx>1", "'versions.onnx', which is no number"),
        ("candidates.*.chosen==1", "'candidates.*.chosen', which is no number"),
        ("passed==1", "speaks of 'passed'; known: drop, .* in the JSON report model, output"),
        ("gates.*.value<1", "speaks of 'gates.*.value'; known"),
        ("drop<=small", "compares with 'small', which is no number"),
        ("drop<=1%", "compares with '1%', which is no number"),
        ("drop<=nan", "compares with 'nan', which is no number"),
    ],
)
def test_what_cannot_be_read(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gate.parse(text)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (("drop", "=<", 0.1), "the gate 'drop=<0.1' has none of the comparisons <=, >="),
        (("dorp", "<=", 0.1), "speaks of 'dorp'; known: drop"),
        (("drop", "<=", "0.1"), "compares with '0.1', which is no number"),
        (("drop", "<=", math.nan), "compares with 'nan', which is no number"),
    ],
)
def test_what_is_no_gate(parts: tuple[Any, Any, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gate(*parts)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("drop<=0.1", r"option 'gates' is a list; write \['drop<=0.1'\]"),
        (None, "option 'gates' is a list, not None"),
        ([0.01], "a gate is a text as 'drop<=0.01', not 0.01"),
        ([("drop", "<=", 0.1)], "a gate is a text as 'drop<=0.01', not"),
    ],
)
def test_what_is_no_list_of_gates(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Gate.listed(given)


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


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        ("metric.drop", 0.005),
        ("metric.confidence.1", 0.012),
        ("latency.speedup", 1.5),
        ("latencies.1.speedup", 1.2),
        ("outputs.0.max_abs", 0.25),
        ("output.integer_operators.com.microsoft:QLinearConv", 2),
        ("output.integer_operators.*", 2),
        ("layers.*.sqnr_db", 40.0),
        ("seconds", 1.5),
    ],
)
def test_a_path_is_that_of_the_json(quantity: str, value: float) -> None:
    assert Gate.parse(f"{quantity}=={value}").check(a_report()).value == value


@pytest.mark.parametrize(
    ("comparison", "bound", "worst"),
    [("<=", 3, 9.0), ("<", 3, 9.0), (">=", 3, 1.0), (">", 3, 1.0), ("==", 8, 1.0), ("!=", 3, 4.0)],
)
def test_every_element_has_to_hold_and_the_worst_is_reported(
    comparison: str, bound: float, worst: float
) -> None:
    def facts(*values: float) -> GateFacts:
        outputs = tuple(OutputError("y", value, 1.0, 0.0) for value in values)
        gate = Gate("outputs.*.sqnr_db", comparison, bound)
        return gate.check(a_report(outputs=outputs))

    values = (4.0, 9.0, 1.0)
    assert facts(*values).value == worst
    assert facts(*values).passed == all(facts(value).passed for value in values)
    assert not facts(4.0, math.nan, 9.0, bound).passed


@pytest.mark.parametrize(
    "path",
    [
        "metric.drop",
        "outputs.2.sqnr_db",
        "layers.*.local_db",
        "output.integer_operators.Conv",
    ],
)
@pytest.mark.parametrize("comparison", ["<=", ">=", "!="])
def test_a_path_without_a_value_breaks_every_promise(path: str, comparison: str) -> None:
    facts = Gate.parse(f"{path}{comparison}1").check(a_report(metric=None))
    assert facts == GateFacts(f"{path}{comparison}1", None, False)


WORSE = {"<=": math.inf, ">=": -math.inf}


@pytest.mark.parametrize(
    "promised",
    [
        {"drop": "<=", "sqnr": ">=", "cosine": ">=", "size_ratio": ">=", "speedup": ">="},
        {
            "metric.drop": "<=",
            "outputs.*.sqnr_db": ">=",
            "outputs.*.cosine": ">=",
            "size.ratio": ">=",
            "latencies.*.speedup": ">=",
        },
    ],
    ids=["short names", "paths"],
)
@given(st.lists(st.floats(-1e6, 1e6), min_size=5, max_size=5), st.integers(0, 4))
def test_what_is_just_worse_than_its_bound_breaks_that_gate_alone(
    promised: dict[str, str], bounds: list[float], which: int
) -> None:
    gates = [Gate(*pair, bound) for pair, bound in zip(promised.items(), bounds, strict=True)]

    def report(drop: float, sqnr: float, cosine: float, ratio: float, speedup: float) -> Report:
        outputs = (OutputError("y", math.inf, 1e7, 0.0), OutputError("z", sqnr, cosine, 0.5))
        timed = LatencyFacts("cpu", 1, 3.0, 2.0, speedup)
        return a_report(
            metric=replace(METRIC, drop=drop),
            outputs=outputs,
            size=replace(a_report().size, ratio=ratio),
            latency=timed,
            latencies=(timed,),
        )

    assert with_gates(report(*bounds), gates).passed, "what equals its bound keeps the promise"
    worse = list(bounds)
    worse[which] = math.nextafter(bounds[which], WORSE[gates[which].comparison])
    broken = [not gate.passed for gate in with_gates(report(*worse), gates).gates]
    assert broken == [place == which for place in range(5)]


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

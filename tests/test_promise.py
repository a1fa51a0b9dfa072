"""What is promised of a candidate where the user says nothing else, and what cannot be promised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.options import Options
from onnxq.promise import (
    DEFAULT_MIN_AGREEMENT,
    DEFAULT_MIN_NEIGHBOURS,
    DEFAULT_MIN_SQNR,
    promise,
)
from onnxq.runtime import (
    OutputError,
)
from onnxq.verify.result import MetricFacts
from tests.optimizing import optimize
from tests.verify.reports import a_report

ACCURACY = MetricFacts("accuracy", 0.9, 0.9, 0.0, 10, None)
BYTES = MetricFacts("bits-per-byte", 2.0, 2.0, 0.0, 10, None)
TOKENS = MetricFacts("bits-per-token", 5.0, 5.0, 0.0, 10, None)
OWN = MetricFacts("my:metric", 5.0, 5.0, 0.0, 10, None)
AGREED = a_report().agreement
Bounds = dict[str, float]


@pytest.mark.parametrize(
    ("metric", "options", "wanted"),
    [
        (ACCURACY, {}, {"drop": 0.01, "speedup": 1}),
        (BYTES, {}, {"drop": 0.04, "speedup": 1}),
        (TOKENS, {}, {"drop": 0.1, "speedup": 1}),
        (OWN, {}, {"drop": 0.01, "speedup": 1}),
        (None, {}, {"sqnr": DEFAULT_MIN_SQNR, "speedup": 1}),
        (ACCURACY, {"max_drop": 0.0}, {"drop": 0.0, "speedup": 1}),
        (ACCURACY, {"min_sqnr": 0.0}, {"drop": 0.01, "sqnr": 0.0, "speedup": 1.0}),
        (ACCURACY, {"min_agreement": 0.9}, {"drop": 0.01, "agreement": 0.9, "speedup": 1.0}),
        (None, {"min_sqnr": 30, "min_speedup": 0}, {"sqnr": 30, "speedup": 0}),
    ],
)
def test_what_is_promised(
    metric: MetricFacts | None, options: dict[str, float], wanted: Bounds
) -> None:
    agreement = None if metric is None else AGREED
    gates = promise(a_report(metric=metric, agreement=agreement), Options(**options))  # type: ignore[arg-type]
    assert {g.quantity: g.bound for g in gates} == wanted
    assert {g.quantity: g.comparison for g in gates} == {
        name: "<=" if name == "drop" else ">=" for name in wanted
    }


@pytest.mark.parametrize(
    ("outputs", "options", "wanted"),
    [
        ("y", {}, {"agreement": DEFAULT_MIN_AGREEMENT}),
        ("yz", {}, {"agreement": DEFAULT_MIN_AGREEMENT, "sqnr": DEFAULT_MIN_SQNR}),
        ("yz", {"min_agreement": 0.5}, {"agreement": 0.5}),
        ("yz", {"min_sqnr": 20}, {"sqnr": 20}),
        ("yz", {"max_drop": 0.1}, {"drop": 0.1}),
    ],
    ids=["decisions alone", "numbers beside them", "agreement", "numbers", "disagreement"],
)
def test_what_is_promised_of_decisions(
    outputs: str, options: dict[str, float], wanted: Bounds
) -> None:
    assert AGREED is not None and AGREED.decisions[0].output == "y"
    errors = tuple(OutputError(name, 20.0, 1.0, 0.1) for name in outputs)
    report = a_report(metric=AGREED.as_metric(), agreement=AGREED, outputs=errors)
    gates = promise(report, Options(**options), is_timed=False)  # type: ignore[arg-type]
    assert {g.quantity: g.bound for g in gates} == wanted


@pytest.mark.parametrize(
    ("promised", "message"),
    [
        ({"max_size_ratio": 0.0}, "size ratio of 0 is not possible"),
        ({"min_agreement": 95.0}, "smallest agreement of 95 is not possible; give a share"),
        ({"min_speedup": -1.0}, "smallest speedup of -1 is not possible"),
        ({"min_speedup": np.nan}, "smallest speedup of nan is not possible; give a finite number"),
        ({"max_size_ratio": np.nan}, "size ratio of nan is not possible"),
        ({"min_sqnr": np.inf}, "smallest SQNR of inf is not possible"),
        ({"max_drop": np.nan}, "largest drop of nan is not possible"),
    ],
)
def test_what_cannot_be_promised_is_refused_before_anything_is_read(
    promised: dict[str, float], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        optimize("no.onnx", "no.npz", **promised)


def test_what_is_promised_of_embeddings() -> None:
    assert AGREED is not None
    rows = replace(AGREED, decisions=(replace(AGREED.decisions[0], kind="neighbour"),))
    errors = (OutputError("y", 20.0, 1.0, 0.1),)
    report = a_report(metric=rows.as_metric(), agreement=rows, outputs=errors)
    gates = {g.quantity: g.bound for g in promise(report, Options(), is_timed=False)}
    assert gates == {"agreement": DEFAULT_MIN_NEIGHBOURS, "sqnr": DEFAULT_MIN_SQNR}

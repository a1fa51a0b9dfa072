"""What users are told to expect."""

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxq.report.expectation import expectation
from onnxq.runtime import OutputError
from onnxq.verify.result import AgreementFacts, DecisionFacts
from tests.verify.reports import a_report

WHY = "What decides: output 'y', {}; --metric sqnr compares numbers instead."
MAP = DecisionFacts("y", "threshold", "numbers that Sigmoid gives", True)
ROWS = DecisionFacts("y", "neighbour", "rows of 8 numbers of length 1", False)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {},
            "Expect the same decision as the float model's on 98.75 % of samples, 95 % interval "
            "97.0 to 99.5 %, measured over 450 samples. "
            + WHY.format("scores of 10 classes, straight from Gemm"),
        ),
        (
            {"positions": 9000},
            "Expect the same decision as the float model's at 98.75 % of positions, 95 % interval "
            "97.0 to 99.5 %, measured over 9,000 positions in 450 samples. "
            + WHY.format("scores of 10 classes, straight from Gemm"),
        ),
        (
            {"positions": 9, "decisions": (MAP,)},
            "Expect the same decision as the float model's at 98.75 % of positions that either "
            "model marks, 95 % interval 97.0 to 99.5 %, measured over 9 positions in 450 samples. "
            + WHY.format("numbers that Sigmoid gives"),
        ),
        (
            {"decisions": (ROWS,)},
            "Expect the same nearest neighbour as the float model's for 98.75 % of samples, 95 % "
            "interval 97.0 to 99.5 %, measured over 450 samples. "
            + WHY.format("rows of 8 numbers of length 1"),
        ),
    ],
    ids=["samples", "positions", "marks", "neighbours"],
)
def test_decisions(changes: dict[str, object], sentence: str) -> None:
    agreement = a_report().agreement
    assert agreement is not None
    agreement = replace(agreement, **changes)  # type: ignore[arg-type]
    report = a_report(metric=agreement.as_metric(), agreement=agreement)
    assert expectation(report) == (sentence,)


def test_numbers() -> None:
    outputs = (OutputError("y", 20.0, 0.99, 1.0), OutputError("z", 40.0, 0.99, 1.0))
    report = a_report(metric=None, agreement=None, outputs=outputs)
    assert expectation(report) == (
        "Expect outputs that are off by 10.00 % of their size (root mean square).",
    )


def test_labels_speak_for_themselves() -> None:
    assert isinstance(a_report().agreement, AgreementFacts)
    assert expectation(a_report()) == ()

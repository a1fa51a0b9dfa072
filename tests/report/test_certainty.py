"""What the report says of promises that hold, but not with certainty."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from onnxq.report.certainty import certainty
from onnxq.verify.result import GateFacts, MetricFacts
from tests.verify.reports import a_report


def a_promise(
    drop: float,
    interval: tuple[float, float] | None,
    bound: float,
    *,
    passed: bool = True,
    quantity: str = "drop",
) -> tuple[str, ...]:
    metric = MetricFacts("accuracy", 0.9, 0.9 - drop, drop, 400, interval)
    gates = (GateFacts(f"{quantity}<={bound:g}", drop, passed), GateFacts("speedup>=1", 2.0, True))
    return certainty(a_report(metric=metric, gates=gates))


def test_samples_that_would_prove_the_drop() -> None:
    # The interval reaches 0.012 beyond the drop and may reach 0.004: three times as wide.
    (sentence,) = a_promise(0.001, (-0.011, 0.013), 0.005)
    assert sentence == (
        "The drop is certain only up to 1.30 points (95 %); about 3,600 held-out samples would "
        "prove 0.50 points."
    )
    assert a_promise(0.001, (-0.011, 0.013), 0.005, quantity="metric.drop") == (sentence,)


@pytest.mark.parametrize(
    ("interval", "bound", "passed"),
    [
        ((-0.01, 0.004), 0.005, True),
        ((-0.01, 0.005), 0.005, True),
        (None, 0.005, True),
        ((-0.01, 0.02), 0.005, False),
        ((-0.01, math.inf), 0.005, True),
    ],
    ids=["inside", "just inside", "no interval", "broken", "endless"],
)
def test_nothing_to_say(interval: tuple[float, float] | None, bound: float, passed: bool) -> None:
    assert not a_promise(0.001, interval, bound, passed=passed)


def test_a_promised_agreement_is_proved_as_a_drop_is() -> None:
    agreement = a_report().agreement
    assert agreement is not None
    gates = (GateFacts("agreement>=0.98", 0.9875, True), GateFacts("drop<=0.1", 0.0125, True))
    (sentence,) = certainty(a_report(metric=agreement.as_metric(), gates=gates))
    assert sentence.startswith("The agreement is certain only down to 97.00 % (95 %); about 2,")
    assert sentence.endswith("held-out samples would prove 98.00 %.")
    assert not certainty(a_report(gates=gates)), "it says nothing of accuracy"


def test_a_drop_as_large_as_promised_can_never_be_proved() -> None:
    (sentence,) = a_promise(0.0, (-0.006, 0.006), 0.0)
    assert "certain only up to 0.60 points" in sentence
    assert "no number of samples would prove 0.00 points" in sentence
    (sentence,) = a_promise(0.001, (0.0, 1e300), 0.005)
    assert "no number of samples would prove 0.50 points" in sentence


def _highest(successes: int, samples: int) -> float:
    return float(stats.binomtest(successes, samples).proportion_ci(0.95, method="wilson").high)


def test_the_estimate_agrees_with_an_interval_of_that_many_samples() -> None:
    """With the estimated number of samples, Wilson's interval of a share just keeps the bound."""
    share, few, bound = 0.02, 2000, 0.025
    high = _highest(round(share * few), few)
    metric = MetricFacts("accuracy", 1.0, 1 - share, share, few, (0.0, high))
    gates = (GateFacts(f"drop<={bound}", share, True),)
    (sentence,) = certainty(a_report(metric=metric, gates=gates))
    needed = int(sentence.split("about ")[1].split(" ")[0].replace(",", ""))
    proved = _highest(round(share * needed), needed)
    assert math.isclose(proved, bound, rel_tol=0.03)

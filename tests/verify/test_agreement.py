"""Agreement with the float model's decisions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import special, stats

from onnxq.report.expectation import expectation
from onnxq.verify.agreement import Agreement, nearest
from onnxq.verify.decisions import Decision
from onnxq.verify.result import AgreementFacts
from tests.verify.reports import a_report

CLASSES = Decision("y", "classes", 1, "")
MAP = Decision("y", "threshold", -1, "")
ROWS = Decision("y", "neighbour", 1, "")


def agreed(
    decision: Decision, ours: np.ndarray, theirs: np.ndarray, at_once: int = 7
) -> AgreementFacts | None:
    agreement = Agreement((decision,))
    for start in range(0, len(ours), at_once):
        part = slice(start, start + at_once)
        agreement.add({"y": ours[part]}, {"y": theirs[part]}, len(ours[part]))
    return agreement.result()


def test_one_decision_a_sample() -> None:
    rng = np.random.default_rng(0)
    ours = rng.normal(size=(200, 5)).astype(np.float32)
    theirs = ours + rng.normal(size=ours.shape).astype(np.float32) / 5
    equal = int((ours.argmax(1) == theirs.argmax(1)).sum())
    facts = agreed(CLASSES, ours, theirs)
    assert facts is not None and 0 < equal < 200
    assert (facts.value, facts.samples, facts.positions) == (equal / 200, 200, 200)
    wilson = stats.binomtest(equal, 200).proportion_ci(0.95, method="wilson")
    assert facts.confidence == pytest.approx((wilson.low, wilson.high))
    metric = facts.as_metric()
    assert (metric.float, metric.candidate, metric.drop) == (1, facts.value, 1 - facts.value)
    assert metric.confidence == pytest.approx((1 - wilson.high, 1 - wilson.low))


def test_divergence_is_that_of_the_distributions_over_the_choices() -> None:
    rng = np.random.default_rng(0)
    ours = rng.normal(size=(60, 5, 3)).astype(np.float32)
    theirs = ours + rng.normal(size=ours.shape).astype(np.float32) / 5
    p, q = (special.softmax(side.astype(np.float64), axis=1) for side in (ours, theirs))
    wanted = special.rel_entr(p, q).sum(1).mean()
    probable = replace(CLASSES, are_probabilities=True)
    for decision, *pair in (
        (CLASSES, ours, theirs),
        (CLASSES, np.log(p), np.log(q)),
        (probable, p, q),
    ):
        facts = agreed(decision, *pair)
        assert facts is not None and facts.kl == pytest.approx(wanted, rel=1e-3)
    two = agreed(MAP, p, q)
    wanted = (special.rel_entr(p, q) + special.rel_entr(1 - p, 1 - q)).mean()
    assert two is not None and two.kl == pytest.approx(wanted, rel=1e-3)


def test_divergence_where_integers_give_zeros_is_finite() -> None:
    ours, theirs = np.array([[0.9, 0.1]] * 4), np.array([[1.0, 0.0]] * 4)
    facts = agreed(replace(CLASSES, are_probabilities=True), ours, theirs)
    assert facts is not None and facts.kl is not None and 0.1 < facts.kl < 2
    theirs[0] = np.nan
    facts = agreed(CLASSES, ours, theirs)
    assert facts is not None and facts.kl == np.inf


def test_equal_models_leave_room_for_doubt() -> None:
    ours = np.eye(4, dtype=np.float32)
    facts = agreed(CLASSES, ours, ours)
    assert facts is not None and facts.value == 1
    assert facts.confidence[0] < 0.6 and facts.confidence[1] == 1


def test_nan_agrees_with_nothing() -> None:
    ours = np.array([[1.0, 0.0]] * 4)
    theirs = ours.copy()
    theirs[0, 1] = np.nan
    facts = agreed(CLASSES, ours, theirs)
    assert facts is not None and facts.value == 0.75
    assert (short := agreed(CLASSES, ours, ours[:, :1])) is not None and short.value == 0


def test_the_background_of_maps_does_not_count() -> None:
    """4 of 100 positions are marked by float, 3 of these by the candidate, and one more."""
    ours = np.zeros((2, 1, 5, 10))
    ours[:, 0, 0, :2] = 0.9
    theirs = ours.copy()
    theirs[0, 0, 0, 0] = 0.4
    theirs[1, 0, 4, 4] = 0.6
    facts = agreed(MAP, ours, theirs)
    assert facts is not None and facts.decisions[0].marked
    assert (facts.value, facts.positions, facts.samples) == (3 / 5, 5, 2)
    assert facts.confidence[0] <= facts.value <= facts.confidence[1]


def test_positions_without_a_background_all_count() -> None:
    ours = np.moveaxis(np.eye(3)[[[0, 1, 2, 0], [1, 2, 0, 1]]], 2, 1)
    theirs = ours.copy()
    theirs[0, :, 0] = [0, 1, 0]
    facts = agreed(CLASSES, ours, theirs)
    assert facts is not None and not facts.decisions[0].marked
    assert (facts.value, facts.positions) == (7 / 8, 8)


def test_a_rare_choice_of_single_decisions_is_no_background() -> None:
    ours = np.zeros((10, 1))
    facts = agreed(MAP, ours, ours)
    assert facts is not None and (facts.value, facts.positions) == (1, 10)


def test_nothing_marked_says_nothing() -> None:
    assert agreed(MAP, np.zeros((3, 8)), np.zeros((3, 8))) is None


def test_neighbours() -> None:
    rng = np.random.default_rng(1)
    ours = rng.normal(size=(60, 16))
    theirs = ours + rng.normal(size=ours.shape) / 3
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (ours, theirs)]
    wanted = []
    for rows in unit:
        distances = np.linalg.norm(rows[:, None] - rows[None], axis=2)
        wanted.append((distances + 9 * np.eye(60)).argmin(axis=1))
    equal = int((wanted[0] == wanted[1]).sum())
    facts = agreed(ROWS, ours, theirs)
    assert facts is not None and 0 < equal < 60
    assert (facts.value, facts.samples) == (equal / 60, 60)
    # Which of five equals is nearest is up to rounding.
    np.testing.assert_array_equal(nearest(np.tile(ours, (6, 1)) * 2)[:60] % 60, np.arange(60))
    assert agreed(ROWS, ours[:2], theirs[:2]) is None, "two have no choice"


def test_embeddings_that_are_nan_have_no_neighbour() -> None:
    ours = np.random.default_rng(2).normal(size=(9, 8))
    facts = agreed(ROWS, ours, np.full_like(ours, np.nan))
    assert facts is not None and facts.value == 0


def test_an_output_without_a_row_a_sample_is_left_out_and_told() -> None:
    whole, single = (Decision(name, "classes", 1, "") for name in ("whole", "y"))
    agreement = Agreement((whole, single))
    ours, theirs = np.eye(3)[[0, 1, 2, 0]], np.eye(3)[[0, 1, 2, 1]]
    for _ in range(3):
        whole_batch = {"whole": np.eye(5)[:1]}
        agreement.add({"y": ours} | whole_batch, {"y": theirs} | whole_batch, 4)
    facts = agreement.result()
    assert facts is not None and (facts.value, facts.samples) == (0.75, 12)
    assert ([d.output for d in facts.decisions], facts.left_out) == (["y"], ("whole",))
    report = a_report(agreement=facts, metric=facts.as_metric())
    assert "left out: output 'whole', whose first axis" in " ".join(expectation(report))


def test_several_outputs_count_together() -> None:
    agreement = Agreement((CLASSES, Decision("z", "classes", 1, "")))
    a, b = np.eye(2), np.eye(2)[::-1]
    agreement.add({"y": a, "z": a}, {"y": a, "z": b}, 2)
    facts = agreement.result()
    assert facts is not None and (facts.value, facts.positions) == (0.5, 4)
    assert Agreement(()).result() is None

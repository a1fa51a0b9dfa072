from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from onnxq.adaptive.baseline import TensorBaseline
from onnxq.adaptive.scores import (
    KINDS,
    Scoring,
    agreement,
    deviations,
    jensen_shannon,
    output_scores,
    streams,
)
from onnxq.observe.histogram import Tally, bins_of
from onnxq.runtime.specs import Array
from onnxq.verify.decisions import Decision

RNG = np.random.default_rng(0)
VALUES = RNG.normal(size=20_000).astype(np.float32)


def baseline(values: Array = VALUES, low: float = -2.0, high: float = 2.0) -> TensorBaseline:
    tally = Tally()
    tally.add(np.asarray(values, np.float32))
    return TensorBaseline(low, high, tally.histogram(), {})


def scored(values: Array, usual: TensorBaseline | None = None) -> dict[str, float]:
    scoring = Scoring({"x": usual or baseline()})
    return dict(zip(KINDS, scoring.scores(scoring.see({"x": values}))[0].tolist(), strict=True))


def test_bins_are_those_of_the_histogram() -> None:
    values = np.float32([*VALUES[:999], 0.0, -0.0, 1e-40, -3e38])
    tally = Tally()
    tally.add(values)
    bins, counts = np.unique(bins_of(values), return_counts=True)
    assert (bins.tolist(), counts.tolist()) == (
        tally.histogram().bins.tolist(),
        tally.histogram().counts.tolist(),
    )
    assert abs(bins_of(np.float32([np.inf, -np.inf, np.nan]))).min() >= 0x7F80


def test_what_is_outside_of_the_range_is_counted_at_both_ends() -> None:
    values = np.float32([-5, -3, -1, 0, 1, 1.5, 3, 9, 9, 9])
    found = scored(values)
    assert (found["below"], found["above"]) == (0.2, 0.4)
    assert found["unused"] == 0.0


@pytest.mark.parametrize("gain", [0.25, 1.0, 1.7])
def test_the_distance_is_that_of_histograms_with_the_same_edges(gain: float) -> None:
    usual, values = baseline(), VALUES[:5000] * np.float32(gain)
    bins = np.concatenate([[-(1 << 20)], usual.edges, [1 << 20]])
    p, q = (np.histogram(bins_of(v), bins)[0] for v in (VALUES, values))
    wanted = jensenshannon(p, q, base=2)
    assert scored(values, usual)["distance"] == pytest.approx(wanted, abs=1e-9)


def test_jensen_shannon_is_scipys_and_takes_empty_cells() -> None:
    p, q = RNG.dirichlet(np.ones(9), 5), RNG.dirichlet(np.ones(9), 5)
    p[:, 3] = q[:, 5] = 0
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    np.testing.assert_allclose(jensen_shannon(p, q), jensenshannon(p, q, base=2, axis=1))
    assert jensen_shannon(p, p).max() < 1e-7


def test_cells_hold_about_as_many_values_each() -> None:
    own = baseline(low=-10.0, high=10.0)
    counts = np.diff(np.searchsorted(np.sort(bins_of(VALUES)), own.edges))
    assert len(counts) == 16 and counts.min() > 0.9 * len(VALUES) / 16
    many_zeros = baseline(np.maximum(VALUES, 0), low=0.0, high=4.0)
    assert len(many_zeros.edges) < 11 and (np.diff(many_zeros.edges) > 0).all()


def test_a_range_that_is_half_used_is_half_unused() -> None:
    assert scored(np.float32([-1, 1]))["unused"] == pytest.approx(0.5, abs=0.01)
    assert scored(np.float32([-1, 1]), baseline(low=-np.inf, high=np.inf))["unused"] == 0.0


@pytest.mark.parametrize("values", [[], [np.nan, np.inf]])
def test_a_tensor_without_finite_values_has_scores(values: list[float]) -> None:
    assert all(np.isfinite(score) for score in scored(np.float32(values)).values())


def test_streams_are_signed_squares_over_all_tensors() -> None:
    away = np.array([[1.0, -3.0, 2.0, 0.0], [0.0, 0.0, -1.0, 100.0]])
    assert streams(away) == {"saturation": -2.0, "distance": 1.5, "unused": 50.0}
    assert streams(np.zeros((0, 4))) == {}
    small = deviations(np.array([0.02]), np.array([0.01]), np.array([0.0]))
    assert small == pytest.approx(10.0)


CLASSES = Decision("y", "classes", 1, "")


def test_entropy_and_disagreement_are_those_of_the_distributions() -> None:
    ours, theirs = RNG.normal(size=(2, 3, 7)).astype(np.float32)
    p, q = (np.exp(side) / np.exp(side).sum(1, keepdims=True) for side in (ours, theirs))
    found = output_scores((CLASSES,), ("z", "y"), (np.zeros(1), ours), (np.zeros(1), theirs))
    assert found["entropy"] == pytest.approx(entropy(p, axis=1).mean(), rel=1e-4)
    assert found["disagreement"] == pytest.approx(entropy(p, q, axis=1).sum(), rel=1e-4)
    assert found["classes"] == np.bincount(ours.argmax(1).reshape(-1)).argmax() + 1
    same = (ours.argmax(1) == theirs.argmax(1)).mean()
    assert agreement((CLASSES,), ("y",), (ours,), (theirs,)) == pytest.approx(same)


def test_outputs_that_decide_nothing_differ_by_noise_over_signal() -> None:
    ours = RNG.normal(size=(4, 5)).astype(np.float32)
    found = output_scores((), ("y",), (ours,), (ours * np.float32(1.1),))
    assert found == {"disagreement": pytest.approx(0.01, rel=1e-3)}
    assert agreement((), ("y",), (ours,), (ours,)) is None


def test_outputs_of_another_shape_agree_in_nothing() -> None:
    ours, theirs = np.zeros((1, 3), np.float32), np.zeros((1, 4), np.float32)
    assert output_scores((CLASSES,), ("y",), (ours,), (theirs,))["disagreement"] == np.inf
    assert agreement((CLASSES,), ("y",), (ours,), (theirs,)) == 0.0

"""P-values against what theory says of them, and false alarms counted over many streams."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from scipy.stats import kstest

from onnxq.adaptive import detector
from onnxq.adaptive.detector import Detector, MixDetector, Pool


def p_values(scores: list[float], bag: list[float], seed: int = 0) -> list[float]:
    pool, chance = Pool.of(bag), random.Random(seed)
    return [pool.place(score, chance) for score in scores]


@pytest.mark.parametrize("bag", [0, 1, 5])
def test_ranks_are_exactly_uniform_however_few_scores_there_are(bag: int) -> None:
    """Of all orders of the same scores, each rank of the last one is as frequent."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(4000):
        scores = rng.permutation(bag + 1).astype(float)
        found += p_values([scores[-1]], list(scores[:-1]), seed)
    assert kstest(found, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("draw", ["lognormal", "ties", "constant"])
def test_p_values_of_one_source_are_uniform_and_independent(
    draw: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detector, "MOST", 64)
    rng = np.random.default_rng(1)
    made = {
        "lognormal": rng.lognormal(size=6000),
        "ties": rng.integers(0, 4, 6000).astype(float),
        "constant": np.ones(6000),
    }[draw]
    p = np.array(p_values([*made[20:]], [*made[:20]]))
    assert kstest(p, "uniform").pvalue > 1e-3
    # Pairs of neighbours fill the square evenly, also across the times at which a pool is halved.
    cells, *_ = np.histogram2d(p[:-1], p[1:], bins=4)
    assert ((cells - cells.mean()) ** 2 / cells.mean()).sum() < 50


def test_a_pool_never_holds_more_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "MOST", 16)
    pool, chance = Pool.of([]), random.Random(0)
    for score in np.random.default_rng(0).normal(size=200):
        pool.place(float(score), chance)
        assert len(pool.scores) <= 16 and pool.scores == sorted(pool.scores)


def test_what_is_not_a_number_counts_as_the_largest() -> None:
    pool = Pool.of([0.0] * 99)
    assert pool.place(float("nan"), random.Random(0)) <= 0.01
    assert pool.scores[-1] == float("inf")


@pytest.mark.parametrize("sides", [1, 2])
def test_bets_pay_one_in_the_mean(sides: int) -> None:
    """By numerical integration: so the sum grows by one a sample while nothing changes."""
    middles = (np.arange(2000) + 0.5) / 2000
    total = np.zeros(sides)
    for u in middles:
        # More of the points lie where bets pay most: at u ** 20, and 1 less that.
        for p in (u**20, 1 - u**20) if 1e-14 < u**20 < 0.5 else ():
            one = Detector.new(sides)
            one.see(p)
            total += one.sums.mean(axis=1) * 20 * u**19 / 2000
    assert total == pytest.approx(np.ones(sides), rel=0.03)


@pytest.mark.parametrize(
    "new", [partial(Detector.new, 1), partial(Detector.new, 2), MixDetector.new]
)
def test_false_alarms_are_no_more_than_asked_for(new: Callable[[], Detector | MixDetector]) -> None:
    """100,000 samples with one every 1,000 asked for."""
    rng, alarms, one = np.random.default_rng(2), 0, new()
    for p in rng.uniform(size=100_000):
        one.see(p)
        if one.value >= 1000:
            alarms += 1
            one = new()
    assert 10 < alarms <= 100


def test_bets_on_where_p_values_lay_pay_one_in_the_mean() -> None:
    one = MixDetector.new()
    for p in np.random.default_rng(4).beta(2, 5, size=30):
        one.see(p)
    paid = []
    for cell in range(8):
        following = replace(one)
        following.see((cell + 0.5) / 8)
        paid.append(following.sum / (1 + one.sum))
    assert np.mean(paid) == pytest.approx(1.0) and max(paid) > 1.5 > 0.5 > min(paid)
    again = MixDetector.from_plain(tuple(one.to_plain()))
    assert again == one
    with pytest.raises(ValueError, match="other numbers"):
        MixDetector.from_plain((1.0, 2.0))


@pytest.mark.parametrize(("shares", "most"), [([1, 0, 0, 0, 0], 25), ([4, 4, 1, 1, 0], 120)])
def test_other_shares_of_classes_are_found(shares: list[int], most: int) -> None:
    rng, found = np.random.default_rng(5), []
    for _ in range(5):
        bag, before = rng.integers(0, 5, 200), rng.integers(0, 5, 50)
        after = rng.choice(5, 300, p=np.array(shares) / sum(shares))
        one, p = MixDetector.new(), p_values([*map(float, [*before, *after])], [*map(float, bag)])
        values = [(one.see(each), one.value)[1] for each in p]
        assert max(values[:50]) < 1e4
        found.append(next(at for at, value in enumerate(values[50:]) if value >= 1e4))
    assert np.median(found) <= most, found


def test_a_shift_is_found_in_a_few_samples() -> None:
    rng = np.random.default_rng(3)
    bag, before, after = rng.normal(size=100), rng.normal(size=50), rng.normal(3.0, size=50)
    for sign, sides, is_found in ((1, 1, True), (-1, 2, True), (-1, 1, False)):
        one, found = Detector.new(sides), []
        for at, p in enumerate(p_values([*before, *(sign * after)], [*bag])):
            one.see(p)
            if one.value >= 1e4:
                found.append(at)
        assert (bool(found) and 50 <= found[0] < 65) is is_found


def test_sums_stay_finite() -> None:
    one = Detector.new(2)
    for _ in range(2000):
        one.see(1e-300)
    assert np.isfinite(one.sums).all() and one.value > 1e199
    assert np.array_equal(Detector.from_plain(one.to_plain()).sums, one.sums)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="other sums"):
        Detector.from_plain(((1.0,),))

"""Cascades: what they promise, what they give, and how that is kept up."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from onnxq.adaptive.cascade import (
    Cascade,
    Keeping,
    Outputs,
    Tried,
    fit,
    margins_of,
)
from onnxq.adaptive.fitting import fitted
from onnxq.errors import InputError
from onnxq.verify.decisions import Decision
from onnxq.verify.result import NEIGHBOUR
from tests.adaptive.bundles import plain_bundle
from tests.networks import chain, inputs

CLASSES = Decision("y", "classes", 1, "as the test says")
COSTS = (0.3, 0.6, 1.0)


def scores(
    count: int, noise: Sequence[float], seed: int = 0
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Scores of the float model, and those of others that are off by noise."""
    generator = np.random.default_rng(seed)
    floats = generator.standard_normal((count, 5)) * 3
    return floats, [floats + generator.standard_normal(floats.shape) * n for n in noise]


def tried(count: int, noise: Sequence[float], seed: int = 0) -> Tried:
    floats, others = scores(count, noise, seed)
    margins = np.array([margins_of([CLASSES], ["y"])((own,)) for own in others])
    agrees = np.array([own.argmax(1) == floats.argmax(1) for own in others])
    return Tried(margins, agrees, COSTS)


def test_margins_and_agreement_are_those_of_each_sample() -> None:
    floats, (others,) = scores(50, [1.0])
    found = Tried.of(
        [CLASSES], ["y"], [[(r[None],) for r in side] for side in (others, floats)], [2.0, 1.0]
    )
    ordered = np.sort(others, axis=1)
    np.testing.assert_allclose(found.margins[0], ordered[:, -1] - ordered[:, -2])
    np.testing.assert_array_equal(found.agrees[0], others.argmax(1) == floats.argmax(1))
    assert found.costs == (0.5, 1.0)


def test_margins_of_every_kind_of_decision() -> None:
    probabilities = Decision("p", "classes", 1, "", are_probabilities=True)
    gate = Decision("t", "threshold", -1, "")
    margins = margins_of([probabilities, gate], ["t", "p"])
    p = np.array([[0.5, 0.25, 0.25], [0.9, 0.09, 0.01], [0.4, np.nan, 0.6]], np.float32)
    t = np.array([[0.9, 0.8], [0.5, 1.0], [0.1, 0.2]], np.float32)
    np.testing.assert_allclose(margins((t, p)), [np.log(2), 0.0, np.nan], atol=1e-6)
    with pytest.raises(InputError, match="a cascade needs decisions"):
        margins_of([Decision("e", NEIGHBOUR, 1, "")], ["e"])


def test_it_keeps_its_promise_and_is_cheaper_than_any_variant_that_does() -> None:
    promised, broken = 0.99, 0
    for seed in range(20):
        cascade = fit(tried(3000, (0.4, 0.15), seed), promised)
        assert cascade is not None and cascade.cost < 0.75
        fresh = tried(20000, (0.4, 0.15), seed + 1000)
        assert fresh.agrees.mean(1).max() < promised, "only float, which costs 1, keeps it alone"
        wrong, cost = fresh.outcome(cascade.variants, cascade.thresholds)
        broken += wrong > (1 - promised) * 20000
        assert cost == pytest.approx(cascade.cost, abs=0.05)
        assert cascade.proved >= promised
    # Each may break it with a probability of 5 %.
    assert broken <= 4


def test_a_variant_that_decides_as_float_answers_alone() -> None:
    cascade = fit(tried(2000, (0.0, 0.0)), 0.99)
    assert cascade is not None and cascade.variants == (0,) and cascade.cost == 0.3


def test_nothing_where_only_float_keeps_the_promise() -> None:
    """What a variant is sure by tells nothing of whether it is right."""
    generator = np.random.default_rng(0)
    floats = generator.standard_normal((2000, 5))
    other = generator.standard_normal((2000, 5))
    answers = [[(row[None],) for row in side] for side in (other, floats)]
    assert fit(Tried.of([CLASSES], ["y"], answers, [2.0, 1.0]), 0.99) is None


def test_so_few_samples_prove_nothing() -> None:
    with pytest.raises(InputError, match="with 1000 samples; give 1196 or more"):
        fit(tried(1000, (0.1, 0.1)), 0.995)
    fit(tried(1196, (0.0, 0.0)), 0.995)
    with pytest.raises(InputError, match="cannot be promised"):
        fit(tried(1000, (0.1, 0.1)), 1.0)


def test_fitted_to_the_variants_of_a_bundle(tmp_path: Path) -> None:
    bundle = plain_bundle(tmp_path)
    decisions = replace(bundle.facts, decisions=(CLASSES,), outputs=("y",))
    fed = [{"x": x[None]} for x in inputs(chain(), 200)["x"]]
    # The two have other weights: what is faster decides otherwise.
    assert fitted(replace(bundle, facts=decisions), fed, 0.95) is None
    variants = tuple(replace(bundle.variants[1], speedup=s) for s in (2.0, 1.0))
    alike = replace(bundle, facts=replace(decisions, variants=variants))
    found = fitted(alike, fed, 0.95)
    assert found is not None and (found.variants, found.cost) == ((0,), 0.5)
    with pytest.raises(InputError, match="a cascade needs decisions"):
        fitted(bundle, fed, 0.95)


class Asked:
    """Answers with a multiple of the input, and counts its samples."""

    def __init__(self, factor: float) -> None:
        self.factor, self.samples = factor, 0

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Outputs:
        self.samples += len(feeds["x"])
        return (feeds["x"] * np.float32(self.factor), feeds["x"].sum(1))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_batches_are_split_by_sample_and_joined(count: int) -> None:
    x = np.random.default_rng(1).standard_normal((count, 5)).astype(np.float32)
    cascade = Cascade((0, 1, 2), ((1.0, 6.0),), 0, 0.9, 0.9, 100, 0.5)
    asked = [Asked(1.0), Asked(10.0), Asked(100.0)]
    y, total = cascade.run(asked, {"x": x}, margins_of([CLASSES], ["y", "total"]))
    ordered = np.sort(x, axis=1)
    margin = ordered[:, -1] - ordered[:, -2]
    factor = np.where(margin >= 1.0, 1.0, np.where(margin * 10 >= 6.0, 10.0, 100.0))
    np.testing.assert_allclose(y, x * factor[:, None], rtol=1e-6)
    np.testing.assert_array_equal(total, x.sum(1))
    wanted = [count, int((factor > 1).sum()), int((factor > 10).sum())]
    assert [own.samples for own in asked] == wanted


def test_a_request_that_is_one_sample_is_not_split() -> None:
    """Along its first axis lie positions: the least sure one decides."""
    cascade = Cascade((0, 1), ((1.0,),), 0, 0.9, 0.9, 100, 0.5)
    x = np.array([[[5.0, 0.0]], [[0.5, 0.0]]], np.float32)

    def answer(factor: float) -> object:
        return lambda feeds: (feeds["x"].reshape(2, 2) * np.float32(factor),)

    feeds = {"x": x.reshape(1, 2, 2)}
    (y,) = cascade.run([answer(1), answer(2)], feeds, margins_of([CLASSES], ["y"]))  # type: ignore[list-item]
    np.testing.assert_array_equal(y, x.reshape(2, 2) * 2)


def keeping() -> Keeping:
    return Keeping(Cascade((0, 1), ((3.0,), (2.0,), (1.0,)), 2, 0.99, 0.99, 1000, 0.5))


def test_a_promise_that_holds_is_kept_without_a_change() -> None:
    raised = 0
    for seed in range(60):
        kept, generator = keeping(), np.random.default_rng(seed)
        raised += any([kept.see(bool(agreed)) for agreed in generator.random(4096) < 0.99])
    assert raised <= stats.binom(60, 0.05).ppf(0.999)


def test_thresholds_rise_where_the_promise_breaks() -> None:
    kept, generator = keeping(), np.random.default_rng(0)
    rose = [kept.see(bool(agreed)) for agreed in generator.random(3000) < 0.9]
    assert [at for at, broken in enumerate(rose) if broken] == [255, 511, 767, 1023, 1535, 2559]
    assert kept.cascade.thresholds == (3.0,)
    assert kept.cascade.stricter() == kept.cascade


def test_what_was_seen_of_a_promise_goes_on_after_a_restart() -> None:
    generator = np.random.default_rng(0)
    answers = [bool(agreed) for agreed in generator.random(1500) < 0.95]
    whole, cut = keeping(), keeping()
    rose = [whole.see(agreed) for agreed in answers]
    rose_again = []
    for agreed in answers:
        known = json.loads(json.dumps(cut.to_plain()))
        cut = keeping()
        cut.go_on(known)
        rose_again.append(cut.see(agreed))
    assert rose_again == rose and any(rose)
    assert cut.to_plain() == whole.to_plain()


@pytest.mark.parametrize("known", [None, {}, "text", {"at": 9, "seen": 1, "wrong": 0}])
def test_what_is_no_record_of_a_promise_is_not_used(known: object) -> None:
    kept = keeping()
    kept.go_on(known)
    assert kept == keeping()


def test_an_empty_batch_is_answered_by_the_first_variant() -> None:
    cascade = Cascade((0, 1), ((1.0,),), 0, 0.9, 0.9, 100, 0.5)
    asked = [Asked(1), Asked(2)]
    feeds = {"x": np.zeros((0, 5), np.float32)}
    y, _ = cascade.run(asked, feeds, margins_of([CLASSES], ["y", "total"]))
    assert y.shape == (0, 5) and asked[1].samples == 0


def test_a_batch_that_cannot_be_split_is_one_sample() -> None:
    cascade = Cascade((0, 1), ((1.0,),), 0, 0.9, 0.9, 100, 0.5)
    asked = [Asked(1), Asked(2)]
    feeds = {"x": np.array([[5, 0, 0, 0, 0], [0.5, 0, 0, 0, 0]], np.float32)}
    y, _ = cascade.run(asked, feeds, margins_of([CLASSES], ["y", "total"]), is_split=False)
    np.testing.assert_array_equal(y, feeds["x"] * 2)

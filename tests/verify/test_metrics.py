"""Metrics against scipy, and intervals against simulation."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from onnxq.errors import InputError
from onnxq.runtime import TensorSpec
from onnxq.verify.metrics import Metric, available_metrics, choose_metric, paired_drop
from onnxq.verify.metrics.accuracy import Accuracy
from onnxq.verify.metrics.bits_per_byte import BitsPerByte
from onnxq.verify.metrics.intervals import (
    bootstrap_interval,
    paired_interval,
    proportion_interval,
    ratio,
    shares_interval,
)
from onnxq.verify.metrics.user import UserMetric
from tests.verify.metrics.filling import filled


def outcomes(correct: np.ndarray) -> Metric:
    """Return an accuracy metric in which sample i is right where correct[i]."""
    logits = np.zeros((len(correct), 2), np.float32)
    logits[np.arange(len(correct)), (~correct.astype(bool)).astype(int)] = 1
    return filled(Accuracy(), logits, np.zeros(len(correct), np.int64))


def test_the_scored_output_is_the_first_float_one_of_fitting_shape() -> None:
    labels = np.array([1, 0])
    right = np.array([[0, 1], [1, 0]], np.float16)
    outputs = {
        "class": np.array([0, 0]),
        "mask": np.array([[1, 0], [0, 1]]),
        "hidden": np.zeros((2, 4, 8), np.float32),
        "score": np.zeros((2, 1), np.float32),
        "logits": right,
        "other": 1 - right,
    }
    metric = Accuracy()
    metric.add(outputs, labels, 2)
    assert metric.result().value == 1.0


def test_negative_labels_are_not_counted() -> None:
    logits = np.zeros((2, 3, 4), np.float32)
    logits[0, 0] = [0, 0, 0, 100]
    labels = np.array([[3, 1, -100], [-100, -100, -100]])
    # One position costs 0 bits and one costs 2.
    assert filled(BitsPerByte(), logits, labels).result().value == pytest.approx(1.0)
    with pytest.raises(InputError, match="no labels to count"):
        filled(BitsPerByte(), logits[1:], labels[1:]).result()


def test_bootstrap_matches_the_normal_approximation_and_its_seed() -> None:
    scores = np.random.default_rng(2).exponential(size=4000)
    weights = np.ones(4000)
    low, high = bootstrap_interval(scores, weights)
    half = 1.96 * scores.std() / np.sqrt(4000)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert (high + low) / 2 == pytest.approx(scores.mean(), abs=half / 5)
    assert bootstrap_interval(scores, weights) == (low, high)
    assert bootstrap_interval(scores, weights, seed=1) != (low, high)


def test_bootstrap_weighs_samples() -> None:
    # Two samples with 1 and 3 positions: draws give 0/2, 3/4 or 6/6 per position.
    low, high = bootstrap_interval(np.array([0.0, 3.0]), np.array([1.0, 3.0]))
    assert (low, high) == (0.0, 1.0)


def test_bootstrap_leaves_out_draws_without_weight() -> None:
    assert bootstrap_interval(np.array([0.0, 2.0]), np.array([0.0, 1.0])) == (2.0, 2.0)


def test_drop_of_accuracy_and_its_interval() -> None:
    reference = np.array([1] * 90 + [0] * 10)
    candidate = np.array([1] * 84 + [0] * 6 + [1] * 2 + [0] * 8)
    drop = paired_drop(outcomes(reference), outcomes(candidate))
    assert drop.drop == pytest.approx(0.04)
    p, q = 7 / 102, 3 / 102
    half = stats.norm.ppf(0.975) * math.sqrt((p + q - (p - q) ** 2) / 102)
    assert drop.confidence == pytest.approx((p - q - half, p - q + half))
    back = paired_drop(outcomes(candidate), outcomes(reference))
    assert back.drop == pytest.approx(-0.04)


def test_equal_models_still_have_an_interval_of_some_width() -> None:
    reference = np.array([1] * 90 + [0] * 10)
    drop = paired_drop(outcomes(reference), outcomes(reference))
    assert drop.drop == 0.0
    assert drop.confidence is not None
    low, high = drop.confidence
    # No difference among n samples is compatible with a rate of 3 / n (the rule of three).
    assert 0.5 * 3 / 100 < high < 1.5 * 3 / 100
    assert low == -high


def test_paired_interval_covers_the_true_drop_in_95_of_100_draws() -> None:
    generator = np.random.default_rng(3)
    covered = []
    for _ in range(1500):
        kind = generator.choice(4, 300, p=[0.9, 0.03, 0.01, 0.06])
        drop = paired_drop(outcomes((kind == 0) | (kind == 1)), outcomes((kind == 0) | (kind == 2)))
        assert drop.confidence is not None
        covered.append(drop.confidence[0] <= 0.02 <= drop.confidence[1])
    assert 0.93 <= np.mean(covered) <= 0.98


def test_a_sample_without_a_label_does_not_change_the_interval_of_right_and_wrong() -> None:
    logits, labels = np.eye(2)[[0, 1, 1, 0, 1]], np.array([0, 1, 0, 0, -1])
    drops = [
        paired_drop(*(filled(Accuracy(), logits[:n], labels[:n]) for _ in range(2))) for n in (4, 5)
    ]
    assert drops[0].confidence == drops[1].confidence


@pytest.mark.parametrize(("lost", "wide"), [(0.0005, 0.13), (0.002, 0.01), (0.02, 0.02)])
def test_the_interval_of_shares_covers_drops_that_few_samples_show(
    lost: float, wide: float
) -> None:
    generator = np.random.default_rng(4)
    covered, widths = [], []
    for seed in range(120):
        right = generator.random((50, 20)) < 0.9
        kept = right & (generator.random(right.shape) >= lost)
        pair = (np.stack([x.sum(1), np.full(50, 20)], axis=1) * 1.0 for x in (right, kept))
        low, high = shares_interval(ratio, *pair, seed=seed)
        covered.append(low <= 0.9 * lost <= high)
        widths.append(high - low)
    assert np.mean(covered) >= 0.92
    assert np.median(widths) < wide


def test_shares_of_two_samples_lie_in_their_interval() -> None:
    ours, theirs = np.array([[0.0, 2.0], [0.0, 0.0]]), np.array([[0.0, 2.0], [3.0, 0.0]])
    low, high = shares_interval(lambda s: -ratio(s), ours, theirs)
    assert low < 0 and high >= 1.5, "nothing to read counts where something is read"
    ours, theirs = np.array([[0.0, 2.0]] * 2), np.array([[6.0, 2.0]] * 2)
    low, high = shares_interval(lambda s: -ratio(s), ours, theirs)
    assert low < 3.0 <= high


def test_equal_shares_leave_the_room_that_equal_proportions_leave() -> None:
    numbers = np.tile([[17.0, 20.0]], (100, 1))
    low, high = shares_interval(ratio, numbers, numbers)
    wanted = paired_interval(np.ones(100), np.ones(100))
    assert (low, high) == pytest.approx(wanted, rel=0.15)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_the_drop_lies_in_its_interval(pairs: list[tuple[bool, bool]]) -> None:
    reference, candidate = np.array(pairs).T
    drop = paired_drop(outcomes(reference), outcomes(candidate))
    assert drop.drop == pytest.approx(reference.mean() - candidate.mean(), abs=1e-12)
    assert drop.confidence is not None
    low, high = drop.confidence
    assert -1 <= low <= drop.drop + 1e-12
    assert drop.drop - 1e-12 <= high <= 1


def test_metrics_of_different_samples_are_not_paired() -> None:
    with pytest.raises(InputError, match="cannot be paired"):
        paired_drop(outcomes(np.ones(3)), outcomes(np.ones(4)))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metric.py").write_text(
        "def largest(outputs, labels):\n"
        "    return max(outputs['y'].max(), 0 if labels is None else labels.max())\n"
        "def error(outputs, labels):\n"
        "    return abs(outputs['y'] - labels).mean()\n"
        "error.higher_is_better = False\n"
        "def broken(outputs, labels):\n"
        "    return outputs['nothing']\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_metric", raising=False)


@pytest.mark.usefixtures("module")
def test_a_function_sees_all_real_samples_at_once() -> None:
    metric, other = (choose_metric("my_metric:error", True, 1) for _ in range(2))
    assert metric is not None
    assert other is not None
    for each, shift in ((metric, 1.0), (other, 3.0)):
        each.add({"y": np.array([0.0, 1.0])}, np.array([0, 1]) + shift, 2)
        each.add({"y": np.array([5.0, 99.0])}, np.array([5, 0]) + shift, 1)
    result = metric.result()
    assert (result.value, result.samples, result.higher_is_better) == (1.0, 3, False)
    drop = paired_drop(metric, other)
    assert (drop.drop, drop.confidence) == (2.0, None)


@pytest.mark.usefixtures("module")
def test_a_function_may_do_without_labels() -> None:
    metric = choose_metric("my_metric:largest", False, None)
    assert metric is not None
    metric.add({"y": np.array(7.0)}, None, 1)
    assert metric.result().value == 7.0
    assert metric.result().higher_is_better


def test_a_function_that_gives_a_number_a_sample_has_an_interval() -> None:
    metrics = [UserMetric("m:f", lambda outputs, labels: outputs["y"]) for _ in range(2)]
    ours = np.random.default_rng(0).normal(size=50)
    for metric, shift in zip(metrics, (0.0, -1.0), strict=True):
        metric.add({"y": ours + shift}, None, 50)
    drop = paired_drop(*metrics)
    assert drop.float == pytest.approx(ours.mean())
    assert drop.confidence == pytest.approx((1.0, 1.0))
    wrong = UserMetric("m:f", lambda outputs, labels: np.zeros(3))
    wrong.add({"y": ours}, None, 50)
    with pytest.raises(InputError, match=r"gives \[3\] instead of a number"):
        wrong.result()


@pytest.mark.usefixtures("module")
def test_a_failing_function_is_told_in_a_sentence() -> None:
    metric = choose_metric("my_metric:broken", False, None)
    assert metric is not None
    with pytest.raises(InputError, match="no samples"):
        metric.result()
    metric.add({"y": np.zeros((1, 2))}, None, 1)
    with pytest.raises(InputError, match="my_metric:broken: calling it failed with KeyError"):
        metric.result()
    metric.add({"y": np.zeros((1, 3))}, None, 1)
    with pytest.raises(InputError, match="cannot be joined"):
        metric.result()


def scores(*shape: int | str | None) -> list[TensorSpec]:
    """Outputs of which the last one scores labels."""
    some = TensorSpec("i", np.dtype(np.int64), "tensor(int64)", (*shape[:-1], 256))
    return [some, TensorSpec("y", np.dtype(np.float32), "tensor(float)", shape)]


@pytest.mark.parametrize(
    ("ndim", "outputs", "name"),
    [
        (1, scores("N", 10), "accuracy"),
        (2, scores("N", 128, 256), "bits-per-byte"),
        (2, scores("N", "T", 49152), "bits-per-token"),
        (2, scores("N", "T", None), "bits-per-token"),
        (2, scores("N", 256), "bits-per-token"),
    ],
    ids=["classes", "bytes", "tokens", "any vocabulary", "no output of labels"],
)
def test_choice_by_labels(ndim: int, outputs: list[TensorSpec], name: str) -> None:
    metric = choose_metric(None, True, ndim, outputs)
    assert metric is not None and metric.name == name


def test_no_metric_without_labels_or_by_request() -> None:
    assert choose_metric(None, False, None) is None
    assert choose_metric("sqnr", True, 1) is None
    assert choose_metric("agreement", True, 1) is None


def test_every_metric_has_a_file_and_a_test_of_its_name() -> None:
    for name, kind in available_metrics().items():
        file = f"{name.replace('-', '_')}.py"
        assert kind.__module__.endswith(f".{file.removesuffix('.py')}"), name
        assert (Path(__file__).parent / "metrics" / f"test_{file}").is_file(), name


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (5, 5), (990, 1000), (3, 7)])
def test_the_interval_of_a_proportion_is_scipys(hits: int, count: int) -> None:
    wanted = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    assert proportion_interval(hits, count) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize(
    ("name", "has_labels", "ndim", "fragment"),
    [
        (None, True, 3, "labels of 3 dimensions"),
        ("beauty", True, 1, "no metric 'beauty'; there are accuracy, bits-per-byte, bits-per-"),
        ("accuracy", False, None, "needs labels"),
        ("nowhere_at_all:f", True, 1, "no module 'nowhere_at_all'"),
        ("math:nothing", True, 1, "no function 'nothing'"),
    ],
)
def test_unusable_choices(name: str | None, has_labels: bool, ndim: int, fragment: str) -> None:
    with pytest.raises(InputError) as caught:
        choose_metric(name, has_labels, ndim)
    assert fragment in str(caught.value)


@pytest.mark.parametrize(
    ("outputs", "labels", "fragment"),
    [
        ({"y": np.zeros((2, 3))}, None, "needs labels"),
        ({"y": np.zeros((2, 3))}, np.zeros(2), "integer labels, not float64"),
        ({"y": np.zeros((2, 3))}, np.array([0, 3]), "label 3 is beyond the model's 3 classes"),
        ({"y": np.zeros((3, 3))}, np.array([0, 1]), "output [2, classes] for labels [2]"),
        ({"y": np.zeros((2, 1))}, np.array([0, 1]), "are: y [2, 1]"),
    ],
)
def test_outputs_that_do_not_fit(
    outputs: dict[str, np.ndarray], labels: np.ndarray | None, fragment: str
) -> None:
    with pytest.raises(InputError) as caught:
        Accuracy().add(outputs, labels, 2)
    assert fragment in str(caught.value)

"""F1 score."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.verify.metrics import choose_metric, paired_drop
from onnxq.verify.metrics.f1 import F1
from tests.verify.metrics.filling import filled


def directly(found: np.ndarray, wanted: np.ndarray) -> dict[int, float]:
    """F1 of each class that occurs."""
    return {
        c: 2 * ((found == c) & (wanted == c)).sum() / ((found == c).sum() + (wanted == c).sum())
        for c in {*found.tolist(), *wanted.tolist()}
    }


def test_it_is_the_mean_over_classes_that_occur_or_one_class() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(50, 9)), generator.integers(0, 6, 50)
    logits[:, 7] = -9
    wanted = directly(logits.argmax(1), labels)
    value = filled(F1(), logits, labels).result().value
    assert value == pytest.approx(sum(wanted.values()) / len(wanted))
    assert filled(F1(positive=2), logits, labels).result().value == pytest.approx(wanted[2])
    metrics = pytest.importorskip("sklearn.metrics", reason="an oracle that need not be there")
    assert value == pytest.approx(metrics.f1_score(labels, logits.argmax(1), average="macro"))


def test_one_number_a_position_is_held_against_a_threshold() -> None:
    outputs = np.array([[0.1], [0.6], [0.9], [np.nan]])
    metric = filled(F1(positive=1, threshold=0.7), outputs, np.array([0, 1, 1, 1]))
    assert metric.result().value == pytest.approx(2 * 1 / (1 + 3))


def test_the_interval_covers_what_simulated_drops_vary_by() -> None:
    generator = np.random.default_rng(1)

    def drop_of() -> tuple[float, tuple[float, float]]:
        labels = generator.integers(0, 3, (200, 2))
        scores = np.eye(3)[labels] + generator.normal(size=(200, 2, 3))
        worse = scores + generator.normal(size=scores.shape)
        found = paired_drop(filled(F1(), scores, labels), filled(F1(), worse, labels))
        assert found.confidence is not None
        return found.drop, found.confidence

    drops = [drop_of() for _ in range(30)]
    truth = float(np.mean([drop for drop, _ in drops]))
    assert sum(low <= truth <= high for _, (low, high) in drops) >= 26
    assert 2 < np.mean([h - low for _, (low, h) in drops]) / np.std([d for d, _ in drops]) < 6


def test_the_float_models_classes_stand_in_and_negative_labels_do_not_count() -> None:
    ours, theirs = np.eye(3)[[0, 1, 2, 2]], np.eye(3)[[0, 1, 2, 1]]
    metric = F1()
    metric.add({"y": theirs}, None, 4, {"y": ours})
    assert metric.result().value == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    assert filled(F1(), theirs, np.array([0, 1, 2, -1])).result().value == 1.0


def test_nothing_to_count_is_no_score() -> None:
    for metric, labels in ((F1(), [-1, -1]), (F1(positive=2), [0, 1])):
        with pytest.raises(InputError, match=r"metric f1.*: there is nothing to count"):
            filled(metric, np.eye(3)[[0, 1]], np.array(labels)).result()


def test_what_does_not_fit() -> None:
    for option in ("positive=-1", "threshold=nan"):
        with pytest.raises(InputError, match=f"option '{option.partition('=')[0]}' of metric f1"):
            choose_metric(f"f1{{{option}}}", False, None)
    with pytest.raises(InputError, match="class 5 is beyond the model's 3 classes"):
        filled(F1(), np.eye(3), np.array([0, 1, 5]))
    with pytest.raises(InputError, match=r"output of labels \[2\]"):
        filled(F1(), np.eye(3), np.array([0, 1]))

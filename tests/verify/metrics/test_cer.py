"""Character error rate."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.verify.metrics import choose_metric, paired_drop
from onnxq.verify.metrics.cer import CharacterErrors
from onnxq.verify.metrics.ctc import decoded, distance
from tests.verify.metrics.filling import filled


def steps(*rows: list[int], classes: int = 5) -> np.ndarray:
    """Outputs that choose these classes."""
    return np.eye(classes, dtype=np.float32)[np.array(rows)]


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_the_distance_is_that_of_its_recursive_definition(one: str, other: str) -> None:
    @cache
    def between(i: int, j: int) -> int:
        if i == 0 or j == 0:
            return i + j
        replaced = between(i - 1, j - 1) + (one[i - 1] != other[j - 1])
        return min(between(i - 1, j) + 1, between(i, j - 1) + 1, replaced)

    assert distance(one, other) == between(len(one), len(other))


def test_repetitions_are_one_unless_a_blank_is_between() -> None:
    assert decoded(np.array([0, 1, 1, 0, 1, 2, 2, 0, 0]), 0) == [1, 1, 2]
    assert decoded(np.array([0, 0, 4, 4]), 4) == [0]


def test_errors_per_true_character() -> None:
    outputs = steps([1, 1, 0, 2, 3, 0], [4, 0, 4, 4, 0, 0])
    # 1 2 3 instead of 1 3, and 4 4 instead of 4 4 2 1: three errors in six.
    labels = np.array([[1, 3, -1, -1], [4, 4, 2, 1]])
    result = filled(CharacterErrors(), outputs, labels).result()
    assert (result.value, result.higher_is_better) == (3 / 6, False)


def test_the_float_models_text_stands_in_for_labels() -> None:
    ours = steps([1, 0, 2, 2], [3, 0, 0, 0], [0, 0, 0, 0])
    theirs = steps([1, 0, 0, 2], [4, 0, 4, 0], [0, 0, 0, 1])
    metrics = CharacterErrors(), CharacterErrors()
    for metric, outputs in zip(metrics, (ours, theirs), strict=True):
        metric.add({"y": outputs}, None, 3, {"y": ours})
    drop = paired_drop(*metrics)
    assert (drop.float, drop.drop) == (0.0, 1.0) and drop.confidence is not None


def test_steps_that_are_nan_are_no_class() -> None:
    right = steps([0, 4, 1])
    for broken, errors in ((right * np.nan, 1.0), (right * [[[1], [1], [np.nan]]], 0.5)):
        metric = CharacterErrors(blank=4)
        metric.add({"y": broken}, None, 1, {"y": right})
        assert metric.result().value == errors
        assert filled(CharacterErrors(blank=4), broken, np.array([[0, 1]])).result().value == errors
    metric.add({"y": right * np.nan}, None, 1, {"y": right * np.nan})
    assert metric.result().value > errors, "nor is one equal to another"


def test_what_does_not_fit() -> None:
    metric = choose_metric("cer{blank=7}", True, 2)
    assert metric is not None
    with pytest.raises(InputError, match="'blank' of metric cer is 7, but output 'y' has 5"):
        metric.add({"y": steps([1])}, np.array([[1]]), 1)
    with pytest.raises(InputError, match=r"needs labels \[N, L\]"):
        filled(CharacterErrors(), steps([1]), np.array([1]))
    with pytest.raises(InputError, match=r"output \[N, T, classes\]"):
        filled(CharacterErrors(), np.zeros((1, 3)), np.array([[1]]))

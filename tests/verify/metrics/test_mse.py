"""Mean squared error."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.verify.metrics import choose_metric, paired_drop
from onnxq.verify.metrics.mse import MeanSquaredError
from tests.verify.metrics.filling import filled


def test_it_is_the_mean_over_all_numbers_and_its_rise_has_an_interval() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=(60, 3, 4)).astype(np.float32)
    ours = labels + generator.normal(size=labels.shape)
    theirs = ours + generator.normal(size=labels.shape)
    wanted = [np.mean((x - labels) ** 2) for x in (ours, theirs)]
    drop = paired_drop(*(filled(MeanSquaredError(), x, labels) for x in (ours, theirs)))
    assert [drop.float, drop.candidate] == pytest.approx(wanted)
    assert drop.drop == pytest.approx(wanted[1] - wanted[0])
    rises = ((theirs - labels) ** 2 - (ours - labels) ** 2).mean(axis=(1, 2))
    half = 1.96 * rises.std() / math.sqrt(60)
    assert drop.confidence == pytest.approx((drop.drop - half, drop.drop + half), abs=half / 5)


def test_the_float_models_output_of_that_name_stands_in_for_labels() -> None:
    ours = {"a": np.zeros((2, 3)), "b": np.ones((2, 3))}
    theirs = {"a": np.zeros((2, 3)), "b": np.array([[1, 1, 4], [1, 1, np.nan]])}
    metric = choose_metric("mse{output=b}", False, None)
    assert metric is not None
    metric.add(theirs, None, 1, ours)
    assert (metric.result().name, metric.result().value) == ("mse{output='b'}", 3.0)
    metric.add(theirs, None, 2, ours)
    assert metric.result().value == math.inf


def test_equal_infinities_are_no_error_and_what_is_nan_hides_none() -> None:
    ours = np.array([[-np.inf, 1.0], [0.0, np.inf]])
    assert filled(MeanSquaredError(), ours, ours).result().value == 0.0
    assert filled(MeanSquaredError(), -ours, ours).result().value == math.inf
    broken = [filled(MeanSquaredError(), x * np.nan, ours) for x in (ours, ours + 9)]
    assert math.isnan(paired_drop(*broken).drop)


def test_what_does_not_fit() -> None:
    metric, outputs = MeanSquaredError(output="c"), {"a": np.zeros((2, 3))}
    with pytest.raises(InputError, match=r"output 'c' of the labels' shape \[2, 3\]"):
        metric.add(outputs, np.zeros((2, 3)), 2)
    with pytest.raises(InputError, match="one model and"):
        MeanSquaredError().add(outputs, None, 2, {"a": np.zeros((2, 4))})
    with pytest.raises(InputError, match="needs labels"):
        MeanSquaredError().add(outputs, None, 2)
    with pytest.raises(InputError, match="--max-drop"):
        MeanSquaredError.allowed_drop(0.0)

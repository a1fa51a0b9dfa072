"""Cosine similarity."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cosine

from onnxq.verify.metrics import paired_drop
from onnxq.verify.metrics.cosine import Cosine
from tests.verify.metrics.filling import filled


def test_it_is_scipys_to_labels_and_to_the_float_models_output() -> None:
    generator = np.random.default_rng(0)
    ours = generator.normal(size=(30, 8))
    theirs = ours + 0.1 * generator.normal(size=ours.shape)
    wanted = np.array([1 - cosine(a, b) for a, b in zip(ours, theirs, strict=True)])
    assert filled(Cosine(), theirs, ours).result().value == pytest.approx(wanted.mean())
    metrics = Cosine(), Cosine()
    for metric, outputs in zip(metrics, (ours, theirs), strict=True):
        metric.add({"y": outputs}, None, 30, {"y": ours})
    drop = paired_drop(*metrics)
    assert (drop.float, drop.drop) == pytest.approx((1.0, 1 - wanted.mean()))
    assert drop.confidence is not None
    assert 0 < drop.confidence[0] < drop.drop < drop.confidence[1] < (1 - wanted).max()


def test_directions_that_are_none() -> None:
    outputs = np.array([[0.0, 0.0], [np.nan, 1.0]])
    metric = filled(Cosine(), outputs, np.ones((2, 2)))
    assert metric.scores()[0].tolist() == [0.0, -1.0]

"""Nearest neighbours of embeddings."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from onnxq.errors import InputError
from onnxq.verify.metrics import paired_drop
from onnxq.verify.metrics.neighbours import Neighbours
from tests.verify.metrics.filling import filled


def test_neighbours_are_scipys_over_all_batches() -> None:
    generator = np.random.default_rng(0)
    ours = generator.normal(size=(40, 6))
    theirs = ours + 0.5 * generator.normal(size=ours.shape)
    near = [(cdist(x, x, "cosine") + 9 * np.eye(40)).argmin(1) for x in (ours, theirs)]
    metrics = Neighbours(), Neighbours()
    for metric, rows in zip(metrics, (ours, theirs), strict=True):
        for start in (0, 25):
            part = slice(start, start + 25)
            metric.add({"y": rows[part]}, None, len(rows[part]), {"y": ours[part]})
    drop = paired_drop(*metrics)
    assert (drop.float, drop.candidate) == (1.0, (near[0] == near[1]).mean())
    assert 0 < drop.drop < 1
    assert drop.confidence is not None and drop.confidence[0] < drop.drop < drop.confidence[1]


def test_two_samples_are_too_few() -> None:
    metric = filled(Neighbours(), np.eye(2), np.eye(2))
    with pytest.raises(InputError, match="at least 3 samples, not 2"):
        metric.result()

"""Accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.verify.metrics.accuracy import Accuracy
from tests.verify.metrics.filling import filled


def test_accuracy_is_the_share_of_argmax_hits_over_all_batches() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(70, 10)).astype(np.float32)
    labels = generator.integers(0, 10, 70)
    labels[:30] = logits[:30].argmax(axis=1)
    metric = Accuracy()
    for start in range(0, 70, 32):
        part = slice(start, start + 32)
        # The last batch is filled up; the copies must not count.
        rows = np.resize(logits[part], (32, 10))
        metric.add({"y": rows}, np.resize(labels[part], 32), min(32, 70 - start))
    result = metric.result()
    hits = int((logits.argmax(axis=1) == labels).sum())
    assert result.value == hits / 70
    assert (result.name, result.samples, result.higher_is_better) == ("accuracy", 70, True)


def test_a_nan_among_the_outputs_is_a_miss() -> None:
    logits = np.array([[1, 0], [np.nan, 0], [1, np.nan]], np.float32)
    assert filled(Accuracy(), logits, np.zeros(3, np.int64)).result().value == pytest.approx(1 / 3)

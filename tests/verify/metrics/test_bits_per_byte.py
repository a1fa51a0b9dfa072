"""Bits per byte against scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from onnxq.verify.metrics import paired_drop
from onnxq.verify.metrics.bits_per_byte import BitsPerByte
from onnxq.verify.metrics.intervals import bootstrap_interval
from tests.verify.metrics.filling import filled


def test_bits_per_byte_equals_scipy_in_float64() -> None:
    generator = np.random.default_rng(1)
    logits = (generator.normal(size=(6, 9, 256)) * 20 + 300).astype(np.float32)
    labels = generator.integers(0, 256, (6, 9))
    logs = special.log_softmax(logits.astype(np.float64), axis=-1)
    nats = -np.take_along_axis(logs, labels[..., None], axis=-1)
    metric = BitsPerByte()
    metric.add({"y": logits[:4]}, labels[:4].astype(np.uint8), 4)
    metric.add({"y": logits[3:]}, labels[3:], 0)
    metric.add({"y": logits[4:]}, labels[4:].astype(np.int32), 2)
    result = metric.result()
    assert result.value == pytest.approx(nats.mean() / np.log(2), rel=1e-13)
    assert (result.samples, result.higher_is_better) == (6, False)


def test_uniform_logits_cost_their_entropy() -> None:
    metric = filled(BitsPerByte(), np.zeros((2, 3, 256), np.float32), np.zeros((2, 3), np.int64))
    assert metric.result().value == pytest.approx(8.0)
    assert bootstrap_interval(*metric.scores()) == pytest.approx((8.0, 8.0))


def test_bits_of_useless_logits_are_infinite() -> None:
    logits = np.array([[[np.nan, 0]], [[0, -np.inf]]], np.float32)
    finite = filled(BitsPerByte(), np.zeros((2, 1, 2)), np.ones((2, 1), np.int64))
    broken = filled(BitsPerByte(), logits, np.ones((2, 1), np.int64))
    assert broken.result().value == math.inf
    assert bootstrap_interval(*broken.scores()) == (math.inf, math.inf)
    assert paired_drop(finite, broken).drop == math.inf
    both = paired_drop(broken, broken)
    assert math.isnan(both.drop) and both.confidence is None, "what is infinite hides all else"
    assert paired_drop(broken, finite).drop == -math.inf


def test_a_rise_of_bits_per_byte_is_a_positive_drop() -> None:
    generator = np.random.default_rng(4)
    logits = generator.normal(size=(200, 5, 16))
    labels = generator.integers(0, 16, (200, 5))
    worse = logits + generator.normal(size=logits.shape)
    first, second = filled(BitsPerByte(), logits, labels), filled(BitsPerByte(), worse, labels)
    drop = paired_drop(first, second)
    assert drop.drop == pytest.approx(second.result().value - first.result().value)
    assert drop.drop > 0
    assert drop.confidence is not None
    assert drop.confidence[0] < drop.drop < drop.confidence[1]
    # Pairing removes what the samples have in common: narrower than both intervals together.
    both = (bootstrap_interval(*metric.scores()) for metric in (first, second))
    unpaired = sum(high - low for low, high in both)
    assert drop.confidence[1] - drop.confidence[0] < unpaired
    assert paired_drop(first, second, seed=5).confidence != drop.confidence
    assert paired_drop(first, second).confidence == drop.confidence

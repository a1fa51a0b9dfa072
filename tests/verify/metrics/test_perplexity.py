"""Perplexity."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.verify.metrics import paired_drop
from onnxq.verify.metrics.bits_per_token import BitsPerToken
from onnxq.verify.metrics.perplexity import Perplexity
from tests.verify.metrics.filling import filled


def test_it_is_two_to_the_power_of_the_bits_and_so_is_its_rise() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(40, 4, 30)), generator.integers(0, 30, (40, 4))
    worse = logits + generator.normal(size=logits.shape)
    bits = paired_drop(*(filled(BitsPerToken(), x, labels) for x in (logits, worse)))
    found = paired_drop(*(filled(Perplexity(), x, labels) for x in (logits, worse)))
    assert found.float == pytest.approx(2**bits.float)
    assert found.candidate == pytest.approx(2**bits.candidate)
    assert found.drop == pytest.approx(found.candidate - found.float) and found.drop > 0
    assert found.confidence is not None and bits.confidence is not None
    for end, of_bits in zip(found.confidence, bits.confidence, strict=True):
        assert end == pytest.approx(2 ** (bits.float + of_bits) - 2**bits.float)


def test_what_is_allowed_is_what_is_allowed_of_the_bits() -> None:
    assert 2**6.0 + Perplexity.allowed_drop(2**6.0) == pytest.approx(
        2 ** (6.0 + BitsPerToken.allowed_drop(6.0))
    )


def test_useless_logits_have_an_infinite_perplexity() -> None:
    labels = np.zeros((3, 1), np.int64)
    fine, broken = np.zeros((3, 1, 2)), np.full((3, 1, 2), np.nan)
    assert filled(Perplexity(), broken, labels).result().value == math.inf
    drop = paired_drop(filled(Perplexity(), fine, labels), filled(Perplexity(), broken, labels))
    assert drop.drop == math.inf

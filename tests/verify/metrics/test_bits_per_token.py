"""Bits per token."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from onnxq.verify.metrics.bits_per_token import BitsPerToken
from tests.verify.metrics.filling import filled


def test_it_is_the_cross_entropy_of_the_next_tokens() -> None:
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(3, 4, 300)), generator.integers(0, 300, (3, 4))
    logs = special.log_softmax(logits, axis=-1) / np.log(2)
    result = filled(BitsPerToken(), logits, labels).result()
    assert result.value == pytest.approx(-np.take_along_axis(logs, labels[..., None], -1).mean())
    assert (result.name, result.higher_is_better) == ("bits-per-token", False)

"""Top-5 accuracy."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxq.verify.metrics.top_5 import Top5
from tests.verify.metrics.filling import filled


@given(st.integers(0, 10_000), st.integers(2, 12))
def test_equals_a_stable_sort_also_with_ties(seed: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    logits = generator.integers(0, 3, (20, classes)).astype(np.float32)
    labels = generator.integers(0, classes, 20)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :5]
    expected = (order == labels[:, None]).any(axis=1).mean()
    assert filled(Top5(), logits, labels).result().value == expected


def test_a_label_counts_among_the_five_largest() -> None:
    logits = np.tile(np.arange(8, dtype=np.float32), (8, 1))
    result = filled(Top5(), logits, np.arange(8)).result()
    assert (result.name, result.value) == ("top-5", 5 / 8)

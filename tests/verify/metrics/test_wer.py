"""Word error rate."""

from __future__ import annotations

import numpy as np

from onnxq.verify.metrics import choose_metric


def test_errors_per_true_word() -> None:
    metric = choose_metric("wer{space=9}", True, 2)
    assert metric is not None
    # 1 2 | 3 | 4 instead of 1 2 | 3 3 | 4 | 5: one word is wrong and one missing, of four.
    text = [9, 1, 0, 2, 9, 9, 3, 3, 9, 4]
    labels = np.array([[1, 2, 9, 3, 3, 9, 4, 9, 5, -1]])
    metric.add({"y": np.eye(10, dtype=np.float32)[[text]]}, labels, 1)
    result = metric.result()
    assert (result.name, result.value) == ("wer{space=9}", 2 / 4)

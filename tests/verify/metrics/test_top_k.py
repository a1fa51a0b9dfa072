"""Top-k accuracy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.errors import InputError
from onnxq.verify.metrics import choose_metric, paired_drop
from onnxq.verify.metrics.top_k import TopK
from tests.verify.metrics.filling import filled


@given(st.integers(0, 10_000), st.integers(1, 10), st.integers(1, 6))
def test_equals_a_stable_sort_also_with_ties(seed: int, others: int, k: int) -> None:
    generator, classes = np.random.default_rng(seed), k + others
    logits = generator.integers(0, 3, (20, classes)).astype(np.float32)
    labels = generator.integers(0, classes, 20)
    order = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    expected = (order == labels[:, None]).any(axis=1).mean()
    assert filled(TopK(k=k), logits, labels).result().value == expected


def test_its_name_has_the_options_that_differ() -> None:
    logits = np.tile(np.arange(8, dtype=np.float32), (8, 1))
    result = filled(TopK(), logits, np.arange(8)).result()
    assert (result.name, result.value) == ("top-k", 5 / 8)
    assert filled(TopK(k=3), logits, np.arange(8)).result().name == "top-k{k=3}"


def test_the_float_models_choice_stands_in_for_labels() -> None:
    ours = {"y": np.eye(4, 6, dtype=np.float32)}
    theirs = {"y": np.roll(ours["y"], 1, axis=1) + ours["y"] / 2}
    metrics = [choose_metric(f"top-k{{k={k}}}", False, None) for k in (1, 1, 2)]
    for metric, outputs in zip(metrics, (ours, theirs, theirs), strict=True):
        assert metric is not None
        metric.add(outputs, None, 4, ours)
    assert [m.result().value for m in metrics if m] == [1.0, 0.0, 1.0]
    assert metrics[0] and metrics[1]
    drop = paired_drop(metrics[0], metrics[1])
    assert drop.drop == 1.0 and drop.confidence is not None


@pytest.mark.parametrize("form", ["top-k{k=0}", "top-k{k=many}", "top-k{n=2}"])
def test_options_that_cannot_be(form: str) -> None:
    with pytest.raises(InputError, match="top-k"):
        choose_metric(form, True, 1)


def test_as_many_as_there_are_classes_would_always_be_right() -> None:
    for k in (3, 50):
        with pytest.raises(InputError, match=f"always among the {k} largest of 3 classes"):
            filled(TopK(k=k), np.eye(3), np.arange(3))


def test_without_anything_to_hold_against() -> None:
    with pytest.raises(InputError, match="needs labels"):
        TopK().add({"y": np.zeros((2, 3))}, None, 2)

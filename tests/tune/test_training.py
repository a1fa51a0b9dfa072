"""The options of training, which need no torch."""

from __future__ import annotations

import importlib.util

import pytest

import onnxq
from onnxq import InputError, TrainOptions
from onnxq.ir import to_proto
from tests.networks import chain, inputs


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"epochs": -1}, ("epochs", "at least 0", "-1")),
        ({"lr": -1.0}, ("lr", "at least 0")),
        ({"warmup": 1.0}, ("warmup", "below 1")),
        ({"average": 1.0}, ("average", "below 1")),
        ({"held_out": 0.0}, ("held_out",)),
        ({"patience": -1}, ("patience",)),
        ({"method": "guess"}, ("method", "guess", "lsq, lsq+, ste")),
        ({"augment": ("turn",)}, ("turn", "flip, crop, cutout, mixup")),
        ({"through": "w4a4"}, ("through", "['w4a4']")),
        ({"augment": "flip"}, ("augment", "['flip']")),
    ],
)
def test_what_cannot_be(options: dict[str, object], parts: tuple[str, ...]) -> None:
    with pytest.raises(InputError) as caught:
        TrainOptions(**options).check()  # type: ignore[arg-type]
    for part in parts:
        assert part in str(caught.value)


def test_another_rate_is_no_other_training() -> None:
    assert TrainOptions(lr=1e-5).basis() == TrainOptions().basis()
    assert TrainOptions(epochs=3).basis() != TrainOptions().basis()


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is here")
def test_without_torch_it_says_what_to_install() -> None:
    graph = chain()
    with pytest.raises(InputError, match=r"pip install \"onnxq\[train\]\""):
        onnxq.train(to_proto(graph).SerializeToString(), inputs(graph))

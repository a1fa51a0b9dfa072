"""Whole models in torch against onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs torch: pip install "onnxq[train]"')

from onnxq.ir import infer_types, load
from onnxq.tune.train.executor import Executor
from tests.helpers import Feeds, assert_same_outputs, random_feeds, run

TOLERANCE = 1e-4
"""Of the largest magnitude of an output."""


def assert_same_model(path: Path, feeds: Feeds | None = None) -> None:
    graph = load(path)
    infer_types(graph)
    fed = feeds or random_feeds(graph, dims={"batch": 2}, other_dims=1)
    assert_same_outputs(run(graph, fed), Executor(graph).evaluate(fed), exact=False, rtol=TOLERANCE)


@pytest.mark.parametrize("name", ["digits_resnet", "digits_vit", "text_lm"])
def test_models_are_those_of_onnxruntime(name: str) -> None:
    assert_same_model(Path(f"models/{name}.onnx"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *("byte_bidi_lstm", "dtln_1", "dtln_2", "light_densenet121", "light_shufflenet", "loop"),
        *("magika_v3_3", "mnist", "residual_block", "ultraface_rfb_320", "ultraface_slim_320"),
    ],
)
def test_models_of_the_zoo_are_those_of_onnxruntime(corpus: Path, name: str) -> None:
    assert_same_model(corpus / "zoo" / f"{name}.onnx")


@pytest.mark.slow
def test_a_trained_network_is_that_of_onnxruntime(corpus: Path) -> None:
    assert_same_model(corpus / "models" / "cifar_resnet20.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("rate", [8000, 16000])
@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_op18_ifless"])
def test_speech_detection_is_that_of_onnxruntime(corpus: Path, name: str, rate: int) -> None:
    path = corpus / "zoo" / f"{name}.onnx"
    graph = load(path)
    generator = np.random.default_rng(0)
    sizes = {"input": (1, rate // 16000 * 256 + 256), "state": (2, 1, 128), "h": (2, 1, 64)}
    sizes["c"] = sizes["h"]
    feeds = {
        v.name: np.array(rate)
        if v.name == "sr"
        else generator.normal(size=sizes[v.name]).astype(np.float32)
        for v in graph.inputs
    }
    assert_same_model(path, feeds)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ocr_det", "ocr_cls", "minilm"])
def test_models_that_people_ship_are_those_of_onnxruntime(real: Path, name: str) -> None:
    data = np.load(real / "data" / f"{name}.npz")
    path = real / "models" / f"{name}.onnx"
    feeds = {v.name: data[v.name][:2] for v in load(path).inputs if v.data is None}
    assert_same_model(path, feeds)

"""The main job on trained networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.errors import InputError
from onnxq.ir import load
from onnxq.runtime import (
    Session,
    integer_operators,
    optimized_operators,
)
from tests.networks import computed
from tests.optimizing import optimize, short_timing
from tests.quantization import run_reference

__all__ = ["computed", "short_timing"]

pytestmark = pytest.mark.usefixtures("computed")

MODELS = Path(__file__).parents[1] / "models"


def test_digits(tmp_path: Path) -> None:
    output = tmp_path / "q.onnx"
    found = optimize(
        MODELS / "digits_resnet.onnx",
        MODELS / "digits.npz",
        output=output,
        max_drop=0.005,
        min_speedup=0.0,
    )
    report = found.report
    assert found.passed and found.written == output
    assert report.metric is not None
    assert report.metric.name == "accuracy" and report.metric.samples == 450
    assert report.metric.float >= 0.98 and report.metric.drop <= 0.005
    assert report.size.ratio >= 3.4
    assert report.sqnr_db >= 25
    computing = ("Conv", "Add", "Relu", "Gemm")
    layers = [layer for layer in report.layers if layer.op_type in computing]
    assert len(layers) > 30 and {layer.precision for layer in layers} == {"int8"}
    assert all(layer.sqnr_db > 25 for layer in layers)
    # At the input, and behind the mean, which is left in float.
    counts = optimized_operators(output)
    assert counts["QuantizeLinear"] <= 2
    assert not {"Conv", "FusedConv", "Add", "Relu", "Gemm"} & {
        name.rpartition(":")[2] for name in counts
    }
    images = np.load(MODELS / "digits.npz")["image"][:4].astype(np.float32)
    wanted = Session(output).run({"image": images})["logits"]
    reference = run_reference(load(output), {"image": images})["logits"]
    assert np.abs(wanted - reference).max() <= np.ptp(wanted) / 255


CIFAR_MEAN = np.array((0.4914, 0.4822, 0.4465), np.float32)
CIFAR_STD = np.array((0.2470, 0.2435, 0.2616), np.float32)


def _cifar(path: Path) -> dict[str, np.ndarray]:
    arrays = np.load(path)
    images = (arrays["image"].astype(np.float32) / 255 - CIFAR_MEAN) / CIFAR_STD
    return {"image": images.transpose(0, 3, 1, 2), "labels": arrays["labels"]}


@pytest.mark.slow
def test_cifar(corpus: Path, tmp_path: Path) -> None:
    found = optimize(
        corpus / "models" / "cifar_resnet20.onnx",
        _cifar(corpus / "data" / "cifar10_calib.npz"),
        eval_data=_cifar(corpus / "data" / "cifar10_eval.npz"),
        output=tmp_path / "q.onnx",
        max_drop=0.01,
        min_speedup=0.0,
    )
    assert found.passed
    assert found.report.metric is not None and found.report.metric.samples == 4000
    assert found.report.metric.drop <= 0.01


ZOO_DIMS = {"sequence": 512, "length": 64}
"""Sizes of dimensions that some of these models have by name."""


def _zoo_feeds(path: Path) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    feeds = []
    for _ in range(4):
        feed = {}
        for spec in Session(path).inputs:
            assert spec.dtype is not None and spec.shape is not None
            shape = [d if isinstance(d, int) else ZOO_DIMS.get(d or "", 1) for d in spec.shape]
            if path.name == "silero_vad.onnx" and spec.name == "input":
                shape = [1, 512]
            if spec.name == "sr":
                feed["sr"] = np.array(16000)
            elif spec.dtype.kind == "f":
                feed[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
            else:
                high = 2 if path.name == "loop.onnx" else 200
                feed[spec.name] = rng.integers(0, high, shape).astype(spec.dtype)
        feeds.append(feed)
    return feeds


@pytest.mark.slow
def test_every_model_of_the_zoo_is_quantized_or_refused_in_a_sentence(
    corpus: Path, tmp_path: Path
) -> None:
    entries = json.loads((corpus / "zoo" / "index.json").read_text())
    outcomes = {}
    for entry in entries:
        if entry["runs_in_onnxruntime"] is not True:
            continue
        path, output = corpus / "zoo" / entry["file"], tmp_path / entry["file"]
        try:
            optimize(
                path,
                _zoo_feeds(path),
                output=output,
                keep_failed=True,
            )
        except InputError as error:
            assert not output.exists() and "\n" not in str(error)
            outcomes[path.name] = str(error)
        else:
            # This one's file states a rank for its output that is wrong.
            stated_right = path.name != "residual_block.onnx"
            onnx.checker.check_model(str(output), full_check=stated_right)
            assert integer_operators(output)
            outcomes[path.name] = "quantized"
    quantized = {name for name, outcome in outcomes.items() if outcome == "quantized"}
    assert {"mnist.onnx", "ultraface_rfb_320.onnx", "magika_v3_3.onnx"} <= quantized, outcomes
    refused = set(outcomes.values()) - {"quantized"}
    assert all("nothing in the model can be quantized" in reason for reason in refused), outcomes

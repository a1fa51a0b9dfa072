"""What the example models are worth on their held-out samples."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from torch import nn

CALIBRATION, HELD_OUT = 0, 1
Metric = Callable[[NDArray[np.float32], NDArray[np.int64]], float]


def open_session(path: Path) -> ort.InferenceSession:
    """Open a model in onnxruntime on the CPU with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_all(session: ort.InferenceSession, samples: NDArray[Any]) -> NDArray[np.float32]:
    """Run the samples one at a time; returns the first output, stacked along the first axis."""
    name = session.get_inputs()[0].name
    return np.concatenate(
        [session.run(None, {name: samples[i : i + 1]})[0] for i in range(len(samples))]
    )


def median_latency_ms(
    session: ort.InferenceSession, sample: NDArray[Any], repeats: int = 200
) -> float:
    """Return the median time of one inference in milliseconds, after 20 unmeasured ones."""
    feed = {session.get_inputs()[0].name: sample}
    seconds = []
    for _ in range(20 + repeats):
        start = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - start)
    return float(np.median(seconds[20:])) * 1e3


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of samples ``[N]`` whose largest logit ``[N, C]`` is at the label."""
    return float(np.mean(logits.argmax(axis=1) == labels))


def bits_per_byte(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the mean cross-entropy in bits of logits ``[N, T, 256]`` at labels ``[N, T]``."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    log_norm = np.log(np.exp(shifted).sum(axis=-1))
    picked = np.take_along_axis(shifted, labels[..., None], axis=-1)[..., 0]
    return float(np.mean(log_norm - picked) / math.log(2.0))


def report_file(model: nn.Module, path: Path, data_path: Path, metric: Metric) -> None:
    """The same as `report` with the held-out samples of a data file."""
    with np.load(data_path) as data:
        held_out = data["split"] == HELD_OUT
        samples = next(data[name][held_out] for name in data if name not in ("labels", "split"))
        report(model, path, samples, data["labels"][held_out], metric)
    print(f"  {data_path.name}: {data_path.stat().st_size} bytes, sha256 {sha256(data_path)}")


def report(
    model: nn.Module,
    path: Path,
    samples: NDArray[Any],
    labels: NDArray[np.int64],
    metric: Metric,
) -> None:
    """Check an exported model, compare it with torch, and print what the README states.

    Raises:
        onnx.checker.ValidationError: the model is not valid ONNX.
        AssertionError: torch and onnxruntime disagree on the held-out samples.
    """
    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    session = open_session(path)
    logits = run_all(session, samples)
    with torch.inference_mode():
        expected = np.concatenate(
            [model(torch.from_numpy(samples[i : i + 1])).numpy() for i in range(len(samples))]
        )
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    score = metric(logits, labels)
    np.testing.assert_allclose(score, metric(expected, labels), rtol=1e-6)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{path.name}: {metric.__name__} {score:.4f} on {len(samples)} held-out samples")
    print(f"  {parameters} parameters, {path.stat().st_size} bytes, sha256 {sha256(path)}")
    print(f"  one inference, batch 1, one thread: {median_latency_ms(session, samples[:1]):.2f} ms")
    print(f"  operators: {dict(Counter(node.op_type for node in proto.graph.node).most_common())}")

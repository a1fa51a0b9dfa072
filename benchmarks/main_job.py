"""Print what `onnxq optimize` gains and costs on the example models, and on a CIFAR-10 model.

Usage: python benchmarks/main_job.py [--threads N]

The CIFAR-10 model takes part when ONNXQ_CORPUS names a folder with models/cifar_resnet20.onnx,
data/cifar10_calib.npz and data/cifar10_eval.npz. Float and quantized model are measured in turn in
one process. The column onnxruntime is its own `quantize_static` (QDQ, uint8 activations, int8
weights per channel, after `quant_pre_process`) on the same calibration samples, measured likewise.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

import onnxq
from onnxq.data import read
from onnxq.runtime import Session

ROOT = Path(__file__).resolve().parent.parent
CIFAR_MEAN = np.array((0.4914, 0.4822, 0.4465), dtype=np.float32)
CIFAR_STD = np.array((0.2470, 0.2435, 0.2616), dtype=np.float32)

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One model with its calibration and held-out samples."""

    name: str
    model: Path
    data: Path | Arrays
    eval_data: Arrays | None = None


def main() -> None:
    """Measure every model and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=1, help="threads inside one operator")
    threads = parser.parse_args().threads
    print(
        "| model | metric | float | int8 | drop | SQNR | size | speed | onnxruntime: SQNR, speed |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in _cases():
        print(_row(case, threads), flush=True)


def _cases() -> Iterator[Case]:
    models = ROOT / "models"
    for name, data in (("digits_resnet", "digits"), ("digits_vit", "digits"), ("text_lm", "text")):
        yield Case(name, models / f"{name}.onnx", models / f"{data}.npz")
    corpus = Path(os.environ.get("ONNXQ_CORPUS", "none"))
    cifar = corpus / "models" / "cifar_resnet20.onnx"
    if cifar.exists():
        yield Case(
            "cifar_resnet20",
            cifar,
            _cifar(corpus / "data" / "cifar10_calib.npz", 128),
            _cifar(corpus / "data" / "cifar10_eval.npz", 4000),
        )


def _cifar(path: Path, count: int) -> Arrays:
    with np.load(path) as file:
        image, labels = file["image"][:count], file["labels"][:count]
    scaled = (image.astype(np.float32) / 255 - CIFAR_MEAN) / CIFAR_STD
    return {"image": np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), "labels": labels}


def _row(case: Case, threads: int) -> str:
    data: object = case.data if isinstance(case.data, dict) else str(case.data)
    result = onnxq.optimize(
        case.model, data, eval_data=case.eval_data, threads=threads, min_speedup=0
    )
    report = result.report
    assert report.metric is not None and report.latency is not None
    return (
        f"| {case.name} | {report.metric.name} | {report.metric.float:.4f} "
        f"| {report.metric.candidate:.4f} | {report.metric.drop:.4f} | {report.sqnr_db:.1f} dB "
        f"| 1/{report.size.ratio:.2f} | {report.latency.speedup:.2f}x "
        f"| {_onnxruntime(case, data, threads)} |"
    )


def _onnxruntime(case: Case, data: object, threads: int) -> str:
    specs = Session(case.model).inputs
    samples = read(data, specs)
    calibration = samples if case.eval_data is not None else samples.split(0)[0]
    held_out = case.eval_data if case.eval_data is not None else data
    with tempfile.TemporaryDirectory() as name:
        prepared, quantized = Path(name) / "prepared.onnx", Path(name) / "quantized.onnx"
        quant_pre_process(str(case.model), str(prepared))
        quantize_static(
            str(prepared),
            str(quantized),
            _Reader(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        report = onnxq.compare(case.model, quantized, held_out, threads=threads, layers=False)
    assert report.latency is not None
    return f"{report.sqnr_db:.1f} dB, {report.latency.speedup:.2f}x"


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, data: onnxq.data.Dataset) -> None:
        self._feeds = (batch.feeds for batch in data.batches())

    def get_next(self) -> Arrays | None:
        return next(self._feeds, None)


if __name__ == "__main__":
    main()

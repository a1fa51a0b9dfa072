"""The models that benchmarks measure, their data, and what onnxruntime itself makes of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from structures import STRUCTURES, samples

from onnxq.data import Dataset, read
from onnxq.runtime import Session

MODELS = Path(__file__).resolve().parent.parent / "models"

CIFAR_MEAN = np.array((0.4914, 0.4822, 0.4465), dtype=np.float32)
CIFAR_STD = np.array((0.2470, 0.2435, 0.2616), dtype=np.float32)

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """One model with its samples; the held-out ones are a part of the data if None."""

    name: str
    model: Path
    data: Path | Arrays
    eval_data: Arrays | None = None

    def parts(self) -> tuple[Dataset, Dataset]:
        """Samples to calibrate on, and samples held out."""
        specs = Session(self.model).inputs
        data = read(self.data, specs)
        if self.eval_data is None:
            return data.split(0)
        return data, read(self.eval_data, specs)


def trained_cases(calibration: int = 128) -> Iterator[Case]:
    """The models of this repository, and the CIFAR-10 model where ONNXQ_CORPUS has it.

    ``calibration`` is the number of samples that the CIFAR-10 model calibrates on.
    """
    for name, data in (("digits_resnet", "digits"), ("digits_vit", "digits"), ("text_lm", "text")):
        yield Case(name, MODELS / f"{name}.onnx", MODELS / f"{data}.npz")
    corpus = Path(os.environ.get("ONNXQ_CORPUS", "none"))
    cifar = corpus / "models" / "cifar_resnet20.onnx"
    if cifar.exists():
        yield Case(
            "cifar_resnet20",
            cifar,
            _cifar(corpus / "data" / "cifar10_calib.npz", calibration),
            _cifar(corpus / "data" / "cifar10_eval.npz", 4000),
        )


def structure_cases(folder: Path, count: int = 32) -> Iterator[Case]:
    """Well-known structures with random weights, written to a folder, with random samples."""
    for name, make in STRUCTURES.items():
        model = make()
        path = folder / f"{name}.onnx"
        onnx.save(model, path)
        yield Case(name, path, samples(model, count))


def onnxruntime_static(case: Case, output: Path) -> None:
    """Its `quantize_static`: QDQ, uint8 activations, int8 weights per channel, pre-processed."""
    prepared = output.with_suffix(".prepared.onnx")
    quant_pre_process(str(case.model), str(prepared))
    quantize_static(
        str(prepared),
        str(output),
        _Reader(case.parts()[0]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def onnxruntime_dynamic(case: Case, output: Path) -> None:
    """Its `quantize_dynamic` of matrix products, int8 weights per channel, pre-processed."""
    prepared = output.with_suffix(".prepared.onnx")
    quant_pre_process(str(case.model), str(prepared))
    quantize_dynamic(
        str(prepared),
        str(output),
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


def _cifar(path: Path, count: int) -> Arrays:
    with np.load(path) as file:
        image, labels = file["image"][:count], file["labels"][:count]
    scaled = (image.astype(np.float32) / 255 - CIFAR_MEAN) / CIFAR_STD
    return {"image": np.ascontiguousarray(scaled.transpose(0, 3, 1, 2)), "labels": labels}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, data: Dataset) -> None:
        self._feeds = (batch.feeds for batch in data.batches())

    def get_next(self) -> Arrays | None:
        return next(self._feeds, None)

"""The models that benchmarks measure, their data, and what onnxruntime itself makes of them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
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

_PER_CHANNEL_OPSET, _PER_CHANNEL_IR = 13, 7

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
        yield cifar_case("cifar_resnet20", cifar, calibration)


def cifar_case(name: str, model: Path, calibration: int) -> Case:
    """A CIFAR-10 model with the images that ONNXQ_CORPUS has."""
    data = Path(os.environ["ONNXQ_CORPUS"]) / "data"
    return Case(
        name,
        model,
        _cifar(data / "cifar10_calib.npz", calibration),
        _cifar(data / "cifar10_eval.npz", 4000),
    )


def structure_cases(folder: Path, count: int = 32) -> Iterator[Case]:
    """Well-known structures with random weights, written to a folder, with random samples."""
    for name, make in STRUCTURES.items():
        model = make()
        path = folder / f"{name}.onnx"
        onnx.save(model, path)
        yield Case(name, path, samples(model, count))


def real_cases() -> Iterator[Case]:
    """Models that people ship, where ONNXQ_REAL names the folder that `real/fetch.py` filled.

    Those of the model corpus need ONNXQ_CORPUS as well. Of the language model's data 16 windows
    are used.
    """
    folder = Path(os.environ.get("ONNXQ_REAL", "none"))
    zoo = Path(os.environ.get("ONNXQ_CORPUS", "none")) / "zoo"
    own = {name: folder / "models" / f"{name}.onnx" for name in _EXPORTED}
    found = {**own, **{name: zoo / file for name, file in _IN_ZOO.items()}}
    for name, model in found.items():
        data = folder / "data" / f"{_DATA.get(name, name)}.npz"
        if model.is_file() and data.is_file():
            yield Case(name, model, _first_rows(data, 16) if name == "smollm2" else data)


_EXPORTED = ("ocr_det", "ocr_cls", "ocr_rec", "minilm", "smollm2")
_IN_ZOO = {
    "ultraface_slim": "ultraface_slim_320.onnx",
    "ultraface_rfb": "ultraface_rfb_320.onnx",
    "silero_vad": "silero_vad.onnx",
    "magika": "magika_v3_3.onnx",
    "dtln_1": "dtln_1.onnx",
    "dtln_2": "dtln_2.onnx",
    "byte_bidi_lstm": "byte_bidi_lstm.onnx",
}
_DATA = {"ultraface_slim": "ultraface", "ultraface_rfb": "ultraface"}


def readied(case: Case, output: Path) -> Case:
    """The case as other quantizers want it, its model written beside the output if it changed.

    Weights that are listed as inputs become constants, as onnxruntime's own tool makes them: what
    callers may override is not quantized. Older opsets are raised to the first that has scales per
    channel: below it onnxruntime writes invalid models, and NNCF wants 10.
    """
    model = onnx.load(case.model, load_external_data=False)
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    if len(inputs) == len(model.graph.input) and opset >= _PER_CHANNEL_OPSET:
        return case
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    if opset < _PER_CHANNEL_OPSET:
        model = onnx.version_converter.convert_version(model, _PER_CHANNEL_OPSET)
    model.ir_version = max(model.ir_version, _PER_CHANNEL_IR)
    path = output.with_suffix(".readied.onnx")
    onnx.save(model, path)
    return replace(case, model=path)


def onnxruntime_static(case: Case, output: Path, *, per_channel: bool = True) -> None:
    """Its `quantize_static`: QDQ, uint8 activations, int8 weights, pre-processed."""
    quantize_static(
        str(_preprocessed(case, output)),
        str(output),
        _Reader(case.parts()[0]),
        quant_format=QuantFormat.QDQ,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def onnxruntime_dynamic(
    case: Case, output: Path, operators: Sequence[str] = ("MatMul", "Gemm")
) -> None:
    """Its `quantize_dynamic` of matrix products, int8 weights per channel, pre-processed."""
    quantize_dynamic(
        str(_preprocessed(case, output)),
        str(output),
        op_types_to_quantize=list(operators),
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


def onnxruntime_fused(case: Case, kind: str, output: Path) -> Case:
    """The case with what its optimizer for a kind of transformers makes of the model.

    The optimizer needs torch, so it works in the environment that `real/fetch.py` made.
    """
    python = Path(os.environ["ONNXQ_REAL"]) / "environment" / "bin" / "python"
    fused = output.with_suffix(".fused.onnx")
    command = [str(python), "-m", "onnxruntime.transformers.optimizer", "--model_type", kind]
    subprocess.run([*command, "--input", str(case.model), "--output", str(fused)], check=True)
    return replace(case, model=fused)


def _preprocessed(case: Case, output: Path) -> Path:
    prepared = output.with_suffix(".prepared.onnx").resolve()
    source = str(readied(case, output).model.resolve())
    # It leaves files in the working folder.
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        try:
            quant_pre_process(source, str(prepared))
        except Exception:
            # Its inference of symbolic shapes gives up on some models; its documentation says to
            # leave it out then.
            quant_pre_process(source, str(prepared), skip_symbolic_shape=True)
    return prepared


def _first_rows(path: Path, count: int) -> Arrays:
    with np.load(path) as file:
        return {name: file[name][:count] for name in file}


def _cifar(path: Path, count: int) -> Arrays:
    with np.load(path) as file:
        image, labels = file["image"][:count], file["labels"][:count]
    return {"image": cifar_pixels(image), "labels": labels}


def cifar_pixels(image: np.ndarray) -> np.ndarray:
    """Photographs [N, 32, 32, 3] as a CIFAR-10 model reads them."""
    scaled = (image.astype(np.float32) / 255 - CIFAR_MEAN) / CIFAR_STD
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, data: Dataset) -> None:
        self._feeds = (batch.feeds for batch in data.batches())

    def get_next(self) -> Arrays | None:
        return next(self._feeds, None)

"""What accuracy methods are tried on: models, formats, and the data to fit and to judge with."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from cases import MODELS, Arrays, Case, cifar_case, real_cases, trained_cases
from outliers import plant_outliers

TARGETS = Path(__file__).resolve().parent / "targets"
TARGET = "cpu-x64"

SHARED_TOKENS = 12
"""So many tokens in a row make windows parts of one text."""

_ROUNDED = ("onnxruntime-rtn-symmetric", "onnxruntime-rtn", "onnxruntime-hqq")


@dataclass(frozen=True)
class Format:
    """What weights and activations are stored in.

    Attributes:
        name: On the command line.
        title: For people.
        precision: In onnxq's text form.
        rivals: What else makes it.
        target: Of onnxq.
        bits: Of a weight, for rivals.
        block: Inputs that share a scale, for rivals.
    """

    name: str
    title: str
    precision: str
    rivals: tuple[str, ...] = ()
    target: str = TARGET
    bits: int = 8
    block: int = 0


W4 = Format(
    "w4",
    "W4 block 128",
    "int4-weight{block_size=128}",
    (*_ROUNDED, *(f"onnxruntime-{name}" for name in ("k-quant", "gptq", "gptq-corrected"))),
    bits=4,
    block=128,
)
W3 = Format("w3", "W3 block 128", "int3-weight{block_size=128}")
W2 = Format(
    "w2",
    "W2 block 32",
    "int2-weight{block_size=32}",
    _ROUNDED,
    bits=2,
    block=32,
)
W2_ZERO = Format(
    "w2-zero",
    "W2 zero-point block 32",
    "int2-weight{block_size=32, scheme=zero-point}",
)
W8A8 = Format("w8a8", "W8A8", "int8", ("onnxruntime-static",))
W8A8_TENSOR = Format(
    "w8a8-tensor",
    "W8A8 per tensor",
    "int8",
    ("onnxruntime-static-tensor",),
    target=str(TARGETS / "per-tensor.toml"),
)
W4A8 = Format("w4a8", "W4A8", "int8", target=str(TARGETS / "w4a8.toml"))

FORMATS = {format.name: format for format in (W4, W3, W2, W2_ZERO, W8A8, W8A8_TENSOR, W4A8)}


@dataclass(frozen=True)
class Trial:
    """One model in one format.

    Attributes:
        case: Model and data.
        format: What its weights and activations are stored in.
        rivals: What else is tried.
        pins: What onnxq is to leave as it is.
        left: The same in words.
    """

    case: Case
    format: Format
    rivals: tuple[str, ...]
    pins: tuple[str, ...] = ()
    left: str = ""

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.format.title}, {self.left}" if self.left else self.format.title

    @property
    def name(self) -> str:
        """For files."""
        return f"{self.case.name}.{self.format.name}{'' if self.pins or not self.left else '-all'}"


def trials(folder: Path, windows: int = 8) -> Iterator[Trial]:
    """All for which ONNXQ_REAL and ONNXQ_CORPUS have the models, see `cases`.

    Args:
        folder: Keeps the models that are made here.
        windows: Of the language model, to fit on, and as many others to judge with.
    """
    cases = {case.name: case for case in (*trained_cases(), *real_cases())}
    if "smollm2" in cases:
        text = _windows(Path(os.environ["ONNXQ_REAL"]) / "data" / "smollm2.npz", windows)
        model = Case("smollm2", cases["smollm2"].model, *text)
        yield from _language(model, ("node_embedding", "node_linear_210*"), "embedding and head")
    yield from _language(cases["text_lm"], ("node_embedding",), "embedding")
    if "minilm" in cases:
        yield Trial(cases["minilm"], W8A8, (*W8A8.rivals, "nncf"))
    for name in ("digits_vit", "text_lm"):
        yield Trial(_planted(cases[name], folder), W8A8, W8A8.rivals)
    if "cifar_resnet20" in cases:
        for format in (W8A8, W8A8_TENSOR, W4A8):
            yield Trial(cases["cifar_resnet20"], format, format.rivals)
        mobilenet = cifar_case("cifar_mobilenet", MODELS / "cifar_mobilenet.onnx", 128)
        for format in (W8A8, W8A8_TENSOR):
            yield Trial(mobilenet, format, format.rivals)


def _language(case: Case, floats: Sequence[str], left: str) -> Iterator[Trial]:
    """Formats of a language model.

    onnxruntime's weights in few bits leave its embedding in float, and a head that is tied to it.
    """
    pins = tuple(f"{name}=float32" for name in floats)
    for format in (W4, W3, W2, W2_ZERO):
        yield Trial(case, format, format.rivals, pins, f"{left} in float")
    yield Trial(case, W4, (), (), f"{left} in 4 bits as well")
    yield Trial(case, W8A8, W8A8.rivals)


def _windows(path: Path, count: int) -> tuple[Arrays, Arrays]:
    """Windows to fit on, and others that share no text with them."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file}
    tokens = arrays["input_ids"]
    runs = [
        {window[i : i + SHARED_TOKENS].tobytes() for i in range(len(window) - SHARED_TOKENS + 1)}
        for window in tokens
    ]
    fitted = set().union(*runs[:count])
    others = [n for n in range(count, len(tokens)) if fitted.isdisjoint(runs[n])][:count]
    parts = range(count), others
    fit, judge = ({name: a[list(rows)] for name, a in arrays.items()} for rows in parts)
    return fit, judge


def _planted(case: Case, folder: Path) -> Case:
    """The case with large values in a few channels; its model computes the same."""
    path = folder / f"{case.name}_outliers.onnx"
    if not path.is_file():
        model = onnx.load(case.model)
        plant_outliers(model)
        onnx.save(model, path)
    return Case(path.stem, path, case.data)

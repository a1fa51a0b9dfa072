"""ONNX's own node tests in torch: the outputs that ONNX expects, for every operator there is."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

pytest.importorskip("torch", reason='needs torch: pip install "onnxq[train]"')

from onnxq.errors import InputError
from onnxq.ir import infer_types, load
from onnxq.tune.train.executor import Executor
from tests.corpus.test_onnx_backend import Case, agree, cases

FEWEST = 1600
"""How many of ONNX's node tests at least have to be computed as expected."""

NO_OPERATOR = {
    *("Bernoulli", "BitCast", "BlackmanWindow", "CausalConvWithState", "CenterCropPad", "Col2Im"),
    *("DFT", "DeformConv", "HammingWindow", "HannWindow", "ImageDecoder"),
    *("LinearAttention", "MelWeightMatrix", "RandomUniformLike", "RoiAlign"),
    *("STFT", "SwiGLU", "TensorScatter"),
    # Of strings, sequences and optional values.
    *("OptionalGetElement", "OptionalHasElement", "RegexFullMatch", "SequenceConstruct"),
    *(
        "SequenceInsert",
        "SequenceLength",
        "SequenceMap",
        "SplitToSequence",
        "StringConcat",
        "StringNormalizer",
    ),
    *("StringSplit", "TfIdfVectorizer"),
}
"""Operators of ONNX's own domain, of those with node tests, that torch gets from nobody."""

RANDOM = ("test_training_dropout",)
"""Tests whose numbers are drawn."""

OTHERWISE = {
    "test_resize_downsample_scales_linear_align_corners": "its length is no whole number",
    "test_resize_downsample_scales_cubic_align_corners": "its length is no whole number",
}
"""Tests that expect what onnxruntime does not compute either."""


def refusal(case: Case) -> str:
    """Why a case is refused; empty if it is as expected, else what is wrong begins with "!"."""
    graph = load(case.model)
    infer_types(graph)
    try:
        executor = Executor(graph)
    except InputError as error:
        return str(error)
    found = executor.evaluate(case.feeds(graph))
    pairs = list(zip(case.outputs, found.values(), strict=True))
    with np.errstate(invalid="ignore"):
        right = all(agree(one, other, case) or rounds_to(one, other) for one, other in pairs)
    return "" if right else f"!{case.name}"


def rounds_to(wanted: np.ndarray, found: np.ndarray) -> bool:
    """Whether floats of 16 bits agree within two steps: ONNX rounds in other places on the way."""
    if wanted.dtype.itemsize != 2 or wanted.dtype.kind in "iu" or wanted.shape != found.shape:
        return False
    one, other = wanted.astype(np.float32), found.astype(np.float32)
    step = float(ml_dtypes.finfo(wanted.dtype).eps)
    return bool(np.abs(one - other).max() <= 2 * step * np.abs(one).max())


def test_nodes_give_what_onnx_expects() -> None:
    verdicts = [
        refusal(case)
        for case in cases("node")
        if case.name not in OTHERWISE and not case.name.startswith(RANDOM)
    ]
    assert [text for text in verdicts if text.startswith("!")] == []
    missing = {text.split("there is no ")[1].split(";")[0] for text in verdicts if "no " in text}
    assert {name for name in missing if "." not in name} <= NO_OPERATOR
    assert verdicts.count("") >= FEWEST

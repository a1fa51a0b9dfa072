"""The default float pipeline over real models: outputs stay, and a second run finds nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from onnxq.ir import Graph, Pipeline, default_passes, load, save
from onnxq.runtime import Session
from tests.helpers import assert_equivalent, assert_same_outputs, random_feeds

MODELS = Path(__file__).parents[2] / "models"


@dataclass(frozen=True)
class Feeding:
    """How a model wants to be fed: sizes of dimensions, and inputs that are no random numbers."""

    dims: Mapping[str, int] = field(default_factory=dict)
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    other_dims: int = 2


def _speech(rate: int, length: int, batch: int) -> Feeding:
    rng = np.random.default_rng(rate)
    sound = rng.standard_normal((batch, length)).astype(np.float32)
    state = rng.standard_normal((2, batch, 128)).astype(np.float32)
    return Feeding(fixed={"input": sound, "state": state, "sr": np.array(rate)})


# The speech models take both branches of their If, by sampling rate.
FEEDINGS: dict[str, list[Feeding]] = {
    "silero_vad.onnx": [_speech(16000, 512, 2), _speech(8000, 256, 1)],
    "silero_vad_op18_ifless.onnx": [_speech(16000, 512, 2), _speech(16000, 512, 1)],
    "residual_block.onnx": [Feeding(other_dims=1)],
}

# Dynamic dimensions are tried at two sizes.
DEFAULT = [Feeding(other_dims=1), Feeding(other_dims=3)]

ZOO = [
    "byte_bidi_lstm.onnx",
    "dtln_1.onnx",
    "dtln_2.onnx",
    "light_densenet121.onnx",
    "light_shufflenet.onnx",
    "loop.onnx",
    "magika_v3_3.onnx",
    "mnist.onnx",
    "residual_block.onnx",
    "silero_vad.onnx",
    "silero_vad_op18_ifless.onnx",
    "ultraface_rfb_320.onnx",
    "ultraface_slim_320.onnx",
]


def _optimized(before: Graph) -> Graph:
    after = before.copy()
    pipeline = Pipeline(default_passes())
    pipeline.run(after)
    again = {r.name: r.rewrites for r in pipeline.run(after) if r.rewrites}
    assert not again, f"a second run rewrites: {again}"
    return after


def _feeds(graph: Graph, feeding: Feeding, seed: int) -> dict[str, np.ndarray]:
    if feeding.fixed:
        return dict(feeding.fixed)
    return random_feeds(graph, seed, dims=feeding.dims, other_dims=feeding.other_dims, high=255)


def _check(path: Path, folder: Path) -> None:
    before = load(path)
    after = _optimized(before)
    for seed, feeding in enumerate(FEEDINGS.get(path.name, DEFAULT)):
        feeds = _feeds(before, feeding, seed)
        assert_equivalent(before, after, exact=False, rtol=1e-5, feeds=feeds)
    # And as a user gets it: from the file, with onnxruntime's own optimizations.
    save(after, folder / "after.onnx")
    wanted, found = Session(path).run(feeds), Session(folder / "after.onnx").run(feeds)
    assert_same_outputs(wanted, found, exact=False, rtol=1e-5)


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda p: p.name)
def test_own_models(path: Path, tmp_path: Path) -> None:
    _check(path, tmp_path)


@pytest.mark.parametrize("name", ZOO)
def test_zoo(name: str, corpus: Path, tmp_path: Path) -> None:
    path = corpus / "zoo" / name
    if not path.is_file():
        pytest.skip(f"{name} is not in the corpus")
    _check(path, tmp_path)


def test_every_runnable_file_of_the_zoo_is_tried(corpus: Path) -> None:
    entries = json.loads((corpus / "zoo" / "index.json").read_text())
    runnable = {e["file"] for e in entries if e["runs_in_onnxruntime"] is True}
    assert runnable <= set(ZOO)


def test_the_pipeline_shrinks_a_model_of_a_subgraph_per_branch(corpus: Path) -> None:
    before = load(corpus / "zoo" / "silero_vad.onnx")
    after = _optimized(before)
    counts = [sum(len(g) for g in graph.all_graphs()) for graph in (before, after)]
    assert counts[1] < counts[0] / 2

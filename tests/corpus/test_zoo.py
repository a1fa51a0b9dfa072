"""Real models: a round trip and the default float pipeline keep the outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from onnxq.ir import Graph, Pipeline, default_passes, load, save, to_proto
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


# The speech models take both branches of their If, by sampling rate, which says how much sound.
FEEDINGS: dict[str, list[Feeding]] = {
    "silero_vad.onnx": [
        _speech(r, 512 * r // 16000, batch) for r in (16000, 8000) for batch in (1, 3)
    ],
    "silero_vad_op18_ifless.onnx": [_speech(16000, 512, 1), _speech(16000, 384, 3)],
    "byte_bidi_lstm.onnx": [Feeding({"batch": 1, "length": 9}), Feeding({"batch": 3, "length": 4})],
}

# Dynamic dimensions are tried at two sizes, the batch among them.
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

TRIED = [pytest.param(n, marks=[pytest.mark.slow] * (n == "light_densenet121.onnx")) for n in ZOO]


def _optimized(before: Graph) -> Graph:
    after = before.copy()
    pipeline = Pipeline(default_passes())
    pipeline.run(after)
    again = {r.name: r.rewrites for r in pipeline.run(after) if r.rewrites}
    assert not again, f"a second run rewrites: {again}"
    saved = to_proto(after).SerializeToString(deterministic=True)
    loaded = load(saved)
    pipeline.run(loaded)
    assert to_proto(loaded).SerializeToString(deterministic=True) == saved
    return after


def _feeds(graph: Graph, feeding: Feeding, seed: int) -> dict[str, np.ndarray]:
    if feeding.fixed:
        return dict(feeding.fixed)
    return random_feeds(graph, seed, dims=feeding.dims, other_dims=feeding.other_dims, high=255)


def _check(path: Path, after: Graph, folder: Path, *, exact: bool) -> None:
    """The outputs stay, as onnxruntime computes the graph and as a user gets it from the file."""
    before = load(path)
    save(after, folder / "after.onnx")
    sessions = Session(path), Session(folder / "after.onnx")
    for seed, feeding in enumerate(FEEDINGS.get(path.name, DEFAULT)):
        feeds = _feeds(before, feeding, seed)
        assert_equivalent(before, after, exact=exact, feeds=feeds)
        wanted, found = (session.run(feeds) for session in sessions)
        assert_same_outputs(wanted, found, exact=exact, rtol=1e-5)


def _zoo_file(corpus: Path, name: str) -> Path:
    path = corpus / "zoo" / name
    if not path.is_file():
        pytest.skip(f"{name} is not in the corpus")
    return path


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.onnx")), ids=lambda p: p.name)
def test_own_models(path: Path, tmp_path: Path) -> None:
    _check(path, _optimized(load(path)), tmp_path, exact=False)


@pytest.mark.parametrize("name", TRIED)
def test_round_trip(name: str, corpus: Path, tmp_path: Path) -> None:
    path = _zoo_file(corpus, name)
    _check(path, load(path), tmp_path, exact=True)


@pytest.mark.parametrize("name", TRIED)
def test_pipeline(name: str, corpus: Path, tmp_path: Path) -> None:
    path = _zoo_file(corpus, name)
    _check(path, _optimized(load(path)), tmp_path, exact=False)


def test_every_runnable_file_of_the_zoo_is_tried(corpus: Path) -> None:
    entries = json.loads((corpus / "zoo" / "index.json").read_text())
    runnable = {e["file"] for e in entries if e["runs_in_onnxruntime"] is True}
    assert runnable <= set(ZOO)


def test_dynamic_axes_are_tried_at_two_sizes(corpus: Path) -> None:
    for name in ZOO:
        graph = load(_zoo_file(corpus, name))
        fed = [_feeds(graph, feeding, 0) for feeding in FEEDINGS.get(name, DEFAULT)]
        for value in (v for v in graph.inputs if v.data is None):
            for axis, size in enumerate(value.shape or ()):
                tried = {feeds[value.name].shape[axis] for feeds in fed}
                assert isinstance(size, int) or len(tried) > 1, (name, value.name, axis)


def test_what_onnxruntime_refuses_is_rewritten_and_saved(corpus: Path, tmp_path: Path) -> None:
    entries = json.loads((corpus / "zoo" / "index.json").read_text())
    for name in (e["file"] for e in entries if e["runs_in_onnxruntime"] is not True):
        graph = _optimized(load(_zoo_file(corpus, name)))
        save(graph, tmp_path / name)
        assert str(load(tmp_path / name)) == str(graph)


def test_the_pipeline_shrinks_a_model_of_a_subgraph_per_branch(corpus: Path) -> None:
    before = load(corpus / "zoo" / "silero_vad.onnx")
    after = _optimized(before)
    counts = [sum(len(g) for g in graph.all_graphs()) for graph in (before, after)]
    assert counts == [689, 72]

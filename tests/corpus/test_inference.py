"""Inference on real models: finds what ONNX and onnxruntime find, and nothing that is not so."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx.shape_inference
import pytest
from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference

from onnxq.ir import Graph, Pipeline, TensorType, infer_types, load, parse_passes
from onnxq.ir import infer as infer_module
from onnxq.ir.types import type_from_proto
from tests.corpus.test_zoo import DEFAULT, FEEDINGS, ZOO, Feeding
from tests.helpers import random_feeds, run

MODELS = Path(__file__).parents[2] / "models"

ONLY_ONNXRUNTIME_KNOWS = {
    # onnxruntime goes by the shape the weights give it, but the file declares a scalar.
    ("residual_block.onnx", "gpu_0/res2_0_branch2c_bn_2"),
}

NOT_BY_ONNXRUNTIME = {
    "nested_local_function.onnx": "Incomplete symbolic shape inference",
    "silero_vad.onnx": "",
}
"""Models on which onnxruntime's symbolic inference fails, and what it says then."""


def model_files(corpus: Path) -> list[Path]:
    found = [*MODELS.glob("*.onnx"), *(corpus / "models").glob("*.onnx")]
    zoo = sorted((corpus / "zoo").glob("*.onnx"))
    assert zoo, f"no models in {corpus / 'zoo'}"
    return sorted(found) + zoo


def message_types(graph: onnx.GraphProto) -> Iterator[tuple[str, TensorType]]:
    """What a message says of its tensors, those of subgraphs included."""
    for entry in (*graph.input, *graph.output, *graph.value_info):
        known = type_from_proto(entry.type)
        if isinstance(known, TensorType):
            yield entry.name, known
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from message_types(inner)


def graph_types(graph: Graph) -> dict[str, object]:
    return {name: v.type for g in graph.all_graphs() for name, v in g.values.items()}


def covers(found: object, wanted: TensorType) -> bool:
    """Whether a type has the dtype, the rank and the sizes of another."""
    if not isinstance(found, TensorType) or found.dtype is not wanted.dtype:
        return False
    if wanted.shape is None:
        return True
    return (
        found.shape is not None
        and len(found.shape) == len(wanted.shape)
        and all(
            not isinstance(w, int) or f == w for f, w in zip(found.shape, wanted.shape, strict=True)
        )
    )


def missed(graph: Graph, message: onnx.ModelProto) -> set[str]:
    """The values of which a message states what the graph does not know."""
    ours = graph_types(graph)
    return {n for n, wanted in message_types(message.graph) if not covers(ours.get(n), wanted)}


def inferred(path: Path) -> Graph:
    graph = load(path)
    infer_types(graph)
    return graph


@pytest.mark.slow
def test_finds_what_onnx_finds(corpus: Path) -> None:
    for path in model_files(corpus):
        message = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
        assert not missed(inferred(path), message), path.name


@pytest.mark.slow
def test_finds_what_onnxruntime_finds(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # onnxruntime's tool leaves a file in the working folder when it fails.
    monkeypatch.chdir(tmp_path)
    only_there, failed = set(), {}
    for path in model_files(corpus):
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                message = SymbolicShapeInference.infer_shapes(onnx.load(path), auto_merge=True)
        except Exception as error:
            failed[path.name] = str(error)
            continue
        only_there |= {(path.name, name) for name in missed(inferred(path), message)}
    assert only_there == ONLY_ONNXRUNTIME_KNOWS
    assert failed == NOT_BY_ONNXRUNTIME


@pytest.mark.slow
def test_parts_know_as_much_as_the_whole(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in model_files(corpus):
        whole = graph_types(inferred(path))
        for size in (1, 3, 20):
            with monkeypatch.context() as patch:
                patch.setattr(infer_module, "_MAX_COPIES", -1)
                patch.setattr(infer_module, "_PART_NODES", size)
                parts = graph_types(inferred(path))
            assert {n: plain(t) for n, t in parts.items()} == {
                n: plain(t) for n, t in whole.items()
            }, path.name


def plain(value_type: object) -> object:
    """A type without the names of symbols that were made up."""
    if not isinstance(value_type, TensorType) or value_type.shape is None:
        return value_type
    dims = ("unk" if str(d).startswith("unk__") else d for d in value_type.shape)
    return value_type.dtype, tuple(dims)


@pytest.mark.slow
def test_never_invents(corpus: Path) -> None:
    checked = 0
    for path in model_files(corpus):
        if path.parent.name == "zoo" and path.name not in ZOO:
            continue
        for feeding in FEEDINGS.get(path.name, DEFAULT):
            graph, feeds = prepared(load(path), feeding)
            checked += assert_true(graph, feeds, path.name)
    assert checked > 7000


def prepared(graph: Graph, feeding: Feeding) -> tuple[Graph, dict[str, np.ndarray]]:
    """The graph and what it is fed, without an If that hides nearly all of it in its branches."""
    feeds = dict(feeding.fixed) or random_feeds(
        graph, dims=feeding.dims, other_dims=feeding.other_dims
    )
    rate = graph.values.get("sr")
    if rate is not None:
        graph.replace_uses(rate, graph.constant(feeds.pop("sr")))
        graph.remove_input(rate)
        Pipeline(parse_passes("fold-constants,fold-if")).run(graph)
    return graph, feeds


def assert_true(graph: Graph, feeds: Mapping[str, np.ndarray], name: str) -> int:
    """Run with every tensor as output; what inference says of it holds.

    Gives how many tensors there were. A symbol has to stand for one size wherever it is, those
    that the file itself declares included.
    """
    declared = {v for v in graph.values.values() if v.declared}
    declared |= {v for v in graph.outputs if v.shape is not None}
    infer_types(graph)
    for value in list(graph.values.values()):
        if value.producer is not None and not value.is_output and value.dtype is not None:
            graph.add_output(value)
    sizes: dict[str, int] = {}
    for output, array in run(graph, feeds).items():
        value = graph.values[output]
        if value in declared or not isinstance(value.type, TensorType):
            continue
        assert value.type.dtype.numpy == array.dtype or array.dtype == object, (name, value)
        if value.type.shape is None:
            continue
        assert len(value.type.shape) == array.ndim, (name, value, array.shape)
        for dim, real in zip(value.type.shape, array.shape, strict=True):
            known = sizes.setdefault(dim, real) if isinstance(dim, str) else dim
            assert known in (None, real), (name, value, array.shape)
    return len(graph.outputs)

"""The stages that commands put together: model and data in, float graph, promises."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx

from onnxq.data import Batch, DataLike, Dataset, ImageOptions, read
from onnxq.data.dataset import CALIBRATION_LIMIT
from onnxq.errors import InputError, NothingToQuantizeError
from onnxq.ir import (
    Context,
    Graph,
    PassRecord,
    Pipeline,
    infer_types,
    load,
    parse_passes,
    raise_opset,
    save,
)
from onnxq.passes.notes import OVERRIDABLE, node_name
from onnxq.passes.static.placement import Placement, place
from onnxq.progress import Progress
from onnxq.recipe import Recipe
from onnxq.runtime import TensorSpec
from onnxq.targets import Target
from onnxq.verify import Gate
from onnxq.verify.result import MetricFacts

ModelLike = str | os.PathLike[str] | bytes | onnx.ModelProto

DEFAULT_MIN_SPEEDUP = 1.0
"""Without a promise of the user's, a model must at least not be slower than the float one."""

DEFAULT_MAX_DROP = 0.01
"""Without a promise of the user's: largest drop of a metric that is a fraction."""

DEFAULT_MAX_RISE = 0.02
"""Without a promise of the user's: largest rise of bits-per-byte, as a share of float's."""

DEFAULT_MIN_SQNR = 15.0
"""Without a promise and without labels: smallest SQNR of an output in dB."""


def promise(
    metric: MetricFacts | None,
    max_drop: float | None = None,
    min_speedup: float | None = None,
    min_sqnr: float | None = None,
    max_size_ratio: float | None = None,
    *,
    is_timed: bool = True,
) -> list[Gate]:
    """The gates that `optimize` holds a candidate to, the defaults filled in.

    ``is_timed`` tells whether latency can be measured; without it there is no default speedup.

    Raises:
        InputError: a drop is promised, but there is no metric to measure it by.
    """
    gates = []
    if metric is not None:
        if max_drop is None:
            is_fraction = metric.name != "bits-per-byte"
            max_drop = DEFAULT_MAX_DROP if is_fraction else DEFAULT_MAX_RISE * metric.float
        gates.append(Gate("drop", "<=", max_drop))
    elif max_drop is not None:
        raise InputError(
            "a largest drop needs a metric, and the data has no array 'labels'; add labels, or "
            "promise --min-sqnr instead"
        )
    elif min_sqnr is None:
        min_sqnr = DEFAULT_MIN_SQNR
    if min_sqnr is not None:
        gates.append(Gate("sqnr", ">=", min_sqnr))
    if min_speedup is None and is_timed:
        min_speedup = DEFAULT_MIN_SPEEDUP
    if min_speedup is not None:
        gates.append(Gate("speedup", ">=", min_speedup))
    if max_size_ratio is not None:
        if max_size_ratio <= 0:
            raise InputError(
                f"a size ratio of {max_size_ratio:g} is not possible; give more than 0"
            )
        gates.append(Gate("size_ratio", ">=", 1 / max_size_ratio))
    return gates


def single_feed(data: Dataset, specs: Sequence[TensorSpec]) -> Batch:
    """The first sample alone where the model leaves the batch open, else the first batch."""
    first = next(data.batches())
    open_batch = all(
        s.shape and not isinstance(s.shape[0], int) and len(first.feeds[s.name]) == first.size
        for s in specs
    )
    if first.size == 1 or not open_batch:
        return first
    return Batch({name: array[:1] for name, array in first.feeds.items()}, None, 1, 1)


def float_graph(
    source: Graph, steps: Recipe, table: Target, opset: int, debug: int, progress: Progress
) -> tuple[Graph, list[PassRecord]]:
    """The rewritten graph that is calibrated and quantized; its nodes have names of their own.

    Args:
        source: The model as loaded, which is left as it is.
        steps: The recipe to follow.
        table: Where the model is to run.
        opset: Raise the model to at least this opset.
        debug: Level of the passes' log, see `onnxq.ir.Context`.
        progress: Told of the stage.

    Raises:
        InputError: a pass or a node that the recipe names is not there.
    """
    progress.stage("rewriting")
    graph = raise_opset(source, opset)
    if graph is source:
        graph = source.copy()
    float_passes = steps.float_passes()
    if table.passes:
        float_passes += parse_passes(table.passes)
    records = Pipeline(float_passes).run(graph, Context(debug))
    infer_types(graph)
    seen: set[str] = set()
    for node in graph.nodes():
        if not node.name or node.name in seen:
            graph.rename_node(node, node_name(node))
        seen.add(node.name)
    names = {node.name for node in graph.all_nodes()}
    for name in steps.keep_float:
        if name not in names:
            raise InputError(
                f"the recipe keeps '{name}' in float, but after the float passes no node has that "
                "name; `onnxq rewrite` writes the model in which to look it up"
            )
    return graph, records


def place_integers(graph: Graph, steps: Recipe, table: Target) -> Placement:
    """Where static integers can go in a rewritten graph.

    Raises:
        NothingToQuantizeError: nothing in the model can be quantized.
    """
    placed = place(graph, table, frozenset(steps.keep_float))
    if not placed.nodes:
        reason = _main_reason(placed, table)
        raise NothingToQuantizeError(f"nothing in the model can be quantized: {reason}")
    return placed


def _main_reason(placed: Placement, target: Target) -> str:
    """Why nothing can be quantized, in the words of most of the operators that compute."""
    computing = {n for n, rule in target.operators.items() if rule.role == "compute"}
    reasons = [r for node, r in placed.left_in_float.items() if node.op_type in computing]
    if not reasons:
        return f"it has no {', '.join(sorted(computing))} outside of subgraphs and functions"
    reason = max(reasons, key=reasons.count)
    more = "; if none does, add --constant-initializers" if reason == OVERRIDABLE else ""
    return f"{reason.text}{more}"


def split_data(
    data: DataLike,
    eval_data: DataLike | None,
    specs: Sequence[TensorSpec],
    seed: int,
    calibration_samples: int | None,
    batch_size: int | None,
    images: ImageOptions | None,
) -> tuple[Dataset, Dataset]:
    """Samples to calibrate on, and samples to verify on.

    Raises:
        InputError: the data cannot be used.
    """
    samples = read(data, specs, batch_size=batch_size, images=images)
    if eval_data is None:
        return samples.split(seed, calibration_samples)
    held_out = read(eval_data, specs, batch_size=batch_size, images=images)
    if held_out.has_split:
        held_out = held_out.split(seed)[1]
    if samples.has_split:
        samples = samples.split(seed)[0]
    limit = CALIBRATION_LIMIT if calibration_samples is None else calibration_samples
    return samples.take(limit), held_out


@contextmanager
def as_file(model: ModelLike) -> Iterator[tuple[Path, Path]]:
    """The model as a file, and a folder for more files that goes away afterwards."""
    with tempfile.TemporaryDirectory(prefix="onnxq-") as name:
        folder = Path(name)
        if isinstance(model, str | os.PathLike):
            yield Path(model), folder
        else:
            path = folder / "model.onnx"
            save(load(model), path)
            yield path, folder


def label(model: ModelLike) -> str:
    """What a report calls a model: its path, if it has one."""
    return os.fspath(model) if isinstance(model, str | os.PathLike) else "the model in memory"

"""Print how long loading, the default float pipeline and saving take as graphs grow.

Usage: python benchmarks/scale.py [--nodes 1000,10000,50000] [--passes] [--profile]

Every graph is half residual blocks of Conv, BatchNormalization and Relu, half transformer blocks
the way torch's older exporter writes them: LayerNormalization and Gelu in parts, constants as
nodes, attention whose Reshapes compute their shapes from the input, a mask that every block
computes again, halves cut out and put together, Casts there and back, and after every block an If:
its condition is known after folding in one half of them and fed in the other. Each size is
measured in a process of its own, kept to one core. Seconds are of the clock; the column ``cpu``
is what the process computed in them, the better figure on a machine that does other work too.
When the time is linear in the number of nodes, the column per node stays level.
"""

from __future__ import annotations

import argparse
import cProfile
import multiprocessing
import os
import pstats
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxq.ir import PassRecord, Pipeline, default_passes, load, save
from onnxq.ir.passes import count_nodes

SIZES = (1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000)
OPSET = 17
CHANNELS = 4
WIDTH = 8
HEADS = 2

Result = TypeVar("Result")


@dataclass
class Measured:
    """What one size took: seconds of the clock and of the processor by stage, and each pass."""

    nodes: int
    nodes_after: int
    file_bytes: int
    seconds: dict[str, float]
    cpu: float
    peak_rss: int
    passes: list[PassRecord] = field(default_factory=list)


def main() -> None:
    """Measure every size and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--nodes", default=",".join(map(str, SIZES)), help="sizes, by commas")
    parser.add_argument("--passes", action="store_true", help="print each pass of the last size")
    parser.add_argument("--profile", action="store_true", help="print where the last size's goes")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.nodes.split(",")]
    print(
        "| nodes | file | load | passes | save | together | cpu | cpu per node | peak RSS | left |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    measured = None
    for size in sizes:
        profile = arguments.profile and size == sizes[-1]
        measured = _in_own_process(size, profile)
        print(_row(measured), flush=True)
    if arguments.passes and measured is not None:
        _print_passes(measured)


def _in_own_process(size: int, profile: bool) -> Measured:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, size, profile).result()


def measure(size: int, profile: bool = False) -> Measured:
    """Build a graph of about this many nodes and time it from file to file."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    # The passes are imported by now, as they are in a process that works on several models.
    passes = default_passes()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.onnx"), Path(folder, "target.onnx")
        source.write_bytes(build(size).SerializeToString())
        seconds: dict[str, float] = {}
        profiler = cProfile.Profile()
        if profile:
            profiler.enable()
        started = time.process_time()
        graph = _timed(seconds, "load", lambda: load(source))
        nodes = count_nodes(graph)
        records = _timed(seconds, "passes", lambda: Pipeline(passes).run(graph))
        _timed(seconds, "save", lambda: save(graph, target))
        cpu = time.process_time() - started
        if profile:
            profiler.disable()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(45)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Measured(
            nodes, count_nodes(graph), source.stat().st_size, seconds, cpu, peak, list(records)
        )


def _timed(seconds: dict[str, float], stage: str, work: Callable[[], Result]) -> Result:
    started = time.perf_counter()
    result = work()
    seconds[stage] = time.perf_counter() - started
    return result


def _row(measured: Measured) -> str:
    together = sum(measured.seconds.values())
    cells = [
        f"{measured.nodes:,}",
        f"{measured.file_bytes / 1e6:.1f} MB",
        *(f"{measured.seconds[stage]:.2f} s" for stage in ("load", "passes", "save")),
        f"{together:.2f} s",
        f"{measured.cpu:.2f} s",
        f"{measured.cpu / measured.nodes * 1e6:.0f} µs",
        f"{measured.peak_rss / 2**20:.0f} MiB",
        f"{measured.nodes_after:,}",
    ]
    return f"| {' | '.join(cells)} |"


def _print_passes(measured: Measured) -> None:
    print(f"\n| pass, {measured.nodes:,} nodes | rewrites | seconds |\n|---|---|---|")
    for record in sorted(measured.passes, key=lambda r: -r.seconds):
        print(f"| {record.name} | {record.rewrites} | {record.seconds:.2f} |")
    inside = sum(r.seconds for r in measured.passes)
    print(f"| inference and checks between them | | {measured.seconds['passes'] - inside:.2f} |")


# Building


class _Model:
    """Collects the nodes and weights of a model."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.size = 0
        """Nodes, those of subgraphs included."""
        self._random = np.random.default_rng(0)
        self._count = 0

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; gives its output's name."""
        self._count += 1
        output = f"{op_type.lower()}_{self._count}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], f"n{output}", **attributes))
        self.size += 1
        return output

    def branch(self, write: Callable[[], str]) -> onnx.GraphProto:
        """What ``write`` adds, as a graph of its own that gives one float32 tensor."""
        outer, self.nodes = self.nodes, []
        output = write()
        info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, f"giving_{output}", [], [info])
        self.nodes = outer
        return graph

    def weight(self, *shape: int, low: float = -0.1, high: float = 0.1) -> str:
        """Add random float32 weights."""
        self._count += 1
        array = self._random.uniform(low, high, shape).astype(np.float32)
        self.weights.append(numpy_helper.from_array(array, f"weight_{self._count}"))
        return self.weights[-1].name

    def constant(self, value: float | Sequence[int], *, scalar: bool = False) -> str:
        """Add a Constant node: a float32 scalar, an int64 vector or an int64 scalar."""
        if isinstance(value, float):
            array = np.array(value, np.float32)
        else:
            array = np.array(value[0] if scalar else value, np.int64)
        return self.op("Constant", value=numpy_helper.from_array(array))


def build(size: int) -> onnx.ModelProto:
    """A model of about ``size`` nodes."""
    model = _Model()
    image = "image"
    while model.size < size // 2:
        image = _residual_block(model, image)
    text = "text"
    while model.size < size:
        text = _transformer_block(model, text)
    graph = helper.make_graph(
        model.nodes,
        "scale",
        [
            helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", CHANNELS, 8, 8]),
            helper.make_tensor_value_info("text", TensorProto.FLOAT, ["batch", "length", WIDTH]),
            helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", "length"]),
            helper.make_tensor_value_info("scaled", TensorProto.BOOL, []),
        ],
        [
            helper.make_tensor_value_info(image, TensorProto.FLOAT, ["batch", CHANNELS, 8, 8]),
            helper.make_tensor_value_info(text, TensorProto.FLOAT, ["batch", "length", WIDTH]),
        ],
        model.weights,
    )
    imports = [helper.make_opsetid("", OPSET)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def _residual_block(model: _Model, x: str) -> str:
    inner = model.op("Relu", _convolution(model, x))
    return model.op("Relu", model.op("Add", _convolution(model, inner), x))


def _convolution(model: _Model, x: str) -> str:
    weight = model.weight(CHANNELS, CHANNELS, 3, 3)
    parameters = [
        model.weight(CHANNELS, low=0.5, high=1.5),
        model.weight(CHANNELS),
        model.weight(CHANNELS),
        model.weight(CHANNELS, low=0.5, high=1.5),
    ]
    convolved = model.op("Conv", x, weight, pads=[1, 1, 1, 1])
    return model.op("BatchNormalization", convolved, *parameters)


def _transformer_block(model: _Model, x: str) -> str:
    attended = model.op("Add", x, _attention(model, _layer_norm(model, x)))
    inner = _gelu(model, _linear(model, _layer_norm(model, attended), WIDTH, 2 * WIDTH))
    x = model.op("Add", attended, _linear(model, inner, 2 * WIDTH, WIDTH))
    return _if_fed(model, _if_known(model, x))


def _if_known(model: _Model, x: str) -> str:
    """A branch on the size of a tensor: the condition folds once the width is known."""
    width = model.op("Gather", model.op("Shape", x), model.constant([2], scalar=True), axis=0)
    alone = model.op("Equal", width, model.constant([1], scalar=True))
    kept = model.branch(lambda: model.op("Identity", x))
    repeated = model.branch(lambda: model.op("Concat", x, x, axis=2))
    return model.op("If", alone, then_branch=repeated, else_branch=kept)


def _if_fed(model: _Model, x: str) -> str:
    scale = model.constant(0.5)
    scaled = model.branch(lambda: model.op("Tanh", model.op("Mul", x, scale)))
    changed = model.branch(lambda: model.op("Sigmoid", model.op("Mul", x, scale)))
    return model.op("If", "scaled", then_branch=scaled, else_branch=changed)


def _linear(model: _Model, x: str, inputs: int, outputs: int) -> str:
    product = model.op("MatMul", x, model.weight(inputs, outputs))
    return model.op("Add", model.weight(outputs), product)


def _layer_norm(model: _Model, x: str) -> str:
    centred = model.op("Sub", x, model.op("ReduceMean", x, axes=[-1]))
    squared = model.op("Pow", centred, model.constant(2.0))
    variance = model.op("ReduceMean", squared, axes=[-1])
    deviation = model.op("Sqrt", model.op("Add", variance, model.constant(1e-5)))
    scaled = model.op("Mul", model.op("Div", centred, deviation), model.weight(WIDTH))
    return model.op("Add", scaled, model.weight(WIDTH))


def _gelu(model: _Model, x: str) -> str:
    error = model.op("Erf", model.op("Div", x, model.constant(2**0.5)))
    doubled = model.op("Mul", x, model.op("Add", error, model.constant(1.0)))
    return model.op("Mul", doubled, model.constant(0.5))


def _attention(model: _Model, x: str) -> str:
    query, key, value = (_heads(model, _linear(model, x, WIDTH, WIDTH)) for _ in range(3))
    scores = model.op("MatMul", query, model.op("Transpose", key, perm=[0, 1, 3, 2]))
    scores = model.op("Div", scores, model.constant((WIDTH / HEADS) ** 0.5))
    scores = model.op("Add", scores, _mask(model))
    mixed = model.op("MatMul", model.op("Softmax", scores, axis=-1), value)
    joined = _reshaped(model, model.op("Transpose", mixed, perm=[0, 2, 1, 3]), x, [WIDTH])
    return _linear(model, joined, WIDTH, WIDTH)


def _mask(model: _Model) -> str:
    """What is added to the scores: the same in every block, and computed in each."""
    rows = model.op("Unsqueeze", "mask", model.constant([1]))
    rows = model.op("Unsqueeze", rows, model.constant([2]))
    kept = model.op("Cast", rows, to=TensorProto.FLOAT)
    return model.op("Mul", model.op("Sub", model.constant(1.0), kept), model.constant(-1e4))


def _heads(model: _Model, x: str) -> str:
    split = _reshaped(model, _turned(model, x), x, [HEADS, WIDTH // HEADS])
    return model.op("Transpose", split, perm=[0, 2, 1, 3])


def _turned(model: _Model, x: str) -> str:
    """Halves change places and one its sign, in float64 and back: what rotary embeddings do."""
    wide = model.op("Cast", x, to=TensorProto.DOUBLE)
    axis, half, end = model.constant([2]), model.constant([WIDTH // 2]), model.constant([2**62])
    first = model.op("Slice", wide, model.constant([0]), half, axis)
    second = model.op("Slice", wide, half, end, axis)
    joined = model.op("Concat", model.op("Neg", second), first, axis=-1)
    return model.op("Cast", joined, to=TensorProto.FLOAT)


def _reshaped(model: _Model, x: str, like: str, rest: list[int]) -> str:
    """Reshape to the first two dimensions of ``like`` and the rest, computed at run time."""
    parts = []
    for axis in (0, 1):
        at = model.constant([axis], scalar=True)
        dim = model.op("Gather", model.op("Shape", like), at, axis=0)
        parts.append(model.op("Unsqueeze", dim, model.constant([0])))
    parts += [model.constant([size]) for size in rest]
    return model.op("Reshape", x, model.op("Concat", *parts, axis=0))


if __name__ == "__main__":
    main()

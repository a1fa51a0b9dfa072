"""Applying precisions to a graph: each by its own pass, over the nodes that are to have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Pass, PassRecord, Pipeline
from onnxq.passes.halves.convert_float import ConvertFloat
from onnxq.passes.layout.unflatten_gemm import UnflattenGemm
from onnxq.passes.notes import forget_notes, node_name, note_reasons
from onnxq.passes.static.insert_qdq import InsertQdq
from onnxq.passes.static.keep_float_weights import KeepFloatWeights
from onnxq.passes.weights.quantize_dynamic import QuantizeDynamic
from onnxq.passes.weights.quantize_weights import QuantizeWeights
from onnxq.precision import FLOAT
from onnxq.targets import load_target

PRECISIONS: Mapping[str, str] = {
    FLOAT: "as it is",
    "int8": "activations and weights in 8-bit integers, ranges from calibration",
    "int16-act": "activations in 16-bit and weights in 8-bit integers, ranges from calibration",
    "int8-dynamic": "activations and weights in 8-bit integers, ranges found at run time",
    "int8-weight": "weights in 8-bit integers",
    "int4-weight": "weights in 4-bit integers, 32 to a scale and a zero-point",
    "int2-weight": "weights in 2-bit integers, 32 to a scale",
    "float16": "16-bit floats",
    "bfloat16": "16-bit floats with the range of float32",
}
"""The precisions that a plan may give to a node."""

STATIC: Mapping[str, int] = {"int8": 8, "int16-act": 16}
"""The precisions in static integers, and the bits of their activations.

Nodes of all of these are quantized together: what one gives as integers another may read."""

Ranges = Mapping[str, tuple[float, float]]


def needed_opset(precisions: Mapping[str, str], target: str) -> int:
    """Lowest opset that expresses some precisions on a target."""
    return max((step.needed_opset for step in _steps(precisions, target, {})), default=0)


def apply_precisions(
    graph: Graph,
    precisions: Mapping[str, str],
    target: str,
    ranges: Ranges,
    reasons: Mapping[str, str] | None = None,
    ctx: Context | None = None,
) -> list[PassRecord]:
    """Give every node its precision, in place.

    Args:
        graph: The float graph after its float passes, of an opset that will do.
        precisions: Precision by node name; nodes that are missing stay in float.
        target: Name of the target whose table static integers follow.
        ranges: Smallest and largest value of the tensors that static integers need.
        reasons: Why nodes have their precision, for the model's metadata.
        ctx: What passes share.

    Returns:
        What the passes did.

    Raises:
        InputError: an unknown node or precision, or the opset is too low.
    """
    ctx = ctx or Context()
    known = {node_name(node) for node in graph.nodes()}
    for name, precision in precisions.items():
        if name not in known:
            raise InputError(f"the model has no node '{name}' after its float passes")
        if precision not in PRECISIONS:
            raise InputError(
                f"'{precision}', which node '{name}' is to have, is no precision; use one of "
                f"{', '.join(PRECISIONS)}"
            )
    records: list[PassRecord] = []
    for step in _steps(precisions, target, ranges):
        steps: tuple[Pass, ...] = (step,)
        if isinstance(step, QuantizeDynamic):
            steps = (UnflattenGemm(only=step.only), step)
        elif isinstance(step, InsertQdq):
            steps = (replace(step, ranges=_behind_casts(graph, ranges)),)
        records += Pipeline(steps, fixed_point=False).run(graph, ctx)
    if load_target(target).provider == "cpu":
        records += Pipeline((KeepFloatWeights(),), fixed_point=False).run(graph, ctx)
    forget_notes(graph, known)
    note_reasons(graph, reasons or {})
    return records


def _behind_casts(graph: Graph, ranges: Ranges) -> dict[str, tuple[float, float]]:
    """Ranges that hold for what Casts restored of values in 16-bit floats, too."""
    found = dict(ranges)
    for node in graph.nodes():
        source = node.input(0)
        if node.is_op("Cast") and source is not None and source.name in found:
            found.setdefault(node.output.name, found[source.name])
    return found


_Step = ConvertFloat | InsertQdq | QuantizeDynamic | QuantizeWeights


def _steps(precisions: Mapping[str, str], target: str, ranges: Ranges) -> list[_Step]:
    """The pass for each precision that nodes are to have, in the order in which they run.

    Static integers come last: what reads their pairs counts as quantized already.
    """
    nodes: dict[str, tuple[str, ...]] = {
        precision: tuple(n for n, p in precisions.items() if p == precision)
        for precision in dict.fromkeys(precisions.values())
    }
    steps: list[_Step] = []
    if names := nodes.get("int8-dynamic"):
        reduced = load_target(target).weight_scheme.reduced_range
        steps.append(QuantizeDynamic(only=names, reduced_range=reduced))
    if names := nodes.get("int8-weight"):
        steps.append(QuantizeWeights(only=names, format="int8", block_size=0))
    if names := nodes.get("int4-weight"):
        steps.append(QuantizeWeights(only=names, format="uint4", scheme="zero-point"))
    if names := nodes.get("int2-weight"):
        steps.append(QuantizeWeights(only=names, format="int2"))
    for precision in ("float16", "bfloat16"):
        if names := nodes.get(precision):
            steps.append(ConvertFloat(format=precision, only=names, ranges=ranges))
    static = {n: STATIC[p] for n, p in precisions.items() if p in STATIC}
    if static:
        table = load_target(target)
        formats = {n: table.activation_format_of(bits).name for n, bits in static.items()}
        steps.append(InsertQdq(ranges, target, only=tuple(static), formats=formats))
    return steps

"""Applying precisions to a graph: each by its own pass, over the nodes that are to have it."""

from __future__ import annotations

from collections.abc import Mapping

from onnxq.errors import InputError
from onnxq.ir import Context, Graph, Pass, PassRecord, Pipeline
from onnxq.passes.convert_float import ConvertFloat
from onnxq.passes.insert_qdq import InsertQdq
from onnxq.passes.keep_float_weights import KeepFloatWeights
from onnxq.passes.notes import forget_notes, node_name, note_reasons
from onnxq.passes.quantize_dynamic import QuantizeDynamic
from onnxq.passes.quantize_weights import QuantizeWeights
from onnxq.passes.unflatten_gemm import UnflattenGemm
from onnxq.quant import load_target

FLOAT = "float32"

PRECISIONS: Mapping[str, str] = {
    FLOAT: "as it is",
    "int8": "activations and weights in 8-bit integers, ranges from calibration",
    "int16-act": "activations in 16-bit and weights in 8-bit integers, ranges from calibration",
    "int8-dynamic": "activations and weights in 8-bit integers, ranges found at run time",
    "int8-weight": "weights in 8-bit integers",
    "int4-weight": "weights in 4-bit integers, 32 to a scale",
    "int2-weight": "weights in 2-bit integers, 32 to a scale",
    "float16": "16-bit floats",
    "bfloat16": "16-bit floats with the range of float32",
}
"""The precisions that a plan may give to a node."""

STATIC: Mapping[str, str] = {"int8": "", "int16-act": "uint16"}
"""The precisions in static integers, and the format of their activations; empty for the target's.

Nodes of all of these are quantized together: what one gives as integers another may read."""

Ranges = Mapping[str, tuple[float, float]]


def needed_opset(precisions: Mapping[str, str], target: str) -> int:
    """Lowest opset that expresses some precisions on a target."""
    wanted = set(precisions.values())
    found = [
        step.needed_opset
        for step in _steps(precisions, target, {})
        if isinstance(step, InsertQdq | QuantizeDynamic | QuantizeWeights)
    ]
    if "bfloat16" in wanted:
        found.append(13)
    return max(found, default=0)


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
        records += Pipeline(steps, fixed_point=False).run(graph, ctx)
    if load_target(target).provider == "cpu":
        records += Pipeline((KeepFloatWeights(),), fixed_point=False).run(graph, ctx)
    forget_notes(graph, known)
    note_reasons(graph, reasons or {})
    return records


def _steps(precisions: Mapping[str, str], target: str, ranges: Ranges) -> list[Pass]:
    """The pass for each precision that nodes are to have, in the order in which they run.

    Static integers come last but for floats: what reads their pairs counts as quantized already.
    """
    nodes: dict[str, tuple[str, ...]] = {
        precision: tuple(n for n, p in precisions.items() if p == precision)
        for precision in dict.fromkeys(precisions.values())
    }
    steps: list[Pass] = []
    if names := nodes.get("int8-dynamic"):
        reduced = load_target(target).weight_scheme.reduced_range
        steps.append(QuantizeDynamic(only=names, reduced_range=reduced))
    if names := nodes.get("int8-weight"):
        steps.append(QuantizeWeights(only=names, format="int8", block_size=0))
    for precision in ("int4-weight", "int2-weight"):
        if names := nodes.get(precision):
            format = precision.removesuffix("-weight")
            steps.append(QuantizeWeights(only=names, format=format))
    static = {n: STATIC[p] for n, p in precisions.items() if p in STATIC}
    if static:
        formats = {name: format for name, format in static.items() if format}
        steps.append(InsertQdq(ranges, target, only=tuple(static), formats=formats))
    for precision in ("float16", "bfloat16"):
        if names := nodes.get(precision):
            steps.append(ConvertFloat(format=precision, only=names, ranges=ranges))
    return steps

"""How operators change when the axes of what they read stand in another order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from onnxq.ir import DataType, Node, attribute_value
from onnxq.passes.nodes import listed, state, stated

Perm: TypeAlias = tuple[int, ...]
"""Order of axes, as Transpose states it: axis i of the result is axis perm[i] of the input."""

_FIRST_BROADCAST_OPSET = 7
"""Before it operators of two inputs broadcast by attributes."""

_FIRST_SINGLE_AXIS_OPSET = 13
"""Before it Softmax and its kind flatten everything from their axis on."""

_SHARED_BYTES = 1 << 16
"""Largest constant that is copied in another order while others read it as it is."""

_PERMUTED_BYTES = 1 << 24
"""Largest constant that is put in another order: it has to be held in memory then."""


@dataclass
class Change:
    """What a node needs in order to read its inputs before a Transpose instead of after it.

    ``permuted`` are the slots of constants whose axes change with the data, ``integers`` new ones
    as `state` takes them, ``attributes`` new attributes. ``outputs`` says for each output which
    Transpose now leads to what it was.
    """

    outputs: list[Perm]
    permuted: list[int] = field(default_factory=list)
    integers: list[tuple[str, int, list[int]]] = field(default_factory=list)
    attributes: dict[str, int] = field(default_factory=dict)


def change(node: Node, perm: Perm, slots: Collection[int]) -> Change | None:
    """What makes a node read some slots before a Transpose by ``perm``, None if nothing does."""
    if node.domain or any(v is not None and v.annotation for v in node.outputs):
        return None
    if node.op_type in ELEMENTWISE:
        return _elementwise(node, perm, slots)
    if node.is_op("Concat"):
        axis = _axis(node, perm) if len(set(slots)) == len(node.inputs) else None
        return None if axis is None else Change([perm], attributes=axis)
    rule = _RULES.get(node.op_type)
    return rule(node, perm) if rule is not None and set(slots) == {0} else None


def apply(node: Node, perm: Perm, planned: Change) -> None:
    """Make the change, except for the data inputs themselves."""
    graph = node.graph
    for slot in planned.permuted:
        old = node.inputs[slot]
        assert old is not None
        array = old.numpy()
        aligned = array.reshape((1,) * (len(perm) - array.ndim) + array.shape)
        moved = np.ascontiguousarray(aligned.transpose(inverse(perm)))
        graph.set_constant(node, slot, moved)
    # All index inputs of a Slice have one type.
    starts = node.input(1) if node.is_op("Slice") else None
    dtype = np.int32 if starts is not None and starts.dtype is DataType.INT32 else np.int64
    for attribute, slot, numbers in planned.integers:
        state(node, attribute, slot, numbers, dtype)
    for attribute, axis in planned.attributes.items():
        graph.set_attribute(node, attribute, axis)


def inverse(perm: Perm) -> Perm:
    """The order that leads back."""
    return tuple(int(axis) for axis in np.argsort(perm))


def is_identity(perm: Perm) -> bool:
    """Whether the order changes nothing."""
    return perm == tuple(range(len(perm)))


def _unary(node: Node, perm: Perm) -> Change | None:
    if any(v is not None and v.is_used for v in node.outputs[1:]):
        return None
    return Change([perm] * len(node.outputs))


def _elementwise(node: Node, perm: Perm, slots: Collection[int]) -> Change | None:
    if node.graph.opset < _FIRST_BROADCAST_OPSET:
        return None
    permuted = []
    for slot, value in enumerate(node.inputs):
        if slot in slots or value is None:
            continue
        if value.shape is None or len(value.shape) > len(perm):
            return None
        if all(d == 1 for d in value.shape):
            continue
        if not value.is_constant or value.data is None or value.annotation:
            return None
        alone = len(value.uses) == 1 and not value.is_output
        if value.data.nbytes > (_PERMUTED_BYTES if alone else _SHARED_BYTES):
            return None
        permuted.append(slot)
    return Change([perm], permuted)


def _quantize(node: Node, perm: Perm) -> Change | None:
    scale = node.input(1)
    if scale is None or scale.shape is None or node.get("block_size", 0):
        return None
    if not scale.shape:
        return Change([perm])
    axis = _axis(node, perm)
    return None if axis is None or len(scale.shape) != 1 else Change([perm], attributes=axis)


def _axis(node: Node, perm: Perm, name: str = "axis") -> dict[str, int] | None:
    """The axis attribute in the other order."""
    axis = attribute_value(node, name)
    if axis is None or not -len(perm) <= axis < len(perm):
        return None
    return {name: perm[axis]}


def _moved(axes: list[int] | None, perm: Perm) -> list[int] | None:
    """Axes of what a Transpose makes as axes of what it reads."""
    if axes is None or any(not -len(perm) <= a < len(perm) for a in axes):
        return None
    return [perm[a] for a in axes]


def _split(node: Node, perm: Perm) -> Change | None:
    axis = _axis(node, perm)
    if axis is None:
        return None
    return Change([perm] * len(node.outputs), attributes=axis)


def _softmax(node: Node, perm: Perm) -> Change | None:
    axis = _axis(node, perm)
    if axis is None or node.graph.opset < _FIRST_SINGLE_AXIS_OPSET:
        return None
    last = len(perm) - 1
    if perm[attribute_value(node, "axis")] != last and attribute_value(node, "axis") in (-1, last):
        # Runtimes are fast along the last axis only.
        return None
    return Change([perm], attributes=axis)


def _reduce(node: Node, perm: Perm) -> Change | None:
    axes = _moved(stated(node, "axes", 1), perm)
    # Without axes an operator reduces all of them or none: neither has anything to reorder.
    if not axes:
        return None
    axes = sorted(set(axes))
    outputs = [_after_reduction(perm, axes, bool(node.get("keepdims", 1)))]
    return Change(outputs, integers=[("axes", 1, axes)])


def _argument(node: Node, perm: Perm) -> Change | None:
    axis = _axis(node, perm)
    if axis is None:
        return None
    gone = perm[attribute_value(node, "axis")]
    keeps = bool(node.get("keepdims", 1))
    return Change([_after_reduction(perm, [gone], keeps)], attributes=axis)


def _after_reduction(perm: Perm, gone: Sequence[int], keeps: bool) -> Perm:
    """The order of the axes that are left when some, counted before the Transpose, are gone."""
    if keeps:
        return perm
    left = sorted(set(range(len(perm))) - set(gone))
    return tuple(left.index(axis) for axis in perm if axis not in gone)


def _pad(node: Node, perm: Perm) -> Change | None:
    if node.input(3) is not None:
        return None
    rank = len(perm)
    amounts = stated(node, "pads", 1)
    if amounts is None or len(amounts) != 2 * rank:
        return None
    moved = [0] * (2 * rank)
    for axis, before in enumerate(perm):
        moved[before], moved[before + rank] = amounts[axis], amounts[axis + rank]
    return Change([perm], integers=[("pads", 1, moved)])


def _slice(node: Node, perm: Perm) -> Change | None:
    starts = node.input(1)
    count = len(node.get("starts", ())) if starts is None else (starts.shape or (None,))[0]
    if not isinstance(count, int):
        return None
    axes = _moved(stated(node, "axes", 3, list(range(count))), perm)
    return Change([perm], integers=[("axes", 3, axes)]) if axes else None


UNARY = listed("""
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor
    Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round
    Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
""")

ELEMENTWISE = listed("""
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less
    LessOrEqual Max Mean Min Mod Mul Or Pow PRelu Sub Sum Where Xor
""")

_REDUCTIONS = listed("""
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare
""")

_RULES: dict[str, Callable[[Node, Perm], Change | None]] = {
    **dict.fromkeys(UNARY, _unary),
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _argument),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    "Split": _split,
    "Pad": _pad,
    "Slice": _slice,
}

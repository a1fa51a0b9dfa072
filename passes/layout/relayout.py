"""How operators change when the axes of what they read stand in another order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from onnxq.ir import Node, Value, attribute_value
from onnxq.ir.shape_values import constant_ints

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

    ``permuted`` are the slots of constants whose axes change with the data, ``constants`` new
    integers by slot, ``attributes`` new attributes. ``outputs`` says for each output which
    Transpose now leads to what it was.
    """

    outputs: list[Perm]
    permuted: list[int] = field(default_factory=list)
    constants: dict[int, list[int]] = field(default_factory=dict)
    attributes: dict[str, int | list[int]] = field(default_factory=dict)


Rule: TypeAlias = Callable[[Node, Perm, Collection[int]], Change | None]


def change(node: Node, perm: Perm, slots: Collection[int]) -> Change | None:
    """What makes a node read some slots before a Transpose by ``perm``, None if nothing does."""
    rule = _RULES.get(node.op_type) if not node.domain else None
    if rule is None or any(v is not None and v.annotation for v in node.outputs):
        return None
    return rule(node, perm, slots)


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
    for slot, numbers in planned.constants.items():
        old = node.input(slot)
        axes = np.array(numbers, dtype=_index_type(node, old))
        graph.set_constant(node, slot, axes, f"{node.op_type.lower()}_axes")
    for attribute, value in planned.attributes.items():
        graph.set_attribute(node, attribute, value)


def inverse(perm: Perm) -> Perm:
    """The order that leads back."""
    return tuple(int(axis) for axis in np.argsort(perm))


def is_identity(perm: Perm) -> bool:
    """Whether the order changes nothing."""
    return perm == tuple(range(len(perm)))


def _index_type(node: Node, old: Value | None) -> np.dtype[np.generic]:
    """All index inputs of a Slice have one type."""
    given = old if old is not None else node.input(1)
    narrow = given is not None and given.dtype is not None and given.dtype.name == "INT32"
    return np.dtype(np.int32 if narrow and not node.op_type.startswith("Reduce") else np.int64)


def _only_data(slots: Collection[int]) -> bool:
    return set(slots) == {0}


def _unary(node: Node, perm: Perm, slots: Collection[int]) -> Change | None:
    if not _only_data(slots) or any(v is not None and v.is_used for v in node.outputs[1:]):
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


def _quantize(node: Node, perm: Perm, slots: Collection[int]) -> Change | None:
    scale = node.input(1)
    if not _only_data(slots) or scale is None or scale.shape is None or node.get("block_size", 0):
        return None
    if all(d == 1 for d in scale.shape) and not scale.shape:
        return Change([perm])
    axis = _axis(node, perm)
    return None if axis is None or len(scale.shape) != 1 else Change([perm], attributes=axis)


def _axis(node: Node, perm: Perm, name: str = "axis") -> dict[str, int | list[int]] | None:
    """The axis attribute in the other order."""
    axis = attribute_value(node, name)
    if axis is None or not -len(perm) <= axis < len(perm):
        return None
    return {name: perm[axis]}


def _concat(node: Node, perm: Perm, slots: Collection[int]) -> Change | None:
    axis = _axis(node, perm)
    if axis is None or len(set(slots)) != len(node.inputs):
        return None
    return Change([perm], attributes=axis)


def _split(node: Node, perm: Perm, slots: Collection[int]) -> Change | None:
    axis = _axis(node, perm)
    if axis is None or not _only_data(slots):
        return None
    return Change([perm] * len(node.outputs), attributes=axis)


def _softmax(node: Node, perm: Perm, slots: Collection[int]) -> Change | None:
    axis = _axis(node, perm)
    if axis is None or not _only_data(slots) or node.graph.opset < _FIRST_SINGLE_AXIS_OPSET:
        return None
    last = len(perm) - 1
    if perm[attribute_value(node, "axis")] != last and attribute_value(node, "axis") in (-1, last):
        # Runtimes are fast along the last axis only.
        return None
    return Change([perm], attributes=axis)


def _reduce(node: Node, perm: Perm, slots: Collection[int]) -> Change | None:
    if not _only_data(slots):
        return None
    slot = 1 if node.input(1) is not None else None
    stated = constant_ints(node.input(1)) if slot else node.get("axes")
    # Without axes an operator reduces all of them or none: neither has anything to reorder.
    if not stated or any(not -len(perm) <= a < len(perm) for a in stated):
        return None
    axes = sorted({perm[a] for a in stated})
    outputs = [_after_reduction(perm, axes, bool(node.get("keepdims", 1)))]
    if slot:
        return Change(outputs, constants={slot: axes})
    return Change(outputs, attributes={"axes": list(axes)})


def _argument(node: Node, perm: Perm, slots: Collection[int]) -> Change | None:
    axis = _axis(node, perm)
    if axis is None or not _only_data(slots):
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


def _pad(node: Node, perm: Perm, slots: Collection[int]) -> Change | None:
    if not _only_data(slots) or node.input(3) is not None:
        return None
    rank = len(perm)
    as_input = node.graph.opset >= 11
    amounts = constant_ints(node.input(1)) if as_input else node.get("pads")
    if amounts is None or len(amounts) != 2 * rank:
        return None
    moved = [0] * (2 * rank)
    for axis, before in enumerate(perm):
        moved[before], moved[before + rank] = amounts[axis], amounts[axis + rank]
    if as_input:
        return Change([perm], constants={1: moved})
    return Change([perm], attributes={"pads": moved})


def _slice(node: Node, perm: Perm, slots: Collection[int]) -> Change | None:
    if not _only_data(slots):
        return None
    if node.graph.opset < 10:
        axes = list(node.get("axes", range(len(node.get("starts", ())))))
        if not axes or any(not -len(perm) <= a < len(perm) for a in axes):
            return None
        return Change([perm], attributes={"axes": [perm[a] for a in axes]})
    starts, given = node.input(1), node.input(3)
    if starts is None or starts.dtype is None:
        return None
    if given is None:
        count = starts.shape[0] if starts.shape is not None and len(starts.shape) == 1 else None
        stated = list(range(count)) if isinstance(count, int) else None
    else:
        stated = constant_ints(given)
    if not stated or any(not -len(perm) <= a < len(perm) for a in stated):
        return None
    return Change([perm], constants={3: [perm[a] for a in stated]})


_UNARY = """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Clip Cos Cosh Elu Erf Exp Floor
    Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round
    Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu
"""

_ELEMENTWISE = """
    Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less
    LessOrEqual Max Mean Min Mod Mul Or Pow PRelu Sub Sum Where Xor
"""

_REDUCTIONS = """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare
"""

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY.split(), _unary),
    **dict.fromkeys(_ELEMENTWISE.split(), _elementwise),
    **dict.fromkeys(_REDUCTIONS.split(), _reduce),
    **dict.fromkeys(("ArgMax", "ArgMin"), _argument),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _softmax),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _quantize),
    "Concat": _concat,
    "Split": _split,
    "Pad": _pad,
    "Slice": _slice,
}

"""Removing operators that give back their input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxq.ir import Context, DataType, Graph, Node, Pass, Shape, Value, remove_unused
from onnxq.ir.operators import attribute_value, is_inference_dropout, lacks_identity, schema_of
from onnxq.ir.shape_values import constant_ints
from onnxq.passes.nodes import broadcasts, bypass, stated, visit
from onnxq.passes.slicing import TO_THE_END, slice_limits


@dataclass(frozen=True)
class EliminateIdentity(Pass):
    """Let the readers of an operator that gives back its input read that input.

    Rewritten, in subgraphs too:

    - Identity; Dropout in inference; Cast and CastLike to the dtype the input has; Transpose
      that keeps the order.
    - Reshape, Flatten, Squeeze and Unsqueeze that keep the shape: input and output agree in all
      dimensions but at most one (the equal number of elements fixes that one, unless another is
      zero), or a constant shape says so by copying (0), repeating or inferring (-1) each
      dimension. Expand to known dimensions the input has. Tile by ones.
    - Pad by zeros; Slice from the start to the end in steps of one; Split into one part; Concat,
      Sum, Mean, Min and Max of a single input; Where whose constant condition is the same
      everywhere and whose chosen branch has the output's shape.
    - Add of 0, Sub of 0, Mul and Div by 1, when the constant neither widens the shape nor is
      anything else anywhere.
    - Resize and Upsample by scales of one or to the size there is.
    - Clip without bounds and pooling over single elements (MaxPool), of integers only.

    Not rewritten:

    - Adding +0.0 to floats, and AveragePool over single elements: they turn -0.0 into 0.0.
      (Adding -0.0 and subtracting +0.0 keep every bit and are rewritten.)
    - Clip without bounds of floats, which makes infinities finite, and MaxPool of floats, which
      does so with -inf and NaN.
    - Resize with ``tf_crop_and_resize``, which reads a region of interest.
    - Operators with a further output that is used (Dropout's mask, MaxPool's indices).
    - An Identity that makes a graph output of a graph input, a constant, an outer value or
      another graph output: an output has a name of its own. Any other operator of the list in
      this place becomes such an Identity, except of 2-bit and 4-bit elements, which have none.
    """

    name = "eliminate-identity"
    default = True
    after = ("fold-constants",)
    needs_types = True

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the operators bypassed."""
        return visit(graph, ctx, {*_KEEPING, *_CHOOSING}, _eliminate)


def _eliminate(node: Node) -> str | None:
    if any(v is not None and v.is_used for v in node.outputs[1:]):
        return None
    if not node.outputs or node.outputs[0] is None or schema_of(node) is None:
        return None
    old, read = node.output, node.input(0)
    keeps = _KEEPING.get(node.op_type)
    if keeps is None:
        new = _where(node) if node.is_op("Where") else _neutral(node)
    else:
        new = read if read is not None and keeps(node, read) else None
    if new is None or not old.is_used:
        return None
    if not bypass(node, new):
        if node.is_op("Identity") or lacks_identity(old):
            if not old.uses:
                return None
            node.graph.replace_uses(old, new, where=lambda use: True)
            return f"its readers read '{new.name}'"
        node.graph.replace_uses(old, new)
        remove_unused(node.graph, [node])
    return f"gives back '{new.name}'"


def _always(node: Node, value: Value) -> bool:
    return True


def _dropout(node: Node, value: Value) -> bool:
    return is_inference_dropout(node)


def _cast(node: Node, value: Value) -> bool:
    like = node.input(1)
    target = node.get("to") if node.is_op("Cast") else like.dtype if like is not None else None
    return value.dtype not in (None, DataType.UNDEFINED) and value.dtype == target


def _transpose(node: Node, value: Value) -> bool:
    perm = node.get("perm")
    return value.rank in (0, 1) if perm is None else list(perm) == list(range(len(perm)))


def _same_elements(node: Node, value: Value) -> bool:
    """For operators that only give the same elements another shape."""
    if value.shape is not None and _are_same(value.shape, node.output.shape):
        return True
    if node.is_op("Reshape") and node.graph.opset >= 5 and value.shape is not None:
        target = constant_ints(node.input(1))
        return target is not None and _keeps(value.shape, target, not node.get("allowzero", 0))
    return node.is_op("Flatten") and value.rank == 2 and node.get("axis", 1) in (1, -1)


def _are_same(before: Shape, after: Shape | None) -> bool:
    """Whether two shapes of equally many elements are certainly the same."""
    if after is None or len(before) != len(after):
        return False
    open_dims = 0
    for a, b in zip(before, after, strict=True):
        if not isinstance(a, int) or not isinstance(b, int):
            open_dims += 1
        elif a != b:
            return False
    return open_dims == 0 or (open_dims == 1 and 0 not in (*before, *after))


def _keeps(shape: Shape, target: list[int], copies: bool) -> bool:
    """Whether a Reshape to ``target`` keeps a shape; ``copies`` says what 0 means there."""
    if len(shape) != len(target) or target.count(-1) > 1:
        return False
    if -1 in target and (0 in shape or (0 in target and not copies)):
        return False
    return all(
        wanted in (-1, dim) if wanted or not copies else True
        for dim, wanted in zip(shape, target, strict=True)
    )


def _expand(node: Node, value: Value) -> bool:
    if value.shape is None:
        return False
    if value.shape == node.output.shape and all(isinstance(d, int) for d in value.shape):
        return True
    target = constant_ints(node.input(1))
    return target is not None and broadcasts(tuple(target), value.shape)


def _tile(node: Node, value: Value) -> bool:
    return node.graph.opset >= 6 and _all_are(node.input(1), 1)


def _pad(node: Node, value: Value) -> bool:
    pads = stated(node, "paddings" if "paddings" in node.attributes else "pads", 1)
    return pads is not None and not any(pads)


def _slice(node: Node, value: Value) -> bool:
    limits = slice_limits(node)
    if limits is None:
        return False
    for start, end, axis, step in limits:
        in_rank = value.shape is not None and -len(value.shape) <= axis < len(value.shape)
        dim = value.shape[axis] if value.shape is not None and in_rank else None
        reaches = end >= TO_THE_END or (isinstance(dim, int) and end >= dim)
        begins = start == 0 or (isinstance(dim, int) and start <= -dim)
        if step != 1 or not reaches or not begins:
            return False
    return True


def _single_input(node: Node, value: Value) -> bool:
    return len(node.inputs) == 1


def _single_output(node: Node, value: Value) -> bool:
    return len(node.outputs) == 1


def _where(node: Node) -> Value | None:
    condition = node.input(0)
    if condition is None or not condition.is_constant:
        return None
    chosen = np.unique(condition.numpy())
    if chosen.size != 1:
        return None
    value = node.input(1 if chosen[0] else 2)
    shape = value.shape if value is not None else None
    if shape is None or shape != node.output.shape or not all(isinstance(d, int) for d in shape):
        return None
    return value


def _neutral(node: Node) -> Value | None:
    """Add, Sub, Mul and Div whose one operand changes nothing."""
    if node.graph.opset < 7:
        return None
    sides = [(0, 1), (1, 0)] if node.is_op("Add", "Mul") else [(0, 1)]
    for kept, other in sides:
        value, constant = node.input(kept), node.input(other)
        if value is not None and constant is not None and _is_neutral(node, value, constant):
            return value
    return None


def _is_neutral(node: Node, value: Value, constant: Value) -> bool:
    if not constant.is_constant or not broadcasts(constant.shape, value.shape):
        return False
    numbers = constant.numpy()
    if node.is_op("Mul", "Div"):
        return bool((numbers == 1).all())
    if not (numbers == 0).all():
        return False
    if constant.dtype is None or not constant.dtype.is_float:
        return True
    negative = np.signbit(numbers.astype(np.float64))
    return bool(negative.all() if node.is_op("Add") else not negative.any())


def _resize(node: Node, value: Value) -> bool:
    if attribute_value(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return False
    if node.graph.opset < 9:
        given = node.get("scales")
        return given is not None and all(s == 1 for s in given)
    is_old = node.is_op("Upsample") or node.graph.opset < 11
    if is_old or node.input(3) is None:
        return _all_are(node.input(1 if is_old else 2), 1)
    wanted = constant_ints(node.input(3))
    if value.shape is None or wanted is None:
        return False
    axes = node.get("axes", range(len(value.shape)))
    if len(axes) != len(wanted) or any(not -len(value.shape) <= a < len(value.shape) for a in axes):
        return False
    return [value.shape[a] for a in axes] == wanted


def _clip(node: Node, value: Value) -> bool:
    return node.graph.opset >= 11 and len(node.inputs) == 1 and _is_integer(value)


def _max_pool(node: Node, value: Value) -> bool:
    ones = (*node.get("kernel_shape", (0,)), *node.get("strides", (1,)))
    return set(ones) == {1} and not any(node.get("pads", ())) and _is_integer(value)


def _is_integer(value: Value) -> bool:
    return value.dtype is not None and value.dtype.numpy.kind in "iu"


def _all_are(value: Value | None, number: int) -> bool:
    """Whether a value is constant, not empty and everywhere this number."""
    if value is None or not value.is_constant:
        return False
    numbers = value.numpy()
    return numbers.size > 0 and bool((numbers == number).all())


_KEEPING: dict[str, Callable[[Node, Value], bool]] = {
    **dict.fromkeys(("Cast", "CastLike"), _cast),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _same_elements),
    **dict.fromkeys(("Concat", "Sum", "Mean", "Min", "Max"), _single_input),
    **dict.fromkeys(("Resize", "Upsample"), _resize),
    "Identity": _always,
    "Dropout": _dropout,
    "Transpose": _transpose,
    "Expand": _expand,
    "Tile": _tile,
    "Pad": _pad,
    "Slice": _slice,
    "Split": _single_output,
    "Clip": _clip,
    "MaxPool": _max_pool,
}
"""Whether an operator gives back its first input."""

_CHOOSING = ("Where", "Add", "Sub", "Mul", "Div")
"""Operators that may give back another one."""

"""Folding constant factors and addends into the weights beside them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.ir import Builder, Match, Node, Rule, RulePass, Value
from onnxq.ir.pattern import Either, Operator, PatternBuilder, Variable
from onnxq.passes.fusion.weighted import (
    WITH_FACTORS,
    are_finite,
    changed_weight,
    channel_count,
    moved_bias,
    rounded,
    scaled_weight,
)

_FIRST_OPSET = 7
"""Before it Mul and Add broadcast by attributes."""


def _after_weighted(
    op: PatternBuilder, x: Variable, w: Variable, b: Variable, c: Variable
) -> Either:
    weighted, numbers = _weighted(op, x, w, b), op.constant(c)
    return op.either(
        op("Mul", "Div", "Add", "Sub")(weighted, numbers),
        op.Sub(numbers, weighted, bind="reversed"),
    )


def _after_product(
    op: PatternBuilder, x: Variable, w: Variable, b: Variable, c: Variable
) -> Operator:
    product = _product(op, x, w)
    biased = op.Add(product, op.constant(b), bind="biased")
    return op("Mul", "Div")(op.either(biased, product), op.constant(c))


def _weighted(op: PatternBuilder, x: Variable, w: Variable, b: Variable) -> Operator:
    return op("Conv", "ConvTranspose", "Gemm")(x, w, op.optional(b), bind="weighted")


def _product(op: PatternBuilder, x: Variable, w: Variable) -> Either:
    weight = op.constant(w)
    return op.either(op.MatMul(x, weight, bind="weighted"), op.MatMul(weight, x, bind="weighted"))


def _affine(match: Match) -> tuple[np.ndarray, np.ndarray] | None:
    """Factor and addend that the node at the end applies; None if the constant does not fit.

    One number each, or one for each channel.
    """
    node, root, c = match.node("weighted"), match.root, match["c"]
    shape, rank, w = c.shape, _result_rank(node), match["w"]
    channels = _channels(node, w) if w is node.input(1) else 1
    if shape is None or c.dtype is None or not c.dtype.is_float or not _is_float(w):
        return None
    if rank is None or len(shape) > rank or channels is None:
        return None
    axis = rank - 1 if node.is_op("MatMul") else 1
    aligned = (1,) * (rank - len(shape)) + shape
    if any(d != 1 for at, d in enumerate(aligned) if at != axis):
        return None
    if aligned[axis : axis + 1] not in ((1,), (channels,)):
        return None
    numbers = c.numpy().astype(np.float64).reshape(-1)
    zero, one = np.zeros(1), np.ones(1)
    with np.errstate(all="ignore"):
        if root.is_op("Mul"):
            return numbers, zero
        if root.is_op("Div"):
            return 1 / numbers, zero
        if root.is_op("Add"):
            return one, numbers
        return (-one, numbers) if "reversed" in match.bound else (one, -numbers)


def _result_rank(node: Node) -> int | None:
    if node.is_op("Gemm"):
        return 2
    if node.is_op("MatMul"):
        # One number of rank 1 widens no matrix product, whatever its rank.
        return node.output.rank or 1
    weight = node.input(1)
    return None if weight is None else weight.rank


def _channels(node: Node, w: Value) -> int | None:
    sizes = tuple(d if isinstance(d, int) else -1 for d in w.shape or ())
    found = channel_count(node, sizes)
    return None if found is None or found < 0 else found


def _folded_after(match: Match) -> tuple[np.ndarray | None, np.ndarray | None] | None:
    """New weight and new bias, each None if it stays; None if nothing can be folded."""
    node, w, b, affine = match.node("weighted"), match["w"], match.get("b"), _affine(match)
    if affine is None or w is not node.input(1) or (b is not None and not b.is_constant):
        return None
    (factor, shift), bias = affine, None if b is None else b.numpy()
    if bias is not None and not _is_vector(bias):
        return None
    moved = moved_bias(node, bias, factor, shift, _dtype(w))
    weight = None if (factor == 1).all() else _scaled(node, w, factor)
    if not are_finite([moved]) or (weight is None and not (factor == 1).all()):
        return None
    if not node.is_op("Gemm"):
        moved = np.broadcast_to(moved, (_channels(node, w) or 0,))
    return weight, moved if b is not None or shift.any() else None


def _is_vector(bias: np.ndarray) -> bool:
    """A bias that broadcasts over something else than the channels is left alone."""
    return bias.size == max(bias.shape, default=1)


def _fold_after(op: Builder, match: Match) -> Value:
    node, (weight, bias) = match.node("weighted"), match.found
    if bias is not None:
        if node.is_op("Gemm"):
            op.graph.set_attribute(node, "beta", None)
        name = f"{node.output.name}_bias"
        op.graph.set_constant(node, 2, np.ascontiguousarray(bias), name)
    if weight is not None:
        op.graph.set_constant(node, 1, weight)
    return node.output


def _folded_into_product(match: Match) -> tuple[np.ndarray, np.ndarray | None] | None:
    """New weight, and new bias if there is one; None if they cannot take the factor."""
    node, w, b, affine = match.node("weighted"), match["w"], match.get("b"), _affine(match)
    weight = None if affine is None else _scaled(node, w, affine[0])
    if affine is None or weight is None or b is None:
        return None if weight is None else (weight, None)
    if b.shape is None or any(d != 1 for d in b.shape[:-1]):
        return None
    bias = rounded(b.numpy().astype(np.float64) * affine[0], _dtype(w))
    fits = len(b.shape) <= (_result_rank(node) or 1) and are_finite([bias])
    return (weight, bias) if fits else None


def _fold_into_product(op: Builder, match: Match) -> Value:
    node, (weight, bias) = match.node("weighted"), match.found
    op.graph.set_constant(node, node.inputs.index(match["w"]), weight)
    if bias is None:
        return node.output
    biased = match.node("biased")
    op.graph.set_constant(biased, biased.inputs.index(match["b"]), bias)
    return biased.output


def _is_float(value: Value) -> bool:
    return value.dtype is not None and value.dtype.is_float and value.dtype.bits >= 16


def _dtype(value: Value) -> np.dtype[np.generic]:
    assert value.dtype is not None
    return value.dtype.numpy


def _scaled(node: Node, w: Value, factor: np.ndarray) -> np.ndarray | None:
    return changed_weight(node, w, lambda weight: scaled_weight(node, weight, factor))


_FOLDED = "folded into the weight"


@dataclass(frozen=True)
class FuseConvScale(RulePass):
    """Fold multiplication and addition of constants into Conv, ConvTranspose, Gemm and MatMul.

    Computed in float64, rounded once to the dtype of the weight.

    Rewritten, where the constants have one number, or one for each output channel or column:

    - Mul, Div, Add and Sub after a Conv, ConvTranspose or Gemm with constant or missing bias. All
      but the addition also need the weight to be constant.
    - Mul and Div after a MatMul with a constant weight, also when a constant bias is added in
      between; with the weight on the left, constants of one number.

    What lies in between may serve nothing else. What stands before them is for fuse-conv-input.

    Not rewritten:

    - Constants that differ along another axis, or have more axes than the result.
    - A weight, or bias, that would become infinite, or in which numbers would become subnormal or
      zero: there the factor may keep a computation in range.
    - A weight of more than 64 KiB that something else reads too, which would be stored twice, and
      one of more than 16 MiB in a file beside the model, which would have to be held in memory.
    - Opsets below 7, where Mul and Add broadcast in another way.
    - Weights that are not constant, integers behind DequantizeLinear among them.

    onnxruntime folds most of these itself at session start, so that in float the folded form is as
    fast (0.97 to 1.07 times, 1.3 times for an Add over a large image). Between integers it cannot:
    there a Conv with a factor or a bias for each channel runs at 1.08 to 3.5 times the speed once
    they are folded, a MatMul with one factor at 1.02 to 1.2 times.
    """

    name = "fuse-conv-scale"
    numerics = "reassociates"
    default = True
    after = WITH_FACTORS
    needs_types = True
    rules = (
        Rule(_after_weighted, _fold_after, _folded_after, _FOLDED, _FIRST_OPSET),
        Rule(_after_product, _fold_into_product, _folded_into_product, _FOLDED, _FIRST_OPSET),
    )

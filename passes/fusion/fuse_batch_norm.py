"""Folding BatchNormalization into the operator before it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.ir import Builder, Context, Graph, Match, Node, Pass, Rule, Value, rewrite
from onnxq.ir.operators import attribute_value
from onnxq.ir.pattern import Operator, PatternBuilder, Term, Variable
from onnxq.passes.fusion.weighted import (
    are_finite,
    channel_count,
    moved_bias,
    rounded,
    scaled_weight,
)

_FIRST_BROADCAST_OPSET = 7
"""Before it Mul and Add broadcast by attributes, and attribute ``is_test`` marks inference."""

_FIRST_TRAINING_MODE_OPSET = 14
"""From here on an attribute, before it the number of outputs says whether it trains."""

_PARAMETERS = ("scale", "bias", "mean", "var")


@dataclass(frozen=True)
class FuseBatchNorm(Pass):
    """Fold BatchNormalization into the Conv, ConvTranspose or Gemm before it.

    In inference it computes ``x * factor + shift`` per channel, with
    ``factor = scale / sqrt(var + epsilon)`` and ``shift = bias - mean * factor``. Computed in
    float64, rounded once to the dtype of the weight.

    Rewritten, with constant scale, bias, mean and variance:

    - After a Conv or ConvTranspose (any ``group``) or Gemm (any ``transA``, ``transB``, ``alpha``
      and ``beta``) with constant weight and constant or missing bias, whose output nothing else
      reads: weight and bias take factor and shift in. A weight that is used elsewhere too is
      copied, not changed.
    - With ``alone``, a BatchNormalization that is left, on an input of known rank and dtype: Mul
      and Add with constants. Off by default, since onnxruntime is faster with the operator as it
      is: behind a pooling the two run at 0.77 to 0.98 times the speed between float Convs, 0.44 to
      1.00 times between integer ones. It is for runtimes without the operator.

    Not rewritten:

    - BatchNormalization in training, and one whose other outputs are there (opset 7 to 13, which
      makes it training) or used.
    - Attribute ``spatial`` 0 (opset 8 and older): its parameters are not per channel.
    - Below opset 7 one that is left, because Mul broadcasts in another way there.
    - Parameters that give a factor, weight or bias that is not finite in the dtype of the weight.
    - A BatchNormalization before a Conv: exact only without padding.
    """

    name = "fuse-batch-norm"
    numerics = "reassociates"
    default = True
    after = ("fold-constants", "eliminate-identity", "fuse-matmul-add")
    needs_types = True

    alone: bool = False

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the BatchNormalizations folded or taken apart."""
        return rewrite(graph, [_FOLDED, _ALONE] if self.alone else [_FOLDED], ctx)


def _after_weighted(op: PatternBuilder, x: Variable, w: Variable, b: Variable) -> Operator:
    weighted = op("Conv", "ConvTranspose", "Gemm")
    bias = op.optional(op.constant(b))
    return _alone(op, weighted(x, op.constant(w), bias, bind="weighted"))


def _alone(op: PatternBuilder, x: Term) -> Operator:
    return op.BatchNormalization(x, *(op.constant(Variable(name)) for name in _PARAMETERS))


def _folded(match: Match) -> tuple[np.ndarray, np.ndarray] | None:
    """Weight and bias with the normalization in them, in the dtype of the weight."""
    node, weight, given = match.node("weighted"), match["w"].numpy(), match.get("b")
    channels = channel_count(node, weight.shape)
    is_by_channel = all(match[name].numpy().size == channels for name in _PARAMETERS)
    if not _is_inference(match.root) or not is_by_channel:
        return None
    factor, shift = _factor_and_shift(match)
    bias = moved_bias(node, None if given is None else given.numpy(), factor, shift, weight.dtype)
    found = scaled_weight(node, weight, factor), bias
    return found if are_finite(found) else None


def _fold(op: Builder, match: Match) -> Value:
    node, (weight, bias) = match.node("weighted"), match.found
    op.graph.set_constant(node, 1, weight)
    op.graph.set_constant(node, 2, bias, f"{node.output.name}_bias")
    if node.is_op("Gemm"):
        op.graph.set_attribute(node, "beta", None)
    return node.output


def _multiplier_and_addend(match: Match) -> list[np.ndarray] | None:
    """Factor and shift in the dtype and with the rank of what is normalized."""
    x = match["x"]
    if x.rank is None or x.dtype is None or not _is_inference(match.root):
        return None
    shape = (-1,) + (1,) * max(x.rank - 2, 0)
    found = [rounded(n, x.dtype.numpy).reshape(shape) for n in _factor_and_shift(match)]
    return found if are_finite(found) else None


def _multiply_add(op: Builder, match: Match) -> Value:
    stem, (factor, shift) = match.root.output.name, match.found
    product = op.Mul(match["x"], op.constant(factor, f"{stem}_factor"))
    product.type = match.root.output.type
    return op.Add(product, op.constant(shift, f"{stem}_shift"))


_FOLDED = Rule(_after_weighted, _fold, _folded, "folded into the operator before it")
_ALONE = Rule(
    _alone, _multiply_add, _multiplier_and_addend, "is Mul and Add", _FIRST_BROADCAST_OPSET
)


def _is_inference(norm: Node) -> bool:
    opset = norm.graph.opset
    if not attribute_value(norm, "spatial") and opset < 9:
        return False
    if opset < _FIRST_BROADCAST_OPSET:
        return bool(norm.get("is_test", 0))
    if opset < _FIRST_TRAINING_MODE_OPSET:
        return all(v is None for v in norm.outputs[1:])
    return not norm.get("training_mode", 0)


def _factor_and_shift(match: Match) -> tuple[np.ndarray, np.ndarray]:
    scale, bias, mean, var = (
        match[name].numpy().astype(np.float64).reshape(-1) for name in _PARAMETERS
    )
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(var + float(attribute_value(match.root, "epsilon")))
        return factor, bias - mean * factor

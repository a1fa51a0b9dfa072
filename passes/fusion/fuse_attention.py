"""Fusing products of queries, keys and values with a Softmax between them to Attention."""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnxq.ir import Builder, DataType, FormPass, Match, Rule, Shape, Value
from onnxq.ir.pattern import Either, Operator, PatternBuilder, Term, Variable
from onnxq.passes.fusion.fusing import keeps_shape
from onnxq.passes.nodes import broadcasts

_SWAPPED = (0, 1, 3, 2)
_SWAPPED_FROM_ROWS = (0, 2, 3, 1)
"""Splits heads off the rows, as in [batch, length, heads, size], and swaps the last axes."""

_HEADS_FIRST = (0, 2, 1, 3)

_SCALED = ("query", "key", "score")
"""What may be multiplied or divided by a constant."""


def _pattern(op: PatternBuilder, q: Variable, k: Variable, v: Variable, mask: Variable) -> Operator:
    def scaled(term: Term, name: str) -> Either:
        factor, divisor = (op.number(Variable(f"{name}_{by}")) for by in ("factor", "divisor"))
        return op.either(op.Mul(term, factor), op.Div(term, divisor), term)

    merged = op.Transpose(op.Reshape(k, Variable("merging"), bind="merge"), bind="transpose")
    split = op.Reshape(merged, Variable("splitting"), bind="split")
    keys = op.either(split, op.Transpose(k, bind="transpose"))
    scores = scaled(op.MatMul(scaled(q, "query"), scaled(keys, "key")), "score")
    return op.MatMul(op.Softmax(op.either(op.Add(scores, mask), scores), bind="softmax"), v)


def _key_shape(match: Match) -> Shape | None:
    """Shape of the keys as Attention reads them, None if they are not transposed as it would."""
    k, transpose = match["k"], match.node("transpose")
    perm = transpose.get("perm")
    if k.shape is None or len(k.shape) != 4:
        return None
    if "merge" in match.bound:
        merged, split = match.node("merge").output.shape, match.node("split").output.shape
        batch, heads, length, size = k.shape
        fits = (
            None not in k.shape
            and perm == (0, 2, 1)
            and merged is not None
            and merged[1:] == (length, size)
            and split == (batch, heads, size, length)
        )
        return k.shape if fits else None
    if perm == _SWAPPED:
        return k.shape
    if perm == _SWAPPED_FROM_ROWS:
        return tuple(k.shape[axis] for axis in _HEADS_FIRST)
    return None


def _scale(match: Match) -> float | None:
    """What the scores are multiplied by, None if that is not positive or it is no Attention."""
    q, v, keys = match["q"], match["v"], _key_shape(match)
    if q.shape is None or v.shape is None or keys is None:
        return None
    if len(q.shape) != 4 or len(v.shape) != 4 or None in q.shape[:2]:
        return None
    fits = (
        q.dtype is v.dtype is match["k"].dtype is DataType.FLOAT
        and q.shape[:2] == keys[:2] == v.shape[:2]
        and match.node("softmax").get("axis", -1) in (-1, 3)
        and _is_mask(match.get("mask"), (*q.shape[:3], keys[2]))
        and keeps_shape(match, q)
    )
    if not fits:
        return None
    product = 1.0
    for name in _SCALED:
        for by in ("factor", "divisor"):
            found = match.number(f"{name}_{by}") if f"{name}_{by}" in match.values else 1.0
            if not 0 < found < math.inf:
                return None
            product = product / found if by == "divisor" else product * found
    return product


def _is_mask(mask: Value | None, scores: Shape) -> bool:
    if mask is None:
        return True
    shape = mask.shape
    if shape is None or not 2 <= len(shape) <= 4 or mask.dtype is not DataType.FLOAT:
        return False
    if None in shape[-2:] or shape[-2:] != scores[-2:]:
        return False
    return broadcasts(shape[:-2], scores[:-2])


def _replacement(op: Builder, match: Match) -> Value:
    k = match["k"]
    if match.node("transpose").get("perm") == _SWAPPED_FROM_ROWS:
        k = op.Transpose(k, perm=list(_HEADS_FIRST))
    return op.Attention(match["q"], k, match["v"], match.get("mask"), scale=match.found)


@dataclass(frozen=True)
class FuseAttention(FormPass):
    """Fuse scaled, masked and normalized products of queries, keys and values to Attention.

    Rewritten, in float32 and from opset 23 on: ``softmax(q @ transpose(k) * scale + mask) @ v``
    over ``[batch, heads, length, size]``, batch and heads known to agree.

    - The scale is a Mul or Div with a constant number behind the first product, before it on the
      queries or keys, several of these, or missing.
    - The keys are transposed by swapping the last two axes, or together with splitting off the
      heads, or, as torch's newer exporter does, between two Reshapes over three axes.
    - The mask is a tensor that is added, of the scores' last two dimensions and any or none of the
      others, or missing.

    Not rewritten:

    - Below opset 23, which does not have the operator; raise the model's opset first.
    - A mask whose last dimensions are broadcast: onnxruntime's kernel refuses it.
    - Shared key heads, scores or probabilities that are also read elsewhere, a Where between.
    - Other element types.

    A row that the mask excludes as a whole gives zeros in onnxruntime instead of NaN.

    The default pipeline leaves this alone. In onnxruntime both forms have nearly the same speed:
    without a mask 0.98 to 1.02 times alone, between float MatMuls and between integer ones, with
    one 1.00 to 1.10 times. For that it would give up NaN in rows that are masked as a whole, and
    hide the matrix products from targets that quantize them. The graph has up to eight nodes less.
    A search tries it where the target names it among its forms: quantized, the language model in
    `models/` gains 2 to 4 % and a sentence encoder of six layers 2 to 5 % (onnxruntime 1.32).
    """

    name = "fuse-attention"
    numerics = "reassociates"
    after = ("fuse-softmax",)
    needs_types = True
    last_first = True
    rules = (Rule(_pattern, _replacement, _scale, "is one Attention", opset=23),)

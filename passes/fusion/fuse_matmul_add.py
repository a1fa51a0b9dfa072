"""Fusing MatMul and Add, and Transposes before it, to Gemm."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.ir import (
    Builder,
    Context,
    DataType,
    FormPass,
    Graph,
    Match,
    Node,
    Rule,
    TensorType,
    Value,
)
from onnxq.ir.operators import attribute_value
from onnxq.ir.pattern import Operator, PatternBuilder, Variable
from onnxq.ir.rules import remove_unused
from onnxq.passes.nodes import broadcasts, visit

_GEMM_TYPES = frozenset({DataType.FLOAT, DataType.DOUBLE, DataType.FLOAT16})
_FIRST_OPSET = 7
"""Before it Add and Gemm broadcast by attributes."""

_FIRST_BFLOAT16_OPSET = 13


def _pattern(op: PatternBuilder, a: Variable, b: Variable, c: Variable) -> Operator:
    return op.Add(op.MatMul(a, b, bind="matmul"), c)


def _replacement(op: Builder, match: Match) -> Value:
    return op.Gemm(match["a"], match["b"], match["c"])


def _is_gemm(match: Match) -> bool:
    a, b, c = match["a"], match["b"], match["c"]
    dtype = match.node("matmul").output.dtype or a.dtype or b.dtype
    if dtype not in _GEMM_TYPES and not (
        dtype is DataType.BFLOAT16 and match.graph.opset >= _FIRST_BFLOAT16_OPSET
    ):
        return False
    if a.shape is None or b.shape is None or len(a.shape) != 2 or len(b.shape) != 2:
        return False
    product = (a.shape[0], b.shape[1])
    is_row = c.shape is not None and all(d == 1 for d in c.shape[:-1])
    return (c.is_constant or is_row) and broadcasts(c.shape, product)


def _absorb(transpose: Node) -> str | None:
    read, made = transpose.input(0), transpose.output
    # Without a perm the dimensions are reversed, and Gemm's inputs have two.
    if read is None or made.is_output or not made.uses or transpose.get("perm", (1, 0)) != (1, 0):
        return None
    if not all(use.node.is_op("Gemm") and use.slot in (0, 1) for use in made.uses):
        return None
    for use in made.uses:
        name = ("transA", "transB")[use.slot]
        flipped = int(not attribute_value(use.node, name))
        use.node.graph.set_attribute(use.node, name, flipped or None)
        use.node.set_input(use.slot, read)
    if read.type is None and made.dtype is not None:
        read.type = TensorType(made.dtype, None if made.shape is None else made.shape[::-1])
    remove_unused(transpose.graph, [transpose])
    return "into the Gemm after it"


@dataclass(frozen=True)
class FuseMatMulAdd(FormPass):
    """Fuse MatMul and the Add after it to Gemm, and Transposes before a Gemm into it.

    Rewritten:

    - ``Add(MatMul(a, b), c)`` with ``a`` and ``b`` of rank 2, floating point, and ``c`` either a
      constant of any shape that broadcasts to the product's or one row (``[n]``, ``[1, n]``, a
      scalar) made at run time. Becomes ``Gemm(a, b, c)``.
    - ``Transpose`` of a matrix when everything that reads it is the first or second input of a
      Gemm: ``transA`` or ``transB`` changes instead.

    Not rewritten:

    - A MatMul of which an input has another or an unknown rank. Gemm knows matrices only; a
      Reshape to a matrix and one back cost more than the fusion gains, and hide the dimensions.
    - A MatMul whose product is also read elsewhere or is a graph output.
    - An Add of a whole matrix made at run time (a residual connection): it is no bias, and other
      fusions and quantization look for the Add.
    - A ``c`` whose shape is unknown, or would make the sum larger than the product.
    - Integers, and opsets below 7, where Add and Gemm broadcast in another way.
    - A Transpose that something else than a Gemm reads too: it would stay and nothing be gained.
    """

    name = "fuse-matmul-add"
    numerics = "reassociates"
    default = True
    needs_types = True
    rules = (Rule(_pattern, _replacement, _is_gemm, "MatMul and Add are one Gemm", _FIRST_OPSET),)

    def run(self, graph: Graph, ctx: Context) -> int:
        """See `Pass.run`; counts the Gemms made and the Transposes absorbed."""
        made = super().run(graph, ctx)
        # From the end, so that one Transpose behind another is absorbed as well.
        return made + visit(graph, ctx, {"Transpose"}, _absorb, last_first=True)

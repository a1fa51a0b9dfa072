"""Products of matrices."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor

from onnxq.ir import Node, attribute_value
from onnxq.tune.train.operators.registry import Run, functions, operator

functions({"Det": torch.linalg.det, "MatMul": torch.matmul})


@operator("Gemm")
def _gemm(node: Node) -> Run:
    alpha, beta = attribute_value(node, "alpha"), attribute_value(node, "beta")
    first_turned, second_turned = attribute_value(node, "transA"), attribute_value(node, "transB")

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        a = a.T if first_turned else a
        b = b if second_turned else b.T
        if alpha == beta == 1 and (c is None or c.ndim == 1):
            return F.linear(a, b, c)
        product = F.linear(a, b)
        product = product if alpha == 1 else alpha * product
        if c is None:
            return product
        return product + (c if beta == 1 else beta * c)

    return run


@operator("Einsum")
def _einsum(node: Node) -> Run:
    equation = attribute_value(node, "equation")
    return lambda *factors: torch.einsum(equation, *factors)

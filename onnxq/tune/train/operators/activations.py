"""Activation functions, and what normalizes to a distribution."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor

from onnxq.ir import Node, attribute_value
from onnxq.tune.train.operators.registry import Run, functions, operator

functions(
    {
        "HardSwish": F.hardswish,
        "Mish": F.mish,
        "PRelu": lambda x, slope: torch.where(x >= 0, x, slope * x),
        "Relu": torch.relu,
        "Sigmoid": torch.sigmoid,
        "Softplus": F.softplus,
        "Softsign": F.softsign,
    }
)


_BY_ALPHA = {
    "Celu": F.celu,
    "Elu": F.elu,
    "LeakyRelu": F.leaky_relu,
    "Swish": lambda x, alpha: x * torch.sigmoid(alpha * x),
    "ThresholdedRelu": lambda x, alpha: F.threshold(x, alpha, 0.0),
}


@operator(*_BY_ALPHA)
def _by_alpha(node: Node) -> Run:
    compute, alpha = _BY_ALPHA[node.op_type], attribute_value(node, "alpha")
    return lambda x: compute(x, alpha)


@operator("Selu")
def _selu(node: Node) -> Run:
    alpha, gamma = attribute_value(node, "alpha"), attribute_value(node, "gamma")
    return lambda x: gamma * F.elu(x, alpha)


@operator("HardSigmoid")
def _hard_sigmoid(node: Node) -> Run:
    alpha, beta = attribute_value(node, "alpha"), attribute_value(node, "beta")
    return lambda x: torch.clamp(alpha * x + beta, 0.0, 1.0)


@operator("Gelu")
def _gelu(node: Node) -> Run:
    approximate = attribute_value(node, "approximate")
    return lambda x: F.gelu(x, approximate=approximate)


@operator("Shrink")
def _shrink(node: Node) -> Run:
    bias, end = attribute_value(node, "bias"), attribute_value(node, "lambd")

    def run(x: Tensor) -> Tensor:
        shrunk = torch.where(x < -end, x + bias, torch.where(x > end, x - bias, 0))
        return shrunk.to(x.dtype)

    return run


_DISTRIBUTIONS = {
    "Softmax": torch.softmax,
    "LogSoftmax": torch.log_softmax,
    "Hardmax": lambda x, axis: (
        F.one_hot(x.argmax(axis), x.shape[axis]).movedim(-1, axis).to(x.dtype)
    ),
}


@operator(*_DISTRIBUTIONS)
def _distribution(node: Node) -> Run:
    compute, axis = _DISTRIBUTIONS[node.op_type], attribute_value(node, "axis")
    if node.graph.opset >= 13:
        return lambda x: compute(x, axis)

    # Before opset 13 everything from the axis on was one distribution.
    def run(x: Tensor) -> Tensor:
        first = axis % x.ndim if x.ndim else 0
        rows = x.reshape(*x.shape[:first], -1)
        return compute(rows, rows.ndim - 1).reshape(x.shape)

    return run

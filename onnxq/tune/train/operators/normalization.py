"""Normalization by mean, deviation or norm."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor, nn

from onnxq.ir import Node, attribute_value
from onnxq.tune.train.operators.registry import Run, operator


class BatchNormalization(nn.Module):
    """BatchNormalization; while training it uses the batch's statistics and keeps running ones.

    As in torch, the running variance is that of a sample. A node that states ``training_mode``
    gives its own statistics as ONNX defines them, whatever the module is asked for.
    """

    def __init__(self, node: Node) -> None:
        super().__init__()
        self._epsilon: float = attribute_value(node, "epsilon")
        self._momentum: float = attribute_value(node, "momentum")
        self._by_itself = bool(attribute_value(node, "training_mode"))

    def forward(
        self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
    ) -> Any:
        """Normalize; the running statistics change in place while training."""
        kept = self._momentum
        if self._by_itself:
            spread, found = torch.var_mean(x, [0, *range(2, x.ndim)], correction=0)
            y = self._normalized(x, scale, bias, found, spread)
            return y, mean * kept + found * (1 - kept), variance * kept + spread * (1 - kept)
        if mean.requires_grad or variance.requires_grad:
            return self._normalized(x, scale, bias, mean, variance)
        return F.batch_norm(x, mean, variance, scale, bias, self.training, 1 - kept, self._epsilon)

    def _normalized(
        self, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
    ) -> Tensor:
        """The same with statistics that gradients pass, which torch's own does not have."""
        factor = scale * torch.rsqrt(variance + self._epsilon)
        around = (-1, *[1] * (x.ndim - 2))
        return x * factor.reshape(around) + (bias - mean * factor).reshape(around)


@operator("BatchNormalization")
def _batch_normalization(node: Node) -> Run:
    return BatchNormalization(node)


@operator("InstanceNormalization")
def _instance_normalization(node: Node) -> Run:
    epsilon = attribute_value(node, "epsilon")

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        around = (-1, *[1] * (x.ndim - 2))
        normal = _standardized(x, list(range(2, x.ndim)), epsilon)
        return normal * scale.reshape(around) + bias.reshape(around)

    return run


def _standardized(x: Tensor, axes: list[int], epsilon: float) -> Tensor:
    variance, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
    return (x - mean) * torch.rsqrt(variance + epsilon)


def _wide(x: Tensor) -> Tensor:
    """In at least 32 bits, as operators with ``stash_type`` compute."""
    return x.float() if x.dtype.itemsize < 4 else x


@operator("LayerNormalization")
def _layer_normalization(node: Node) -> Run:
    axis, epsilon = attribute_value(node, "axis"), attribute_value(node, "epsilon")
    statistics_too = len(node.outputs) > 1

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Any:
        shape = x.shape[axis:]
        fits = scale.shape == shape and (bias is None or bias.shape == shape)
        if fits and not statistics_too:
            return F.layer_norm(x, shape, scale, bias, epsilon)
        axes, wide = list(range(axis % x.ndim, x.ndim)), _wide(x)
        variance, mean = torch.var_mean(wide, axes, correction=0, keepdim=True)
        inverse = torch.rsqrt(variance + epsilon)
        y = ((wide - mean) * inverse).to(x.dtype) * scale
        y = y if bias is None else y + bias
        return (y, mean, inverse) if statistics_too else y

    return run


@operator("RMSNormalization")
def _rms_normalization(node: Node) -> Run:
    axis, epsilon = attribute_value(node, "axis"), attribute_value(node, "epsilon")

    def run(x: Tensor, scale: Tensor) -> Tensor:
        axes, wide = list(range(axis % x.ndim, x.ndim)), _wide(x)
        squares = (wide * wide).mean(axes, True)
        return (wide * torch.rsqrt(squares + epsilon)).to(x.dtype) * scale

    return run


@operator("GroupNormalization")
def _group_normalization(node: Node) -> Run:
    groups, epsilon = attribute_value(node, "num_groups"), attribute_value(node, "epsilon")
    by_group = node.graph.opset < 21

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        if by_group:
            each = x.shape[1] // groups
            scale, bias = scale.repeat_interleave(each), bias.repeat_interleave(each)
        return F.group_norm(x, groups, scale, bias, epsilon)

    return run


@operator("LpNormalization")
def _norm_normalization(node: Node) -> Run:
    axis, order = attribute_value(node, "axis"), attribute_value(node, "p")

    def run(x: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x, order, axis, True)
        return torch.where(norm == 0, 0, x / norm)

    return run


@operator("MeanVarianceNormalization")
def _mean_variance_normalization(node: Node) -> Run:
    axes = list(attribute_value(node, "axes") or (0, 2, 3))

    def run(x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(x, axes, correction=0, keepdim=True)
        return (x - mean) / (deviation + 1e-9)

    return run


@operator("LRN")
def _local_response_normalization(node: Node) -> Run:
    alpha, beta = attribute_value(node, "alpha"), attribute_value(node, "beta")
    bias, size = attribute_value(node, "bias"), attribute_value(node, "size")
    before = (size - 1) // 2

    def run(x: Tensor) -> Tensor:
        rest = [0] * (2 * (x.ndim - 2))
        squares = F.pad(x * x, [*rest, before, size - 1 - before])
        sums = squares.unfold(1, size, 1).sum(-1)
        return x / (bias + alpha / size * sums) ** beta

    return run


@operator("Dropout")
def _dropout(node: Node) -> Run:
    stated = attribute_value(node, "ratio")
    mask_too = len(node.outputs) > 1

    def run(x: Tensor, ratio: Tensor | None = None, training: Tensor | None = None) -> Any:
        share = (0.5 if stated is None else stated) if ratio is None else float(ratio)
        drops = training is not None and bool(training) and share > 0
        kept = torch.rand_like(x) >= share if drops else torch.ones_like(x, dtype=torch.bool)
        y = x * kept / (1 - share) if drops else x
        return (y, kept) if mask_too else y

    return run

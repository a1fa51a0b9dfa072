"""Losses that a graph states itself."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812 - the name every torch program uses
from torch import Tensor

from onnxq.ir import Node, attribute_value
from onnxq.tune.train.operators.registry import Run, operator


@operator("NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss")
def _loss(node: Node) -> Run:
    reduction, ignored = attribute_value(node, "reduction"), attribute_value(node, "ignore_index")
    normalizes = node.is_op("SoftmaxCrossEntropyLoss")
    both = len(node.outputs) > 1

    def run(x: Tensor, labels: Tensor, weight: Tensor | None = None) -> Any:
        logs = F.log_softmax(x, 1) if normalizes else x
        never = -100 if ignored is None else ignored
        loss = F.nll_loss(logs, labels.long(), weight, ignore_index=never, reduction=reduction)
        return (loss, logs) if both else loss

    return run

"""What detectors do with boxes; no gradients pass."""

from __future__ import annotations

import torch
from torch import Tensor

from onnxq.ir import Node, attribute_value
from onnxq.tune.train.operators.registry import Run, operator


@operator("NonMaxSuppression", host=(2, 3, 4))
def _non_max_suppression(node: Node) -> Run:
    by_center = bool(attribute_value(node, "center_point_box"))

    def run(
        boxes: Tensor,
        scores: Tensor,
        most: Tensor | None = None,
        overlap: Tensor | None = None,
        least: Tensor | None = None,
    ) -> Tensor:
        limit = 0 if most is None else int(most)
        shared = 0.0 if overlap is None else float(overlap)
        found = []
        for image, (corners, rows) in enumerate(
            zip(_corners(boxes, by_center), scores, strict=True)
        ):
            for label, row in enumerate(rows):
                order = torch.sort(row, descending=True, stable=True).indices
                if least is not None:
                    order = order[row[order] > float(least)]
                kept = _kept(corners, order.tolist(), shared, limit)
                found += [[image, label, box] for box in kept]
        return torch.tensor(found, dtype=torch.int64, device=boxes.device).reshape(-1, 3)

    return run


def _corners(boxes: Tensor, by_center: bool) -> Tensor:
    """The lower and the upper corner of each box."""
    one, other = boxes.chunk(2, -1)
    if by_center:
        return torch.cat([one - other / 2, one + other / 2], -1)
    return torch.cat([torch.minimum(one, other), torch.maximum(one, other)], -1)


def _kept(corners: Tensor, order: list[int], shared: float, limit: int) -> list[int]:
    """Of boxes in order of their scores those that no better one overlaps by more than a share."""
    kept: list[int] = []
    for box in order:
        if len(kept) >= limit:
            break
        if not kept or float(_overlaps(corners[box], corners[kept]).max()) <= shared:
            kept.append(box)
    return kept


def _overlaps(box: Tensor, others: Tensor) -> Tensor:
    """Intersection over union."""
    low = torch.maximum(box[:2], others[:, :2])
    high = torch.minimum(box[2:], others[:, 2:])
    common = (high - low).clamp(min=0).prod(-1)
    areas = (others[:, 2:] - others[:, :2]).prod(-1)
    return common / ((box[2:] - box[:2]).prod() + areas - common)

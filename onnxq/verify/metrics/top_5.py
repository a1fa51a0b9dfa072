"""Top-5 accuracy."""

from __future__ import annotations

from onnxq.verify.metrics.top_k import TopK


class Top5(TopK):
    """Share of positions whose label is among the five largest outputs."""

    name = "top-5"
    k = 5

"""Float16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from onnxq.ir import DataType, Node
from onnxq.needs import Need, RangeOf
from onnxq.passes.static.placement import Placement
from onnxq.precision.halves import Halves


@dataclass(frozen=True)
class Float16(Halves):
    """Float16, wherever values stay within half of its range."""

    name: ClassVar[str] = "float16"
    description: ClassVar[str] = "16-bit floats"

    def needs(self, nodes: Sequence[Node], placed: Placement) -> Sequence[Need]:
        """See `Precision`: values beyond the format's range would become infinite."""
        values = dict.fromkeys(v for node in nodes for v in (*node.inputs, *node.outputs))
        return [
            RangeOf(v.name)
            for v in values
            if v is not None and v.dtype is DataType.FLOAT and not v.is_constant
            if v.graph.outer is None
        ]

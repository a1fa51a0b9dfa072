"""Passes that write a float graph in another, equal way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from onnxq.ir import Pass

Numbers = Mapping[str, npt.NDArray[Any]]
"""What a transformation of each tensor takes, by the tensor's name."""


@dataclass(frozen=True)
class Equivalent(Pass):
    """A pass that changes tensors of a graph by numbers found elsewhere, and no output.

    Nodes keep their names, and tensors that hold other numbers get new ones, so that nothing is
    compared or quantized by what was known of them before.
    """

    numbers: Numbers = field(default_factory=dict, repr=False)

"""Rotating the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxq.observe import Observations
from onnxq.passes.channels.rotate_residual import RotateResidual, find_streams
from onnxq.passes.notes import node_name
from onnxq.tune.transformation import Change, Subject, Transformation


@dataclass(frozen=True)
class Rotate(Transformation):
    """A randomized Hadamard transform of the channels of every residual stream.

    QuaRot (Ashkboos et al., 2024): see `RotateResidual`. It needs no data. For decoders with
    root-mean-square normalization, whose weights share a scale over many inputs, or whose
    activations have outlier channels; weights that were stored in blocks before, as those of GGUF
    files, lie on a grid that a rotation takes them off.

    Attributes:
        seed: Chooses the signs.
    """

    name: ClassVar[str] = "rotate"
    description: ClassVar[str] = "channels of residual streams evened out by a rotation"

    seed: int = 0

    def refusal(self, subject: Subject) -> str:
        """See `Transformation`."""
        return "" if find_streams(subject.graph) else "it has no residual stream to rotate"

    def transform(self, subject: Subject, observations: Observations) -> Sequence[Change]:
        """See `Transformation`."""
        rng = np.random.default_rng(self.seed)
        return [
            Change(
                RotateResidual.name,
                stream.tensor,
                rng.choice(np.array([-1, 1], np.float32), stream.size),
                tuple(map(node_name, stream.nodes)),
            )
            for stream in find_streams(subject.graph)
        ]

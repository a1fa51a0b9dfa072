"""What answers requests, and one request that was looked at more closely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxq.runtime.specs import Array


@dataclass(frozen=True)
class TensorQParams:
    """How an activation is quantized as a whole: ``real = scale * (stored - zero_point)``."""

    scale: float
    zero_point: int


@dataclass(frozen=True)
class Deployment:
    """A variant of a bundle, and the qparams that take the place of those in its file.

    Attributes:
        variant: Place on the ladder: 0 is the cheapest, the last one the float model.
        qparams: By the tensor that is quantized; of every other tensor as the file has them.
    """

    variant: int = 0
    qparams: Mapping[str, TensorQParams] = field(default_factory=dict)


@dataclass(frozen=True)
class Sampled:
    """A request that was answered, kept for judging.

    Attributes:
        request: Its number, which `feedback` names it by.
        feeds: What was asked, by input: copies.
        served: What was answered, all of the model's outputs in order: copies.
        deployment: What answered.
        correct: Whether the answer was right, where somebody said so.
    """

    request: int
    feeds: Mapping[str, Array]
    served: tuple[Array, ...]
    deployment: Deployment
    correct: bool | None = None


@dataclass(frozen=True)
class Reference:
    """What the float model says of a request.

    Attributes:
        outputs: All of the model's outputs in order.
        tensors: The values of the tensors that any variant quantizes, by name.
    """

    outputs: tuple[Array, ...]
    tensors: Mapping[str, Array]

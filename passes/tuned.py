"""Weights whose scales, and maybe values, were computed elsewhere, by the name of their node."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.quant import Format, Granularity, from_storage, to_storage
from onnxq.quant.qparams import QParams, QuantizedTensor, quantize

Tensors = Mapping[str, npt.NDArray[Any]]
"""``scale``, ``zero_point`` and maybe ``values``, already rounded. The scale has a number for each
group of the node's weight as the float model holds it, whatever a pass makes of its axes (but times
the ``alpha`` of a Gemm that a pass puts into the weight); zero-points have the scale's shape and
values the weight's, in any type that holds them. The second weight of a recurrent operator has the
same names behind `RECURRENCE`."""

Tuned = Mapping[str, Tensors]
"""Tensors by the name of the node."""

RECURRENCE = "recurrence_"

BIAS = "bias"
"""Name of a tensor of a number for each output channel that is to be added to the node's bias."""


@dataclass(frozen=True)
class TunedWeight:
    """A weight's qparams, and its quantized values unless these are to be rounded with them.

    Attributes:
        qparams: On the axes of the weight as the float model holds it.
        values: In the format's storage dtype, of the weight's shape; None to round.
        digest: Of the values; weights of equal qparams and digests are equal.
    """

    qparams: QParams
    values: npt.NDArray[Any] | None = field(compare=False)
    digest: bytes

    def part(self, where: tuple[slice, ...], numbers: np.ndarray, name: str) -> QuantizedTensor:
        """Quantized values and qparams of a part that holds whole groups.

        Args:
            where: Place of the part in the weight.
            numbers: The float numbers there.
            name: The weight's name, for error messages.
        """
        qparams, axis = self.qparams, self.qparams.axis
        if axis is not None:
            along, block = where[axis], qparams.block_size
            if block is not None and along.start is not None:
                along = slice(along.start // block, -(-along.stop // block))
            cut = (along,) if block is None else (*where[:axis], along, *where[axis + 1 :])
            qparams = replace(qparams, scale=qparams.scale[cut], zero_point=qparams.zero_point[cut])
        values = (
            quantize(numbers, qparams, name=name) if self.values is None else self.values[where]
        )
        return QuantizedTensor(values, qparams)


def tuned_weight(
    tensors: Tensors,
    node: str,
    format: Format,
    granularity: Granularity,
    shape: tuple[int, ...],
    *,
    bounds: tuple[float, float] | None = None,
    zero_point: bool = True,
    prefix: str = "",
) -> TunedWeight:
    """Check tensors that were computed for a node's weight.

    Args:
        tensors: See `Tensors`.
        node: Name of the node, for error messages.
        format: Format of the quantized values.
        granularity: Which numbers of the weight share a scale.
        shape: Of the weight.
        bounds: Smallest and largest quantized value, those of the format if None.
        zero_point: Whether zero-points may be others than 0.
        prefix: In front of the names in ``tensors``.

    Raises:
        InputError: a tensor is missing, or has a wrong shape or values that the format has not.
    """
    if granularity.axis is not None:
        granularity = replace(granularity, axis=granularity.axis % len(shape))
    wanted = granularity.scale_shape(shape)
    low, high = bounds or (format.qmin, format.qmax)

    def tensor(name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        found = tensors.get(prefix + name)
        if found is None or found.shape != shape:
            given = "is missing" if found is None else f"has shape {found.shape}"
            raise InputError(
                f"the tuned tensor {prefix}{name} of node '{node}' {given}; its weight in "
                f"{format.name} needs one of shape {shape}"
            )
        return found

    def integers(name: str, shape: tuple[int, ...]) -> npt.NDArray[Any]:
        numbers = tensor(name, shape).astype(np.float32)
        stored = to_storage(np.clip(np.nan_to_num(numbers), low, high), format)
        if not np.array_equal(from_storage(stored, format), numbers):
            raise InputError(
                f"the tuned tensor {prefix}{name} of node '{node}' holds other values than those "
                f"of {format.name} from {low:g} to {high:g}"
            )
        return stored

    scale = tensor("scale", wanted).astype(np.float32)
    zeros = integers("zero_point", wanted)
    if not zero_point and zeros.view(np.uint8).any():
        raise InputError(
            f"the tuned tensor {prefix}zero_point of node '{node}' is not 0, "
            "and its operator takes no zero-point"
        )
    values = integers("values", shape) if f"{prefix}values" in tensors else None
    try:
        limits = None if bounds == (format.qmin, format.qmax) else bounds
        qparams = QParams(format, scale, zeros, granularity.axis, granularity.block_size, limits)
    except InputError as error:
        raise InputError(f"the tuned tensors of node '{node}' are of no use: {error}") from error
    digest = b"" if values is None else hashlib.sha256(values.tobytes()).digest()
    return TunedWeight(qparams, values, digest)

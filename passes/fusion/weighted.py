"""Factors and addends folded into the weight and bias of Conv, ConvTranspose, Gemm and MatMul."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import ml_dtypes
import numpy as np

from onnxq.ir import Node, Value, attribute_value

_CHUNK = 1 << 22
"""Elements that are computed in float64 at a time, so that large weights need no copy of that."""

WITH_FACTORS = (
    "fuse-gelu",
    "fuse-hard-swish",
    "fuse-layer-norm",
    "fuse-rms-norm",
    "fuse-softmax",
    "fuse-swish",
)
"""Passes that come before factors go into weights: without its 0.5 a Gelu would be none any more,
nor a HardSwish without its 1/6."""


_SHARED_BYTES = 1 << 16
"""Largest weight that is copied because something else reads it as it is."""

_EXTERNAL_BYTES = 1 << 24
"""Largest weight in a file beside the model that is changed, and so held in memory from then on."""


def changed_weight(
    node: Node, w: Value, change: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray | None:
    """A node's weight, changed; None if it may not be, or not all of its numbers stay in range."""
    if not w.is_constant or w.data is None or node.inputs.count(w) != 1 or is_shared(w):
        return None
    if w.data.is_external and w.data.nbytes > _EXTERNAL_BYTES:
        return None
    changed = change(w.numpy())
    is_kept = are_finite([changed]) and _tiny_numbers(changed) <= _tiny_numbers(w.numpy())
    return changed if is_kept else None


def is_shared(w: Value) -> bool:
    """Whether a constant is too large to be copied for one of several that read it."""
    assert w.data is not None
    return w.data.nbytes > _SHARED_BYTES and (len(w.uses) > 1 or w.is_output)


def _tiny_numbers(array: np.ndarray) -> int:
    smallest = float(ml_dtypes.finfo(array.dtype).smallest_normal)  # type: ignore[no-untyped-call]
    return int((np.abs(array) < smallest).sum())


def channel_count(node: Node, shape: tuple[int, ...]) -> int | None:
    """Output channels that a weight of this shape makes, None if it does not fit the node.

    Conv, ConvTranspose (any ``group``), Gemm (any ``transB``) and MatMul, whose weight is its
    second input.
    """
    if len(shape) < 2:
        return None
    if node.is_op("ConvTranspose"):
        group = node.get("group", 1)
        return shape[1] * group if group > 0 and shape[0] % group == 0 else None
    if node.is_op("MatMul"):
        return shape[-1]
    return shape[1 if node.is_op("Gemm") and not node.get("transB", 0) else 0]


def scaled_weight(node: Node, weight: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """A weight with its output channels multiplied, one factor each or a single one.

    Computed in float64 and rounded once, to the dtype of the weight.
    """
    if factor.size == 1:
        factor = factor.reshape(-1)[:1]
    else:
        factor = _along_channels(factor.reshape(-1), node, weight.shape)
    factors = np.broadcast_to(factor, weight.shape)
    result = np.empty(weight.shape, dtype=weight.dtype)
    rows = max(1, _CHUNK // max(1, weight[:1].size))
    with np.errstate(all="ignore"):
        for at in range(0, len(weight), rows):
            part = slice(at, at + rows)
            result[part] = rounded(weight[part].astype(np.float64) * factors[part], weight.dtype)
    return result


def along_inputs(node: Node, numbers: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One number for each input channel of a Conv or ConvTranspose, along its weight's."""
    kernel = (1,) * (len(shape) - 2)
    if node.is_op("ConvTranspose"):
        return numbers.reshape(-1, 1, *kernel)
    groups = numbers.reshape(node.get("group", 1), -1)
    return np.repeat(groups, shape[0] // len(groups), axis=0).reshape(*shape[:2], *kernel)


def moved_bias(
    node: Node,
    bias: np.ndarray | None,
    factor: np.ndarray,
    shift: np.ndarray,
    dtype: np.dtype[np.generic],
) -> np.ndarray:
    """A bias, multiplied and with an addend, in this dtype; Gemm's ``beta`` goes into it."""
    given = np.zeros(1) if bias is None else bias.astype(np.float64)
    if node.is_op("Gemm"):
        given = given * float(attribute_value(node, "beta"))
    with np.errstate(all="ignore"):
        return rounded(given * factor + shift, dtype)


def rounded(array: np.ndarray, dtype: np.dtype[np.generic]) -> np.ndarray:
    """Numbers in another dtype, infinite where they do not fit."""
    with np.errstate(all="ignore"):
        return array.astype(dtype)


def are_finite(arrays: Iterable[np.ndarray]) -> bool:
    """Whether no number is infinite or NaN."""
    return all(
        np.isfinite(a if a.dtype.kind == "f" else a.astype(np.float64)).all() for a in arrays
    )


def _along_channels(factor: np.ndarray, node: Node, shape: tuple[int, ...]) -> np.ndarray:
    """The factors in a shape that broadcasts to the weight, by its channels."""
    if node.is_op("MatMul"):
        return factor
    if node.is_op("Gemm"):
        return factor[:, None] if node.get("transB", 0) else factor
    kernel = (1,) * (len(shape) - 2)
    if node.is_op("Conv"):
        return factor.reshape(-1, 1, *kernel)
    # [in channels, out channels of one group, ...]: every group has factors of its own.
    groups = node.get("group", 1)
    each = factor.reshape(groups, -1)
    return np.repeat(each, shape[0] // groups, axis=0).reshape(*shape[:2], *kernel)

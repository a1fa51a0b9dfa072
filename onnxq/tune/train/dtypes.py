"""Element types and numbers of ONNX in torch.

torch lacks elements of less than a byte and most arithmetic on unsigned integers of more than one:
a wider type holds them. What QuantizeLinear gives is held in floats, so that gradients pass.
"""

from __future__ import annotations

import numpy as np
import torch

from onnxq.ir import DataType

TORCH_TYPES = {
    DataType.FLOAT: torch.float32,
    DataType.DOUBLE: torch.float64,
    DataType.FLOAT16: torch.float16,
    DataType.BFLOAT16: torch.bfloat16,
    DataType.FLOAT8E4M3FN: torch.float8_e4m3fn,
    DataType.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    DataType.FLOAT8E5M2: torch.float8_e5m2,
    DataType.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    DataType.BOOL: torch.bool,
    DataType.UINT8: torch.uint8,
    DataType.INT8: torch.int8,
    DataType.INT16: torch.int16,
    DataType.INT32: torch.int32,
    DataType.INT64: torch.int64,
    DataType.UINT2: torch.uint8,
    DataType.UINT4: torch.uint8,
    DataType.INT2: torch.int8,
    DataType.INT4: torch.int8,
    DataType.UINT16: torch.int32,
    DataType.UINT32: torch.int64,
    DataType.UINT64: torch.int64,
}
"""The type that holds elements of an ONNX type; those that are missing cannot be held."""

_WIDENED = {
    np.dtype(np.uint16): np.int32,
    np.dtype(np.uint32): np.int64,
    np.dtype(np.uint64): np.int64,
}
_NUMPY_FLOATS = (np.float16, np.float32, np.float64)
_NUMPYS = (torch.float16, torch.float32, torch.float64)


def to_torch(array: np.ndarray) -> torch.Tensor:
    """A copy of an array, on the processor.

    Raises:
        ValueError: torch has no type for its elements.
    """
    dtype = DataType.of(array.dtype)
    held = TORCH_TYPES.get(dtype)
    if held is None:
        raise ValueError(f"torch has no {dtype.label}")
    if dtype.is_float and array.dtype not in _NUMPY_FLOATS:
        # torch knows numpy's own floats only; the bits of others are the same.
        bits = np.array(array, order="C").view(np.uint8 if array.itemsize == 1 else np.int16)
        return torch.from_numpy(bits).view(held)
    wide = _WIDENED.get(array.dtype)
    if dtype.bits < 8 and dtype is not DataType.BOOL:
        wide = np.uint8 if "UINT" in dtype.name else np.int8
    return torch.from_numpy(np.array(array, dtype=wide, order="C")).to(held)


def to_numpy(tensor: torch.Tensor, dtype: DataType | None = None) -> np.ndarray:
    """A tensor's numbers in an ONNX element type, in numpy's own that holds them if not given."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.is_floating_point() and tensor.dtype not in _NUMPYS:
        tensor = tensor.float()
    array = tensor.numpy()
    if dtype is None:
        return array
    # What a type cannot hold is nothing to warn of: ONNX leaves it open, too.
    with np.errstate(invalid="ignore", over="ignore"):
        return array.astype(dtype.numpy)

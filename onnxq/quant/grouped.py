"""Grouped formats of the GGUF family: blocks of 32 values with a float16 scale.

| type | value of a code `c` | codes | bytes for 32 values |
|---|---|---|---|
| Q4_0 | `d (c - 8)` | 0 to 15 | 18 |
| Q4_1 | `d c + m` | 0 to 15 | 20 |
| Q5_0 | `d (c - 16)` | 0 to 31 | 22 |
| Q5_1 | `d c + m` | 0 to 31 | 24 |
| Q8_0 | `d c` | -128 to 127 | 34 |

Blocks lie on the last axis. `d` and `m` are float16. In Q4_0 and Q5_0 the value of the largest
magnitude gets code 0, so that `d` has the opposite sign and is often negative, while scales in
ONNX are positive. Since DequantizeLinear has a zero-point for each block, that is no loss:

- Q4_0 is uint4 with zero-point 8, as it is; where `d` is negative the scale is `-d`, the stored
  value `15 - c` and the zero-point 7, as `-d (15 - c - 7) = d (c - 8)`.
- Q5_0 and Q8_0 are int8 with zero-point 0; a negative `d` of Q8_0 is turned around in the same
  way, with stored value `-1 - c` and zero-point -1.
- Q4_1 and Q5_1 are `d (c + m / d)`, which DequantizeLinear can only express where `m / d` is an
  integer (uint4 if all of them are from -15 to 0, else int8). For weights in general it is not;
  they are Q4_0 or Q5_0 plus `m + 8 d` or `m + 16 d`.

Only the sign of zero may differ: `d (c - 8)` is -0 for a negative `d`, but 0 in ONNX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.quant._arrays import PIECE, finite, label, row_extremes
from onnxq.quant.formats import INT8, UINT4
from onnxq.quant.qparams import QParams, QuantizedTensor

Float16Array = npt.NDArray[np.float16]
Float32Array = npt.NDArray[np.float32]

GROUP = 32
"""Values in a block of every type here."""


@dataclass(frozen=True)
class GroupedType:
    """One of the types.

    Attributes:
        name: As in GGUF.
        bits: Bits of a code.
        has_minimum: Whether blocks have a minimum beside the scale.
        offset: Code that stands for 0 where there is no minimum.
        group_bytes: Bytes that a block takes in a file.
    """

    name: str
    bits: int
    has_minimum: bool
    offset: int
    group_bytes: int


Q4_0 = GroupedType("Q4_0", 4, has_minimum=False, offset=8, group_bytes=18)
Q4_1 = GroupedType("Q4_1", 4, has_minimum=True, offset=0, group_bytes=20)
Q5_0 = GroupedType("Q5_0", 5, has_minimum=False, offset=16, group_bytes=22)
Q5_1 = GroupedType("Q5_1", 5, has_minimum=True, offset=0, group_bytes=24)
Q8_0 = GroupedType("Q8_0", 8, has_minimum=False, offset=0, group_bytes=34)

GROUPED_TYPES: dict[str, GroupedType] = {type.name: type for type in (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0)}


@dataclass(frozen=True, eq=False)
class GroupedTensor:
    """A tensor in one of the types.

    Attributes:
        type: The type.
        codes: Of the tensor's shape; int8 in Q8_0, uint8 in the others.
        scale: float16, one for each block: the tensor's shape, the last axis divided by 32.
        minimum: float16 like the scale, None in types without.
    """

    type: GroupedType
    codes: npt.NDArray[Any]
    scale: Float16Array
    minimum: Float16Array | None = None

    def dequantize(self) -> Float32Array:
        """Real values, of the shape of the codes; equal to those of GGUF's own dequantization."""
        blocks = self.codes.reshape(-1, GROUP)
        scale = self.scale.reshape(-1, 1).astype(np.float32)
        result = np.empty(blocks.shape, np.float32)
        for cut in _cuts(len(blocks)):
            part = blocks[cut].astype(np.float32)
            part -= np.float32(self.type.offset)
            np.multiply(part, scale[cut], out=result[cut])
            if self.minimum is not None:
                result[cut] += self.minimum.reshape(-1, 1)[cut].astype(np.float32)
        return result.reshape(self.codes.shape)

    def to_bytes(self) -> npt.NDArray[np.uint8]:
        """The blocks as a GGUF file holds them.

        Returns:
            uint8 array of the tensor's shape, the last axis `group_bytes` for each block.
        """
        blocks = self.codes.reshape(-1, GROUP)
        out = np.empty((len(blocks), self.type.group_bytes), np.uint8)
        for cut in _cuts(len(blocks)):
            fields: list[npt.NDArray[Any]] = [_bytes_of(self.scale.reshape(-1, 1)[cut])]
            if self.minimum is not None:
                fields.append(_bytes_of(self.minimum.reshape(-1, 1)[cut]))
            codes = blocks[cut].view(np.uint8)
            if self.type.bits == 8:
                fields.append(codes)
            else:
                if self.type.bits == 5:
                    fields.append(np.packbits(codes >> 4, axis=-1, bitorder="little"))
                half = GROUP // 2
                fields.append((codes[:, :half] & 15) | (codes[:, half:] << 4))
            np.concatenate(fields, axis=1, out=out[cut])
        return out.reshape(*self.scale.shape[:-1], self.scale.shape[-1] * self.type.group_bytes)

    @classmethod
    def from_bytes(
        cls, data: npt.NDArray[np.uint8], type: GroupedType, *, name: str = ""
    ) -> GroupedTensor:
        """Read the blocks of a GGUF file.

        Args:
            data: uint8 array whose last axis holds `group_bytes` for each block.
            type: The type.
            name: The tensor's name, for error messages.

        Raises:
            InputError: The last axis does not hold whole blocks, or a scale or minimum is NaN or
                infinite.
        """
        if data.ndim == 0 or data.shape[-1] % type.group_bytes:
            raise InputError(
                f"{label(name)} holds rows of {data.shape[-1] if data.ndim else 1} bytes, which "
                f"are no whole blocks of {type.name} ({type.group_bytes} bytes)"
            )
        blocks = np.ascontiguousarray(data).reshape(-1, type.group_bytes)
        groups = (*data.shape[:-1], data.shape[-1] // type.group_bytes)
        header = 4 if type.has_minimum else 2
        halves = np.ascontiguousarray(blocks[:, :header]).view("<f2").astype(np.float16, copy=False)
        if not np.isfinite(halves).all():
            raise InputError(f"{label(name)} has a block whose scale is NaN or infinite")
        codes = np.empty((len(blocks), GROUP), np.uint8)
        packed = blocks[:, header:]
        for cut in _cuts(len(blocks)):
            if type.bits == 8:
                codes[cut] = packed[cut]
                continue
            low = packed[cut, -GROUP // 2 :]
            codes[cut, : GROUP // 2] = low & 15
            codes[cut, GROUP // 2 :] = low >> 4
            if type.bits == 5:
                high = np.unpackbits(packed[cut, : GROUP // 8], axis=-1, bitorder="little")
                codes[cut] |= high << 4
        return cls(
            type,
            codes.view(np.int8 if type.bits == 8 else np.uint8).reshape(
                *groups[:-1], groups[-1] * GROUP
            ),
            halves[:, 0].reshape(groups),
            halves[:, 1].reshape(groups) if type.has_minimum else None,
        )


def grouped_quantize(x: npt.ArrayLike, type: GroupedType, *, name: str = "") -> GroupedTensor:
    """Quantize to a type, with the same result as the `gguf` package.

    That rounds halves up in the types of 4 and 5 bits and away from 0 in Q8_0, multiplies with the
    reciprocal of the scale in float32, and only then rounds the scale to float16. Where that
    reciprocal overflows (magnitudes below 1e-37, whose float16 scale is 0) the codes here are
    those of zeros.

    Args:
        x: Values, of any float type; the length of the last axis is a multiple of 32.
        type: The type.
        name: The tensor's name, for error messages.

    Raises:
        InputError: NaN or infinity, a last axis of another length, or values too large for
            float16 scales.
    """
    values: Float32Array = finite(x, np.float32, name)
    if values.ndim == 0 or values.shape[-1] % GROUP:
        raise InputError(
            f"{label(name)} has shape {values.shape}, but {type.name} needs a last axis whose "
            f"length is a multiple of {GROUP}"
        )
    blocks = values.reshape(-1, GROUP)
    codes = np.empty(blocks.shape, np.int8 if type.bits == 8 else np.uint8)
    scale: Float16Array = np.empty((len(blocks), 1), np.float16)
    minimum: Float16Array = np.empty((len(blocks), 1), np.float16)
    encode = _encode_minimum if type.has_minimum else _encode_offset
    if type.bits == 8:
        encode = _encode_absmax
    for cut in _cuts(len(blocks)):
        codes[cut], step, lowest = encode(blocks[cut], type)
        with np.errstate(over="ignore", under="ignore"):
            scale[cut], minimum[cut] = step.astype(np.float16), lowest.astype(np.float16)
    if not (np.isfinite(scale).all() and np.isfinite(minimum).all()):
        raise InputError(
            f"{label(name)} holds values too large for {type.name}, whose scales are float16; "
            "take a format of ONNX's own or leave it in float"
        )
    groups = (*values.shape[:-1], values.shape[-1] // GROUP)
    return GroupedTensor(
        type,
        codes.reshape(values.shape),
        scale.reshape(groups),
        minimum.reshape(groups) if type.has_minimum else None,
    )


def is_exact_in_onnx(tensor: GroupedTensor) -> bool:
    """Whether DequantizeLinear can give the same values; see the module for when it cannot."""
    return _mapped(tensor) is not None


def without_minimum(tensor: GroupedTensor) -> tuple[GroupedTensor, Float32Array]:
    """A tensor with minimums as one without, and what the values of each block are to be raised by.

    The codes count from the middle of their range, so that the first part is small.
    """
    assert tensor.minimum is not None
    centred = Q4_0 if tensor.type is Q4_1 else Q5_0
    offset = tensor.scale.astype(np.float32) * np.float32(centred.offset)
    offset += tensor.minimum.astype(np.float32)
    return GroupedTensor(centred, tensor.codes, tensor.scale), offset


def grouped_to_onnx(tensor: GroupedTensor, *, name: str = "") -> QuantizedTensor:
    """The same tensor for DequantizeLinear in blocks of 32 on the last axis, without loss.

    Args:
        tensor: The tensor.
        name: Its name, for error messages.

    Returns:
        uint4 for types of 4 bits, where the zero-points fit; else int8. Scales are the float16
        ones, as float32.

    Raises:
        InputError: A block's minimum is no multiple of its scale, or too large a one.
    """
    mapped = _mapped(tensor)
    if mapped is None:
        raise InputError(
            f"{label(name)} of type {tensor.type.name} has blocks whose minimum is no multiple of "
            "the scale, which DequantizeLinear cannot express; dequantize it and quantize anew"
        )
    return mapped


def _mapped(tensor: GroupedTensor) -> QuantizedTensor | None:
    type = tensor.type
    scale = tensor.scale.astype(np.float64)
    zero = np.full(scale.shape, float(type.offset))
    constant = np.zeros(scale.shape)
    flat = scale == 0
    if tensor.minimum is not None:
        minimum = tensor.minimum.astype(np.float64)
        zero = np.rint(np.divide(-minimum, scale, out=np.zeros_like(scale), where=~flat))
        if (-zero * scale != minimum)[~flat].any():
            return None
        constant = np.where(flat, minimum, 0.0)
    # A block of one value throughout takes that value as its scale.
    steps = np.where(flat, np.abs(constant), np.abs(scale))
    steps = np.where(steps == 0, 1.0, steps)
    turned = scale < 0
    mirror = -1 if type.bits == 8 else (1 << type.bits) - 1
    if type.bits == 8 or (type.bits == 4 and ((zero >= 0) & (zero <= mirror)).all()):
        # The codes themselves, or counted from the other end.
        format = INT8 if type.bits == 8 else UINT4
        # A minimum alone, of either sign, is one step away from the zero-point.
        of_flat = 1 if type.has_minimum else type.offset
        zero_point = np.where(turned, mirror - zero, np.where(flat, of_flat, zero))
    elif (np.maximum(np.abs(zero), np.abs(mirror - zero)) <= 127).all():
        format, zero_point = INT8, np.zeros(scale.shape)
    else:
        return None
    stored = np.empty(tensor.codes.shape, np.int8).reshape(-1, GROUP)
    blocks = tensor.codes.reshape(-1, GROUP)
    columns = [
        np.asarray(column, np.int16).reshape(-1, 1)
        for column in (zero, np.where(turned, -1, 1), np.sign(constant), zero_point, flat)
    ]
    for cut in _cuts(len(blocks)):
        origin, direction, sign, moved, same = (column[cut] for column in columns)
        away = (blocks[cut].astype(np.int16) - origin) * direction
        stored[cut] = np.where(same, sign, away) + moved
    qparams = QParams(
        format=format,
        scale=steps.astype(np.float32),
        zero_point=zero_point.astype(np.int8).astype(format.storage),
        axis=tensor.codes.ndim - 1,
        block_size=GROUP,
    )
    return QuantizedTensor(stored.astype(format.storage).reshape(tensor.codes.shape), qparams)


def _encode_offset(
    blocks: Float32Array, type: GroupedType
) -> tuple[npt.NDArray[Any], Float32Array, Float32Array]:
    lowest, highest = row_extremes(blocks)
    furthest = np.where(highest > -lowest, highest, lowest)
    # Of a number and its negative, the first one counts.
    tied = blocks[highest == -lowest]
    first = np.abs(tied).argmax(axis=1, keepdims=True)
    furthest[highest == -lowest] = np.take_along_axis(tied, first, axis=1)[:, 0]
    step: Float32Array = np.divide(furthest[:, None], -type.offset, dtype=np.float32)
    scaled = blocks * _reciprocal(step) + np.float32(type.offset + 0.5)
    return _truncated(scaled, type), step, np.zeros_like(step)


def _encode_minimum(
    blocks: Float32Array, type: GroupedType
) -> tuple[npt.NDArray[Any], Float32Array, Float32Array]:
    lowest, highest = (ends[:, None] for ends in row_extremes(blocks))
    with np.errstate(over="ignore", invalid="ignore"):
        step = (highest - lowest) / np.float32((1 << type.bits) - 1)
        scaled = (blocks - lowest) * _reciprocal(step) + np.float32(0.5)
    return _truncated(np.nan_to_num(scaled), type), step, lowest


def _encode_absmax(
    blocks: Float32Array, type: GroupedType
) -> tuple[npt.NDArray[Any], Float32Array, Float32Array]:
    lowest, highest = row_extremes(blocks)
    largest = np.maximum(-lowest, highest)[:, None]
    step: Float32Array = np.divide(largest, 127, dtype=np.float32)
    scaled = blocks * _reciprocal(step)
    whole = np.trunc(scaled)
    whole += np.trunc(np.float32(2) * (scaled - whole))
    return whole.astype(np.int8), step, np.zeros_like(step)


def _truncated(scaled: Float32Array, type: GroupedType) -> npt.NDArray[np.uint8]:
    return np.minimum(scaled, np.float32((1 << type.bits) - 1)).astype(np.uint8)


def _reciprocal(step: Float32Array) -> Float32Array:
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / step
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _cuts(blocks: int) -> list[slice]:
    step = PIECE // GROUP
    return [slice(start, start + step) for start in range(0, blocks, step)]


def _bytes_of(halves: Float16Array) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(halves.astype("<f2", copy=False)).view(np.uint8)

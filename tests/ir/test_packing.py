"""Elements of less than a byte: against onnx, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxq.ir import DataType, packing
from onnxq.ir.packing import PACKED_BITS, pack, pack_transposed, unpack

TYPES = [d for d in DataType if d.bits in PACKED_BITS]


def random_codes(bits: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 << bits, shape, np.uint8)


def onnx_bytes(codes: np.ndarray, dtype: DataType) -> bytes:
    return numpy_helper.from_array(np.ascontiguousarray(codes).view(dtype.numpy)).raw_data


def test_these_types_share_bytes() -> None:
    assert {d.name for d in TYPES} == {"INT2", "UINT2", "INT4", "UINT4", "FLOAT4E2M1"}


@given(st.sampled_from(TYPES), st.integers(0, 70), st.sampled_from([4, 12, 1 << 16]))
def test_bytes_are_those_of_onnx(dtype: DataType, count: int, piece: int) -> None:
    codes = random_codes(dtype.bits, count, seed=count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "_PIECE", piece)
        packed = pack(codes, dtype.bits)
        # Only the lowest bits count, and codes may start anywhere in memory.
        dirty = np.concatenate([codes[:1], codes | np.uint8(256 - (1 << dtype.bits))])
        assert np.array_equal(pack(dirty[-count:] if count else codes, dtype.bits), packed)
    assert packed.tobytes() == onnx_bytes(codes, dtype)
    assert np.array_equal(unpack(packed, dtype.bits, count), codes)


@pytest.mark.parametrize("bits", PACKED_BITS)
def test_bytes_go_where_they_are_wanted(bits: int) -> None:
    codes = random_codes(bits, 5, 8)
    out = np.full(5 * bits + 2, 0xAA, np.uint8)
    pack(codes, bits, out[1:-1])
    assert out.tobytes() == b"\xaa" + pack(codes, bits).tobytes() + b"\xaa"


@given(st.sampled_from([*PACKED_BITS, 8]), st.integers(1, 9), st.integers(0, 40), st.integers(0, 3))
def test_axes_are_exchanged(bits: int, columns: int, rows: int, offset: int) -> None:
    codes = random_codes(bits, columns * 8 // bits, rows, seed=rows)
    wanted = np.ascontiguousarray(codes.T)
    if bits < 8:
        wanted = pack(wanted, bits).reshape(rows, columns)
    around = np.zeros((rows, columns + 5), np.uint8)
    pack_transposed(codes, bits, around[:, offset : offset + columns])
    assert np.array_equal(around[:, offset : offset + columns], wanted)
    around[:, offset : offset + columns] = 0
    assert not around.any()

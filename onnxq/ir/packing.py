"""Elements of less than a byte, as model files hold them: the first in a byte's lowest bits.

Codes are uint8, an element each, of which only the lowest bits count; that is how ml_dtypes holds
its types of 2 and 4 bits.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

PACKED_BITS = (2, 4)
"""Widths of the elements that share bytes here."""

_PIECE = 1 << 16
"""Codes packed at a time, so that intermediate results stay in a processor's cache."""

_TOGETHER = 4
"""Bytes that are moved at a time when axes are exchanged."""


def pack(codes: Bytes, bits: int, out: Bytes | None = None) -> Bytes:
    """The bytes that hold so many codes of 2 or 4 bits.

    Args:
        codes: Of any shape, in the order of its elements.
        bits: Of each code.
        out: Where to put the bytes, on one axis.

    Returns:
        The bytes, on one axis; what is left of the last one is zero.
    """
    each, flat = 8 // bits, codes.reshape(-1)
    packed = np.empty(-(-flat.size // each), np.uint8) if out is None else out
    for at in range(0, flat.size - flat.size % each, _PIECE):
        piece = flat[at : at + _PIECE]
        # The codes of a byte as one number, the first in its lowest byte.
        wide = piece[: len(piece) - len(piece) % each].view(f"<u{each}")
        joined = _joined(wide, [wide >> (8 - bits) * n for n in range(1, each)], bits)
        np.copyto(packed[at // each :][: len(wide)], joined, casting="unsafe")
    if rest := flat.size % each:
        last = flat[-rest:].reshape(rest, 1)
        packed[-1:] = _joined(last[0], [last[n] << bits * n for n in range(1, rest)], bits)
    return packed


def unpack(packed: Bytes, bits: int, count: int) -> Bytes:
    """So many codes from the bytes that hold them, on one axis."""
    each = 8 // bits
    codes = np.empty((len(packed), each), np.uint8)
    for place in range(each):
        np.bitwise_and(packed >> bits * place, (1 << bits) - 1, out=codes[:, place])
    return codes.reshape(-1)[:count]


def pack_transposed(codes: Bytes, bits: int, out: Bytes) -> None:
    """Put the bytes of a matrix of codes with its axes exchanged into an array.

    Args:
        codes: Of shape (columns, rows), the columns a whole number of bytes.
        bits: Of each code: 2, 4 or 8.
        out: Of shape (rows, columns * bits / 8), of which each row lies in one piece.
    """
    each = 8 // bits
    # Packing first leaves less to be moved.
    shifted = [codes[n::each] << bits * n for n in range(1, each)]
    packed = _joined(codes[::each], shifted, bits)
    rows, columns = packed.shape
    if rows % _TOGETHER:
        out[...] = packed.T
        return
    # Rows a power of two apart would drive each other out of the cache.
    wide = np.empty((rows // _TOGETHER, columns + 17, _TOGETHER), np.uint8)
    for place in range(_TOGETHER):
        wide[:, :columns, place] = packed[place::_TOGETHER]
    out.view(f"u{_TOGETHER}")[...] = wide.view(f"u{_TOGETHER}")[:, :columns, 0].T


def _joined(first: np.ndarray, shifted: list[np.ndarray], bits: int) -> np.ndarray:
    """Codes in one byte; all but the first lie at their places already, which are overwritten."""
    mask = (1 << bits) - 1
    joined = first & mask
    for place, part in enumerate(shifted, 1):
        part &= mask << bits * place
        joined |= part
    return joined

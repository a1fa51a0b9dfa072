"""Tensors that were computed elsewhere are checked, and cut as the weight is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.passes.tuned import TunedWeight, tuned_weight
from onnxq.quant import FLOAT8E4M3FN, INT4, INT8, Format, fake_quantize, per_block

SHAPE = (5, 6)
SCALE = np.linspace(0.1, 1, 10, dtype=np.float32).reshape(5, 2)


def tuned(format: Format = INT4, **tensors: Any) -> TunedWeight:
    """A weight [5, 6] in blocks of 4 along its last axis."""
    held = {"scale": SCALE, "zero_point": np.zeros((5, 2), np.int8), **tensors}
    held = {name: array for name, array in held.items() if array is not None}
    return tuned_weight(held, "fc", format, per_block(-1, 4), SHAPE)


def test_parts_are_those_of_the_whole() -> None:
    numbers = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    weight = tuned()
    wanted = fake_quantize(numbers, weight.qparams)
    for where in (np.s_[:, :], np.s_[1:4, :], np.s_[:, 4:8], np.s_[2:3, 0:4]):
        part = weight.part(where, numbers[where], "w").dequantize()
        np.testing.assert_array_equal(part, wanted[where])
    values = np.arange(30).reshape(SHAPE) % 15 - 7
    held = tuned(values=values).part(np.s_[1:3, 4:8], numbers[1:3, 4:8], "w").values
    np.testing.assert_array_equal(held.astype(int), values[1:3, 4:8])


def test_equal_ones_are_equal() -> None:
    values = np.ones(SHAPE)
    assert tuned() == tuned() != tuned(values=values) == tuned(values=values.astype(np.int8))
    assert hash(tuned(values=values)) == hash(tuned(values=np.ones(SHAPE)))
    assert tuned(values=values) != tuned(values=0 * values) and tuned() != tuned(scale=SCALE * 2)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"scale": None}, r"scale of node 'fc' is missing; its weight in int4 .* \(5, 2\)"),
        ({"scale": SCALE.T}, r"scale of node 'fc' has shape \(2, 5\)"),
        ({"zero_point": None}, "zero_point of node 'fc' is missing"),
        ({"zero_point": np.full((5, 2), 8)}, "zero_point of node 'fc' holds other .* -8 to 7"),
        ({"values": np.zeros((6, 5))}, r"values of node 'fc' has shape \(6, 5\)"),
        ({"values": np.full(SHAPE, 0.5)}, "values of node 'fc' holds other values"),
        ({"values": np.full(SHAPE, np.nan)}, "values of node 'fc' holds other values"),
        ({"scale": 0 * SCALE}, "tensors of node 'fc' are of no use: a scale is zero"),
        ({"values": np.full(SHAPE, 17.5), "format": FLOAT8E4M3FN}, "values of node 'fc' holds"),
    ],
)
def test_what_does_not_fit_is_refused(tensors: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        tuned(**tensors)


def test_bounds_hold_for_values_that_are_rounded() -> None:
    held = {"scale": np.ones(1, np.float32), "zero_point": np.zeros(1)}
    weight = tuned_weight(held, "fc", INT8, per_block(0, 4), (4,), bounds=(-64, 63))
    numbers = np.array([-100, 100, 5, 0], np.float32)
    assert weight.part(np.s_[:,], numbers, "w").values.tolist() == [-64, 63, 5, 0]
    with pytest.raises(InputError, match="of int8 from -64 to 63"):
        wide = {**held, "values": np.full(4, 64)}
        tuned_weight(wide, "fc", INT8, per_block(0, 4), (4,), bounds=(-64, 63))

"""Values on disk come back as they were, in their order."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import ml_dtypes
import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.runtime.spool import Spool


def test_items_come_back_in_their_order() -> None:
    taken: list[int] = []

    def items() -> Iterator[dict[str, object]]:
        for number in range(3):
            taken.append(number)
            yield {
                "floats": np.full((2, number), number, np.float32),
                "halves": np.full(2, number, ml_dtypes.bfloat16),
                "list": [np.array(["a", "b"], object), number],
            }

    spool = Spool(items())
    assert taken == [0, 1, 2]
    for number, item in enumerate(spool.items()):
        np.testing.assert_array_equal(item["floats"], np.full((2, number), number, np.float32))
        assert item["halves"].dtype == ml_dtypes.bfloat16 and item["list"][1] == number
    with pytest.raises(ValueError, match="closed file"):
        next(spool.items())


def test_nothing_is_left_open_where_an_item_fails() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise InputError("no more")

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(InputError, match="no more"):
            Spool(items())
        gc.collect()
    assert not told


def test_items_are_had_by_their_numbers_while_more_come() -> None:
    spool = Spool[np.ndarray]()
    for number in range(3):
        spool.add(np.full(1000, number))
        assert np.array_equal(spool[0], np.zeros(1000))
    assert [int(spool[number][7]) for number in (2, 0, 1, 2)] == [2, 0, 1, 2]
    assert [int(item[7]) for item in spool] == [0, 1, 2]
    with pytest.raises(IndexError):
        spool[3]

"""Output errors against plain formulas in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial.distance import cosine as cosine_distance

from onnxq.errors import InputError
from onnxq.runtime import ErrorAccumulator, OutputError

VALUES = st.floats(-1e6, 1e6, width=32).filter(lambda value: value == 0 or abs(value) > 1e-6)
PAIRS = st.integers(1, 40).flatmap(
    lambda size: st.tuples(
        hnp.arrays(np.float32, size, elements=VALUES), hnp.arrays(np.float32, size, elements=VALUES)
    )
)


def compare_outputs(reference: dict[str, Any], candidate: dict[str, Any]) -> list[OutputError]:
    accumulator = ErrorAccumulator()
    accumulator.add(reference, candidate)
    return accumulator.result()


def compare(reference: Any, candidate: Any) -> OutputError:
    (error,) = compare_outputs({"y": np.asarray(reference)}, {"y": np.asarray(candidate)})
    return error


@given(PAIRS)
def test_formulas(pair: tuple[np.ndarray, np.ndarray]) -> None:
    reference, candidate = pair
    error = compare(reference, candidate)
    r, c = reference.astype(np.longdouble), candidate.astype(np.longdouble)
    noise, signal = ((r - c) ** 2).sum(), (r**2).sum()
    if noise == 0:
        assert error.sqnr_db == math.inf
    elif signal == 0:
        assert error.sqnr_db == -math.inf
    else:
        assert error.sqnr_db == pytest.approx(float(10 * np.log10(signal / noise)), abs=1e-9)
    assert error.max_abs == float(np.abs(r - c).max())
    if signal and (c**2).sum():
        expected = 1 - cosine_distance(r.astype(float), c.astype(float))
        assert error.cosine == pytest.approx(expected, abs=1e-9)


@given(PAIRS, st.integers(1, 39))
def test_batches_add_up_to_the_whole(pair: tuple[np.ndarray, np.ndarray], cut: int) -> None:
    reference, candidate = pair
    accumulator = ErrorAccumulator()
    accumulator.add({"y": reference[:cut]}, {"y": candidate[:cut]})
    accumulator.add({"y": reference[cut:]}, {"y": candidate[cut:]})
    (split,) = accumulator.result()
    whole = compare(reference, candidate)
    assert split.max_abs == whole.max_abs
    assert split.cosine == pytest.approx(whole.cosine, abs=1e-12)
    assert split.sqnr_db == pytest.approx(whole.sqnr_db, abs=1e-9)


def test_known_signal_to_noise() -> None:
    assert compare([10.0], [11.0]) == OutputError("y", pytest.approx(20.0), 1.0, 1.0)
    assert compare([1.0, 0.0], [0.0, 1.0]).cosine == 0.0
    assert compare([1.0, 2.0], [-2.0, -4.0]).cosine == pytest.approx(-1.0)


@pytest.mark.parametrize(
    ("reference", "candidate", "sqnr", "cosine", "max_abs"),
    [
        ([1.0, 2.0], [1.0, 2.0], math.inf, 1.0, 0.0),
        ([0.0, 0.0], [0.0, 0.0], math.inf, 1.0, 0.0),
        ([0.0, 0.0], [0.0, 3.0], -math.inf, 0.0, 3.0),
        ([1.0, 2.0], [0.0, 0.0], 0.0, 0.0, 2.0),
        ([np.nan, np.inf, -np.inf], [np.nan, np.inf, -np.inf], math.inf, 1.0, 0.0),
        ([np.nan, 3.0], [np.nan, 3.0], math.inf, 1.0, 0.0),
        ([1.0, np.inf], [1.0, -np.inf], -math.inf, 0.0, math.inf),
        ([1.0, 2.0], [1.0, np.nan], -math.inf, 0.0, math.inf),
        ([1.0, np.inf], [1.0, 2.0], -math.inf, 0.0, math.inf),
        ([1.0, 2.0], [1.0, 2.0, 3.0], -math.inf, 0.0, math.inf),
        (np.zeros((0, 4)), np.zeros((0, 4)), math.inf, 1.0, 0.0),
        (["a", "b"], ["a", "b"], math.inf, 1.0, 0.0),
        (["a", "b"], ["a", "c"], -math.inf, 0.0, math.inf),
        (np.array(["a"], object), np.array(["a"], object), math.inf, 1.0, 0.0),
        ([True, False], [True, True], 0.0, pytest.approx(0.5**0.5), 1.0),
        (np.array([200], np.uint8), np.array([100], np.uint8), pytest.approx(6.0206), 1.0, 100.0),
        (np.array([-128], np.int8), np.array([127], np.int8), pytest.approx(-5.9866), -1.0, 255.0),
    ],
)
def test_special_cases(
    reference: Any, candidate: Any, sqnr: float, cosine: float, max_abs: float
) -> None:
    assert compare(reference, candidate) == OutputError("y", sqnr, cosine, max_abs)


def test_a_finite_rest_is_measured_beside_equal_infinities() -> None:
    error = compare([np.inf, 10.0, np.nan], [np.inf, 11.0, np.nan])
    assert error.sqnr_db == pytest.approx(20.0)


def test_float32_extremes_do_not_overflow() -> None:
    error = compare(np.array([3e38], np.float32), np.array([-3e38], np.float32))
    assert error.sqnr_db == pytest.approx(-20 * math.log10(2))
    assert error.cosine == pytest.approx(-1)


def test_outputs_keep_their_order_and_sequences_are_taken_apart() -> None:
    reference = {"b": np.ones(2), "a": [np.ones(2), {"k": np.ones(1)}]}
    candidate = {"a": [np.ones(2), {"k": np.zeros(1)}], "b": np.ones(2), "extra": np.ones(1)}
    errors = compare_outputs(reference, candidate)
    assert [error.name for error in errors] == ["b", "a[0]", "a[1][k]"]
    assert [error.max_abs for error in errors] == [0.0, 0.0, 1.0]
    (first, second) = compare_outputs({"a": [np.ones(1)]}, {"a": [np.ones(1), np.ones(1)]})
    assert (first.sqnr_db, second.sqnr_db) == (math.inf, -math.inf)


def test_a_missing_output_is_named() -> None:
    with pytest.raises(InputError, match="no output 'y'; its outputs are z"):
        compare_outputs({"y": np.ones(1)}, {"z": np.ones(1)})

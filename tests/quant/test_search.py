"""Scale searches against brute force in float64."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.errors import InputError
from onnxq.quant import (
    ABSMAX,
    FEW_RANGES,
    FLOAT4E2M1,
    FLOAT8E4M3FN,
    FORMATS,
    GROUPED_SEARCH,
    INT2,
    INT4,
    INT8,
    INT16,
    MSE,
    NARROW_FORMATS,
    PER_TENSOR,
    PERCENTILE,
    PLAIN,
    SCALE_SEARCHES,
    SIGNED_ABSMAX,
    UINT4,
    UINT8,
    ZERO_POINT,
    Format,
    Granularity,
    MeanSquaredError,
    Percentile,
    QParams,
    ScaleSearch,
    Scheme,
    dequantize,
    fake_quantize,
    per_block,
    per_channel,
    quantize,
    value_range,
    weight_qparams,
)
from onnxq.quant.search import Plain, Problem, Solution

NARROW = Scheme(symmetric=True, narrow_range=True)
Rows = npt.NDArray[np.float32]


def _errors(x: Rows, qparams: QParams, weights: npt.NDArray[np.float64] | float = 1.0) -> Rows:
    difference = x.astype(np.float64) - fake_quantize(x, qparams)
    return np.asarray((weights * difference**2).sum(axis=-1))


def _best_of_grid(row: npt.NDArray[np.float64], format: Format, scheme: Scheme, fine: int) -> float:
    """Least squared error over a fine grid of scales, and all zero-points."""
    low, high = value_range(format, scheme)
    best = np.inf
    middle = 0 if format.is_float else int(low + high + 1) // 2
    for zero_point in [middle] if scheme.symmetric else range(int(low), int(high) + 1):
        below, above = zero_point - low, high - zero_point
        reach = max(below, above)
        widest = np.abs(row).max() / min(reach, max(min(below, above), 1))
        furthest = 2.0 if format.is_float or reach <= 2 else reach / (reach - 1)
        scale = np.geomspace(1e-3, furthest, fine)[:, None] * widest
        steps = np.clip(row / scale, -below, above)
        rounded = steps.astype(format.storage) if format.is_float else np.rint(steps)
        errors = ((row - rounded.astype(np.float64) * scale) ** 2).sum(axis=1)
        best = min(best, float(errors.min()))
    return best


def _normal(rng: np.random.Generator, shape: tuple[int, int]) -> Rows:
    return rng.standard_normal(shape).astype(np.float32)


def _heavy_tails(rng: np.random.Generator, shape: tuple[int, int]) -> Rows:
    return rng.standard_t(2, shape).astype(np.float32)


def _one_outlier(rng: np.random.Generator, shape: tuple[int, int]) -> Rows:
    x = _normal(rng, shape)
    x[:, 3] = 30
    return x


def _far_from_zero(rng: np.random.Generator, shape: tuple[int, int]) -> Rows:
    return np.float32(0.3) * _normal(rng, shape) + np.float32(1)


def _two_magnitudes(rng: np.random.Generator, shape: tuple[int, int]) -> Rows:
    return rng.choice([-1, -0.1, 0.1, 1], shape).astype(np.float32) * (
        1 + np.float32(0.1) * _normal(rng, shape)
    )


@pytest.mark.parametrize(
    "values", [_normal, _heavy_tails, _one_outlier, _far_from_zero, _two_magnitudes]
)
@pytest.mark.parametrize(
    ("format", "scheme", "length"),
    [
        (INT2, ABSMAX, 32),
        (INT2, ZERO_POINT, 32),
        (INT4, ABSMAX, 8),
        (INT4, ABSMAX, 32),
        (INT4, NARROW, 128),
        (UINT4, ZERO_POINT, 32),
        (INT4, ABSMAX, 1000),
        (INT8, ABSMAX, 32),
        (INT8, NARROW, 1000),
        (FLOAT8E4M3FN, ABSMAX, 1000),
        (FLOAT4E2M1, ABSMAX, 32),
    ],
    ids=lambda value: value.name if isinstance(value, Format) else str(value),
)
def test_mse_is_within_one_percent_of_brute_force(
    format: Format,
    scheme: Scheme,
    length: int,
    values: Callable[[np.random.Generator, tuple[int, int]], Rows],
) -> None:
    x = values(np.random.default_rng(0), (6, length))
    found = _errors(x, weight_qparams(x, format, scheme, per_channel(0), search=MSE))
    fine = 1500 if scheme.symmetric else 600
    best = [_best_of_grid(row, format, scheme, fine) for row in x.astype(np.float64)]
    assert (found <= 1.01 * np.asarray(best)).all()


def test_mse_clips_far_outliers_of_large_tensors() -> None:
    x = np.random.default_rng(0).standard_normal((1, 200_000)).astype(np.float32)
    x[0, 7] = -60
    for format, scheme in [(INT4, NARROW), (UINT8, ZERO_POINT)]:
        plain = _errors(x, weight_qparams(x, format, scheme, PER_TENSOR))
        found = _errors(x, weight_qparams(x, format, scheme, PER_TENSOR, search=MSE))
        # One scale for all the rest alone, and the outlier clipped to its range.
        rest = weight_qparams(np.clip(x, -4, 4), format, scheme, PER_TENSOR, search=MSE)
        assert found < 0.9 * plain
        assert found <= _errors(x, rest)


searched = st.sampled_from([MSE, MeanSquaredError(trials=6), FEW_RANGES])
finite = st.floats(-(2.0**100), 2.0**100, width=32)
schemes = st.builds(
    Scheme,
    symmetric=st.booleans(),
    narrow_range=st.booleans(),
    power_of_two=st.booleans(),
    signed_scale=st.booleans(),
)


@settings(max_examples=50)
@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=finite),
    st.sampled_from([format for format in FORMATS.values() if format.bits < 32]),
    schemes,
    searched,
)
def test_squared_errors_are_never_worse_than_plain(
    x: Rows, format: Format, scheme: Scheme, search: ScaleSearch
) -> None:
    if format.is_float:
        scheme = Scheme(True, power_of_two=scheme.power_of_two)
    plain = weight_qparams(x, format, scheme, per_channel(0))
    found = weight_qparams(x, format, scheme, per_channel(0), search=search)
    assert (_errors(x, found) <= _errors(x, plain) * (1 + 1e-6)).all()
    low, high = value_range(format, scheme)
    q = quantize(x, found).astype(np.float64)
    assert (q >= low).all() and (q <= high).all()
    if scheme.power_of_two:
        assert (np.frexp(np.abs(found.scale))[0] == 0.5).all()
    if scheme.symmetric:
        np.testing.assert_array_equal(found.zero_point, plain.zero_point)


@pytest.mark.parametrize("search", SCALE_SEARCHES.values(), ids=SCALE_SEARCHES.keys())
@pytest.mark.parametrize("format", [INT2, NARROW_FORMATS["int3"], UINT4], ids=lambda f: f.name)
def test_signed_scales_treat_both_signs_alike(search: ScaleSearch, format: Format) -> None:
    x = _heavy_tails(np.random.default_rng(0), (40, 32))
    x[np.abs(x).argmax(axis=1) % 2 == 0] *= -1
    found = weight_qparams(x, format, SIGNED_ABSMAX, per_channel(0), search=search)
    turned = weight_qparams(-x, format, SIGNED_ABSMAX, per_channel(0), search=search)
    np.testing.assert_array_equal(turned.scale, -found.scale)
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, None], axis=1)[:, 0]
    assert (np.sign(found.scale) == -np.sign(largest)).all()
    assert 0 < (found.scale < 0).sum() < len(x)
    # The largest of all, which had the smallest value only where it was below zero.
    plain = weight_qparams(x, format, ABSMAX, per_channel(0), search=search)
    assert _errors(x, found).sum() < 0.95 * _errors(x, plain).sum()


@pytest.mark.parametrize("search", [MSE, PERCENTILE, GROUPED_SEARCH, FEW_RANGES, Percentile(80)])
@pytest.mark.parametrize(
    "granularity",
    [per_channel(0), per_channel(1), per_channel(2), per_block(0, 2), per_block(2, 7), PER_TENSOR],
    ids=str,
)
@pytest.mark.parametrize("scheme", [ABSMAX, ZERO_POINT])
def test_groups_are_searched_as_if_alone(
    search: ScaleSearch, granularity: Granularity, scheme: Scheme
) -> None:
    x = np.random.default_rng(1).standard_normal((2, 3, 17)).astype(np.float32)
    all_together = weight_qparams(x, INT4, scheme, granularity, search=search)
    if granularity.axis is None:
        parts = {(): x}
    elif granularity.block_size is None:
        parts = {(i,): np.take(x, i, granularity.axis) for i in range(x.shape[granularity.axis])}
    else:
        axis, size = granularity.axis, granularity.block_size
        parts = {}
        for index in np.ndindex(all_together.scale.shape):
            cut: list[slice | int] = list(index)
            cut[axis] = slice(index[axis] * size, (index[axis] + 1) * size)
            parts[index] = x[tuple(cut)]
    assert len(parts) == all_together.scale.size
    for index, part in parts.items():
        alone = weight_qparams(part.reshape(-1), INT4, scheme, PER_TENSOR, search=search)
        here = QParams(INT4, all_together.scale[index], all_together.zero_point[index])
        # Sums are taken in another order, which may decide between scales that err alike.
        error, error_alone = (_errors(part.reshape(-1), q) for q in (here, alone))
        assert error == pytest.approx(error_alone, rel=0.01 if search == MSE else 1e-5, abs=1e-12)


@pytest.mark.parametrize("search", [MSE, PERCENTILE, GROUPED_SEARCH, FEW_RANGES])
@pytest.mark.parametrize("shape", [(2, 40_000), (40_000, 2), (70_000,)])
def test_groups_longer_than_what_is_worked_on_at_a_time(
    search: ScaleSearch, shape: tuple[int, ...]
) -> None:
    x = np.random.default_rng(2).laplace(size=shape).astype(np.float32)
    granularity = per_channel(int(np.argmin(shape))) if len(shape) > 1 else PER_TENSOR
    plain = weight_qparams(x, INT4, ABSMAX, granularity)
    found = weight_qparams(x, INT4, ABSMAX, granularity, search=search)
    assert (found.scale < plain.scale).all()
    assert found.scale.shape == plain.scale.shape
    halves = weight_qparams(x * np.float32(0.5), INT4, ABSMAX, granularity, search=search)
    np.testing.assert_array_equal(halves.scale, found.scale / 2)


@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=32)),
    st.sampled_from([60.0, 90.0, 99.0, 99.9, 100.0]),
)
def test_percentiles_are_values_in_order(x: Rows, percentage: float) -> None:
    search = Percentile(percentage)
    rank = math.ceil(Fraction(str(percentage)) * len(x) / 100) - 1
    limit = np.sort(np.abs(x))[rank]
    expected = weight_qparams(np.clip(x, -limit, limit), INT8, ABSMAX, PER_TENSOR)
    if limit > 0:
        found = weight_qparams(x, INT8, ABSMAX, PER_TENSOR, search=search)
        assert found.scale == expected.scale
    low, high = np.sort(x)[[len(x) - 1 - rank, rank]]
    if low < 0 or high > 0:
        expected = weight_qparams(np.float32([low, high]), INT8, ZERO_POINT, PER_TENSOR)
        assert weight_qparams(x, INT8, ZERO_POINT, PER_TENSOR, search=search) == expected


def test_percentile_leaves_one_in_a_thousand_out() -> None:
    x = np.arange(-499, 501, dtype=np.float32)
    found = weight_qparams(x, INT8, NARROW, PER_TENSOR, search=Percentile(99.9))
    assert found.scale == np.float32(499 / 127)


def test_percentile_of_mostly_zeros_keeps_the_range() -> None:
    x = np.zeros((2, 100), np.float32)
    x[:, 0] = 5
    for scheme in (ABSMAX, ZERO_POINT):
        plain = weight_qparams(x, INT8, scheme, per_channel(0))
        assert weight_qparams(x, INT8, scheme, per_channel(0), search=Percentile(90)) == plain


@pytest.mark.parametrize("percentage", [0.0, 50.0, 100.1, float("nan")])
def test_percentages_that_are_none(percentage: float) -> None:
    with pytest.raises(InputError, match="is none above 50 and up to 100"):
        Percentile(percentage)


def _grouped_by_hand(row: npt.NDArray[np.float64]) -> float:
    """Least weighted error over the trials of `make_qx_quants`, for -8 to 7."""
    weights = row**2
    furthest = np.abs(row).max()
    steps = furthest / max(row.max() / 7, -row.min() / 8)
    best = np.inf
    for tenths in range(-9, 10):
        inverse = (steps + tenths / 10) / furthest
        rounded = np.clip(np.rint(row * inverse), -8, 7)
        products = (weights * row * rounded).sum()
        scale = products / (weights * rounded**2).sum()
        best = min(best, float((weights * (row - scale * rounded) ** 2).sum()))
    return best


def test_grouped_search_takes_the_least_weighted_error_of_its_trials() -> None:
    x = np.random.default_rng(4).standard_normal((50, 32)).astype(np.float32)
    found = weight_qparams(x, INT4, ABSMAX, per_block(1, 32), search=GROUPED_SEARCH)
    weights = x.astype(np.float64) ** 2
    errors = _errors(x, found, weights)
    by_hand = np.array([_grouped_by_hand(row) for row in x.astype(np.float64)])
    plain = _errors(x, weight_qparams(x, INT4, ABSMAX, per_block(1, 32)), weights)
    assert (errors <= by_hand * 1.0001).all()
    assert errors.sum() < 0.9 * plain.sum()


def test_grouped_search_with_zero_points_loses_less_than_plain() -> None:
    x = np.abs(np.random.default_rng(5).standard_normal((200, 32))).astype(np.float32)
    x -= np.float32(0.4)
    root = np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True))
    weights = root + np.abs(x)
    plain = weight_qparams(x, UINT4, ZERO_POINT, per_block(1, 32))
    found = weight_qparams(x, UINT4, ZERO_POINT, per_block(1, 32), search=GROUPED_SEARCH)
    assert (_errors(x, found, weights) <= _errors(x, plain, weights) * (1 + 1e-6)).all()
    assert _errors(x, found, weights).sum() < 0.9 * _errors(x, plain, weights).sum()


@pytest.mark.parametrize("search", SCALE_SEARCHES.values(), ids=SCALE_SEARCHES.keys())
@pytest.mark.parametrize("format", [INT2, INT8, INT16, UINT4, FLOAT8E4M3FN], ids=lambda f: f.name)
def test_extreme_tensors(search: ScaleSearch, format: Format) -> None:
    random = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    outlier = random.copy()
    outlier[1, 2] = 1e30
    tensors = [
        np.zeros((4, 6), np.float32),
        np.full((4, 6), 0.3, np.float32),
        (random * 1e-40).astype(np.float32),
        np.clip(random, -1, 1) * np.finfo(np.float32).max,
        outlier,
        random * np.float32([[1], [0], [1e38], [1e-30]]),
        np.zeros((4, 0), np.float32),
        np.zeros((0, 6), np.float32),
        np.ones((1, 1), np.float32),
    ]
    symmetric = [ABSMAX, Scheme(True, narrow_range=True, power_of_two=True)]
    for scheme in symmetric if format.is_float else [*symmetric, ZERO_POINT]:
        for x in tensors:
            for granularity in (PER_TENSOR, per_channel(1), per_block(1, 4)):
                qparams = weight_qparams(x, format, scheme, granularity, search=search)
                q = quantize(x, qparams)
                assert np.isfinite(dequantize(q, qparams)).all()
                assert not fake_quantize(np.zeros_like(x), qparams).any()


@pytest.mark.parametrize("search", SCALE_SEARCHES.values(), ids=SCALE_SEARCHES.keys())
def test_no_number_is_refused_by_name(search: ScaleSearch) -> None:
    with pytest.raises(InputError, match="'w' holds NaN"):
        weight_qparams([1.0, np.nan], INT8, ABSMAX, PER_TENSOR, search=search, name="w")


def test_limits_come_with_narrow_and_reduced_ranges_that_a_search_clips_to() -> None:
    x = np.random.default_rng(6).standard_normal((8, 64)).astype(np.float32)
    reduced = Scheme(symmetric=True, reduced_range=True)
    found = weight_qparams(x, INT8, reduced, per_channel(0), search=Percentile(90))
    assert found.limits == (-64, 63)
    assert quantize(x, found).min() == -64
    assert weight_qparams(x, INT8, ABSMAX, per_channel(0), search=MSE).limits is None


@pytest.mark.parametrize("values", [_normal, _heavy_tails, _one_outlier])
@pytest.mark.parametrize("scheme", [ABSMAX, ZERO_POINT])
@pytest.mark.parametrize("length", [32, 600])
def test_important_values_err_less(
    values: Callable[..., Rows], scheme: Scheme, length: int
) -> None:
    rng = np.random.default_rng(4)
    x = values(rng, (200, length))
    importance = rng.lognormal(0, 1.2, length).astype(np.float32)
    granularity = per_channel(0)

    def found(importance: Rows | None) -> QParams:
        return weight_qparams(
            x, INT4, scheme, granularity, search=FEW_RANGES, importance=importance
        )

    plain = weight_qparams(x, INT4, scheme, granularity)
    weighted, even = found(importance), found(None)
    wide = importance.astype(np.float64)
    errors = [_errors(x, qparams, wide) for qparams in (weighted, even, plain)]
    assert (errors[0] <= errors[2] * (1 + 1e-6)).all()
    assert errors[0].sum() < errors[1].sum()
    best = [_best_weighted(row, wide, scheme) for row in x[:10].astype(np.float64)]
    assert errors[0][:10].sum() < 1.15 * sum(best)
    # On any axes, and the same wherever all are alike.
    turned = weight_qparams(
        x.T, INT4, scheme, per_channel(1), search=FEW_RANGES, importance=importance[:, None]
    )
    np.testing.assert_allclose(turned.scale, weighted.scale, rtol=1e-4)
    assert found(np.full(length, 4, np.float32)) == even


def _best_weighted(row: Rows, weights: Rows, scheme: Scheme) -> float:
    """Least weighted squared error in 4 bits over a grid of scales, and all zero-points."""
    best = np.inf
    for zero_point in [0] if scheme.symmetric else range(-8, 8):
        scale = np.geomspace(0.02, 1, 300)[:, None] * np.abs(row).max()
        steps = np.rint(np.clip(row / scale, -8 - zero_point, 7 - zero_point))
        best = min(best, float((weights * (row - steps * scale) ** 2).sum(axis=1).min()))
    return best


def test_searches_are_found_by_name() -> None:
    assert {name: search.name for name, search in SCALE_SEARCHES.items()} == {
        name: name for name in ("plain", "mse", "percentile", "grouped-search", "few-ranges", "hqq")
    }
    assert SCALE_SEARCHES["plain"] is PLAIN


@dataclass(frozen=True)
class Half:
    """A search from outside: half of the plain scale."""

    name: ClassVar[str] = "half"

    def find(self, problem: Problem) -> Solution:
        plain = Plain().find(problem)
        return Solution(plain.scale / np.float32(2), plain.zero_point)


def test_searches_can_come_from_outside() -> None:
    x = np.random.default_rng(8).standard_normal((3, 40)).astype(np.float32)
    for scheme in (ABSMAX, ZERO_POINT):
        found = weight_qparams(x, INT4, scheme, per_block(1, 16), search=Half())
        plain = weight_qparams(x, INT4, scheme, per_block(1, 16))
        np.testing.assert_array_equal(found.scale, plain.scale / 2)
        np.testing.assert_array_equal(found.zero_point, plain.zero_point)


def test_mse_needs_two_trials() -> None:
    with pytest.raises(InputError, match="1 trials are too few"):
        MeanSquaredError(trials=1)


@pytest.mark.slow
@pytest.mark.parametrize("search", SCALE_SEARCHES.values(), ids=SCALE_SEARCHES.keys())
@pytest.mark.parametrize(
    "granularity", [per_channel(0), per_block(1, 100), per_block(0, 32)], ids=str
)
def test_memory_beside_the_weight_is_bounded(search: ScaleSearch, granularity: Granularity) -> None:
    megabyte = 1 << 20
    x = np.random.default_rng(7).standard_normal((512, 2048)).astype(np.float32)
    tracemalloc.start()
    try:
        qparams = weight_qparams(x, INT4, ABSMAX, granularity, search=search)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        q = quantize(x, qparams)
        _, peak_of_quantize = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * megabyte
    assert peak_of_quantize < q.nbytes + megabyte

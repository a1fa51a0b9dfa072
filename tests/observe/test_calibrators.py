"""Calibrators against the same computations in float64 over all values kept in memory."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special

from onnxq.errors import InputError
from onnxq.observe import CALIBRATORS, Statistics, parse_calibrator
from onnxq.observe.histogram import RELATIVE_WIDTH
from onnxq.observe.search import ENTROPY_OCTAVES, MSE_OCTAVES, STEPS
from onnxq.quant import (
    ABSMAX,
    INT4,
    INT8,
    UINT8,
    ZERO_POINT,
    Format,
    QParams,
    Scheme,
    fake_quantize,
    qparams_from_range,
)
from tests.observe.observing import observed

GRIDS = [(UINT8, ZERO_POINT), (INT8, ABSMAX), (INT4, ABSMAX), (INT8, Scheme(False, True))]
TOP = float(np.finfo(np.float32).max)


def statistics(*batches: np.ndarray) -> Statistics:
    return observed([np.asarray(batch, np.float32) for batch in batches], True, 0.1)


def chosen(text: str, values: np.ndarray, format: Format, scheme: Scheme) -> tuple[float, float]:
    return parse_calibrator(text).range(statistics(values), format, scheme)


def _samples(kind: str, count: int = 300_000) -> np.ndarray:
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(count)
    values = {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "below zero": -np.abs(normal),
        "gelu": normal * special.ndtr(normal),
        "laplace": rng.laplace(size=count),
        "heavy tails": rng.standard_t(4, count),
        "shifted": normal + 2,
    }
    return values[kind].astype(np.float32)


KINDS = ("normal", "relu", "below zero", "gelu", "laplace", "heavy tails", "shifted")


# Percentiles


def _percentile(values: np.ndarray, percentile: float) -> tuple[float, float]:
    """Both tails, from all values in order."""
    ordered = np.sort(values.reshape(-1).astype(np.float64))
    rank = -(-Fraction(str(percentile)) * len(ordered) // 100)
    return float(ordered[len(ordered) - int(rank)]), float(ordered[int(rank) - 1])


def _assert_close(found: tuple[float, float], wanted: tuple[float, float]) -> None:
    for one, other in zip(found, wanted, strict=True):
        # Of a number below 2**-126 only the first bits are kept, as far as it has them.
        assert abs(one - other) <= max(RELATIVE_WIDTH * abs(other), 2.0**-132), (found, wanted)


@pytest.mark.parametrize("percentile", [51.0, 90.0, 99.0, 99.99, 99.999, 100.0])
@pytest.mark.parametrize("kind", KINDS)
def test_percentiles_of_many_values(kind: str, percentile: float) -> None:
    values = _samples(kind, 50_000)
    wanted = _percentile(values, percentile)
    found = chosen(f"percentile{{percentile={percentile}}}", values, UINT8, ZERO_POINT)
    _assert_close(found, wanted)
    assert values.min() <= found[0] <= found[1] <= values.max()


@settings(max_examples=60)
@given(
    hnp.arrays(
        np.float32,
        st.integers(1, 40),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.sampled_from([50.5, 75.0, 90.0, 99.0, 100.0]),
)
def test_percentiles_of_any_values(values: np.ndarray, percentile: float) -> None:
    wanted = _percentile(values, percentile)
    found = chosen(f"percentile{{percentile={percentile}}}", values, UINT8, ZERO_POINT)
    if wanted == (0.0, 0.0) or max(map(abs, wanted)) < 2.0**-132:
        # All of the tensor would become zero.
        wanted = (float(values.min()), float(values.max()))
        if found == (0.0, 0.0):
            return
    _assert_close(found, wanted)


# MSE


def _limits(values: np.ndarray, octaves: int) -> list[float]:
    largest = float(np.abs(values).max())
    return [largest * 2.0 ** (-i / STEPS) for i in range(STEPS * octaves + 1)]


def _ranges(values: np.ndarray, octaves: int) -> list[tuple[float, float]]:
    low, high = float(values.min()), float(values.max())
    return [(max(low, -limit), min(high, limit)) for limit in _limits(values, octaves)]


def _quantize(values: np.ndarray, ends: tuple[float, float], format: Format, scheme: Scheme):  # type: ignore[no-untyped-def]
    params = qparams_from_range(*ends, format, scheme)
    return params, fake_quantize(values, params).astype(np.float64)


def _squared_error(
    values: np.ndarray, ends: tuple[float, float], format: Format, scheme: Scheme, clipping: float
) -> float:
    params, quantized = _quantize(values, ends, format, scheme)
    lowest, highest = _represented(params)
    outside = (values < lowest) | (values > highest)
    squares = np.square(values.astype(np.float64) - quantized)
    return float(squares[~outside].sum() + clipping * squares[outside].sum())


def _represented(params: QParams) -> tuple[float, float]:
    zero_point, scale = int(params.zero_point), float(params.scale)
    return (params.format.qmin - zero_point) * scale, (params.format.qmax - zero_point) * scale


@pytest.mark.parametrize("clipping", [1.0, 2.0])
@pytest.mark.parametrize(("format", "scheme"), GRIDS[:3])
@pytest.mark.parametrize("kind", ["relu", "laplace"])
def test_the_mse_threshold_is_that_of_all_values(
    kind: str, format: Format, scheme: Scheme, clipping: float
) -> None:
    values = _samples(kind)
    candidates = _ranges(values, 2)
    errors = [_squared_error(values, ends, format, scheme, clipping) for ends in candidates]
    found = chosen(f"mse{{clipping={clipping}}}", values, format, scheme)
    error = _squared_error(values, found, format, scheme, clipping)
    # With a zero-point, the search goes on from here, one end at a time.
    assert error <= min(errors) * (1 + 0.01)
    if scheme.symmetric or values.min() == 0:
        wanted = candidates[int(np.argmin(errors))]
        nearly = [c for c, e in zip(candidates, errors, strict=True) if e <= min(errors) * 1.01]
        # The same candidate, or one that only chance keeps from being the best.
        assert found == wanted or found in nearly


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("format", "scheme"), GRIDS)
def test_mse_is_no_worse_than_any_other(kind: str, format: Format, scheme: Scheme) -> None:
    values = _samples(kind, 100_000)
    errors = {
        name: _squared_error(values, chosen(name, values, format, scheme), format, scheme, 1.0)
        for name in ("minmax", "percentile", "entropy", "mse")
    }
    # Candidates are 4.4 % apart, for either end.
    assert errors["mse"] <= min(errors.values()) * 1.02, errors


def test_the_search_goes_down_to_a_small_share_of_one_outlier() -> None:
    values = np.concatenate([_samples("normal", 100_000), [60.0]]).astype(np.float32)
    ends = chosen("mse", values, INT4, ABSMAX)
    assert 2.0 < ends[1] < 4.0 and ends[1] > 60 * 2.0**-MSE_OCTAVES


# Entropy


def _divergence(values: np.ndarray, params: QParams) -> float:
    """Migacz' divergence over bins of the first seven bits of the mantissa, bin by bin."""
    cut = (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    cut = cut[cut != 0]
    following = ((np.abs(cut).view(np.uint32) + np.uint32(0x10000)).view(np.float32)).astype(float)
    inner = np.abs(cut).astype(float)
    middle = np.sign(cut) * (inner + np.minimum(following, np.abs(values).max())) / 2
    width = following - inner
    lowest, highest = _represented(params)
    scale = float(params.scale)
    bins: dict[float, list[float]] = {}
    below = above = 0
    for at, size, count in zip(*_counted(middle, width), strict=True):
        if at < lowest - scale / 2:
            below += count
        elif at > highest + scale / 2:
            above += count
        else:
            bins[at] = [size, count, np.rint(at / scale)]
    places = sorted(bins)
    p = {at: bins[at][1] for at in places}
    p[places[0]] += below
    p[places[-1]] += above
    sums: dict[float, list[float]] = {}
    for at in places:
        size, count, level = bins[at]
        seen = sums.setdefault(level, [0.0, 0.0])
        seen[0] += count
        seen[1] += size
    q = {at: sums[bins[at][2]][0] * bins[at][0] / sums[bins[at][2]][1] for at in places}
    p_sum, q_sum = sum(p.values()), sum(q.values())
    return sum(p[at] / p_sum * np.log(p[at] / p_sum / (q[at] / q_sum)) for at in places)


def _counted(middle: np.ndarray, width: np.ndarray):  # type: ignore[no-untyped-def]
    places, first, counts = np.unique(middle, return_index=True, return_counts=True)
    return places.tolist(), width[first].tolist(), counts.tolist()


@pytest.mark.parametrize(("format", "scheme"), GRIDS[:3])
@pytest.mark.parametrize("kind", ["relu", "laplace"])
def test_the_entropy_threshold_is_that_of_all_values(
    kind: str, format: Format, scheme: Scheme
) -> None:
    values = _samples(kind, 4000)
    candidates = _ranges(values, ENTROPY_OCTAVES)
    divergences = [
        _divergence(values, qparams_from_range(*ends, format, scheme)) for ends in candidates
    ]
    wanted = candidates[int(np.argmin(divergences))]
    assert chosen("entropy", values, format, scheme) == pytest.approx(wanted, rel=0.01)


def test_entropy_clips_what_hardly_ever_happens() -> None:
    values = np.concatenate([_samples("normal", 100_000), [12.0]]).astype(np.float32)
    _, high = chosen("entropy", values, INT8, ABSMAX)
    assert 3.0 < high < 6.0


# All of them


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize(("format", "scheme"), GRIDS[:2])
@pytest.mark.parametrize(
    "values",
    [
        np.zeros(5),
        np.array([0.0, -0.0]),
        np.array([3.5]),
        np.array([-3.5]),
        np.full(9, 1.0),
        np.array([2.0**-149]),
        np.array([2.0**-140, -(2.0**-133), 0.0]),
        np.array([1e38, -1e38, 1.0]),
        np.array([TOP, -TOP]),
        np.append(np.full(1000, 0.01), 1e30),
        np.append(np.zeros(100_000), 1.0),
    ],
    ids=str,
)
def test_extremes_give_ranges_that_can_be_quantized(
    name: str, values: np.ndarray, format: Format, scheme: Scheme
) -> None:
    values = values.astype(np.float32)
    low, high = chosen(name, values, format, scheme)
    assert min(values.min(), 0) <= low <= high <= max(values.max(), 0)
    params = qparams_from_range(low, high, format, scheme)
    if values.any() and np.abs(values).max() >= 2.0**-120:
        assert fake_quantize(values, params).any()


@pytest.mark.parametrize("name", CALIBRATORS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_never_hidden(name: str, bad: float) -> None:
    values = np.append(_samples("normal", 1000), bad)
    low, high = chosen(name, values, UINT8, ZERO_POINT)
    assert not np.isfinite([low, high]).all()


@pytest.mark.parametrize("name", [n for n in CALIBRATORS if n != "moving-average"])
@pytest.mark.parametrize(("format", "scheme"), GRIDS[:2])
def test_batches_order_and_shards_change_no_bit(name: str, format: Format, scheme: Scheme) -> None:
    values = _samples("gelu", 8000)
    calibrator = parse_calibrator(name)
    wanted = np.array(calibrator.range(statistics(values), format, scheme)).tobytes()
    shuffled = np.random.default_rng(1).permutation(values)
    many = statistics(*np.split(shuffled, 16))
    shards = [statistics(*np.split(part, 2)) for part in np.split(shuffled, 8)]
    merged = shards[3]
    for shard in (*shards[:3], *shards[4:]):
        merged = shard.merge(merged)
    for seen in (many, merged):
        assert np.array(calibrator.range(seen, format, scheme)).tobytes() == wanted


def test_auto_takes_the_range_with_the_least_weighted_error() -> None:
    for kind in KINDS[::2]:
        values = _samples(kind, 100_000)
        found = chosen("auto", values, UINT8, ZERO_POINT)
        others = [
            chosen(name, values, UINT8, ZERO_POINT)
            for name in ("minmax", "percentile", "percentile{percentile=99.999}", "entropy", "mse")
        ]
        errors = [_squared_error(values, ends, UINT8, ZERO_POINT, 2.0) for ends in others]
        assert _squared_error(values, found, UINT8, ZERO_POINT, 2.0) <= min(errors) * 1.01


def test_the_weight_of_clipping_keeps_ranges_wide() -> None:
    values = _samples("normal")
    narrow = chosen("mse", values, INT4, ABSMAX)
    wide = chosen("mse{clipping=16}", values, INT4, ABSMAX)
    assert wide[1] > narrow[1]


def test_the_moving_average_depends_on_the_order() -> None:
    batches = [np.array([x, -x], np.float32) for x in (1.0, 2.0, 4.0)]
    calibrator = parse_calibrator("moving-average")
    forward = calibrator.range(statistics(*batches), UINT8, ZERO_POINT)
    backward = calibrator.range(statistics(*batches[::-1]), UINT8, ZERO_POINT)
    assert forward == pytest.approx((-1.39, 1.39))
    assert backward == pytest.approx((-3.52, 3.52))


# Their text form


@pytest.mark.parametrize(
    "text",
    ["minmax", "percentile{percentile=99.9}", "mse{clipping=4.0}", "moving-average{momentum=0.5}"],
)
def test_the_text_form_reads_back(text: str) -> None:
    assert str(parse_calibrator(text)) == text


def test_options_at_their_default_are_not_written() -> None:
    assert str(parse_calibrator(" percentile { percentile = 99.99 , }")) == "percentile"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read the calibrator ''"),
        ("median", "no calibrator 'median'; available: minmax, moving-average, percentile"),
        ("mse{", "cannot read the calibrator 'mse{'"),
        ("minmax{a=1}", "calibrator minmax has no option 'a'; it has: none"),
        ("mse{percentile=9}", "mse has no option 'percentile'; it has: clipping"),
        (
            "percentile{percentile=most}",
            "option 'percentile' .* takes float, not 'most'",
        ),
        ("percentile{percentile}", "the calibrator percentile needs a value; write"),
        ("percentile{percentile=50}", "has to be above 50 and at most 100"),
        ("percentile{percentile=nan}", "has to be above 50 and at most 100"),
        ("moving-average{momentum=0}", "has to be above 0 and at most 1"),
        ("mse{clipping=0}", "option 'clipping' of calibrator mse is 0; it has to be above 0"),
        ("auto{clipping=inf}", "option 'clipping' of calibrator auto is inf"),
    ],
)
def test_what_is_no_calibrator(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("{", r"\{")):
        parse_calibrator(text)


def test_statistics_that_lack_what_is_needed() -> None:
    seen = observed([np.ones(3, np.float32)])
    with pytest.raises(InputError, match="'mse' needs histograms"):
        parse_calibrator("mse").range(seen, UINT8, ZERO_POINT)
    with pytest.raises(InputError, match="without a moving average of momentum"):
        parse_calibrator("moving-average").range(seen, UINT8, ZERO_POINT)

"""HQQ against the paper's two problems, solved in turn for one group in float64."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.ir import raise_opset
from onnxq.observe import Observations
from onnxq.precision import parse_precision
from onnxq.quant import ABSMAX, FORMATS, ZERO_POINT, Scheme, per_channel, weight_qparams
from onnxq.quant.half_quadratic import HQQ
from onnxq.targets import load_target
from onnxq.tune import Layer
from onnxq.tune.hqq import Hqq
from tests.networks import products

POWER, BETA, GROWTH, STEPS = 0.7, 10.0, 1.01, 20


def _norm(w: np.ndarray, scale: float, zero: float, low: float, high: float) -> float:
    codes = np.clip(np.rint(w / scale) + zero, low, high) - zero
    return float((np.abs(w - scale * codes) ** POWER).sum())


def _by_turns(w: np.ndarray, s: float, z: float, low: float, high: float, symmetric: bool) -> float:
    """The least norm of the steps."""
    unit, beta, least = s * (high - low), BETA, np.inf
    for _ in range(STEPS + 1):
        q = np.clip(np.rint(w / s) + z, low, high)
        least = min(least, _norm(w, s, z, low, high))
        d = (w - s * (q - z)) / unit
        shrunk = [np.sign(v) * max(abs(v) - abs(v) ** (POWER - 1) / beta, 0) if v else 0 for v in d]
        rest = w - unit * np.array(shrunk)
        if not symmetric and np.ptp(q) > 0:
            slope, offset = np.polyfit(q, rest, 1)
            z = float(np.clip(np.rint(-offset / slope), low, high)) if slope > 0 else z
        if ((q - z) ** 2).sum() > 0:
            fitted = ((q - z) @ rest) / ((q - z) ** 2).sum()
            s = fitted if fitted > unit / (high - low) / 64 else s
        beta *= GROWTH
    return least


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        ("uint4", ZERO_POINT),
        ("int4", ABSMAX),
        ("int2", ABSMAX),
        ("int8", ABSMAX),
        ("uint2", ZERO_POINT),
    ],
)
def test_it_is_what_the_two_problems_give(name: str, scheme: Scheme) -> None:
    format = FORMATS[name]
    w = np.random.default_rng(1).standard_t(3, (64, 40)).astype(np.float32)
    plain = weight_qparams(w, format, scheme, per_channel(1))
    found = weight_qparams(w, format, scheme, per_channel(1), search=HQQ)
    norms = []
    for k in range(w.shape[1]):
        column, ends = w[:, k].astype(np.float64), (format.qmin, format.qmax)
        of = [(float(q.scale[k]), float(q.zero_point[k])) for q in (plain, found)]
        wanted = _by_turns(column, *of[0], *ends, scheme.symmetric)
        norms.append((_norm(column, *of[0], *ends), _norm(column, *of[1], *ends), wanted))
    before, ours, wanted_norms = np.array(norms).T
    assert (ours <= before * (1 + 1e-5)).all()
    assert ours.sum() < (0.985 if format.bits < 8 else 1.0) * before.sum()
    # Where float32 rounds another way at a tie, later steps are others.
    assert (np.abs(ours - wanted_norms) < 1e-3 * wanted_norms).mean() > 0.8
    assert ours.sum() == pytest.approx(wanted_norms.sum(), rel=0.01)


def test_important_values_count_more_and_powers_of_two_stay() -> None:
    w = np.random.default_rng(2).standard_t(3, (64, 30)).astype(np.float32)
    doubled = np.concatenate([w, w[:16]])
    importance = np.ones((64, 1), np.float32)
    importance[:16] = 2
    format = FORMATS["uint4"]
    weighted, repeated = (
        weight_qparams(x, format, ZERO_POINT, per_channel(1), search=HQQ, importance=how)
        for x, how in ((w, importance), (doubled, None))
    )
    np.testing.assert_allclose(weighted.scale, repeated.scale, rtol=1e-3)
    twos = Scheme(symmetric=True, power_of_two=True)
    assert weight_qparams(w, format, twos, per_channel(1), search=HQQ) == weight_qparams(
        w, format, twos, per_channel(1)
    )


@pytest.mark.parametrize("text", ["int4-weight", "int2-weight", "int8", "int8-dynamic"])
def test_it_tunes_weights_that_are_rounded(text: str) -> None:
    graph = raise_opset(products(), 25)
    gemm = next(node for node in graph.nodes() if node.name == "gemm")
    layer = Layer(gemm, parse_precision(text), load_target("cpu-x64"))
    assert Hqq().refusal(layer) == ""
    found = Hqq().tune(layer, Observations())
    assert set(found) == {"scale", "zero_point"} and not Hqq().needs(layer)
    ((weight, layout),) = layer.weights
    rounding = layout.quantizer
    wanted = weight_qparams(
        weight.value.numpy(),
        rounding.format,
        rounding.scheme,  # type: ignore[attr-defined]
        layout.own_granularity,
        search=HQQ,
    )
    np.testing.assert_allclose(found["scale"], wanted.scale, rtol=1e-5)


def test_what_it_is_not_for() -> None:
    gemm = next(node for node in raise_opset(products(), 25).nodes() if node.name == "gemm")
    for text in ("ternary", "q4_0", "float16"):
        layer = Layer(gemm, parse_precision(text), load_target("cpu-x64"))
        assert Hqq().refusal(layer) == "it is for weights that are rounded"

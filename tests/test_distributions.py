"""The tensors that quantization changes most, against a direct computation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from onnxq.ir import to_proto
from onnxq.optimization import optimize
from tests.networks import PIXELS, chain, computed

__all__ = ["computed"]

pytestmark = pytest.mark.usefixtures("computed")


def test_a_tensor_is_described_as_its_values_are() -> None:
    """All samples are one, so that it does not matter which are looked at."""
    rng = np.random.default_rng(0)
    sample = rng.standard_normal((1, 2, PIXELS, PIXELS)).astype(np.float32) ** 3
    data = [{"x": sample}] * 24
    report = optimize(
        to_proto(chain(2)),
        data,
        recipe="int8",
        calibrator="percentile{percentile=98}",
        min_speedup=0.0,
        max_drop=1.0,
        keep_failed=True,
    ).report
    assert 1 < len(report.tensors) <= 8
    assert list(report.tensors) == sorted(report.tensors, key=lambda t: (t.sqnr_db, t.tensor))
    (found,) = (tensor for tensor in report.tensors if tensor.tensor == "x")
    values = sample.astype(np.float64).reshape(-1)
    assert (found.node, found.first, found.last) == ("", values.min(), values.max())
    counts, _ = np.histogram(values, len(found.shares), (values.min(), values.max()))
    # Bins are as wide as 0.8 % of the number: few values lie in another bar.
    assert np.abs(np.array(found.shares) - counts / values.size).sum() < 0.05
    scale = (found.high - found.low) / 255
    restored = np.clip(np.rint(values / scale) * scale, found.low, found.high)
    sqnr = 10 * math.log10(np.square(values).sum() / np.square(values - restored).sum())
    assert found.sqnr_db == pytest.approx(sqnr, abs=0.3)
    outside = ((values < found.low) | (values > found.high)).mean()
    assert found.outside == pytest.approx(outside, abs=0.03) and found.outside > 0
    assert all(math.isclose(sum(t.shares), 1.0) for t in report.tensors)


def test_what_computes_in_float_has_no_range() -> None:
    data = [{"x": np.ones((1, 2, PIXELS, PIXELS), np.float32)}] * 24
    report = optimize(to_proto(chain(2)), data, recipe="float16", min_speedup=0.0).report
    assert report.tensors == ()

"""Scales of the least error of what layers give, against every candidate tried on the outputs."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.errors import InputError
from onnxq.observe import Observations
from onnxq.quant import from_storage, qparams_from_range, weight_qparams
from onnxq.tune import Layer
from onnxq.tune.seq_mse import SeqMse
from onnxq.tune.weight_matrix import matrix_of
from tests.tune.test_gptq import FORMS, feed, layer, seen, weights, windows


def _rounded(of: Layer, scale: np.ndarray, zero_point: np.ndarray) -> np.ndarray:
    """The weight's errors [groups, inputs, outputs]."""
    matrix = matrix_of(of)
    low, high = matrix.rounding.bounds
    wide = [matrix.spread(np.asarray(a)).astype(np.float64) for a in (scale, zero_point)]
    numbers = matrix.matrices(matrix.numbers()).astype(np.float64)
    codes = np.clip(np.rint(numbers / wide[0]) + wide[1], low, high)
    return numbers - wide[0] * (codes - wide[1])


def _losses(of: Layer, x: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Squared error of every output, [groups, outputs]."""
    each = zip(windows(of, x), errors, strict=True)
    return np.stack([np.square(rows @ error).sum(axis=0) for rows, error in each])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text", ["int3-weight{block_size=0}", "int8", "int4-weight{block_size=0}"])
def test_no_candidate_for_a_channel_is_better(form: str, text: str) -> None:
    rng = np.random.default_rng(1)
    weight = weights(form, rng, 40, 6)
    x = feed(form, weight, rng, 50)
    of = layer("MatMul" if form == "Transpose" else form, weight, text)
    tuner = SeqMse(trials=9, smallest=0.4)
    assert tuner.refusal(of) == ""
    found = tuner.tune(of, seen(of, x))
    matrix = matrix_of(of)
    zeros = from_storage(found["zero_point"], matrix.rounding.format)
    ours = _losses(of, x, _rounded(of, found["scale"], zeros))
    ends = [getattr(matrix.matrices(matrix.numbers()), of_)(axis=1) for of_ in ("min", "max")]
    ends = [np.minimum(ends[0], 0).reshape(-1), np.maximum(ends[1], 0).reshape(-1)]
    tried = []
    for share in np.linspace(1, 0.4, 9):
        format, scheme = matrix.rounding.format, matrix.rounding.scheme
        made = qparams_from_range(ends[0] * share, ends[1] * share, format, scheme, axis=0)
        zero = from_storage(made.zero_point, format)
        tried.append(_losses(of, x, _rounded(of, made.scale, zero)))
    np.testing.assert_allclose(ours, np.min(tried, axis=0), rtol=1e-5)


@pytest.mark.parametrize("form", ["MatMul", "Transpose", "transB", "Conv", "grouped"])
@pytest.mark.parametrize("text", ["int4-weight{block_size=8}", "int2-weight{block_size=16}"])
def test_blocks_together_err_less_than_with_plain_scales(form: str, text: str) -> None:
    rng = np.random.default_rng(2)
    weight = weights(form, rng, 180, 8)
    x = feed(form, weight, rng, 300 if weight.ndim == 2 else 30)
    of = layer(form, weight, text)
    found = SeqMse().tune(of, seen(of, x))
    matrix = matrix_of(of)
    rounding, granularity = matrix.rounding, matrix.layout.own_granularity
    plain = weight_qparams(matrix.numbers(), rounding.format, rounding.scheme, granularity)
    losses = []
    for scale, zero in ((found["scale"], found["zero_point"]), (plain.scale, plain.zero_point)):
        zeros = from_storage(zero, rounding.format)
        losses.append(_losses(of, x, _rounded(of, scale, zeros)))
    assert (losses[0] <= losses[1] * (1 + 1e-9)).all()
    assert losses[0].sum() < 0.9 * losses[1].sum()


def test_one_scale_for_all_is_judged_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    weight = weights("grouped", rng, 40, 6)
    x = feed("grouped", weight, rng, 20)
    of = layer("grouped", weight, "int8")
    monkeypatch.setattr("onnxq.targets.target.Target.weight_granularity", lambda *_: _per_tensor())
    found = SeqMse(trials=12).tune(of, seen(of, x))
    assert found["scale"].shape == ()
    ends = np.minimum(weight.min(), 0), np.maximum(weight.max(), 0)
    rounding = matrix_of(of).rounding
    tried = []
    for share in np.linspace(1, 0.3, 12):
        made = qparams_from_range(
            ends[0] * share, ends[1] * share, rounding.format, rounding.scheme
        )
        tried.append(_losses(of, x, _rounded(of, made.scale, made.zero_point)).sum())
    ours = _losses(of, x, _rounded(of, found["scale"], found["zero_point"])).sum()
    assert ours == pytest.approx(min(tried), rel=1e-6)


def _per_tensor() -> object:
    from onnxq.quant import PER_TENSOR

    return PER_TENSOR


def test_without_statistics_the_weight_itself_is_what_errs_least() -> None:
    weight = weights("MatMul", np.random.default_rng(4), 64, 8)
    of = layer("MatMul", weight, "int2-weight{block_size=16}")
    found = SeqMse().tune(of, Observations())
    plain = matrix_of(of)
    of_plain = weight_qparams(
        plain.numbers(), plain.rounding.format, plain.rounding.scheme, plain.layout.own_granularity
    )
    zeros = np.zeros(found["scale"].shape)
    ours, before = (_rounded(of, s, zeros) for s in (found["scale"], of_plain.scale))
    assert np.square(ours).sum() < 0.9 * np.square(before).sum()


def test_wrong_options_and_weights() -> None:
    for options in ({"trials": 1}, {"smallest": 0.0}, {"smallest": 1.0}):
        with pytest.raises(InputError, match="seq-mse tries 2 parts or more"):
            SeqMse(**options)  # type: ignore[arg-type]
    weight = weights("MatMul", np.random.default_rng(4), 64, 8)
    assert SeqMse().refusal(layer("MatMul", weight, "q4_0"))
    weight[0, 0] = np.nan
    assert SeqMse().tune(layer("MatMul", weight), Observations()) == {}

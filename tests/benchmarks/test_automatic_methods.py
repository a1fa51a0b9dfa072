"""Methods that are chosen automatically are never worse than plain rounding."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from cases import MODELS, Arrays

from onnxq.planning import apply_plan, make_plan
from onnxq.runtime import Session

SPLITS = int(os.environ.get("ONNXQ_SPLITS", "2"))
"""Ways to divide the data, of which each takes ten seconds or more a model; 20 are thorough."""
DEVIATIONS = 3.0
"""By chance the mean of equals is so many standard errors above 0 once in 740 comparisons."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data", "precision"),
    [
        ("digits_resnet", "digits", "int4-weight{block_size=128}"),
        ("digits_vit", "digits", "int3-weight"),
        ("text_lm", "text", "int4-weight{block_size=128}"),
    ],
)
def test_automatic_methods_are_not_worse_than_none(
    name: str, data: str, precision: str, tmp_path: Path
) -> None:
    model = MODELS / f"{name}.onnx"
    means, failed = [], []
    for seed in range(SPLITS):
        fit, judge = _split(MODELS / f"{data}.npz", seed)
        losses = {}
        for method in ("none", "auto"):
            path = tmp_path / f"{method}.onnx"
            # One sample has to be left to verify with.
            count = len(fit["labels"]) - 1
            plan = make_plan(model, fit, recipe=precision, methods=method, samples=count)
            apply_plan(model, plan, output=path)
            losses[method] = _losses(path, judge)
        worse = losses["auto"] - losses["none"]
        error = worse.std(ddof=1) / np.sqrt(len(worse))
        means.append(worse.mean())
        if worse.mean() > DEVIATIONS * error:
            failed.append(f"seed {seed}: {worse.mean():.4f} with a standard error of {error:.4f}")
    assert not failed
    error = np.std(means, ddof=1) / np.sqrt(SPLITS)
    assert np.mean(means) <= DEVIATIONS * error


def _split(path: Path, seed: int) -> tuple[Arrays, Arrays]:
    """A few samples to fit on, and others to judge with."""
    rng = np.random.default_rng(seed)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file}
    parts = []
    for part, count in ((0, 17), (1, 48)):
        rows = rng.choice(np.flatnonzero(arrays["split"] == part), count, replace=False)
        parts.append({name: a[rows] for name, a in arrays.items() if name != "split"})
    return parts[0], parts[1]


def _losses(path: Path, judge: Arrays) -> np.ndarray:
    """Cross-entropy of each sample."""
    session = Session(path)
    (name,) = (name for name in judge if name != "labels")
    losses = []
    for sample, labels in zip(judge[name], judge["labels"], strict=True):
        logits = session.run({name: sample[None]})["logits"][0].astype(np.float64)
        logits -= logits.max(axis=-1, keepdims=True)
        log_sum = np.log(np.exp(logits).sum(axis=-1))
        picked = np.take_along_axis(logits, np.expand_dims(labels, -1), axis=-1)[..., 0]
        losses.append(np.mean(log_sum - picked))
    return np.array(losses)

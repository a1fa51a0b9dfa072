"""How unusual one sample is: a few numbers of each tensor, and of the outputs.

All are functions of the sample and of what calibration found alone, so that samples from where the
baseline's came from give numbers from where its bag came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from onnxq.adaptive.baseline import Baseline, TensorBaseline
from onnxq.observe import Histogram
from onnxq.observe.histogram import as_float32, histogram_of
from onnxq.runtime.specs import Array
from onnxq.verify.decisions import Decision
from onnxq.verify.result import NEIGHBOUR

BELOW, ABOVE, DISTANCE, UNUSED = "below", "above", "distance", "unused"
KINDS = (BELOW, ABOVE, DISTANCE, UNUSED)
"""Scores of a tensor: the share of its values below and above what the model can hold, the distance
of its histogram from the baseline's, and the share of the range that it does not use."""

SATURATION, ENTROPY, DISAGREEMENT = "saturation", "entropy", "disagreement"
STREAMS = {SATURATION: (BELOW, ABOVE), DISTANCE: (DISTANCE,), UNUSED: (UNUSED,)}
"""Streams that are made of all tensors' scores of some kinds."""

_LEAST_DEVIATION = 1e-3
"""A score that never differed is unusual where it differs by more than this."""


def histograms(tensors: Mapping[str, Array]) -> dict[str, Histogram]:
    """The histogram of every tensor of a sample."""
    return {name: histogram_of(as_float32(own).reshape(-1)) for name, own in tensors.items()}


def tensor_scores(seen: Histogram, usual: TensorBaseline) -> dict[str, float]:
    """The scores of a tensor by kind, each from 0 to 1."""
    if not seen.total:
        return {BELOW: 0.0, ABOVE: 0.0, DISTANCE: 1.0, UNUSED: 1.0}
    beyond = [seen.counts[seen.upper <= usual.low], seen.counts[seen.lower >= usual.high]]
    below, above = (float(counts.sum()) / seen.total for counts in beyond)
    width = usual.high - usual.low
    used = min(seen.upper[-1], usual.high) - max(seen.lower[0], usual.low)
    unused = 1 - max(used, 0.0) / width if 0 < width < math.inf else 0.0
    away = jensen_shannon(usual.coarse.shares, usual.coarse.of(seen))
    return {BELOW: below, ABOVE: above, DISTANCE: away, UNUSED: max(unused, 0.0)}


def jensen_shannon(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    """Distance of two distributions, from 0 to 1: the root of their divergence in bits."""
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(side > 0, side * np.log2(side / middle), 0.0).sum() for side in (p, q)]
    return math.sqrt(max(0.0, float(sum(terms)) / 2))


def sample_scores(seen: Mapping[str, Histogram], baseline: Baseline) -> dict[str, dict[str, float]]:
    """By tensor and kind, by how many standard deviations a score is above its usual mean."""
    found = {}
    for name, usual in baseline.tensors.items():
        own = tensor_scores(seen[name], usual)
        found[name] = {
            kind: (own[kind] - was.mean) / max(was.deviation, _LEAST_DEVIATION)
            for kind, was in usual.usual.items()
        }
    return found


def streams(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """One number for all tensors, of each of `STREAMS`; none where there is no tensor.

    The root of the mean square of what is above the mean: few tensors that are far off count as
    many that are a little.
    """
    found = {}
    for stream, kinds in STREAMS.items():
        above = [max(own[kind], 0.0) for own in scores.values() for kind in kinds]
        if above:
            found[stream] = math.sqrt(float(np.mean(np.square(above))))
    return found


def output_scores(
    decisions: Sequence[Decision],
    names: Sequence[str],
    reference: Sequence[Array],
    served: Sequence[Array],
) -> dict[str, float]:
    """How sure the float model is of its decisions, and how far from it the answer was.

    Where outputs decide nothing by themselves there is no entropy, and the answer's distance is its
    noise over the float model's signal.

    Args:
        decisions: What the outputs decide.
        names: The outputs' names in order.
        reference: What the float model says.
        served: What was answered.
    """
    places = {name: at for at, name in enumerate(names)}
    sure = [decision for decision in decisions if decision.kind != NEIGHBOUR]
    if not sure:
        return {DISAGREEMENT: max(map(_noise, reference, served), default=0.0)}
    pairs = [(d, reference[places[d.output]], served[places[d.output]]) for d in sure]
    return {
        ENTROPY: sum(d.entropy(ours) for d, ours, _ in pairs),
        DISAGREEMENT: sum(
            d.divergence(ours, theirs) if ours.shape == theirs.shape else math.inf
            for d, ours, theirs in pairs
        ),
    }


def _noise(ours: Array, theirs: Array) -> float:
    """Mean square of the difference over that of the float model's numbers."""
    if ours.dtype.kind not in "fiu" or not ours.size:
        return float(not np.array_equal(ours, theirs))
    if ours.shape != theirs.shape:
        return math.inf
    signal, noise = (
        float(np.mean(np.square(side, dtype=np.float64))) for side in (ours, ours - theirs)
    )
    return noise / signal if signal else float(noise > 0)

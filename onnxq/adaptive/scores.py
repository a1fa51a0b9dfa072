"""How unusual one sample is: a few numbers of each tensor, and of the outputs.

All are functions of the sample and of what calibration found alone, so that samples from where the
baseline's came from give numbers from where its bag came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxq.adaptive.baseline import TensorBaseline, Usual
from onnxq.observe import Histogram
from onnxq.observe.histogram import NOT_FINITE, bins_of
from onnxq.runtime.specs import Array
from onnxq.verify.decisions import UNDECIDED, Decision
from onnxq.verify.result import NEIGHBOUR

Floats = npt.NDArray[np.float64]

KINDS = ("below", "above", "distance", "unused")
"""Scores of a tensor, in this order: the share of its values below and above what the model can
hold, the distance of its histogram from the baseline's, and the share of the range it leaves."""

STREAMS = {"saturation": (0, 1), "distance": (2,), "unused": (3,)}
"""Streams that are made of all tensors' scores of some kinds."""

ENTROPY, DISAGREEMENT, CLASSES = "entropy", "disagreement", "classes"

_LEAST_DEVIATION = 1e-3
"""A score that never differed is unusual where it differs by more than this."""

_FARTHEST = 10.0
"""Deviations beyond which a score is not more unusual: one tensor is not to be all that counts."""


@dataclass(frozen=True)
class Seen:
    """A sample's tensors in a few cells each.

    Attributes:
        counts: Values in each cell, (tensors, cells): below the range, the cells in it, above it;
            the last ones are empty where a tensor has fewer.
        lowest: The bin of each tensor's smallest value.
        highest: That of its largest.
    """

    counts: npt.NDArray[np.int64]
    lowest: npt.NDArray[np.int32]
    highest: npt.NDArray[np.int32]


class Scoring:
    """Scores samples by what calibration found.

    Args:
        tensors: The baseline's.
    """

    def __init__(self, tensors: Mapping[str, TensorBaseline]) -> None:
        self.names = tuple(tensors)
        self._edges = [own.edges for own in tensors.values()]
        self._cells = max((len(edges) for edges in self._edges), default=0) + 1
        self._last = np.array([len(edges) for edges in self._edges], np.intp)
        self._ends = np.array([[own.low, own.high] for own in tensors.values()]).reshape(-1, 2)
        was = np.zeros((len(self.names), self._cells), np.int64)
        for row, own in zip(was, tensors.values(), strict=True):
            cells = np.searchsorted(own.edges, own.histogram.bins, side="right")
            np.add.at(row, cells, own.histogram.counts)
        self.usual = was

    def see(self, tensors: Mapping[str, Array]) -> Seen:
        """Count a sample's values."""
        counts = np.zeros((len(self.names), self._cells), np.int64)
        ends = np.zeros((2, len(self.names)), np.int32)
        for at, (name, edges) in enumerate(zip(self.names, self._edges, strict=True)):
            # Sorting 16-bit integers takes few passes, and then cells are found by bisection.
            bins = np.sort(bins_of(tensors[name]), kind="stable")
            bins = bins[slice(*np.searchsorted(bins, [1 - NOT_FINITE, NOT_FINITE]))]
            places = np.concatenate([[0], np.searchsorted(bins, edges), [len(bins)]])
            counts[at, : len(edges) + 1] = np.diff(places)
            if len(bins):
                ends[:, at] = bins[0], bins[-1]
        return Seen(counts, *ends)

    def scores(self, seen: Seen) -> Floats:
        """The scores of all tensors, (tensors, kinds), each from 0 to 1."""
        shares, was = _shares(seen.counts), _shares(self.usual)
        ones = np.ones(len(self.names), np.int64)
        lowest, highest = Histogram(seen.lowest, ones).lower, Histogram(seen.highest, ones).upper
        low, high = self._ends.T
        used = np.minimum(highest, high) - np.maximum(lowest, low)
        with np.errstate(divide="ignore", invalid="ignore"):
            unused = 1 - used / (high - low)
        # A range without an end, or without a beginning, is never used up.
        unused = np.where(np.isfinite(high - low) & (high > low), unused, 0.0).clip(0.0, 1.0)
        above = shares[np.arange(len(shares)), self._last]
        return np.stack([shares[:, 0], above, jensen_shannon(shares, was), unused], axis=1)


def jensen_shannon(p: Floats, q: Floats) -> Floats:
    """Distances of distributions along the last axis, from 0 to 1: roots of divergences in bits."""
    middle, found = (p + q) / 2, np.zeros(p.shape[:-1])
    for side in (p, q):
        terms = side * np.log2(np.divide(side, middle, out=np.ones_like(side), where=side > 0))
        found += terms.sum(axis=-1) / 2
    return np.sqrt(np.maximum(found, 0.0))


def deviations(scores: Floats, mean: Floats, deviation: Floats) -> Floats:
    """By how many standard deviations scores are above their means."""
    return np.asarray((scores - mean) / np.maximum(deviation, _LEAST_DEVIATION))


def usual_of(tensors: Mapping[str, TensorBaseline]) -> tuple[tuple[Usual, ...], ...]:
    """What was usual of all scores, by tensor and kind."""
    return tuple(tuple(own.usual[kind] for kind in KINDS) for own in tensors.values())


def as_arrays(usual: Sequence[Sequence[Usual]]) -> tuple[Floats, Floats]:
    """Means and deviations, each (tensors, kinds)."""
    pairs = np.array([[(own.mean, own.deviation) for own in row] for row in usual], np.float64)
    mean, deviation = np.moveaxis(pairs.reshape(len(usual), len(KINDS), 2), -1, 0)
    return mean, deviation


def as_usual(mean: Floats, deviation: Floats) -> tuple[tuple[Usual, ...], ...]:
    """The way back from `as_arrays`."""
    pairs = np.stack([mean, deviation], axis=-1).tolist()
    return tuple(tuple(Usual(*pair) for pair in row) for row in pairs)


def streams(away: Floats) -> dict[str, float]:
    """One number for the deviations of all tensors, for each of `STREAMS`.

    The mean of their squares, those of scores below the mean counted negative: a few tensors that
    are far off count as many that are a little.
    """
    if not away.size:
        return {}
    squares = np.sign(away) * np.square(np.clip(away, -_FARTHEST, _FARTHEST))
    return {name: float(squares[:, kinds].mean()) for name, kinds in STREAMS.items()}


def _shares(counts: npt.NDArray[np.int64]) -> Floats:
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def output_scores(
    decisions: Sequence[Decision],
    names: Sequence[str],
    reference: Sequence[Array],
    served: Sequence[Array],
) -> dict[str, float]:
    """How sure the float model is of its decisions, what it decides, and how far the answer was.

    Where outputs decide nothing by themselves there are only distances, of the answer from the
    float model's: its noise over the signal. Classes are those of the first decision that has some,
    the most frequent one where a sample has many positions; their order means nothing.

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
    chosen = [d.choices(ours).reshape(-1) for d, ours, _ in pairs if d.kind == "classes"]
    classes = {CLASSES: float(np.bincount(chosen[0] - UNDECIDED).argmax())} if chosen else {}
    return classes | {
        ENTROPY: sum(d.entropy(ours) for d, ours, _ in pairs),
        DISAGREEMENT: sum(
            d.divergence(ours, theirs) if ours.shape == theirs.shape else math.inf
            for d, ours, theirs in pairs
        ),
    }


def agreement(
    decisions: Sequence[Decision],
    names: Sequence[str],
    reference: Sequence[Array],
    served: Sequence[Array],
) -> float | None:
    """Share of an answer's decisions that equal the float model's; None where nothing is decided.

    See `output_scores` for what it takes. Where outputs have another shape nothing is equal.
    """
    places, shares = {name: at for at, name in enumerate(names)}, []
    for decision in decisions:
        ours, theirs = (side[places[decision.output]] for side in (reference, served))
        if decision.kind == NEIGHBOUR:
            continue
        if ours.shape != theirs.shape:
            shares.append(0.0)
            continue
        mine, other = decision.choices(ours), decision.choices(theirs)
        shares.append(float(np.mean((mine == other) & (mine != UNDECIDED))))
    return float(np.mean(shares)) if shares else None


def _noise(ours: Array, theirs: Array) -> float:
    """Mean square of the difference over that of the float model's numbers."""
    if ours.dtype.kind not in "fiu" or not ours.size:
        return float(not np.array_equal(ours, theirs))
    if ours.shape != theirs.shape:
        return math.inf
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    signal, noise = (float(np.mean(np.square(side))) for side in (ours, ours - theirs))
    return noise / signal if signal else float(noise > 0)

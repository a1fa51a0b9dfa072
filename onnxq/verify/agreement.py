"""Agreement: how often a candidate decides as the float model does, without labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxq.runtime.specs import Array
from onnxq.verify.decisions import UNDECIDED, Choices, Decision
from onnxq.verify.metrics.intervals import proportion_interval, ratio, shares_interval
from onnxq.verify.metrics.metric import Floats
from onnxq.verify.result import NEIGHBOUR, AgreementFacts, DecisionFacts

FEWEST = 3
"""Samples without which there are no neighbours to choose among."""

_ROWS = 256


class Agreement:
    """Compares the decisions of two models batch by batch.

    Where a sample holds many positions and the float model makes one choice at more than half of
    all of them, as the background of an image, positions where both choose it are left out: they
    would drown what the model is for. Of outputs with a row a sample and others, as one number of a
    whole batch, those others are left out.

    Args:
        decisions: What the outputs decide.
    """

    def __init__(self, decisions: Sequence[Decision]) -> None:
        self._decisions = tuple(decisions)
        self._samples = 0
        self._positions = {d.output: _Positions() for d in decisions if d.kind != NEIGHBOUR}
        self._rows = {d.output: _Rows() for d in decisions if d.kind == NEIGHBOUR}

    def add(self, reference: Mapping[str, Any], candidate: Mapping[str, Any], valid: int) -> None:
        """Add one batch of both models' outputs with so many samples."""
        self._samples += valid
        for decision in self._decisions:
            name = decision.output
            ours, theirs = reference[name], np.asarray(candidate[name])
            if ours.shape != theirs.shape:
                # Another shape decides nothing of what was to be decided.
                theirs = np.full(ours.shape, np.nan)
            if decision.kind == NEIGHBOUR:
                self._rows[name].add(ours, theirs)
            else:
                rows = valid if len(ours) == valid else 1
                mine, other = (decision.choices(o).reshape(rows, -1) for o in (ours, theirs))
                self._positions[name].add(mine, other, decision.divergence(ours, theirs))

    def merge(self, other: Agreement) -> None:
        """Add what another one of the same decisions was told, behind what this one was."""
        self._samples += other._samples
        for name, positions in other._positions.items():
            self._positions[name].merge(positions)
        for name, rows in other._rows.items():
            self._rows[name].merge(rows)

    def result(self) -> AgreementFacts | None:
        """The agreement; None where nothing was decided, or too few samples have neighbours."""
        parts = {name: own.scores() for name, own in self._positions.items()}
        parts |= {name: own.scores() for name, own in self._rows.items()}
        counts = [len(scores) for scores, _ in parts.values()]
        if not counts:
            return None
        count = self._samples if self._samples in counts else counts[0]
        parts = {name: part for name, part in parts.items() if len(part[0]) == count}
        scores, weights = (np.sum(side, axis=0) for side in zip(*parts.values(), strict=True))
        if not weights.sum():
            return None
        if (weights <= 1).all():
            confidence = proportion_interval(float(scores.sum()), int(weights.sum()))
        else:
            pair = (np.stack([side, weights], axis=1) for side in (weights, scores))
            low, high = shares_interval(ratio, *pair)
            confidence = max(0.0, 1.0 - high), min(1.0, 1.0 - low)
        return AgreementFacts(
            float(scores.sum() / weights.sum()),
            len(scores),
            int(weights.sum()),
            confidence,
            tuple(
                DecisionFacts(d.output, d.kind, d.why, self._is_marked(d.output))
                for d in self._decisions
                if d.output in parts
            ),
            sum(own.divergence() for name, own in self._positions.items() if name in parts)
            if self._positions
            else None,
            tuple(d.output for d in self._decisions if d.output not in parts),
        )

    def _is_marked(self, output: str) -> bool:
        own = self._positions.get(output)
        return own is not None and own.background is not None


class _Positions:
    """Choices of both models, counted by sample and choice."""

    def __init__(self) -> None:
        self._totals: list[int] = []
        self._equal: list[Counter[int]] = []
        self._ours: Counter[int] = Counter()
        self._diverged: list[float] = []

    def add(self, ours: Choices, theirs: Choices, diverged: float) -> None:
        self._diverged.append(diverged)
        self._ours.update(_counted(ours))
        for mine, other in zip(ours, theirs, strict=True):
            self._totals.append(mine.size)
            self._equal.append(_counted(mine[(mine == other) & (mine != UNDECIDED)]))

    def merge(self, other: _Positions) -> None:
        self._diverged += other._diverged
        self._ours.update(other._ours)
        self._totals += other._totals
        self._equal += other._equal

    @property
    def background(self) -> int | None:
        """The choice of more than half of all positions, where samples have many."""
        if max(self._totals, default=0) < 2:
            return None
        choice, count = self._ours.most_common(1)[0]
        return choice if 2 * count > self._ours.total() else None

    def divergence(self) -> float:
        """Of a position, in the mean."""
        return sum(self._diverged) / sum(self._totals)

    def scores(self) -> tuple[Floats, Floats]:
        """Equal choices and positions that count, of each sample."""
        background = self.background
        left_out = [0 if background is None else own[background] for own in self._equal]
        equal = np.array([own.total() for own in self._equal], np.float64)
        totals = np.array(self._totals, np.float64)
        return equal - left_out, totals - left_out


class _Rows:
    """Embeddings of both models; small enough to be kept, as one row stands for a sample."""

    def __init__(self) -> None:
        self._ours: list[Array] = []
        self._theirs: list[Array] = []

    def add(self, ours: Array, theirs: Array) -> None:
        self._ours.append(ours)
        self._theirs.append(theirs)

    def merge(self, other: _Rows) -> None:
        self._ours += other._ours
        self._theirs += other._theirs

    def scores(self) -> tuple[Floats, Floats]:
        """Whether each sample's nearest neighbour is the same."""
        ours, theirs = (nearest(np.concatenate(side)) for side in (self._ours, self._theirs))
        if len(ours) < FEWEST:
            return np.zeros(len(ours)), np.zeros(len(ours))
        return ((ours == theirs) & (theirs != UNDECIDED)).astype(np.float64), np.ones(len(ours))


def nearest(rows: Array) -> Choices:
    """For each row the other one that points in the most similar direction (cosine)."""
    rows = rows.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(lengths > 0, lengths, 1.0)
    unknown = ~np.isfinite(rows).all(axis=1)
    rows[unknown] = 0.0
    found = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        similar = part @ rows.T
        similar[np.arange(len(part)), start + np.arange(len(part))] = -np.inf
        found[start : start + _ROWS] = similar.argmax(axis=1)
    return np.where(unknown, UNDECIDED, found)


def _counted(choices: Choices) -> Counter[int]:
    values, counts = np.unique(choices, return_counts=True)
    return Counter(dict(zip(values.tolist(), counts.tolist(), strict=True)))

"""A cascade: the cheapest variant answers where it is sure, the next one where it is not.

What an answer is sure by is its margin: how much the chosen class's logarithm is above the next
one's, of the closest decision in it. Where a variant's margin is below a threshold, the next one is
asked. Thresholds are chosen so that the share of answers that decide as the float model does is at
least what was promised, with 95 % confidence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.adaptive.scores import agreement
from onnxq.errors import InputError
from onnxq.runtime.specs import Array
from onnxq.verify.decisions import Decision
from onnxq.verify.result import NEIGHBOUR

Outputs = tuple[Array, ...]
Answering = Callable[[Mapping[str, Array]], Outputs]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_ERROR = 0.05
"""Probability that a promise which was proved does not hold."""

_RAREST = 1e-12
"""Probability that what is given as 0 is taken to have."""

_SHARES = (
    *(1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.1, 0.075, 0.05, 0.04),
    *(0.03, 0.02, 0.015, 0.01, 0.005, 0.0),
)
"""Shares of the samples that a variant may pass on, the strictest first."""

_FIRST_CHECK = 256
"""Sampled requests after which a promise is tested for the first time, then at every doubling."""


@dataclass(frozen=True)
class Cascade:
    """Which variants answer, and from which margin on.

    Attributes:
        variants: Places on the ladder, the cheapest first.
        path: Thresholds of all variants but the last, from the strictest to the laxest.
        at: Which of them hold.
        promised: Smallest share of decisions that are to be the float model's.
        proved: Lower bound of that share, with 95 % confidence, on samples that the thresholds were
            not chosen by.
        samples: How many of these there were.
        cost: Mean time of a sample, that of the float model being 1, on the same.
    """

    variants: tuple[int, ...]
    path: tuple[tuple[float, ...], ...]
    at: int
    promised: float
    proved: float
    samples: int
    cost: float

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Smallest margin with which each variant but the last answers."""
        return self.path[self.at]

    def stricter(self) -> Cascade:
        """With the next higher thresholds; itself where these are the highest."""
        return replace(self, at=max(0, self.at - 1))

    def run(
        self,
        answering: Sequence[Answering],
        feeds: Mapping[str, Array],
        margins: Callable[[Outputs], Floats],
        *,
        is_split: bool = True,
    ) -> Outputs:
        """Answer a request; what a variant is not sure of is asked the next one, sample by sample.

        Samples lie along the first axis of all that is fed and given. Where they do not, a request
        is one sample.

        Args:
            answering: The variants of the cascade, in its order; the last ones of them, where the
                cheapest are not to be asked.
            feeds: The request.
            margins: Gives the margin of each sample of an answer, see `margins_of`.
            is_split: Whether a variant may be asked a part of the samples; where not, as by models
                of batches of a fixed size, a request is one sample.
        """
        given = answering[0](feeds)
        count = _count(feeds, given) if is_split else 1
        unsure = np.arange(count)
        thresholds = self.thresholds[len(self.variants) - len(answering) :]
        for threshold, ask in zip(thresholds, answering[1:], strict=True):
            if count == 1:
                if margins(given).min() >= threshold:
                    break
                given = ask(feeds)
                continue
            if not count:
                break
            sure = margins(_taken(given, unsure, count)) >= threshold
            unsure = unsure[~sure]
            if not len(unsure):
                break
            if len(unsure) == count:
                given = ask(feeds)
                continue
            part = ask({name: array[unsure] for name, array in feeds.items()})
            given = tuple(map(_replaced, given, part, [unsure] * len(given)))
        return given


def margins_of(decisions: Sequence[Decision], names: Sequence[str]) -> Callable[[Outputs], Floats]:
    """What gives the margin of each sample of an answer.

    Args:
        decisions: What the outputs decide.
        names: The outputs' names in order.

    Raises:
        InputError: the outputs decide nothing by themselves.
    """
    places = {name: at for at, name in enumerate(names)}
    able = [(d, places[d.output]) for d in decisions if d.kind != NEIGHBOUR]
    if not able:
        raise InputError(
            "a cascade needs decisions, as of classes, and the model's outputs hold none; leave "
            "the promise of agreement out"
        )

    def margins(outputs: Outputs) -> Floats:
        found = [_margins(d, outputs[place]) for d, place in able]
        return found[0] if len(found) == 1 else np.minimum.reduce(found)

    return margins


def _margins(decision: Decision, value: Array) -> Floats:
    """The smallest margin of each sample; NaN, which is above no threshold, where there is one.

    It takes about 15 us for ten classes: a request waits for it.
    """
    if decision.kind == "threshold":
        inner = np.clip(value.astype(np.float64), _RAREST, 1 - _RAREST)
        margin = np.abs(np.log(inner) - np.log1p(-inner))
    else:
        last = (
            value
            if decision.axis in (-1, value.ndim - 1)
            else np.moveaxis(value, decision.axis, -1)
        )
        top = np.partition(last, -2)[..., -2:].astype(np.float64)
        if decision.are_probabilities:
            top = np.log(np.maximum(top, _RAREST))
        margin = top[..., 1] - top[..., 0]
    smallest: Floats = margin.reshape(len(value), -1).min(axis=1)
    return smallest


@dataclass(frozen=True)
class Tried:
    """What the variants answered to samples.

    Attributes:
        margins: By variant but float, of each sample.
        agrees: Whether it decided as the float model, likewise.
        costs: Mean time of each variant, the float model's, 1, included.
    """

    margins: Floats
    agrees: Bools
    costs: tuple[float, ...]

    @classmethod
    def of(
        cls,
        decisions: Sequence[Decision],
        names: Sequence[str],
        answers: Sequence[Sequence[Outputs]],
        speedups: Sequence[float],
    ) -> Tried:
        """From answers by variant, the float model's last, each of single samples."""
        margins = margins_of(decisions, names)
        *others, floats = answers
        return cls(
            np.nan_to_num(
                [[float(margins(own).min()) for own in variant] for variant in others],
                nan=-np.inf,
                posinf=np.inf,
                neginf=-np.inf,
            ),
            np.array(
                [
                    [agreement(decisions, names, r, own) == 1.0 for r, own in pairs]
                    for pairs in (list(zip(floats, variant, strict=True)) for variant in others)
                ]
            ),
            tuple(1 / speedup for speedup in speedups),
        )

    def part(self, samples: slice) -> Tried:
        """Of some samples."""
        return Tried(self.margins[:, samples], self.agrees[:, samples], self.costs)

    def outcome(self, variants: Sequence[int], thresholds: Sequence[float]) -> tuple[int, float]:
        """Answers that decide otherwise than float, and the mean cost of a sample."""
        count = self.margins.shape[1]
        left, wrong, cost = np.ones(count, bool), 0, 0.0
        for place, threshold in zip(variants, [*thresholds, -np.inf], strict=True):
            cost += self.costs[place] * float(left.mean())
            if place == len(self.costs) - 1:
                break
            sure = left & (self.margins[place] >= threshold)
            sure = left if threshold == -np.inf else sure
            wrong += int((sure & ~self.agrees[place]).sum())
            left = left & ~sure
        return wrong, cost


def fit(tried: Tried, promised: float) -> Cascade | None:
    """The cheapest cascade that keeps a promise; one variant alone, where that is cheaper.

    On one half of the samples the variants are chosen, and for each share of samples that they may
    pass on the thresholds. On the other half these are tested from the strictest on, each against
    the upper end of Clopper and Pearson's interval of the share of other decisions, until one
    fails: in a fixed order every test may have the whole probability of error.

    Args:
        tried: What variants answered, of samples that none was calibrated with, in random order.
        promised: Smallest share of decisions that are to be the float model's.

    Returns:
        The cascade; None where only the float model keeps the promise for certain.

    Raises:
        InputError: no share can be promised with so few samples.
    """
    count = tried.margins.shape[1]
    check_promised(promised, count)
    first, second = tried.part(slice(0, count // 2)), tried.part(slice(count // 2, None))
    found: list[tuple[float, int, Cascade]] = []
    for at, cascade in enumerate(_chains(first, promised)):
        found.append((first.outcome(cascade.variants, cascade.path[-1])[1], at, cascade))
    for *_, cascade in sorted(found)[:1]:
        return _tested(cascade, second, promised)
    return None


def check_promised(promised: float, count: int) -> None:
    """Find out before long work whether so many samples can prove a promise.

    Raises:
        InputError: they cannot, or nothing like that can be promised.
    """
    if not 0 < promised < 1:
        raise InputError(
            f"an agreement of {promised:g} cannot be promised; give one within 0 and 1"
        )
    if _upper(0, count - count // 2) > 1 - promised:
        needed = 2 * int(np.ceil(np.log(_ERROR) / np.log(promised)))
        raise InputError(
            f"an agreement of {promised:g} cannot be proved with {count} samples; give {needed} or "
            "more, or promise less"
        )


def _chains(tried: Tried, promised: float) -> Iterator[Cascade]:
    """Cascades that keep a promise on the samples that they are chosen by, with some to spare."""
    last = len(tried.costs) - 1
    count = tried.margins.shape[1]
    for size in range(1, last + 2):
        for variants in combinations(range(last + 1), size):
            if variants == (last,):
                continue
            path = [
                tuple(_quantile(tried.margins[v], share) for v in variants[:-1])
                for share in (_SHARES if size > 1 else (0.0,))
            ]
            kept = 0
            for thresholds in path:
                wrong, _ = tried.outcome(variants, thresholds)
                if wrong > (1 - promised) / 2 * count:
                    break
                kept += 1
            if kept:
                yield Cascade(variants, tuple(path[:kept]), kept - 1, promised, 0.0, 0, 0.0)


def _quantile(margins: Floats, share: float) -> float:
    """A margin that so many of all are below; beyond all, and none, at the ends."""
    if share in (0.0, 1.0):
        return np.inf if share else -np.inf
    return float(np.quantile(margins, share))


def _tested(cascade: Cascade, tried: Tried, promised: float) -> Cascade | None:
    """The laxest thresholds of a path up to which the promise is proved."""
    count, kept = tried.margins.shape[1], None
    for at, thresholds in enumerate(cascade.path):
        wrong, cost = tried.outcome(cascade.variants, thresholds)
        upper = _upper(wrong, count)
        if upper > 1 - promised:
            break
        kept = replace(cascade, at=at, proved=1 - upper, samples=count, cost=cost)
    return kept if kept is not None and kept.cost < 1 else None


@dataclass
class Keeping:
    """Whether sampled requests keep a promise, and thresholds that rise where they do not.

    The share of other decisions is tested at every doubling of the requests, each time with half
    the probability of error of the time before, so that a promise that holds is hardly ever taken
    to be broken however long it is kept up.

    Attributes:
        cascade: What answers.
        seen: Sampled requests since the thresholds rose.
        wrong: Those of them that were decided otherwise than float decides.
    """

    cascade: Cascade
    seen: int = 0
    wrong: int = 0
    _check: int = field(default=_FIRST_CHECK, repr=False)
    _error: float = field(default=_ERROR / 2, repr=False)

    def see(self, agreed: bool) -> bool:
        """Take in whether a sampled answer decided as float.

        Returns:
            Whether the promise is seen to be broken now; then the thresholds have risen, if there
            are higher ones.
        """
        self.seen += 1
        self.wrong += not agreed
        if self.seen < self._check:
            return False
        least = _lower(self.wrong, self.seen, self._error)
        self._check, self._error = 2 * self._check, self._error / 2
        if least <= 1 - self.cascade.promised:
            return False
        if self.cascade.at:
            self._begin(self.cascade.stricter())
        return True

    def to_plain(self) -> dict[str, int]:
        """What goes on after a restart."""
        return {"at": self.cascade.at, "seen": self.seen, "wrong": self.wrong}

    def go_on(self, known: Any) -> None:
        """Go on from what `to_plain` gave; what is something else is not used."""
        try:
            at, seen, wrong = (known[name] for name in ("at", "seen", "wrong"))
            is_known = 0 <= at <= self.cascade.at and 0 <= wrong <= seen
        except (KeyError, TypeError):
            return
        if not is_known:
            return
        self._begin(replace(self.cascade, at=at))
        self.seen, self.wrong = seen, wrong
        while self._check <= seen:
            self._check, self._error = 2 * self._check, self._error / 2

    def _begin(self, cascade: Cascade) -> None:
        self.cascade = cascade
        self.seen = self.wrong = 0
        self._check, self._error = _FIRST_CHECK, _ERROR / 2


def _upper(wrong: int, count: int) -> float:
    """Clopper and Pearson's one-sided upper bound of a share."""
    return _beta_quantile(1 - _ERROR, wrong + 1, count - wrong) if wrong < count else 1.0


def _lower(wrong: int, count: int, error: float) -> float:
    return _beta_quantile(error, wrong, count - wrong + 1) if wrong else 0.0


def _beta_quantile(probability: float, a: int, b: int) -> float:
    """Of the beta distribution."""
    from scipy.special import betaincinv

    return float(betaincinv(a, b, probability))


def _count(feeds: Mapping[str, Array], given: Outputs) -> int:
    """How many samples a request holds, as far as all that is fed and given shows."""
    counts = {array.shape[0] if array.ndim else 1 for array in (*feeds.values(), *given)}
    return counts.pop() if len(counts) == 1 else 1


def _taken(outputs: Outputs, samples: npt.NDArray[np.intp], count: int) -> Outputs:
    return outputs if len(samples) == count else tuple(o[samples] for o in outputs)


def _replaced(whole: Array, part: Array, samples: npt.NDArray[np.intp]) -> Array:
    made = whole.copy()
    made[samples] = part
    return made

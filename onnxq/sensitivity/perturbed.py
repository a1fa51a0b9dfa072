"""Losses of many perturbations of a model; of a large one, few run through all that is behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np

from onnxq.precision import Part
from onnxq.runtime.parallel import in_order
from onnxq.runtime.pool import processors
from onnxq.sensitivity.loss import Losses
from onnxq.sensitivity.running import Key, Runner

Judge = Callable[[tuple[Key, Sequence[Part]]], list[Losses]]

_TINY = 1e-30


class Perturbed:
    """Finds the losses of perturbations, or estimates them from what is off at the next station.

    For estimates all run up to there. A few, from the one that is least off to the one that is
    most, run through the float segments behind, too, and have their losses from that. What they
    lose over what they are off, in the geometric mean, is the gain of the station; the others are
    taken to lose by it what they are off.

    Args:
        runner: What runs the model.
        through: Perturbations that run through, for each station; all if None.
    """

    def __init__(self, runner: Runner, through: int | None) -> None:
        self._runner = runner
        self._through = through
        self._picked: dict[int, list[Key]] = {}

    def losses(
        self, groups: Mapping[Key, Sequence[Part]], judge: Judge
    ) -> Iterator[tuple[Key, list[Losses]]]:
        """Each perturbation with its losses for each of the runner's batches.

        Args:
            groups: The perturbations.
            judge: Gives the losses of one that runs through.
        """
        if self._through is None:
            yield from _judged(groups, judge)
            return
        stations: dict[int, dict[Key, list[float]]] = {}
        for (key, _), errors in in_order(self._errors, groups.items(), processors()):
            stations.setdefault(self._runner.station(key), {})[key] = errors
        for station, off in stations.items():
            self._picked.setdefault(station, _spread(off, self._through))
        through = {key: groups[key] for keys in self._picked.values() for key in keys}
        known = dict(_judged(through, judge))
        for station, off in stations.items():
            picked = self._picked[station]
            like = known[picked[0]]
            gains = [
                _gain([(off[key][at], float(known[key][at].mean())) for key in picked])
                for at in range(len(like))
            ]
            for key, errors in off.items():
                estimated = [
                    np.full_like(losses, error * gain)
                    for losses, error, gain in zip(like, errors, gains, strict=True)
                ]
                yield key, known.get(key, estimated)

    def _errors(self, perturbation: tuple[Key, Sequence[Part]]) -> list[float]:
        """How far values are off at the next station, for each batch."""
        return [
            sum(_row_error(exact[name], ours[name]) for name in exact)
            for exact, ours in self._runner.run_to_station(*perturbation)
        ]


def _judged(
    groups: Mapping[Key, Sequence[Part]], judge: Judge
) -> Iterator[tuple[Key, list[Losses]]]:
    for (key, _), found in in_order(judge, groups.items(), processors()):
        yield key, found


def _spread(errors: Mapping[Key, Sequence[float]], count: int) -> list[Key]:
    """So many perturbations, evenly from the smallest error to the largest."""
    ranked = sorted(errors, key=lambda key: sum(errors[key]))
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked)))
    return [ranked[int(place)] for place in places]


def _gain(pairs: Iterable[tuple[float, float]]) -> float:
    """Loss over error in the geometric mean, of those perturbations that lose anything."""
    ratios = [loss / error for error, loss in pairs if loss > 0 and error > 0]
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else 0.0


def _row_error(exact: np.ndarray, ours: np.ndarray) -> float:
    """Power of the error over that of the value, each row by itself, in the mean.

    What follows normalizes rows, and one of them, as a decoder's first token, may be larger than
    all others by orders of magnitude. Rows of little power, as of zeros, count by the median's.
    """
    if exact.dtype.kind != "f" or not exact.size:
        return 0.0
    exact, ours = (v.reshape(-1, v.shape[-1] if v.ndim else 1) for v in (exact, ours))
    power = np.square(exact, dtype=np.float64).sum(axis=1)
    least = np.median(power) or power.mean()
    off = np.square(exact - ours, dtype=np.float64).sum(axis=1)
    return float((off / np.maximum(power, max(float(least), _TINY))).mean())

"""Losses of many perturbations of a model; of a large one, few run through all that is behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from onnxq.sensitivity.asking import Asked
from onnxq.sensitivity.loss import Losses
from onnxq.sensitivity.running import Key


class Perturbed:
    """Finds the losses of perturbations, or estimates them from what is off at the next station.

    For estimates all run up to there. A few, from the one that is least off to the one that is
    most, run through the float segments behind, too, and have their losses from that. What they
    lose over what they are off, in the geometric mean, is the gain of the station; the others are
    taken to lose by it what they are off.

    Args:
        through: Perturbations that run through, for each station; all if None.
    """

    def __init__(self, through: int | None) -> None:
        self._through = through
        self._picked: dict[int, list[Key]] = {}

    def losses(self, keys: Sequence[Key], asked: Asked) -> Iterator[tuple[Key, list[Losses]]]:
        """Each perturbation with its losses for each of some batches.

        Args:
            keys: The perturbations.
            asked: What is known of them.
        """
        if self._through is None:
            yield from asked.losses(keys)
            return
        stations: dict[int, dict[Key, list[float]]] = {}
        for key, (station, errors) in asked.errors(keys):
            stations.setdefault(station, {})[key] = errors
        for station, off in stations.items():
            self._picked.setdefault(station, _spread(off, self._through))
        known = dict(asked.losses([key for own in self._picked.values() for key in own]))
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


def _spread(errors: Mapping[Key, Sequence[float]], count: int) -> list[Key]:
    """So many perturbations, evenly from the smallest error to the largest."""
    ranked = sorted(errors, key=lambda key: sum(errors[key]))
    places = np.linspace(0, len(ranked) - 1, min(count, len(ranked)))
    return [ranked[int(place)] for place in places]


def _gain(pairs: Iterable[tuple[float, float]]) -> float:
    """Loss over error in the geometric mean, of those perturbations that lose anything."""
    ratios = [loss / error for error, loss in pairs if loss > 0 and error > 0]
    return float(np.exp(np.mean(np.log(ratios)))) if ratios else 0.0

"""Print how often the interval of a drop of `map` holds the true drop.

Usage: python benchmarks/intervals.py [--sets N] [--draws N]

Of a population of 3,000 samples sets of 100 and of 300 are drawn, and the drop between two models
is measured on each. The true drop is that over the population. The candidate differs from the float
model in about 2, 5, 10 or 30 samples of a set:

- a box lost or added: each in half of them, of two classes;
- all scores moved, boxes lost and added: of eight classes, up to four objects a sample;
- confident mistakes: a box where nothing is, which scores higher than almost all; eight classes.

Beside the interval of `onnxq compare` stands that of the plain percentile bootstrap. Both draw
fewer times than `onnxq compare` does, for the sake of time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from heading import heading

from onnxq.verify.metrics import intervals, paired_drop
from onnxq.verify.metrics.map import MeanAveragePrecision
from onnxq.verify.metrics.metric import Interval

ALL, CLASSES, PLACES = 3000, 8, 7
DIFFERING, SIZES = (2, 5, 10, 30), (100, 300)

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Labels [N, L, 5], and the scores of two models [N, L, classes]."""


def one_box(rng: np.random.Generator, share: float) -> Arrays:
    """Two objects in each sample, of which nine of ten are found."""
    places = [[0, 0, 9, 9, 0], [20, 20, 29, 29, 1], [40, 40, 49, 49, -1]]
    labels = np.tile(np.array(places, np.float64), (ALL, 1, 1))
    scores = np.zeros((ALL, 3, 2))
    scores[:, [0, 1], [0, 1]] = rng.beta(5, 2, (ALL, 2)) * (rng.random((ALL, 2)) < 0.9)
    worse, kind = scores.copy(), rng.random(ALL)
    worse[kind < share / 2, 2, 0] = 0.6
    worse[kind > 1 - share / 2, 0] = 0.0
    return labels, scores, worse


def all_moved(rng: np.random.Generator, share: float) -> Arrays:
    """Scores that move by 0.12, a fifth of the boxes lost, and one of ten places filled."""
    labels, scores, is_object = _objects(rng)
    chance = rng.random(scores.shape)
    worse = np.clip(scores + rng.normal(0, 0.12, scores.shape) * (scores > 0), 0, 1)
    worse = np.where(is_object & (chance < 0.2), 0, worse)
    is_new = ~is_object & (np.arange(PLACES) >= 4) & (chance < 0.1)
    worse = np.where(is_new, rng.beta(3, 3, scores.shape), worse)
    return _by_class(rng, labels, scores, worse, share)


def mistakes(rng: np.random.Generator, share: float) -> Arrays:
    """One box that the model is sure of, where nothing is."""
    labels, scores, _ = _objects(rng)
    worse = scores.copy()
    worse[:, 5] = 0.97
    return _by_class(rng, labels, scores, worse, share)


def _objects(rng: np.random.Generator) -> Arrays:
    """Labels, scores [N, places] and where objects are: one to four, 85 % of them found."""
    labels = np.zeros((ALL, PLACES, 5))
    labels[..., :4] = [[20 * at, 0, 20 * at + 9, 9] for at in range(PLACES)]
    is_object = np.arange(PLACES) < rng.integers(1, 5, ALL)[:, np.newaxis]
    labels[..., 4] = np.where(is_object, rng.integers(0, CLASSES, is_object.shape), -1)
    found = rng.random(is_object.shape)
    scores = np.where(is_object & (found < 0.85), rng.beta(5, 2, is_object.shape), 0)
    is_wrong = (np.arange(PLACES) >= 4) & (found < 0.2)
    return labels, np.where(is_wrong, rng.beta(2, 4, is_object.shape), scores), is_object


def _by_class(
    rng: np.random.Generator,
    labels: np.ndarray,
    scores: np.ndarray,
    worse: np.ndarray,
    share: float,
) -> Arrays:
    """Labels, and scores [N, places, classes]; only a share of the samples is worse."""
    is_worse = rng.random((ALL, 1)) < share
    kinds = np.where(
        labels[..., 4:] < 0, rng.integers(0, CLASSES, (ALL, PLACES, 1)), labels[..., 4:]
    )
    both = np.zeros((2, ALL, PLACES, CLASSES))
    for given, made in zip((scores, np.where(is_worse, worse, scores)), both, strict=True):
        np.put_along_axis(made, kinds.astype(int), given[..., np.newaxis], 2)
    return labels, both[0], both[1]


POPULATIONS: dict[str, Callable[[np.random.Generator, float], Arrays]] = {
    "a box lost or added": one_box,
    "all scores moved": all_moved,
    "confident mistakes": mistakes,
}


def metric(labels: np.ndarray, scores: np.ndarray) -> MeanAveragePrecision:
    """`map` at an IoU of 0.5, over so many samples."""
    made = MeanAveragePrecision("boxes", "scores", iou=0.5, threshold=0.05)
    made.add({"boxes": labels[..., :4], "scores": scores}, labels, len(labels))
    return made


def plain(ours: MeanAveragePrecision, theirs: MeanAveragePrecision, seed: int) -> Interval:
    """The interval of the percentile bootstrap over the samples as they are."""
    count, draws = ours.samples(), intervals.RESAMPLES
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), draws)
    values = ours.resampled(times.astype(np.float64)) - theirs.resampled(times.astype(np.float64))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def held(
    population: Callable[[np.random.Generator, float], Arrays], size: int, differ: int, sets: int
) -> tuple[float, float]:
    """Shares of sets in which an interval holds the true drop: the plain one, and onnxq's."""
    rng = np.random.default_rng([size, differ])
    labels, *scores = population(rng, differ / size)
    drop = float(np.subtract(*(metric(labels, of).result().value for of in scores)))
    counts = np.zeros(2)
    for seed in range(sets):
        some = rng.integers(0, ALL, size)
        ours, theirs = (metric(labels[some], of[some]) for of in scores)
        own = paired_drop(ours, theirs, seed=seed).confidence
        assert own is not None
        counts += [low <= drop <= high for low, high in (plain(ours, theirs, seed), own)]
    plain_share, own_share = counts / sets
    return float(plain_share), float(own_share)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sets", type=int, default=200, help="of samples, of each kind")
    parser.add_argument("--draws", type=int, default=400, help="of each interval")
    options = parser.parse_args()
    intervals.RESAMPLES = options.draws
    command = f"intervals.py --sets {options.sets} --draws {options.draws}"
    print(heading("How often an interval of 95 % holds the drop of map", command, 1))
    print("Cells are the plain percentile bootstrap, and what `compare` reports.\n")
    columns = [(size, differ) for size in SIZES for differ in DIFFERING]
    print("| differs | " + " | ".join(f"{d} of {size}" for size, d in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for name, population in POPULATIONS.items():
        print(f"| {name}", end="", flush=True)
        for size, differ in columns:
            shares = held(population, size, differ, options.sets)
            print(" | " + ", ".join(f"{share:.1%}" for share in shares), end="", flush=True)
        print(" |", flush=True)


if __name__ == "__main__":
    main()

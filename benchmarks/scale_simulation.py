"""How many workers, and how long a queue, 10,000 models a day need.

Jobs arrive evenly over the day and take times drawn from lengths that were measured: those of
``result.json`` in the folder of an `onnxq batch`, or the ones below. Workers are lost at random,
and what they were at begins anew from its last stage. What is timed runs alone on its machine, so
jobs of one machine wait for each other's share of time on the clock.

    python benchmarks/scale_simulation.py [FOLDER] [--models 10000] [--longer 20]
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

DAY = 86400.0

MEASURED = (5.3, 5.4, 10.0, 15.4)
"""Seconds of jobs of the models in `models/`, recipe int8, one thread, where no folder is given."""

TIMED = 0.3
"""Share of a job that is on the clock, and so alone on its machine."""

PER_MACHINE = 4
"""Workers of a machine."""

LOST_EACH = 0.02
"""Share of jobs whose worker is lost."""

KEPT = 0.5
"""Of what a lost job had done, the share that its work folder keeps."""


@dataclass(frozen=True)
class Outcome:
    """What a day was like.

    Attributes:
        workers: Workers that there were.
        done: Seconds after which the last job was done.
        wait: Median time that a job waited, and that of one in twenty.
        busy: Share of the time in which workers were at work.
    """

    workers: int
    done: float
    wait: tuple[float, float]
    busy: float


def simulated(lengths: Sequence[float], models: int, workers: int, seed: int) -> Outcome:
    """A day with so many workers."""
    rng = np.random.default_rng(seed)
    arrivals = np.sort(rng.uniform(0, DAY, models))
    seconds = rng.choice(np.asarray(lengths), models)
    lost = rng.random(models) < LOST_EACH
    seconds = seconds * np.where(lost, 1 + rng.random(models) * (1 - KEPT), 1.0)
    machines = max(1, workers // PER_MACHINE)
    clocks = np.zeros(machines)
    free = [(0.0, number) for number in range(workers)]
    heapq.heapify(free)
    waits, ends, busy = [], [], 0.0
    for arrival, length in zip(arrivals, seconds, strict=True):
        at, worker = heapq.heappop(free)
        begin = max(at, arrival)
        machine = worker % machines
        # The others of the machine stand aside while one is on the clock.
        clock = max(begin + length * (1 - TIMED), clocks[machine])
        end = clock + length * TIMED
        clocks[machine] = end
        heapq.heappush(free, (end, worker))
        waits.append(begin - arrival)
        ends.append(end)
        busy += length
    done = max(ends)
    wait = float(np.median(waits)), float(np.quantile(waits, 0.95))
    return Outcome(workers, done, wait, busy / (workers * done))


def measured(folder: Path) -> list[float]:
    """Lengths of the jobs of a batch that ended in a model or a broken promise."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]
    return [one["seconds"] for one in found if one["state"] in ("kept", "broken")]


def main() -> None:
    """Print a table of workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--models", type=int, default=10_000)
    parser.add_argument("--longer", type=float, default=1.0, help="times that jobs take longer")
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args()
    lengths = measured(parsed.folder) if parsed.folder else list(MEASURED)
    lengths = [length * parsed.longer for length in lengths]
    mean = float(np.mean(lengths))
    median, late = np.quantile(lengths, [0.5, 0.95])
    print(f"{len(lengths)} jobs: mean {mean:.1f} s, median {median:.1f} s, 95 % {late:.1f} s")
    print(f"{parsed.models:,} models: {parsed.models * mean / 3600:.0f} hours in all")
    print("| workers | last done after the day | wait, median | 95 % | busy |")
    print("|---|---|---|---|---|")
    least = max(1, int(np.ceil(parsed.models * mean / DAY)))
    for factor in (1.0, 1.25, 1.5, 2.0, 3.0):
        workers = round(least * factor)
        found = simulated(lengths, parsed.models, workers, parsed.seed)
        median, late = found.wait
        print(
            f"| {workers} | {max(0.0, found.done - DAY) / 60:.0f} min | {median:.0f} s "
            f"| {late:.0f} s | {found.busy:.0%} |"
        )


if __name__ == "__main__":
    main()

"""Fitting a cascade to the variants of a bundle."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.cascade import Cascade, Outputs, Tried, fit
from onnxq.adaptive.deployment import Deployment
from onnxq.adaptive.serving import Sessions
from onnxq.runtime.specs import Array


def fitted(
    bundle: Bundle, samples: Iterable[Mapping[str, Array]], promised: float, *, seed: int = 0
) -> Cascade | None:
    """The cheapest cascade of a bundle's variants that keeps a promise, see `fit`.

    Args:
        bundle: Whose variants they are, as fast as it says.
        samples: Feeds of single samples that nothing was calibrated with, in any order.
        promised: Smallest share of decisions that are to be the float model's.
        seed: Of the order in which they are divided into those that thresholds are chosen by, and
            those that prove them.

    Raises:
        InputError: the outputs decide nothing, there are too few samples, or a model cannot be run.
    """
    facts, sessions = bundle.facts, Sessions(bundle)
    opened = [sessions.session(Deployment(place)) for place in range(len(facts.variants))]
    answers: list[list[Outputs]] = [[] for _ in opened]
    for feeds in samples:
        for session, own in zip(opened, answers, strict=True):
            own.append(tuple(session.run(None, dict(feeds))))
    order = np.random.default_rng(seed).permutation(len(answers[0]))
    mixed = [[own[at] for at in order] for own in answers]
    speedups = [variant.speedup for variant in facts.variants]
    return fit(Tried.of(facts.decisions, facts.outputs, mixed, speedups), promised)

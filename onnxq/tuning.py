"""Tuning: what the methods of a plan's nodes compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.observe import Observations, observe
from onnxq.precision import FLOAT, Precision, parse_precision
from onnxq.prepare import Prepared
from onnxq.tune import AUTOMATIC, NO_METHODS, Tuner, parse_tuner


@dataclass(frozen=True)
class Tuning:
    """A node's method, in text form, and the tensors that it computed."""

    method: str
    tensors: Mapping[str, np.ndarray]


def tune(prepared: Prepared, precisions: Mapping[str, str]) -> dict[str, Tuning]:
    """What tuners compute for nodes in the precisions that they are to have.

    Each node and precision is tuned once for all plans of a prepared model. What the tuners need is
    observed in one pass; where they need nothing, no data is read.

    Args:
        prepared: The model.
        precisions: Precision by node name.

    Raises:
        InputError: onnxruntime cannot run the model on the data.
    """
    nodes, job = prepared.nodes(), prepared.job
    tuners: dict[str, Tuner] = {}
    for name, text in precisions.items():
        if text != FLOAT and name in nodes:
            precision = parse_precision(text)
            for method in _methods(job.methods, precision):
                tuner = parse_tuner(method)
                if name not in tuners and not tuner.refusal(nodes[name], precision):
                    tuners[name] = tuner
    fresh = [name for name in tuners if (name, precisions[name]) not in prepared.tunings]
    needs = dict.fromkeys(
        need
        for name in fresh
        for need in tuners[name].needs(nodes[name], parse_precision(precisions[name]))
    )
    if fresh:
        job.progress.stage("tuning", len(fresh))
    observations = Observations()
    if needs:
        observations = observe(
            prepared.graph,
            job.samples,
            tuple(needs),
            memory_limit=job.options.memory_limit,
            seed=job.options.seed,
        )
    for done, name in enumerate(fresh, start=1):
        precision = parse_precision(precisions[name])
        tensors = tuners[name].tune(nodes[name], precision, observations)
        prepared.tunings[name, precisions[name]] = Tuning(str(tuners[name]), tensors)
        job.progress.advance(done)
    return {name: prepared.tunings[name, precisions[name]] for name in tuners}


def _methods(wanted: Sequence[str], precision: Precision) -> Sequence[str]:
    """The tuners to try for a precision, in their order."""
    if wanted == AUTOMATIC:
        return precision.tuners
    return [] if wanted == NO_METHODS else wanted

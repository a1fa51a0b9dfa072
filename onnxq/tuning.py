"""Tuning: what the methods of a plan's nodes compute."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from onnxq.observe import Observations, observe
from onnxq.passes.tuned import Tensors
from onnxq.precision import FLOAT, Precision, parse_precision
from onnxq.prepare import Prepared
from onnxq.sequential import tune_in_order
from onnxq.tune import AUTOMATIC, NO_METHODS, Tuner, parse_method


@dataclass(frozen=True)
class Tuning:
    """A node's method, in text form, and the tensors that it computed."""

    method: str
    tensors: Tensors


def tune(prepared: Prepared, precisions: Mapping[str, str]) -> dict[str, Tuning]:
    """What tuners compute for nodes in the precisions that they are to have.

    Each node and precision is tuned once for all plans of a prepared model, by a sequential tuner
    once for all plans of the same precisions. What the tuners need is observed in one pass, but for
    sequential ones, see `tune_in_order`; where they need nothing, no data is read.

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
            for tuner in map(parse_method, _methods(job.methods, precision)):
                if not isinstance(tuner, Tuner) or name in tuners:
                    continue
                is_able = not tuner.is_sequential or nodes[name].graph.outer is None
                if is_able and not tuner.refusal(nodes[name], precision):
                    tuners[name] = tuner
    whole = frozenset(precisions.items())
    keys = {n: (n, whole if t.is_sequential else precisions[n]) for n, t in tuners.items()}
    fresh = {n: tuner for n, tuner in tuners.items() if keys[n] not in prepared.tunings}
    if fresh:
        job.progress.stage("tuning", len(fresh))
    done = itertools.count(1)

    def keep(found: Iterable[tuple[str, Tensors]]) -> None:
        for name, tensors in found:
            prepared.tunings[keys[name]] = Tuning(str(tuners[name]), tensors)
            job.progress.advance(next(done))

    at_once = {name: tuner for name, tuner in fresh.items() if not tuner.is_sequential}
    keep(_tune_at_once(prepared, precisions, at_once))
    if in_order := {name: tuner for name, tuner in fresh.items() if tuner.is_sequential}:
        others = {n: prepared.tunings[k].tensors for n, k in keys.items() if n not in in_order}
        keep(tune_in_order(prepared, precisions, in_order, others))
    return {name: prepared.tunings[keys[name]] for name in tuners}


def _tune_at_once(
    prepared: Prepared, precisions: Mapping[str, str], tuners: Mapping[str, Tuner]
) -> Iterator[tuple[str, Tensors]]:
    """What tuners compute from what the float model gives."""
    nodes, job = prepared.nodes(), prepared.job
    parsed = {name: parse_precision(precisions[name]) for name in tuners}
    needs = [n for name, p in parsed.items() for n in tuners[name].needs(nodes[name], p)]
    observations = Observations()
    if needs:
        observations = observe(
            prepared.graph,
            job.samples,
            needs,
            memory_limit=job.options.memory_limit,
            seed=job.options.seed,
        )
    for name, precision in parsed.items():
        yield name, tuners[name].tune(nodes[name], precision, observations)


def _methods(wanted: Sequence[str], precision: Precision) -> Sequence[str]:
    """The tuners to try for a precision, in their order."""
    if wanted == AUTOMATIC:
        return precision.tuners
    return [] if wanted == NO_METHODS else wanted

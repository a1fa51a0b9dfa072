"""Tuning: what the methods of a plan's nodes compute."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.observe import Observations, observe
from onnxq.passes.tuned import Tensors
from onnxq.precision import FLOAT, Precision
from onnxq.prepare import Prepared
from onnxq.sequential import tune_in_order
from onnxq.tune import AUTOMATIC, NO_METHODS, Layer, Tuner, parse_method


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
    tuners: dict[str, list[Tuner]] = {}
    for name, text in precisions.items():
        if text != FLOAT and name in nodes:
            tuners[name] = _tuners_of(prepared.layer(nodes[name], text), job.methods)
    whole = frozenset((n, p, *map(str, tuners.get(n, ()))) for n, p in precisions.items())
    asked = [(name, tuner) for name, own in tuners.items() for tuner in own]

    def key(name: str, tuner: Tuner) -> tuple[str, str, Hashable]:
        return name, str(tuner), whole if tuner.is_sequential else precisions[name]

    fresh = [(name, tuner) for name, tuner in asked if key(name, tuner) not in prepared.tunings]
    if fresh:
        job.progress.stage("tuning", len(fresh))
    done = itertools.count(1)

    def keep(found: Iterable[tuple[str, Tuner, Tensors]]) -> None:
        for name, tuner, tensors in found:
            prepared.tunings[key(name, tuner)] = tensors
            job.progress.advance(next(done))

    def known() -> dict[str, dict[str, np.ndarray]]:
        found: dict[str, dict[str, np.ndarray]] = {}
        for name, tuner in asked:
            found.setdefault(name, {}).update(prepared.tunings.get(key(name, tuner), {}))
        return found

    keep(_tune_at_once(prepared, precisions, [f for f in fresh if not f[1].is_sequential]))
    if in_order := [f for f in fresh if f[1].is_sequential]:
        keep(tune_in_order(prepared, precisions, in_order, known()))
    used = {n: [str(t) for t in own if prepared.tunings[key(n, t)]] for n, own in tuners.items()}
    return {n: Tuning(",".join(used[n]), tensors) for n, tensors in known().items() if tensors}


def _tune_at_once(
    prepared: Prepared, precisions: Mapping[str, str], wanted: Sequence[tuple[str, Tuner]]
) -> Iterator[tuple[str, Tuner, Tensors]]:
    """What tuners compute from what the float model gives."""
    nodes, job = prepared.nodes(), prepared.job
    layers = {name: prepared.layer(nodes[name], precisions[name]) for name, _ in wanted}
    needs = [need for name, tuner in wanted for need in tuner.needs(layers[name])]
    observations = Observations()
    if needs:
        observations = observe(
            prepared.graph,
            job.samples,
            needs,
            memory_limit=job.options.memory_limit,
            seed=job.options.seed,
        )
    for name, tuner in wanted:
        yield name, tuner, tuner.tune(layers[name], observations)


def _tuners_of(layer: Layer, methods: Sequence[str]) -> list[Tuner]:
    """The first tuner that takes a layer, and all that add to it."""
    found: list[Tuner] = []
    named = map(parse_method, _methods(methods, layer.precision))
    for tuner in (method for method in named if isinstance(method, Tuner)):
        is_wanted = tuner.is_additional or all(known.is_additional for known in found)
        is_able = not tuner.is_sequential or layer.node.graph.outer is None
        if is_wanted and is_able and not tuner.refusal(layer):
            found.append(tuner)
    return found


def _methods(wanted: Sequence[str], precision: Precision) -> Sequence[str]:
    """The tuners to try for a precision, in their order."""
    if wanted == AUTOMATIC:
        return precision.tuners
    return [] if wanted == NO_METHODS else wanted

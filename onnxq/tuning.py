"""Tuning: what the methods of a plan's nodes compute."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxq.data import Dataset
from onnxq.needs import Need
from onnxq.observe import GramMatrix, Observations, observe
from onnxq.passes.tuned import Tensors
from onnxq.plan import Plan
from onnxq.precision import FLOAT, Precision
from onnxq.prepare import Prepared
from onnxq.sequential import tune_in_order
from onnxq.tune import AUTOMATIC, NO_METHODS, Layer, Tuner, parse_method
from onnxq.tune.judge import output_error
from onnxq.tune.weight_matrix import WeightMatrix, weight_matrix
from onnxq.verify.result import MethodFacts

_JUDGING = 4
"""One of so many samples is not fitted to where methods compete."""

_MOST_DB = 200.0
"""What a gain counts for where nothing is lost."""


@dataclass(frozen=True)
class Tuning:
    """What methods computed for a node.

    Attributes:
        method: Their text forms, with commas between them; empty where plain rounding is better.
        tensors: The tensors.
        gain_db: By how much the error of what the node gives is lower than with plain rounding, on
            samples that were not fitted to; 0 where that was not looked at.
        seconds: Time that it took.
    """

    method: str
    tensors: Tensors
    gain_db: float = 0.0
    seconds: float = 0.0


@dataclass
class _Made:
    """What one tuner computed for one node, and how long it took."""

    tensors: Tensors
    seconds: float


@dataclass
class _Contest:
    """A layer whose methods compete.

    Attributes:
        matrix: Its weight.
        rivals: The methods; plain rounding is another one.
    """

    matrix: WeightMatrix
    rivals: Sequence[Tuner]


@dataclass(frozen=True)
class _Verdict:
    """Which tuner won, none for plain rounding, and by how much over that."""

    winner: Tuner | None
    gain_db: float


@dataclass
class _Tuners:
    """Who tunes which node.

    Attributes:
        contests: Nodes whose methods compete, by name.
        alone: The one method of other nodes.
        additional: Methods that add to those of a node.
    """

    contests: dict[str, _Contest] = field(default_factory=dict)
    alone: dict[str, Tuner] = field(default_factory=dict)
    additional: dict[str, list[Tuner]] = field(default_factory=dict)


def tune(prepared: Prepared, precisions: Mapping[str, str]) -> dict[str, Tuning]:
    """What tuners compute for nodes in the precisions that they are to have.

    Each node and precision is tuned once for all plans of a prepared model, by a sequential tuner
    once for all plans of the same precisions. What the tuners need is observed in one pass, but for
    sequential ones, see `tune_in_order`; where they need nothing, no data is read.

    Where methods are automatic, all that a precision names and that take a node compute something
    from three quarters of the samples, and on the others that one wins, plain rounding among them,
    with which what the node gives has the least error.

    Args:
        prepared: The model.
        precisions: Precision by node name.

    Raises:
        InputError: onnxruntime cannot run the model on the data.
    """
    nodes, job = prepared.nodes(), prepared.job
    judging = _judging(job.samples) if job.methods == AUTOMATIC else None
    tuners = _Tuners()
    for name, text in precisions.items():
        if text != FLOAT and name in nodes:
            _enter(tuners, name, prepared.layer(nodes[name], text), job.methods, judging is None)
    rivals = [(n, rival) for n, contest in tuners.contests.items() for rival in contest.rivals]
    alone = [(n, tuner) for n, tuner in tuners.alone.items() if not tuner.is_sequential]
    work = _Work(prepared, precisions)
    fresh = [work.fresh(rivals), work.fresh(alone)]
    if total := sum(map(len, fresh)):
        job.progress.stage("tuning", total)
    samples = job.samples if judging is None else job.samples.without(judging)
    for wanted, data in zip(fresh, (samples, job.samples), strict=True):
        work.tune_at_once(wanted, data)
    if judging is not None:
        work.judge(tuners.contests, judging)
    own: dict[str, list[Tuner]] = {}
    for name in precisions:
        first = tuners.alone.get(name)
        if name in tuners.contests:
            first = work.verdict(name).winner
        found = [*([first] if first else []), *tuners.additional.get(name, [])]
        if found:
            own[name] = found
    work.tune_in_order(own)
    return {name: work.tuning(name, found) for name, found in own.items() if work.has(name, found)}


def method_facts(prepared: Prepared, plan: Plan) -> tuple[MethodFacts, ...]:
    """What methods did for the nodes of a plan, transformations first."""
    done = prepared.transformed
    found = [
        MethodFacts(node, entry.method, entry.gain_db, done.seconds.get(entry.method, 0.0))
        for entry in plan.transformations
        if done is not None
        for node in entry.nodes
    ]
    tuned = tune(prepared, {node.name: node.precision for node in plan.nodes})
    found += [
        MethodFacts(name, own.method, own.gain_db, own.seconds)
        for name, own in tuned.items()
        if own.method
    ]
    return tuple(found)


def _judging(samples: Dataset) -> Dataset | None:
    """The samples on which methods are judged; None where there are too few."""
    if len(samples) < _JUDGING:
        return None
    judging = samples.take(len(samples) // _JUDGING)
    return judging if len(samples.without(judging)) else None


def _enter(
    tuners: _Tuners, name: str, layer: Layer, methods: Sequence[str], is_settled: bool
) -> None:
    """Note which tuners take a layer: all that add to others, and of others those that compete.

    Where it is settled that the first one wins, or what it gives cannot be judged, it is alone.
    """
    able = [
        tuner
        for tuner in map(parse_method, _methods(methods, layer.precision))
        if isinstance(tuner, Tuner)
        and not (tuner.is_sequential and layer.node.graph.outer is not None)
        and not tuner.refusal(layer)
    ]
    tuners.additional[name] = [tuner for tuner in able if tuner.is_additional]
    others = [tuner for tuner in able if not tuner.is_additional]
    matrix = None if is_settled else weight_matrix(layer)
    if isinstance(matrix, WeightMatrix) and others and not others[0].is_sequential:
        rivals = [tuner for tuner in others if not tuner.is_sequential]
        tuners.contests[name] = _Contest(matrix, rivals)
    elif others:
        tuners.alone[name] = others[0]


def _methods(wanted: Sequence[str], precision: Precision) -> Sequence[str]:
    """The tuners to try for a precision, in their order."""
    if wanted == AUTOMATIC:
        return precision.tuners
    return [] if wanted == NO_METHODS else wanted


class _Work:
    """What was computed so far, kept with the prepared model."""

    def __init__(self, prepared: Prepared, precisions: Mapping[str, str]) -> None:
        self._prepared, self._precisions = prepared, precisions
        self._whole: Hashable = None
        self._done = itertools.count(1)

    def fresh(self, wanted: Sequence[tuple[str, Tuner]]) -> list[tuple[str, Tuner]]:
        """What was not computed yet."""
        return [(n, tuner) for n, tuner in wanted if self._key(n, tuner) not in self._made]

    def tune_at_once(self, wanted: Sequence[tuple[str, Tuner]], data: Dataset) -> None:
        """Compute from what the float model gives."""
        prepared, nodes = self._prepared, self._prepared.nodes()
        layers = {name: prepared.layer(nodes[name], self._precisions[name]) for name, _ in wanted}
        needs = [need for name, tuner in wanted for need in tuner.needs(layers[name])]
        seen = self._observed(needs, data)
        for name, tuner in wanted:
            started = time.perf_counter()
            self._keep(name, tuner, tuner.tune(layers[name], seen), started)

    def judge(self, contests: Mapping[str, _Contest], data: Dataset) -> None:
        """Find the winners of contests that have none yet."""
        fresh = {n: c for n, c in contests.items() if self._verdict_key(n) not in self._made}
        seen = self._observed([contest.matrix.gram for contest in fresh.values()], data)
        for name, contest in fresh.items():
            gram = seen.get(contest.matrix.gram)
            verdict = _Verdict(contest.rivals[0], 0.0)
            if gram is not None and np.isfinite(gram.matrix).all():
                verdict = self._judged(name, contest, gram)
            self._made[self._verdict_key(name)] = verdict

    def verdict(self, name: str) -> _Verdict:
        """Who won the contest of a node."""
        found = self._made[self._verdict_key(name)]
        assert isinstance(found, _Verdict)
        return found

    def tune_in_order(self, own: Mapping[str, Sequence[Tuner]]) -> None:
        """Compute what sequential tuners are to."""
        names = {name: tuple(map(str, own.get(name, ()))) for name in self._precisions}
        self._whole = frozenset((n, p, *names[n]) for n, p in self._precisions.items())
        wanted = [(n, t) for n, tuners in own.items() for t in tuners if t.is_sequential]
        fresh = self.fresh(wanted)
        if not fresh:
            return
        self._prepared.job.progress.stage("tuning", len(fresh))
        self._done = itertools.count(1)
        known = {
            name: {k: v for made in self._all(name, tuners) for k, v in made.tensors.items()}
            for name, tuners in own.items()
        }
        started = time.perf_counter()
        for name, tuner, tensors in tune_in_order(self._prepared, self._precisions, fresh, known):
            self._keep(name, tuner, tensors, started)
            started = time.perf_counter()

    def has(self, name: str, tuners: Sequence[Tuner]) -> bool:
        """Whether tuners computed anything for a node."""
        return any(made.tensors for made in self._all(name, tuners))

    def tuning(self, name: str, tuners: Sequence[Tuner]) -> Tuning:
        """What tuners computed for a node."""
        made = self._all(name, tuners)
        used = [str(t) for t, own in zip(tuners, made, strict=True) if own.tensors]
        tensors = {key: array for own in made for key, array in own.tensors.items()}
        verdict = self._made.get(self._verdict_key(name))
        gain_db = verdict.gain_db if isinstance(verdict, _Verdict) else 0.0
        return Tuning(",".join(used), tensors, gain_db, sum(own.seconds for own in made))

    def _judged(self, name: str, contest: _Contest, gram: GramMatrix) -> _Verdict:
        plain = output_error(contest.matrix, {}, gram)
        verdict, least = _Verdict(None, 0.0), plain
        for rival in contest.rivals:
            (made,) = self._all(name, [rival])
            tensors = made.tensors
            error = output_error(contest.matrix, tensors, gram) if tensors else math.inf
            if error < least:
                ratio = plain / error if error > 0 else math.inf
                verdict, least = _Verdict(rival, min(10 * math.log10(ratio), _MOST_DB)), error
        return verdict

    def _observed(self, needs: Sequence[Need], data: Dataset) -> Observations:
        options = self._prepared.job.options
        if not needs:
            return Observations()
        return observe(
            self._prepared.graph,
            data,
            needs,
            memory_limit=options.memory_limit,
            seed=options.seed,
        )

    @property
    def _made(self) -> dict[Hashable, _Made | _Verdict]:
        return self._prepared.tunings

    def _key(self, name: str, tuner: Tuner) -> Hashable:
        return name, str(tuner), self._whole if tuner.is_sequential else self._precisions[name]

    def _verdict_key(self, name: str) -> Hashable:
        return name, self._precisions[name]

    def _all(self, name: str, tuners: Sequence[Tuner]) -> list[_Made]:
        found = (self._made.get(self._key(name, tuner)) for tuner in tuners)
        return [made if isinstance(made, _Made) else _Made({}, 0.0) for made in found]

    def _keep(self, name: str, tuner: Tuner, tensors: Tensors, started: float) -> None:
        self._made[self._key(name, tuner)] = _Made(tensors, time.perf_counter() - started)
        self._prepared.job.progress.advance(next(self._done))

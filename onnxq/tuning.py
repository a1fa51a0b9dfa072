"""Tuning: what the methods of a plan's nodes compute."""

from __future__ import annotations

import itertools
import time
from collections.abc import Hashable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

from onnxq.data import Dataset
from onnxq.ir.blocks import representatives
from onnxq.needs import Need
from onnxq.observe import Observations, observe
from onnxq.passes.notes import node_name
from onnxq.passes.tuned import Tensors
from onnxq.plan import Plan
from onnxq.precision import FLOAT
from onnxq.prepare import Prepared
from onnxq.sequential import Judging, tune_in_order
from onnxq.time_budget import Untried
from onnxq.tune import AUTOMATIC, NO_METHODS, Layer, Tuner, parse_method
from onnxq.tune.judge import Contest, Verdict
from onnxq.tune.layers import tune_layers
from onnxq.tune.weight_matrix import WeightMatrix, weight_matrix
from onnxq.verify.result import MethodFacts

_JUDGING, _FEW = 8, 4
"""Where methods compete, one of so many samples is not fitted to, or one of four up to four: what
is judged with is missing where it is fitted. In five formats of 4, 3 and 2 bits
`models/text_lm.onnx` loses 0.215 bits per byte in all with a quarter of 64 windows left out, 0.207
with an eighth."""

_UNTRIED = "untried"
"""Kept in the place of what was computed."""

_SHARE = 0.5
"""Of the time that is left, what the methods of one of the plans of a search may take."""


@dataclass(frozen=True)
class Tuning:
    """What methods computed for a node.

    Attributes:
        method: Their text forms, with commas between them; empty where plain rounding is better.
        tensors: The tensors.
        gain_db: By how much the error of what the node gives is lower than with plain rounding, on
            samples that were not fitted to; 0 where that was not looked at.
        seconds: Time that it took.
        untried: Methods for which no time was left.
    """

    method: str
    tensors: Tensors
    gain_db: float = 0.0
    seconds: float = 0.0
    untried: tuple[str, ...] = ()


@dataclass
class _Tuners:
    """Who tunes which node.

    Attributes:
        contests: Nodes whose methods compete, by name.
        alone: The one method of other nodes.
        additional: Methods that add to those of a node.
    """

    contests: dict[str, Contest] = field(default_factory=dict)
    alone: dict[str, Tuner] = field(default_factory=dict)
    additional: dict[str, list[Tuner]] = field(default_factory=dict)


def tune(
    prepared: Prepared, precisions: Mapping[str, str], *, judges: bool = False
) -> dict[str, Tuning]:
    """What tuners compute for nodes in the precisions that they are to have.

    Each node and precision is tuned once for all plans of a prepared model, by a sequential tuner
    once for all plans of the same precisions. What the tuners need is observed in one pass, but for
    sequential ones, see `tune_in_order`; where they need nothing, no data is read.

    Where methods are automatic, all that a precision names and that take a node compute something
    from most of the samples, and on the others, an eighth or of few a quarter, that one wins, plain
    rounding among them, with which what the node gives has the least error.

    Where time is limited, those that promise most begin until it is over, and those compete that
    did. What found no time is not tried for another plan either, so that the same precisions give
    the same tensors.

    Args:
        prepared: The model.
        precisions: Precision by node name.
        judges: Whether methods compete that are not automatic, too, to see what they gain.

    Raises:
        InputError: onnxruntime cannot run the model on the data.
    """
    nodes, job = prepared.nodes(), prepared.job
    judging = _judging(job.samples) if judges or job.methods == AUTOMATIC else None
    tuners = _Tuners()
    for name, text in precisions.items():
        if text != FLOAT and name in nodes:
            _enter(tuners, name, prepared.layer(nodes[name], text), job.methods, judging is None)
    work = _Work(prepared, precisions, tuners, judging)
    work.tune_at_once()
    work.judge_at_once(is_last=False)
    work.tune_in_order()
    work.judge_at_once(is_last=True)
    return work.tunings()


def gains(prepared: Prepared) -> tuple[dict[str, dict[str, float]], tuple[Untried, ...]]:
    """By how many dB methods lower the error of what nodes give, by precision and node name.

    Of blocks that occur several times one is tuned for all, with all others in float, one
    precision after the other. What no time was left for comes with it; all together may take half
    of it, so that some is left for tuning what is chosen.

    Raises:
        InputError: onnxruntime cannot run the model on the data.
    """
    found: dict[str, dict[str, float]] = {}
    untried: list[Untried] = []
    prepared = replace(prepared, job=replace(prepared.job, time=prepared.job.time.share(_SHARE)))
    repeated = representatives(prepared.graph)
    like = {n: node_name(repeated.get(node, node)) for n, node in prepared.nodes().items()}
    for precision in prepared.precisions():
        able = [n for n, own in prepared.choices.items() if precision in own]
        wanted = {like[name]: precision for name in able if like[name] in able}
        tuned = tune(replace(prepared, tunings={}), wanted, judges=True)
        found[precision] = {n: tuned[like[n]].gain_db for n in able if like[n] in tuned}
        late = tuple(name for name in wanted if name in tuned and tuned[name].untried)
        untried += [Untried(f"what methods gain in {precision}", late)] if late else []
    return found, tuple(untried)


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


def planned_methods(plan: Plan) -> tuple[MethodFacts, ...]:
    """What a plan says that methods did for its nodes."""
    return tuple(MethodFacts(n.name, n.method, n.gain_db, 0.0) for n in plan.nodes if n.method)


def _judging(samples: Dataset) -> Dataset | None:
    """The samples on which methods are judged; None where there are too few."""
    count = max(len(samples) // _JUDGING, min(len(samples) // _FEW, _FEW))
    if not count:
        return None
    judging = samples.take(count)
    return judging if len(samples.without(judging)) else None


def _enter(
    tuners: _Tuners, name: str, layer: Layer, methods: Sequence[str], is_settled: bool
) -> None:
    """Note which tuners take a layer: all that add to others, and of others those that compete.

    Where it is settled that the first one wins, or what it gives cannot be judged, it is alone.
    """
    able = [
        tuner
        for tuner in map(parse_method, _methods(methods, layer))
        if isinstance(tuner, Tuner)
        and not (tuner.is_sequential and layer.node.graph.outer is not None)
        and not tuner.refusal(layer)
    ]
    tuners.additional[name] = [tuner for tuner in able if tuner.is_additional]
    others = [tuner for tuner in able if not tuner.is_additional]
    matrix = None if is_settled else weight_matrix(layer)
    if isinstance(matrix, WeightMatrix) and others:
        tuners.contests[name] = Contest(matrix, others)
    elif others:
        tuners.alone[name] = others[0]


def _methods(wanted: Sequence[str], layer: Layer) -> Sequence[str]:
    """The tuners to try for a layer, in their order."""
    if wanted == AUTOMATIC:
        return layer.precision.tuners_on(layer.target)
    return [] if wanted == NO_METHODS else wanted


class _Work:
    """What was computed so far, kept with the prepared model."""

    def __init__(
        self,
        prepared: Prepared,
        precisions: Mapping[str, str],
        tuners: _Tuners,
        judging: Dataset | None,
    ) -> None:
        self._prepared, self._precisions, self._tuners = prepared, precisions, tuners
        self._judging = judging
        samples = prepared.job.samples
        self._fitted = samples if judging is None else samples.without(judging)
        names = [(n, t) for n in precisions for t in self._all(n) if t.is_sequential]
        # Of sequential tuners everything depends on everything.
        self._whole = frozenset((*precisions.items(), *((n, str(t)) for n, t in names)))
        self._done = itertools.count(1)
        time = prepared.job.time
        self._time = time.share(_SHARE) if prepared.job.recipe.is_search else time

    def tune_at_once(self) -> None:
        """Compute from what the float model gives."""
        tuners, contests = self._tuners, self._tuners.contests
        rivals = [(n, rival) for n, contest in contests.items() for rival in contest.rivals]
        alone = [*tuners.alone.items()]
        fresh = [[w for w in self._fresh(own) if not w[1].is_sequential] for own in (rivals, alone)]
        if total := sum(map(len, fresh)):
            self._prepared.job.progress.stage("tuning", total)
        nodes = self._prepared.nodes()
        for wanted, data in zip(fresh, (self._fitted, self._prepared.job.samples), strict=True):
            if self._time.is_over():
                self._skip(wanted)
                continue
            layers = {n: self._prepared.layer(nodes[n], self._precisions[n]) for n, _ in wanted}
            seen = self._observed([n for w, t in wanted for n in t.needs(layers[w])], data)
            executor = self._prepared.job.executor
            own = [(tuner, layers[name]) for name, tuner in wanted]
            # What it holds is given back whether or not all of it is taken.
            with closing(tune_layers(own, seen, executor)) as found:
                for place, (name, tuner) in enumerate(wanted):
                    if self._time.is_over():
                        self._skip(wanted[place:])
                        break
                    started = time.perf_counter()
                    self._keep(name, tuner, next(found), started)

    def judge_at_once(self, *, is_last: bool) -> None:
        """Judge by what the float model gives.

        Args:
            is_last: Whether what waited for what quantized nodes give has found no time for that.
        """
        open_ = {
            name: contest
            for name, contest in self._tuners.contests.items()
            if (is_last or not _is_sequential(contest))
            and self._verdict_key(name) not in self._cache
            and any(self._made(name, rival)[0] for rival in contest.rivals)
        }
        if open_ and self._judging is not None:
            seen = self._observed([c.matrix.gram for c in open_.values()], self._judging)
            for name in open_:
                self._decide(name, seen, seen)

    def tune_in_order(self) -> None:
        """Compute what sequential tuners are to."""
        wanted = [(n, t) for n in self._precisions for t in self._all(n) if t.is_sequential]
        fresh = self._fresh(wanted)
        if not fresh:
            return
        if self._time.is_over():
            self._skip(fresh)
            return
        self._prepared.job.progress.stage("tuning", len(fresh))
        self._done = itertools.count(1)
        contests = {n: c for n, c in self._tuners.contests.items() if _is_sequential(c)}
        judging = None
        if contests and self._judging is not None:
            judging = Judging(self._judging, contests, self._decide)
        known = {
            name: {k: v for own in self._winners(name) for k, v in self._made(name, own)[0].items()}
            for name in self._precisions
            if name not in contests
        }
        started = time.perf_counter()
        for name, tuner, tensors in tune_in_order(
            *(self._prepared, self._precisions, fresh, known, self._fitted, judging),
            is_over=self._time.is_over,
        ):
            self._keep(name, tuner, tensors, started)
            started = time.perf_counter()
        self._skip(self._fresh(wanted))

    def tunings(self) -> dict[str, Tuning]:
        """What was computed for nodes, of methods that compete that of the winner."""
        found = {}
        for name in self._precisions:
            tuners = self._winners(name)
            made = [self._made(name, tuner) for tuner in tuners]
            used = [str(t) for t, (own, _) in zip(tuners, made, strict=True) if own]
            untried = [
                t for t in self._all(name) if self._cache.get(self._key(name, t)) is _UNTRIED
            ]
            if used or untried:
                tensors = {key: array for own, _ in made for key, array in own.items()}
                verdict = self._cache.get(self._verdict_key(name))
                gain_db = verdict.gain_db if isinstance(verdict, Verdict) else 0.0
                seconds = sum(seconds for _, seconds in made)
                found[name] = Tuning(
                    ",".join(used), tensors, gain_db, seconds, tuple(map(str, untried))
                )
        return found

    def _all(self, name: str) -> list[Tuner]:
        """All tuners of a node."""
        tuners, contest = self._tuners, self._tuners.contests.get(name)
        first = contest.rivals if contest else [t for t in [tuners.alone.get(name)] if t]
        return [*first, *tuners.additional.get(name, [])]

    def _winners(self, name: str) -> list[Tuner]:
        """The tuners of a node without those that lost."""
        contest, verdict = self._tuners.contests.get(name), self._cache.get(self._verdict_key(name))
        if contest is None:
            return self._all(name)
        won = [verdict.winner] if isinstance(verdict, Verdict) and verdict.winner else []
        return [*won, *self._tuners.additional.get(name, [])]

    def _decide(self, name: str, read: Observations, exact: Observations) -> Tensors:
        """Find the winner for a node, and give what it computed."""
        contest = self._tuners.contests[name]
        made = {str(rival): self._made(name, rival)[0] for rival in contest.rivals}
        verdict = contest.verdict(made, read, exact)
        self._cache[self._verdict_key(name)] = verdict
        return made[str(verdict.winner)] if verdict.winner else {}

    def _fresh(self, wanted: Sequence[tuple[str, Tuner]]) -> list[tuple[str, Tuner]]:
        """What was not computed yet, where time is limited in the order of what it promises."""
        fresh = [(n, tuner) for n, tuner in wanted if self._key(n, tuner) not in self._cache]
        return sorted(fresh, key=lambda w: -w[1].promise) if self._time.is_limited else fresh

    def _skip(self, wanted: Sequence[tuple[str, Tuner]]) -> None:
        """Note that there is no time for some."""
        self._cache.update({self._key(n, tuner): _UNTRIED for n, tuner in wanted})

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
            executor=self._prepared.job.executor,
        )

    @property
    def _cache(self) -> dict[Hashable, object]:
        return self._prepared.tunings

    def _key(self, name: str, tuner: Tuner) -> Hashable:
        return name, str(tuner), self._whole if tuner.is_sequential else self._precisions[name]

    def _verdict_key(self, name: str) -> Hashable:
        contest = self._tuners.contests.get(name)
        is_sequential = contest is not None and _is_sequential(contest)
        return name, self._whole if is_sequential else self._precisions[name]

    def _made(self, name: str, tuner: Tuner) -> tuple[Tensors, float]:
        """What a tuner computed for a node, and in how many seconds."""
        found = self._cache.get(self._key(name, tuner))
        return found if isinstance(found, tuple) else ({}, 0.0)

    def _keep(self, name: str, tuner: Tuner, tensors: Tensors, started: float) -> None:
        self._cache[self._key(name, tuner)] = (tensors, time.perf_counter() - started)
        self._prepared.job.progress.advance(next(self._done))


def _is_sequential(contest: Contest) -> bool:
    return any(rival.is_sequential for rival in contest.rivals)

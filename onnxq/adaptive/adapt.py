"""Finding something better than what answers, once requests are no longer what they were."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.deployment import Deployment, Reference, Sampled
from onnxq.adaptive.qparams import fresh
from onnxq.adaptive.quantized import quantizers
from onnxq.adaptive.scores import DISAGREEMENT, ENTROPY, output_scores
from onnxq.adaptive.serving import Sessions
from onnxq.adaptive.state import Generation
from onnxq.errors import InputError
from onnxq.ir import load
from onnxq.observe import Statistics
from onnxq.observe.calibrators import Auto
from onnxq.observe.histogram import as_float32, histogram_of
from onnxq.runtime.specs import Array
from onnxq.verify.decisions import Decision
from onnxq.verify.result import NEIGHBOUR

Outputs = tuple[Array, ...]
Answering = Callable[[Mapping[str, Array]], Outputs]
Request = tuple[Sampled, Reference]

_CERTAIN = 1e-3
"""Probability that noise looks like harm, or like a better candidate, whatever the number tried."""

_HARM = 4.0
"""How many times further from float than usual an answer has to be, in the geometric mean, for its
quantization to be at fault. Between samples of one source this is 0.9 to 1.3, with images that are
blurred until half of the answers are wrong 3.7."""

_SUFFERS, _LIKELY = 1.2, 0.05
"""How much more entropy than usual the float model's decisions have in the mean where it suffers
itself, and the probability that this is noise."""

_SURELY = 0.01
"""Probability that more right answers than wrong ones changed by chance."""

_LEAST = 1e-9
"""Differences from float that are smaller count as this."""


class Drift(Protocol):
    """What is known of how requests changed."""

    @property
    def drifted(self) -> Sequence[str]:
        """Names of the tensors that are no longer what they were."""


@dataclass
class Gathered:
    """Statistics of requests that qparams are fitted to.

    Attributes:
        requests: How many there were.
        seen: By tensor of the float model.
    """

    requests: int = 0
    seen: dict[str, Statistics] = field(default_factory=dict)

    def add(self, reference: Reference) -> None:
        """Take in a request."""
        self.requests += 1
        for name, values in reference.tensors.items():
            histogram = histogram_of(as_float32(values).reshape(-1))
            if not values.size:
                continue
            low, high = float(values.min()), float(values.max())
            own = Statistics(values.size, low, high, values.size - histogram.total, histogram)
            self.seen[name] = self.seen[name].merge(own) if name in self.seen else own


@dataclass(frozen=True)
class Proposal:
    """What adaptation came to.

    Attributes:
        deployment: What is to answer; None where nothing better was found, or needed.
        reason: One sentence.
        tried: What became of each candidate, in a few words.
    """

    deployment: Deployment | None
    reason: str
    tried: tuple[str, ...] = ()


def adapt(
    bundle: Bundle,
    live: Deployment,
    drift: Drift,
    fit: Gathered,
    held_back: Sequence[Request],
    *,
    serve: Callable[[Deployment], Answering] | None = None,
) -> Proposal:
    """Look for something better than what answers.

    Nothing is changed where quantization is not at fault: where answers are as near to the float
    model's as when the bundle was made, or where the float model is less sure of its decisions than
    it was, so that being near to it is worth little.

    Otherwise these are tried in turn, and the first is taken that is as near to float as was usual,
    and nearer than what answers beyond noise: the variant as it was made, if its qparams were
    changed; fresh qparams of the tensors that drifted, then of all; the same of the next variants
    on the ladder, the float model last. Where what answers does no harm but was stepped up to, the
    cheaper variants are tried, too, for being as near to float as was usual.

    Requests are held back from fitting, so that what is measured on them is not fitted to them.

    Args:
        bundle: What answers is of.
        live: What answers.
        drift: How requests changed.
        fit: What was seen of some of them.
        held_back: Others, as they were answered, and what the float model says.
        serve: Opens a deployment; as the bundle says if None.

    Raises:
        InputError: what answers was not what answered these requests, and cannot be opened.
    """
    serve = serve or serving(Sessions(bundle))
    judged = _Judged.of(bundle, [reference.outputs for _, reference in held_back])
    if all(sampled.deployment == live for sampled, _ in held_back):
        answers = [sampled.served for sampled, _ in held_back]
    else:
        answers = _answers(serve(live), held_back)
    now = judged.errors(answers)
    is_harmed = judged.is_harmed(now)
    if is_harmed and judged.suffers:
        return Proposal(None, judged.suffering("so that being near to it is worth little"))
    if not is_harmed and live.variant <= bundle.facts.chosen:
        if judged.suffers:
            return Proposal(None, judged.suffering("and answers are as near to it as ever"))
        return Proposal(None, "answers are as near to the float model's as ever: nothing to adapt")
    tried = []
    for what, candidate in _candidates(bundle, live, drift, fit, is_harmed=is_harmed):
        try:
            found = _answers(serve(candidate), held_back)
        except InputError as error:
            tried.append(f"{what}: {error}")
            continue
        errors = judged.errors(found)
        refusal = judged.refusal(now, errors, answers, found, held_back, is_harmed=is_harmed)
        tried.append(f"{what}: {refusal or 'taken'}")
        if not refusal:
            reason = judged.praise(what, answers, found, now, errors)
            return Proposal(candidate, reason, tuple(tried))
    return Proposal(None, f"nothing better was found: {'; '.join(tried)}", tuple(tried))


def worse(
    bundle: Bundle,
    before: Sequence[Outputs],
    after: Sequence[Outputs],
    references: Sequence[Outputs],
) -> str:
    """Why answers are worse than others beyond noise; empty if they are not.

    Args:
        bundle: What answers is of.
        before: Answers to some requests.
        after: Other answers to the same.
        references: What the float model says.
    """
    judged = _Judged.of(bundle, references)
    errors = [judged.errors(side) for side in (before, after)]
    if not judged.is_better(errors[1], errors[0]) or _ratio(errors[1], errors[0]) < 1.5:
        return ""
    return (
        "what answers now is further from the float model than what answered before: "
        f"{judged.told(before, errors[0])} before, {judged.told(after, errors[1])} now"
    )


def serving(sessions: Sessions) -> Callable[[Deployment], Answering]:
    """Opens deployments as they would answer, by a cascade where that answers."""

    def opened(deployment: Deployment) -> Answering:
        session = sessions.make(Generation(0, deployment)).session
        return lambda feeds: tuple(session.run(None, dict(feeds)))

    return opened


def _answers(answering: Answering, requests: Sequence[Request]) -> list[Outputs]:
    return [answering(sampled.feeds) for sampled, _ in requests]


def _candidates(
    bundle: Bundle, live: Deployment, drift: Drift, fit: Gathered, *, is_harmed: bool
) -> Iterator[tuple[str, Deployment]]:
    """What is worth trying, in words, the cheapest first."""
    first = live.variant if is_harmed else bundle.facts.chosen
    last = len(bundle.variants) if is_harmed else live.variant
    for place in range(first, last):
        name = f"variant '{bundle.variants[place].name}'"
        if place != live.variant or live.qparams:
            yield f"{name} as it was made", Deployment(place)
        if place == len(bundle.variants) - 1:
            break
        # Whether the file is as it was made is found out where it is opened to answer.
        try:
            known = quantizers(load(bundle.folder / bundle.variants[place].file))
        except InputError:
            continue
        changes = fresh(fit.seen, known, Auto())
        kept = dict(live.qparams) if place == live.variant else {}
        some = {t: q for t, q in changes.items() if known[t].root in drift.drifted}
        if some and len(some) < len(changes):
            yield f"{name} with fresh qparams where tensors drifted", Deployment(place, kept | some)
        if changes:
            yield f"{name} with fresh qparams", Deployment(place, changes)


Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Judged:
    """What the float model says of requests, to hold answers against.

    Attributes:
        decisions: What the outputs decide.
        names: The outputs' names in order.
        references: What the float model says.
        usual: Differences of answers from it when the bundle was made.
        unsure: Entropy of its decisions then.
    """

    decisions: Sequence[Decision]
    names: Sequence[str]
    references: Sequence[Outputs]
    usual: Floats
    unsure: Floats

    @classmethod
    def of(cls, bundle: Bundle, references: Sequence[Outputs]) -> _Judged:
        decisions = [d for d in bundle.facts.decisions if d.kind != NEIGHBOUR]
        bags = (np.array(bundle.baseline.bag.get(k, ())) for k in (DISAGREEMENT, ENTROPY))
        return cls(decisions, bundle.facts.outputs, references, *bags)

    def errors(self, answers: Sequence[Outputs]) -> Floats:
        """How far each answer is from the float model's."""
        return self._scores(answers, DISAGREEMENT)

    @property
    def entropy(self) -> Floats:
        """How unsure the float model is of each decision."""
        return self._scores(self.references, ENTROPY)

    def _scores(self, answers: Sequence[Outputs], kind: str) -> Floats:
        pairs = zip(self.references, answers, strict=True)
        scores = [output_scores(self.decisions, self.names, *pair) for pair in pairs]
        return np.array([own[kind] for own in scores if kind in own])

    def is_harmed(self, errors: Floats) -> bool:
        """Whether answers are much further from float's than they were when the bundle was made."""
        if not len(self.usual) or not len(errors):
            return False
        is_certain = _larger_by_chance(errors, self.usual) < _CERTAIN
        return is_certain and _ratio(errors, self.usual) > _HARM

    @property
    def suffers(self) -> bool:
        """Whether the float model is less sure of its decisions than it was."""
        entropy = self.entropy
        if not len(self.unsure) or not len(entropy):
            return False
        is_likely = _larger_by_chance(entropy, self.unsure) < _LIKELY
        return is_likely and float(entropy.mean()) > _SUFFERS * float(self.unsure.mean())

    def suffering(self, consequence: str) -> str:
        """What there is to say where the float model suffers."""
        before, now = float(self.unsure.mean()), float(self.entropy.mean())
        return (
            f"the float model itself is less sure of its decisions (entropy {now:.2g} instead of "
            f"{before:.2g}), {consequence}: nothing to adapt; a model trained for such requests "
            "would help"
        )

    def is_better(self, before: Floats, after: Floats) -> bool:
        """Whether answers are nearer to float's than others beyond noise."""
        nearer, further = int((after < before).sum()), int((after > before).sum())
        return _by_chance(nearer, further) < _CERTAIN

    def refusal(
        self,
        before: Floats,
        after: Floats,
        answers: Sequence[Outputs],
        found: Sequence[Outputs],
        requests: Sequence[Request],
        *,
        is_harmed: bool,
    ) -> str:
        """Why a candidate is not to answer; empty if it is."""
        if self.is_harmed(after):
            return f"{_ratio(after, self.usual):.3g} times as far from float as usual"
        if is_harmed and not self.is_better(before, after):
            return "no nearer to float beyond noise"
        kept, lost = self._contradicted(answers, found, requests)
        if _by_chance(lost, kept) < _SURELY:
            return f"it answers {lost} requests otherwise of which the answers were right"
        return ""

    def _contradicted(
        self, answers: Sequence[Outputs], found: Sequence[Outputs], requests: Sequence[Request]
    ) -> tuple[int, int]:
        """Decisions that change and were said to be wrong, and that were said to be right."""
        counts = {True: 0, False: 0}
        for own, other, (sampled, _) in zip(answers, found, requests, strict=True):
            if sampled.correct is not None and self._decided(own) != self._decided(other):
                counts[sampled.correct] += 1
        return counts[False], counts[True]

    def _decided(self, outputs: Outputs) -> tuple[bytes, ...]:
        by_name = dict(zip(self.names, outputs, strict=True))
        return tuple(d.choices(by_name[d.output]).tobytes() for d in self.decisions)

    def told(self, answers: Sequence[Outputs], errors: Floats) -> str:
        """How near answers are to the float model's, in words."""
        if not self.decisions:
            return f"an SQNR of {-10 * math.log10(max(_typical(errors), _LEAST)):.3g} dB"
        pairs = zip(answers, self.references, strict=True)
        equal = sum(self._decided(own) == self._decided(theirs) for own, theirs in pairs)
        return f"{equal} of {len(answers)} decisions as float's, divergence {_typical(errors):.2g}"

    def praise(
        self,
        what: str,
        before: Sequence[Outputs],
        after: Sequence[Outputs],
        errors_before: Floats,
        errors_after: Floats,
    ) -> str:
        """Why a candidate is to answer."""
        return (
            f"{what}: {self.told(after, errors_after)} on held-back requests, "
            f"{self.told(before, errors_before)} before"
        )


def _typical(errors: Floats) -> float:
    """The geometric mean: one answer that is far off does not make all so."""
    return float(np.exp(np.log(np.maximum(errors, _LEAST)).mean())) if len(errors) else 0.0


def _ratio(errors: Floats, usual: Floats) -> float:
    return _typical(errors) / _typical(usual)


def _larger_by_chance(one: Floats, other: Floats) -> float:
    """Probability that numbers of one distribution differ so; the test of Mann and Whitney."""
    from scipy.stats import mannwhitneyu

    return float(mannwhitneyu(one, other, alternative="greater").pvalue)


def _by_chance(more: int, less: int) -> float:
    """Probability of as many, or more, out of both if each was as likely."""
    from scipy.special import betainc

    return float(betainc(more, less + 1, 0.5)) if more else 1.0

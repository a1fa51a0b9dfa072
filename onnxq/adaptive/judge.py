"""What is done with sampled requests: watch, gather, adapt, and prove that it was right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.cascade import Keeping
from onnxq.adaptive.deployment import Deployment, Reference, Sampled
from onnxq.adaptive.events import Journal, Kind, said
from onnxq.adaptive.parts import Gathering, Outputs, Parts, Verdict
from onnxq.adaptive.sampling import Sampling
from onnxq.adaptive.scores import agreement
from onnxq.adaptive.serving import Serving
from onnxq.runtime.specs import Array

_DENSE = 0.5
"""Share of requests that are sampled on suspicion."""

_SUSPECTED = 20
"""Requests that are sampled so before suspicion has to be renewed."""

_MOST_TRIES = 3
"""Times that adapting, or the proof of it, may fail on new requests each time."""

_MOST_SAID = 1 << 16
"""Requests of which it is known that something was said of their answer."""


@dataclass(frozen=True)
class Amounts:
    """How many requests are sampled for what.

    Attributes:
        fit: To fit qparams to.
        held_back: To try on what was fitted.
        prove: To compare what answers with what answered before.
    """

    fit: int = 32
    held_back: int = 64
    prove: int = 64

    @property
    def gathered(self) -> int:
        """After an alarm, before anything is adapted."""
        return self.fit + self.held_back


class Host(Protocol):
    """Whoever has the session that answers."""

    journal: Journal
    sampling: Sampling
    live: Serving

    def change(
        self,
        deployment: Deployment,
        kind: Kind,
        reason: str,
        feeds: Mapping[str, Array],
        **details: Any,
    ) -> bool:
        """Let another deployment answer from the next request on; whether it does."""

    def answer_before(self, feeds: Mapping[str, Array]) -> Outputs | None:
        """What was answered to a request before the last change; None where that is forgotten."""

    def forget_before(self) -> None:
        """Let go of what answered before the last change."""


class Judge:
    """Looks at one request after the other. It has no thread and no clock of its own.

    While there is no alarm it watches. After one it gathers requests, of which one in three is for
    fitting, looks for something better and lets it answer; then it runs what answered before on
    the next requests, too, and takes it back where the new one is worse.

    Args:
        bundle: What answers is of.
        host: Has the session that answers.
        parts: What watches and adapts.
        known: What `statistics` gave in an earlier run; None without one.
        amounts: How many requests are sampled for what.
        keeping: Keeps up the promise of the cascade that answers; None where none does.
    """

    def __init__(
        self,
        bundle: Bundle,
        host: Host,
        parts: Parts,
        known: Any,
        amounts: Amounts,
        keeping: Keeping | None = None,
    ) -> None:
        self._bundle, self._host, self._parts, self._amounts = bundle, host, parts, amounts
        self._keeping = keeping
        self._twin = parts.twin(bundle)
        known = known if isinstance(known, Mapping) else {}
        self._monitor = parts.monitor(bundle, known.get("monitor"))
        if keeping is not None:
            keeping.go_on(known.get("cascade"))
        self._since = 0
        self._said: set[int] = set()
        self._held_back: list[tuple[Sampled, Reference]] = []
        self._watch(anew=False)

    def see(self, sampled: Sampled, now: float) -> None:
        """Look at a request."""
        if sampled.deployment != self._host.live.deployment:
            # It was answered before the last change and tells nothing of what answers.
            return
        reference = self._twin.run(sampled.feeds)
        self._monitor.see(sampled, reference, now)
        self._keep_up(sampled, reference)
        self._step(sampled, reference)

    def statistics(self) -> Any:
        """What goes on after a restart."""
        kept = {} if self._keeping is None else {"cascade": self._keeping.to_plain()}
        return {"monitor": self._monitor.to_plain(), **kept}

    def followed(self) -> None:
        """Begin anew with what another worker made."""
        self._watch(anew=True)

    def feedback(self, request: int, correct: bool) -> None:
        """Take to heart what somebody says of an answer, if it is one of what answers now.

        Only once of each, and not of requests that nobody asked.
        """
        if not self._since < request <= self._host.sampling.asked or request in self._said:
            return
        self._said.add(request)
        if len(self._said) > _MOST_SAID:
            # What is said late of requests before these might have been said before.
            self._since = sorted(self._said)[_MOST_SAID // 2]
            self._said = {own for own in self._said if own > self._since}
        self._monitor.feedback(correct)
        self._held_back = [
            (replace(kept, correct=correct) if kept.request == request else kept, reference)
            for kept, reference in self._held_back
        ]

    def _begin_listening(self) -> None:
        """From the next request on, to what is said of answers."""
        self._since, self._said = self._host.sampling.asked, set()

    def _keep_up(self, sampled: Sampled, reference: Reference) -> None:
        if self._keeping is None:
            return
        facts, cascade = self._bundle.facts, self._keeping.cascade
        agreed = agreement(facts.decisions, facts.outputs, reference.outputs, sampled.served) == 1.0
        if self._keeping.see(agreed):
            is_raised = self._keeping.cascade.at < cascade.at
            self._host.journal.tell(
                "stricter",
                f"fewer than the promised {100 * cascade.promised:g} % of the cascade's answers "
                "decided as the float model; "
                + (
                    "more requests are passed on from now on"
                    if is_raised
                    else "no higher thresholds are known; make the bundle again with data of today"
                ),
                thresholds=list(self._keeping.cascade.thresholds),
            )

    def _watch(self, *, anew: bool) -> None:
        """Wait for an alarm; from what is usual from now on, or from what was."""
        if anew:
            self._monitor.renew()
            self._begin_listening()
        self._held_back = []
        self._step: Callable[[Sampled, Reference], None] = self._watching
        self._host.forget_before()
        self._host.sampling.usual()

    def _watching(self, sampled: Sampled, reference: Reference) -> None:
        verdict, sampling = self._monitor.verdict(), self._host.sampling
        if verdict.alarm:
            self._host.journal.tell("drift", verdict.reason, **verdict.details())
            self._begin_gathering(verdict)
        elif verdict.suspicious and not sampling.is_dense:
            sampling.denser(_DENSE, _SUSPECTED)

    def _hurry(self, missing: int) -> None:
        """Go on with more requests than usual, where some of these were dropped."""
        if not self._host.sampling.is_dense:
            self._host.sampling.denser(_DENSE, missing)

    def _begin_gathering(self, verdict: Verdict, tries: int = 1) -> None:
        fit, self._held_back = self._parts.gather(), []
        self._step = lambda *request: self._gather(verdict, fit, tries, *request)
        self._host.sampling.denser(_DENSE, self._amounts.gathered)

    def _gather(
        self,
        verdict: Verdict,
        fit: Gathering,
        tries: int,
        sampled: Sampled,
        reference: Reference,
    ) -> None:
        held_back = self._held_back
        self._hurry(self._amounts.gathered - fit.requests - len(held_back))
        if fit.requests * self._amounts.held_back <= len(held_back) * self._amounts.fit:
            fit.add(reference)
        else:
            # Their tensors are large, and nobody asks for them.
            held_back.append((sampled, Reference(reference.outputs, {})))
        if fit.requests + len(held_back) < self._amounts.gathered:
            return
        before = self._host.live.deployment
        try:
            found = self._parts.adapt(self._bundle, before, verdict, fit, held_back)
        except Exception:
            if tries < _MOST_TRIES:
                # The drift is not usual before it is known what to do about it.
                self._begin_gathering(verdict, tries + 1)
            else:
                self._watch(anew=True)
                self._host.journal.tell(
                    "declined", f"adapting failed {tries} times; what answers stays as it is"
                )
            raise
        self._watch(anew=True)
        if found.deployment is None:
            self._host.journal.tell("declined", found.reason)
        elif self._host.change(found.deployment, "adapted", found.reason, sampled.feeds):
            self._begin_listening()
            self._begin_proving(before)

    def _begin_proving(self, before: Deployment, tries: int = 1) -> None:
        tried: list[_Tried] = []
        self._step = lambda *request: self._prove(before, tried, tries, *request)
        self._host.sampling.denser(_DENSE, self._amounts.prove)

    def _prove(
        self,
        before: Deployment,
        tried: list[_Tried],
        tries: int,
        sampled: Sampled,
        reference: Reference,
    ) -> None:
        answer = self._host.answer_before(sampled.feeds)
        if answer is None:
            self._watch(anew=False)
            return
        self._hurry(self._amounts.prove - len(tried))
        tried.append(_Tried(answer, sampled.served, reference.outputs))
        if len(tried) < self._amounts.prove:
            return
        try:
            reason = self._parts.worse(
                self._bundle,
                [one.before for one in tried],
                [one.after for one in tried],
                [one.reference for one in tried],
            )
        except Exception as error:
            if tries < _MOST_TRIES:
                self._begin_proving(before, tries + 1)
                raise
            reason = f"it could not be found out whether it is worse ({said(error)})"
        self._watch(anew=False)
        if reason and self._host.change(before, "rolled-back", reason, sampled.feeds):
            self._watch(anew=True)


def monitored(known: Any) -> Any:
    """What the monitor knows, of what `Judge.statistics` gave; None where it is not there."""
    return known.get("monitor") if isinstance(known, Mapping) else None


@dataclass(frozen=True)
class _Tried:
    """A request that both what answers and what answered before were asked."""

    before: Outputs
    after: Outputs
    reference: Outputs

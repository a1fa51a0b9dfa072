"""What a session watches and adapts with, as far as the session knows it; tests put others in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from onnxq.adaptive.adapt import Gathered, adapt, serving, worse
from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.deployment import Deployment, Reference, Sampled
from onnxq.adaptive.monitor import Monitor, check_false_alarms
from onnxq.adaptive.serving import Sessions
from onnxq.adaptive.twin import Twin
from onnxq.runtime.specs import Array

Outputs = tuple[Array, ...]


class Twinned(Protocol):
    """The float model, which tells more than the answer."""

    def run(self, feeds: Mapping[str, Array]) -> Reference:
        """What it says of a request."""


class Verdict(Protocol):
    """What a monitor thinks of the requests."""

    @property
    def alarm(self) -> bool:
        """Whether they are no longer what they were."""

    @property
    def suspicious(self) -> bool:
        """Whether it is worth while to look at more of them."""

    @property
    def evidence(self) -> float:
        """How much there is for drift."""

    @property
    def threshold(self) -> float:
        """How much raises an alarm."""

    @property
    def drifted(self) -> Sequence[str]:
        """Names of the tensors that are no longer what they were, the farthest off first."""

    @property
    def reason(self) -> str:
        """One sentence."""

    def details(self) -> Mapping[str, Any]:
        """Numbers behind it."""


class Monitoring(Protocol):
    """Sees requests, and tells when they are no longer what they were."""

    def see(self, sampled: Sampled, reference: Reference, now: float) -> None:
        """Look at a request."""

    def feedback(self, correct: bool) -> None:
        """Take in whether an answer was right, as somebody says."""

    def verdict(self) -> Verdict:
        """What it thinks now."""

    def renew(self) -> None:
        """Take what comes from now on as usual: something was done about what came before."""

    def to_plain(self) -> Any:
        """What goes on after a restart."""


class Gathering(Protocol):
    """Statistics of requests that are to be fitted to."""

    @property
    def requests(self) -> int:
        """How many."""

    def add(self, reference: Reference) -> None:
        """Take in a request."""


class Proposal(Protocol):
    """What adaptation came to."""

    @property
    def deployment(self) -> Deployment | None:
        """What is to answer; None where nothing better was found."""

    @property
    def reason(self) -> str:
        """One sentence."""


@dataclass(frozen=True)
class Parts:
    """Functions that make the parts.

    Attributes:
        twin: Loads the float model.
        monitor: Makes what sees drift, from what an earlier run knew, None without one.
        gather: Begins statistics to fit to.
        adapt: Looks for something better than what answers, given a verdict, statistics that were
            gathered (by what `gather` makes), and requests that are not among them.
        worse: Says why outputs of the second kind are worse than those of the first beyond noise,
            against what the float model says of the same requests; empty if they are not.
    """

    twin: Callable[[Bundle], Twinned]
    monitor: Callable[[Bundle, Any], Monitoring]
    gather: Callable[[], Gathering]
    adapt: Callable[
        [Bundle, Deployment, Verdict, Any, Sequence[tuple[Sampled, Reference]]], Proposal
    ]
    worse: Callable[[Bundle, Sequence[Outputs], Sequence[Outputs], Sequence[Outputs]], str]


def default_parts(
    seed: int, false_alarms_per_day: float, sessions: Sessions | None = None
) -> Parts:
    """What there is for every bundle.

    Args:
        seed: Of what is left to chance.
        false_alarms_per_day: How often drift may be seen where there is none.
        sessions: Makes what is tried before it answers; sessions as the bundle says if None.

    Raises:
        InputError: so few false alarms cannot be kept.
    """
    check_false_alarms(false_alarms_per_day)
    return Parts(
        Twin,
        lambda bundle, known: Monitor(
            bundle, known, seed=seed, false_alarms_per_day=false_alarms_per_day
        ),
        Gathered,
        adapt if sessions is None else partial(adapt, serve=serving(sessions)),
        worse,
    )

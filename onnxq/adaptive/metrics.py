"""Numbers of an adaptive session for Prometheus (`pip install "onnxq[serve]"`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

from onnxq.adaptive.events import Kind
from onnxq.adaptive.session import AdaptiveSession
from onnxq.errors import InputError

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as error:  # pragma: no cover - depends on what is installed
    raise InputError(
        'metrics need the package prometheus-client: `pip install "onnxq[serve]"`'
    ) from error

_COUNTED = {
    "requests": "Requests that were answered.",
    "sampled": "Requests that were picked to be looked at.",
    "dropped": "Picked requests that were not looked at, as too many were waiting.",
    "judged": "Requests, and what was said of answers, that were judged.",
    "failed": "Those where judging failed.",
    "feedback": "Answers that somebody said to be right or wrong.",
}
_SHOWN = {
    "sampling": "Share of the requests that are picked at present.",
    "generation": "Times that something else answered than before.",
    "variant": "Place on the bundle's ladder of what answers; 0 is the cheapest.",
}


class SessionMetrics:
    """Collects an adaptive session's numbers when it is asked for them.

    For `prometheus_client.REGISTRY.register`.

    Args:
        session: The session.
    """

    def __init__(self, session: AdaptiveSession) -> None:
        self._session = session

    def collect(self) -> Iterator[Any]:
        """The numbers now."""
        found = self._session.statistics()
        for name, meaning in _COUNTED.items():
            yield CounterMetricFamily(f"onnxq_{name}", meaning, value=found[name])
        for name, meaning in _SHOWN.items():
            yield GaugeMetricFamily(f"onnxq_{name}", meaning, value=found[name])
        events = CounterMetricFamily("onnxq_events", "What happened, by kind.", labels=["kind"])
        counts = Counter(event["kind"] for event in self._session.events())
        for kind in get_args(Kind):
            events.add_metric([kind], counts[kind])
        yield events

"""Numbers of a session for Prometheus."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxq.adaptive.session import AdaptiveSession
from tests.adaptive.fakes import FEW, OFTEN, bundle, feeds, parts

prometheus = pytest.importorskip(
    "prometheus_client", reason='metrics need `pip install ".[serve]"`'
)


def test_all_numbers_are_those_of_the_session(tmp_path: Path) -> None:
    from onnxq.adaptive.metrics import SessionMetrics

    registry = prometheus.CollectorRegistry()
    made = bundle(tmp_path / "bundle")
    options = {"parts": parts(), "amounts": FEW, "intervals": OFTEN, "time_share": 1.0}
    with AdaptiveSession(made, sampling=1.0, state=tmp_path / "s", **options) as session:
        registry.register(SessionMetrics(session))
        for value in (1.0, *[20.0] * 20):
            session.run(None, feeds(value))
            session.flush()
        session.feedback(session.request, True)
        session.flush()
        for name, value in session.statistics().items():
            is_counted = name not in ("sampling", "generation", "variant")
            sample = f"onnxq_{name}{'_total' if is_counted else ''}"
            assert registry.get_sample_value(sample) == value, name
        for kind, count in (("drift", 1), ("adapted", 1), ("fault", 0)):
            assert registry.get_sample_value("onnxq_events_total", {"kind": kind}) == count
    assert session.statistics()["generation"] == 1 and session.statistics()["feedback"] == 1

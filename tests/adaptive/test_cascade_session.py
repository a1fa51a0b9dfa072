"""Sessions on a bundle whose variants answer together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.cascade import Cascade
from onnxq.adaptive.deployment import Deployment, Reference, TensorQParams
from onnxq.adaptive.serving import Sessions
from onnxq.adaptive.session import AdaptiveSession
from onnxq.adaptive.state import Generation
from onnxq.verify.decisions import Decision
from tests.adaptive import fakes

CASCADE = Cascade((0, 1, 2), ((9.0, 9.0), (1.0, 3.0)), 1, 0.9, 0.9, 100, 0.5)
X = np.array([[5, 0, 0], [0.5, 0, 0], [0, 0, 2], [0, 0.9, 0], [1.6, 0, 0]], np.float32)
FACTORS = (1, 3, 1, 3, 1)
"""A margin of 1 or more is enough for the first variant, of 3 or more for the second."""


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    plain = fakes.bundle(tmp_path / "bundle")
    decision = Decision("y", "classes", 1, "as the test says")
    facts = replace(plain.facts, decisions=(decision,), outputs=("y", "total"), cascade=CASCADE)
    return replace(plain, facts=facts)


@pytest.fixture
def session(bundle: Bundle) -> Iterator[AdaptiveSession]:
    with AdaptiveSession(bundle, parts=fakes.parts(), amounts=fakes.FEW) as opened:
        yield opened


def test_each_sample_is_answered_by_the_cheapest_variant_that_is_sure(
    session: AdaptiveSession,
) -> None:
    y, total = session.run(None, {"x": X})
    np.testing.assert_array_equal(y, X * np.array(FACTORS)[:, None].astype(np.float32))
    np.testing.assert_array_equal(total, y.sum(axis=1))
    for row, factor in zip(X, FACTORS, strict=True):
        (alone,) = session.run(["total"], {"x": row[None]})
        assert alone == row.sum() * np.float32(factor)


def test_wrong_requests_raise_as_in_onnxruntime(session: AdaptiveSession, bundle: Bundle) -> None:
    plain = ort.InferenceSession(bundle.model(2), providers=["CPUExecutionProvider"])
    for names, feeds in ((["z"], {"x": X}), (None, {"z": X}), (None, {"x": X.astype(np.int64)})):
        with pytest.raises(Exception) as expected:
            plain.run(names, feeds)
        with pytest.raises(type(expected.value)) as raised:
            session.run(names, feeds)
        assert str(raised.value) == str(expected.value)


def test_what_is_bound_is_answered_by_the_last_variant(session: AdaptiveSession) -> None:
    binding = session.io_binding()
    binding.bind_cpu_input("x", X)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    np.testing.assert_array_equal(binding.get_outputs()[0].numpy(), X * 3)


@pytest.mark.parametrize(
    ("deployment", "factors"),
    [
        (Deployment(0), (1, 3, 1, 3, 1)),
        (Deployment(1), (2, 3, 2, 3, 2)),
        (Deployment(2), (3, 3, 3, 3, 3)),
    ],
)
def test_variants_below_the_one_that_was_chosen_are_left_out(
    bundle: Bundle, deployment: Deployment, factors: tuple[int, ...]
) -> None:
    y, _ = Sessions(bundle).make(Generation(1, deployment)).session.run(None, {"x": X})
    expected = np.array(factors, np.float32)
    expected[(X.max(axis=1) * 2 < 3) & (expected == 2)] = 3
    np.testing.assert_array_equal(y, X * expected[:, None])


def test_what_was_adapted_takes_its_variants_place(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    make = Sessions.session

    def session(self: Sessions, deployment: Deployment, *rest: object) -> ort.InferenceSession:
        opened.append(deployment)
        return make(self, Deployment(deployment.variant))

    monkeypatch.setattr(Sessions, "session", session)
    adapted = Deployment(1, {"x": TensorQParams(0.5, 0)})
    Sessions(bundle).make(Generation(1, adapted))
    assert opened == [adapted, Deployment(2)]


def test_what_is_not_in_the_cascade_answers_alone_after_a_change(bundle: Bundle) -> None:
    ends = replace(CASCADE, variants=(0, 2), path=((9.0,), (1.0,)))
    other = replace(bundle, facts=replace(bundle.facts, cascade=ends))
    y, _ = Sessions(other).make(Generation(1, Deployment(1))).session.run(None, {"x": X})
    np.testing.assert_array_equal(y, X * 2)


@dataclass
class Otherwise:
    """A float model that never decides as the variants do."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> Reference:
        y = -feeds["x"]
        return Reference((y, y.sum(1)), {"x": feeds["x"]})


def test_thresholds_rise_while_requests_show_that_the_promise_is_broken(bundle: Bundle) -> None:
    parts = fakes.parts(twin=lambda bundle: Otherwise())
    with AdaptiveSession(bundle, parts=parts, sampling=1.0, time_share=1.0) as session:
        assert session.run(["y"], {"x": X[:1]})[0][0, 0] == 5
        for _ in range(300):
            session.run(None, {"x": X[:1]})
            session.flush()
        events = [event for event in session.events() if event["kind"] == "stricter"]
        assert session.run(["y"], {"x": X[:1]})[0][0, 0] == 10
    assert [event["details"]["thresholds"] for event in events] == [[9.0, 9.0]]
    with AdaptiveSession(bundle, parts=parts, sampling=1.0, time_share=1.0) as session:
        session.run(None, {"x": X[:1]})
        session.flush()
        assert session.run(["y"], {"x": X[:1]})[0][0, 0] == 10, "known from the run before"

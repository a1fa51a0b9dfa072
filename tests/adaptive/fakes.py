"""A tiny bundle, and parts that do as they are told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx.parser

from onnxq.adaptive.baseline import Baseline
from onnxq.adaptive.bundle import Bundle, BundleFacts, Variant
from onnxq.adaptive.deployment import Deployment, Reference, Sampled
from onnxq.adaptive.judge import Amounts
from onnxq.adaptive.parts import Parts
from onnxq.adaptive.session import AdaptiveSession
from onnxq.adaptive.worker import Intervals
from onnxq.verify.facts import file_sha256

Open = Callable[..., AdaptiveSession]

FEW = Amounts(fit=2, held_back=4, prove=4)
OFTEN = Intervals(share=0.02, keep=0.05, retry=0.05)


def model(factor: int) -> bytes:
    """Multiplies its input with a factor, and sums that up."""
    text = f"""
        <ir_version: 8, opset_import: ["" : 17]>
        factor{factor} (float[N, 3] x) => (float[N, 3] y, float[N] total) {{
            factor = Constant<value_float = {factor}.0>()
            axes = Constant<value_ints = [1]>()
            y = Mul(x, factor)
            total = ReduceSum<keepdims = 0>(y, axes)
        }}
    """
    return onnx.parser.parse_model(text).SerializeToString()


def bundle(folder: Path, variants: int = 3) -> Bundle:
    """A bundle whose variants multiply with 1, 2 and so on."""
    folder.mkdir(exist_ok=True)
    made = []
    for factor in range(1, variants + 1):
        path = folder / f"factor{factor}.onnx"
        path.write_bytes(model(factor))
        made.append(Variant(path.stem, path.name, file_sha256(path), 1.0, 20.0, None))
    facts = BundleFacts(tuple(made), 0, (), ("x",), {}, "onnxruntime", "cpu", 1)
    return Bundle(folder, facts, Baseline(0, {}, {}))


def feeds(value: float = 1.0, samples: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.full((samples, 3), value, np.float32)}


@dataclass
class Twin:
    """Says what factor 2 says."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> Reference:
        y = feeds["x"] * 2
        return Reference((y, y.sum(1)), {"x": feeds["x"]})


@dataclass(frozen=True)
class Verdict:
    alarm: bool = False
    suspicious: bool = False
    evidence: float = 0.0
    threshold: float = 10.0
    drifted: tuple[str, ...] = ()
    reason: str = "the values are above 10"

    def details(self) -> Mapping[str, Any]:
        return {"tensors": ["x"]}


@dataclass
class Monitor:
    """Alarms where a value is above 10, and holds what comes after an alarm for usual."""

    known: Any = None
    seen: list[Sampled] = field(default_factory=list)
    said: list[bool] = field(default_factory=list)
    usual: float = 10.0

    def see(self, sampled: Sampled, reference: Reference, now: float) -> None:
        self.seen.append(sampled)

    def feedback(self, correct: bool) -> None:
        self.said.append(correct)

    def verdict(self) -> Verdict:
        most = self.seen[-1].feeds["x"].max()
        is_above = most > self.usual
        return Verdict(is_above, most > self.usual / 2, float(most), float(self.usual))

    def renew(self) -> None:
        self.usual = max([self.usual, *(s.feeds["x"].max() for s in self.seen)])

    def to_plain(self) -> Any:
        return {"seen": len(self.seen) + (self.known or {"seen": 0})["seen"]}


@dataclass
class Gathered:
    requests: int = 0

    def add(self, reference: Reference) -> None:
        self.requests += 1


@dataclass(frozen=True)
class Proposal:
    deployment: Deployment | None
    reason: str


def step_up(bundle: Bundle, live: Deployment, *rest: Any) -> Proposal:
    return Proposal(Deployment(live.variant + 1), "a step up the ladder")


def parts(**others: Any) -> Parts:
    """A step up the ladder after each alarm, which is never worse."""
    own: dict[str, Callable[..., Any]] = {
        "twin": lambda bundle: Twin(),
        "monitor": lambda bundle, known: Monitor(known),
        "gather": Gathered,
        "adapt": step_up,
        "worse": lambda *outputs: "",
    }
    return Parts(**{**own, **others})


def kinds(events: Sequence[Mapping[str, Any]]) -> list[str]:
    return [event["kind"] for event in events]


def ask(session: AdaptiveSession, value: float = 1.0, times: int = 1) -> list[float]:
    """By what requests were multiplied, each judged before the next."""
    found = []
    for _ in range(times):
        found.append(float(session.run(["y"], feeds(value))[0][0, 0] / value))
        session.flush()
    return found

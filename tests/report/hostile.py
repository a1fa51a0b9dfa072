"""A report in which every name that comes from a model or a user is an attack."""

from __future__ import annotations

from dataclasses import replace

from onnxq.runtime import OutputError
from onnxq.verify import Report
from onnxq.verify.result import (
    CandidateFacts,
    DeploymentFacts,
    EndFacts,
    GateFacts,
    GraphFacts,
    LatencyFacts,
    LayerFacts,
    MethodFacts,
    MetricFacts,
    TensorFacts,
)
from tests.verify.reports import CANDIDATE, FLOAT, a_report

SCRIPT = "<script src='http://x/'>alert(1)</script><img src=x onerror=alert(2)>"
CONTROL = "a\nb\t\x00\x1b[31m\x9b\u202e\ufffe\ud800"


def hostile_report() -> Report:
    """Script tags, quotes and control characters in every name, path and reason."""
    evil = f'{SCRIPT}"&amp;{CONTROL}'
    cpu = LatencyFacts(evil, 1, 3.0, 2.0, 1.5)
    return a_report(
        model=replace(FLOAT, path=f"{evil}.onnx", sha256=evil),
        output=replace(CANDIDATE, path=f"{evil}.int8.onnx", integer_operators={evil: 2}),
        metric=MetricFacts(evil, 3.0, 4.0, 1.0, 10, (0.5, 1.5)),
        latency=cpu,
        latencies=(cpu,),
        outputs=(OutputError(evil, 30.0, 0.9, 0.1),),
        layers=(
            LayerFacts(evil, evil, evil, 20.0, 0.1, evil),
            LayerFacts(f"{evil}2", evil, f"float{evil}", None, None, ""),
        ),
        gates=(GateFacts("drop<=0.5", 1.0, False),),
        versions={evil: evil},
        candidates=(CandidateFacts(evil, 2.0, 1e-3, 29.5, 0.002, True),),
        methods=(MethodFacts(evil, evil, 3.0, 1.0),),
        graph=GraphFacts(
            ((0, 1),), (evil, evil), (1, 2), (), (EndFacts(evil, (0,)),), (EndFacts(evil, (1,)),)
        ),
        tensors=(TensorFacts(evil, evil, 0.0, 1.0, -1.0, 1.0, (0.5, 0.5), 30.0, 0.5),),
        deployments=(DeploymentFacts(evil, evil, evil, evil, evil, reason=evil),),
        deploy=evil,
        notes=(evil,),
        command=evil,
    )


def is_clean(text: str) -> bool:
    """Whether nothing in a text could control a terminal or break an XML file."""
    return all(c.isprintable() or c == "\n" for c in text)

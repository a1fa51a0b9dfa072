"""A report for tests, with a number of its own in every place."""

from __future__ import annotations

import math
from dataclasses import replace

from onnxq.runtime import OutputError
from onnxq.tune.training import EpochFacts, TrainingFacts
from onnxq.verify import Report
from onnxq.verify.result import (
    AgreementFacts,
    DecisionFacts,
    DeploymentFacts,
    GateFacts,
    LatencyFacts,
    LayerFacts,
    MetricFacts,
    ModelFacts,
    PassFacts,
    SizeFacts,
    ThroughputFacts,
)

FLOAT = ModelFacts("m.onnx", "aa", 7, 17, 4000)
CANDIDATE = ModelFacts("q.onnx", "bb", 19, 17, 1000, {"com.microsoft:QLinearConv": 2})
METRIC = MetricFacts("accuracy", 0.99, 0.985, 0.005, 450, (-0.002, 0.012))
DECISION = DecisionFacts("y", "classes", "scores of 10 classes, straight from Gemm", False)

_RAN = DeploymentFacts(
    "",
    "1.32.0",
    "cpu-x64",
    "cpu",
    "float",
    ms=3.0,
    speedup=1.0,
    confidence=(1.0, 1.0),
    sqnr_db=math.inf,
    drop=0.0,
    bytes=4000,
    nodes_taken=7,
    nodes_left=0,
    reason="0.40 times as fast as what was chosen",
)
DEPLOYMENTS = (
    _RAN,
    replace(
        _RAN,
        python="ov/python",
        runtime="1.24.1 (onnxruntime-openvino)",
        target="openvino",
        provider="openvino",
        model="all int8",
        ms=1.2,
        speedup=2.5,
        confidence=(2.4, 2.6),
        sqnr_db=29.5,
        bytes=1000,
        nodes_left=3,
        chosen=True,
        reason="",
    ),
    DeploymentFacts("nope/python", "", "", "", "", reason="'nope/python' cannot be started"),
)

TRAINING = TrainingFacts(
    "lsq",
    "task",
    2,
    20,
    1,
    640,
    12.5,
    "cpu",
    (
        EpochFacts(0, None, 0.5, 0.8, 1e-3),
        EpochFacts(1, 0.4, 0.25, 0.9, 5e-4),
        EpochFacts(2, 0.3, math.inf, 0.0, 0.0),
    ),
    ("flip", "crop"),
)


def a_report(**changes: object) -> Report:
    cpu = LatencyFacts("cpu", 1, 3.0, 2.0, 1.5)
    cuda = LatencyFacts("cuda", 1, 3.0, 2.5, 1.2)
    report = Report(
        model=FLOAT,
        output=CANDIDATE,
        metric=METRIC,
        latency=cpu,
        latencies=(cpu, cuda),
        throughput=(ThroughputFacts("cpu", 1, 8, 400.0, 700.0, 1.75),),
        size=SizeFacts(4000, 1000, 4.0),
        outputs=(OutputError("y", 35.5, 0.9999, 0.25), OutputError("z", math.inf, 1.0, 0.0)),
        layers=(
            LayerFacts("c", "Conv", "int8", 40.0, None, ""),
            LayerFacts("e", "Exp", "float32", None, 0.5, "target cpu-x64 does not quantize Exp"),
        ),
        gates=(GateFacts("drop<=0.01", 0.005, True), GateFacts("speedup>=2", None, False)),
        passes=(PassFacts("insert-qdq", 2, 0.25),),
        versions={"onnx": "1"},
        seconds=1.5,
        peak_rss_bytes=123,
        passed=False,
        agreement=AgreementFacts(0.9875, 450, 450, (0.97, 0.995), (DECISION,)),
    )
    return replace(report, **changes)  # type: ignore[arg-type]

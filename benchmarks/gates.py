"""Print how often intervals of speedups say that equal models differ, or miss that others do.

Usage: python benchmarks/gates.py [--runs N] [--models A,B]

Each model (those of the repository, and real ones where ONNXQ_REAL and ONNXQ_CORPUS have them) is
compared N times with a copy of itself in a file of its own: the 95 % interval of the ratio should
hold 1 in 19 of 20 runs, and every gate should be kept that does not depend on a clock. Then, a
quarter as often, with models that do some of its products twice: the convolution or product is
computed with a quarter and with three quarters of its weight, and both are added, which gives the
same outputs, and which no runtime simplifies. There the interval should not hold 1.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from cases import Case, real_cases, trained_cases
from heading import heading

import onnxq
from onnxq.ir import DataType, Graph, Node, infer_types
from onnxq.verify import Report

SHARES = {"a tenth of the products twice": 0.1, "every product twice": 1.0}
"""What is compared, and how many of the products it does twice: those with the largest weights."""

GATES = ("sqnr==inf", "cosine>=0.99999", "max_abs==0", "size_ratio==1", "layers.*.local_db>=100")
SAMPLES = 4


def doubled(graph: Graph, share: float) -> Graph:
    """A copy that does so many of its products twice, at least one, and gives the same."""
    made = graph.copy()
    products = sorted(_products(made), key=lambda node: node.inputs[1].numpy().size)  # type: ignore[union-attr]
    for node in products[-max(1, round(share * len(products))) :]:
        read, weight = node.inputs[:2]
        assert weight is not None
        numbers = weight.numpy()
        quarter = numbers * np.float32(0.25)
        part = made.constant(quarter, f"{weight.name}_quarter")
        other = made.add(node.op_type, [read, part], node.attributes)
        made.set_constant(node, 1, numbers - quarter)
        both = made.add("Add", [node.output, other.output])
        both.output.type = node.output.type
        made.replace_uses(node.output, both.output, lambda use, both=both: use.node is not both)  # type: ignore[misc]
    return made


def _products(graph: Graph) -> Iterator[Node]:
    """Convolutions and products with a constant weight, whose result is no output."""
    for node in graph.nodes():
        weight = node.input(1)
        if weight is None or not weight.is_constant or weight.dtype is not DataType.FLOAT:
            continue
        if node.is_op("Conv", "MatMul", "Gemm") and not node.output.is_output:
            yield node


def _row(case: Case, folder: Path, runs: int) -> Iterator[str]:
    copy, twice = folder / "copy.onnx", folder / "twice.onnx"
    shutil.copy(case.model, copy)
    data = case.data if case.eval_data is None else case.eval_data
    found = [
        onnxq.compare(case.model, copy, data, samples=SAMPLES, gates=GATES) for _ in range(runs)
    ]
    assert all(report.passed for report in found), [report.gates for report in found]
    held, ratio = _held(found)
    yield f"{held} of {runs} hold 1 ({ratio:.3f}x)"
    # Some exporters have nodes that give weights, in the place of initializers.
    original = onnxq.rewrite(case.model, "fold-constants").graph
    infer_types(original)
    for share in SHARES.values():
        onnxq.save(doubled(original, share), twice)
        found = [
            onnxq.compare(
                case.model, twice, data, samples=SAMPLES, layers=False, gates=["sqnr>=60"]
            )
            for _ in range(max(1, runs // 4))
        ]
        assert all(report.passed for report in found), [report.gates for report in found]
        held, ratio = _held(found)
        yield f"{len(found) - held} of {len(found)} do not ({ratio:.3f}x)"


def _held(reports: list[Report]) -> tuple[int, float]:
    """How many intervals of the speedup hold 1, and the median speedup."""
    latencies = [report.latency for report in reports if report.latency is not None]
    intervals = [latency.confidence for latency in latencies if latency.confidence is not None]
    assert len(intervals) == len(reports)
    held = sum(low <= 1 <= high for low, high in intervals)
    return held, statistics.median(latency.speedup for latency in latencies)


def main() -> None:
    """Compare each model with its copies and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--runs", type=int, default=20, help="with each copy")
    parser.add_argument("--models", default="", help="names with commas between (default: all)")
    options = parser.parse_args()
    cases = [*trained_cases(), *(case for case in real_cases() if case.name != "smollm2")]
    chosen = options.models.split(",") if options.models else [case.name for case in cases]
    print(heading("Intervals of speedups: equal models, and others", "gates.py", 1))
    print(f"| model | {' | '.join(('a copy', *SHARES))} |")
    print("|---" * (len(SHARES) + 2) + "|")
    with tempfile.TemporaryDirectory() as name:
        for case in cases:
            if case.name in chosen:
                cells = " | ".join(_row(case, Path(name), options.runs))
                print(f"| {case.name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()

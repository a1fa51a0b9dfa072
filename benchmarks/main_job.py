"""Print what static integers gain and cost on the example models, and on a CIFAR-10 model.

Usage: python benchmarks/main_job.py [--threads N]

The CIFAR-10 model takes part when ONNXQ_CORPUS names a folder with models/cifar_resnet20.onnx,
data/cifar10_calib.npz and data/cifar10_eval.npz. Float and quantized model are measured in turn in
one process. The column onnxruntime is its own `quantize_static` (QDQ, uint8 activations, int8
weights per channel, after `quant_pre_process`) on the same calibration samples, measured likewise.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from cases import Case, onnxruntime_static, trained_cases

import onnxq


def main() -> None:
    """Measure every model and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--threads", type=int, default=1, help="threads inside one operator")
    threads = parser.parse_args().threads
    print(
        "| model | metric | float | int8 | drop | SQNR | size | speed | onnxruntime: SQNR, speed |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for case in trained_cases():
        print(_row(case, threads), flush=True)


def _row(case: Case, threads: int) -> str:
    result = onnxq.optimize(
        case.model,
        case.data,
        recipe="int8",
        eval_data=case.eval_data,
        threads=threads,
        min_speedup=0,
    )
    report = result.report
    assert report.metric is not None and report.latency is not None
    return (
        f"| {case.name} | {report.metric.name} | {report.metric.float:.4f} "
        f"| {report.metric.candidate:.4f} | {report.metric.drop:.4f} | {report.sqnr_db:.1f} dB "
        f"| 1/{report.size.ratio:.2f} | {report.latency.speedup:.2f}x "
        f"| {_onnxruntime(case, threads)} |"
    )


def _onnxruntime(case: Case, threads: int) -> str:
    with tempfile.TemporaryDirectory() as name:
        quantized = Path(name) / "quantized.onnx"
        onnxruntime_static(case, quantized)
        held_out = case.data if case.eval_data is None else case.eval_data
        report = onnxq.compare(case.model, quantized, held_out, threads=threads, layers=False)
    assert report.latency is not None
    return f"{report.sqnr_db:.1f} dB, {report.latency.speedup:.2f}x"


if __name__ == "__main__":
    main()

"""Print what calibration costs: time over plain inference, and memory, beside onnxruntime's own.

Usage: python benchmarks/calibration.py [--samples N] [--kept-samples N] [--image-size N]
           [--threads N] [--only CALIBRATOR]... [--quality] [MODEL...]

MODEL is resnet50 (its structure with random weights) or digits_vit; both if none is named. Every
row is a process of its own; a process of plain inference on the same samples runs before each, and
ratios are to that one. Time is from loading a session to the ranges, for plain inference to the
last output. CPU is the processor time of all threads, which other work on the machine disturbs
less. Memory is the peak resident set beyond that of plain inference.

onnxruntime's calibrators use all processors. Its entropy and percentile calibrators keep all
values of all samples in memory, so they get `--kept-samples` samples; their memory for `--samples`
is that much more.

With `--quality` it prints the SQNR of the quantized models' outputs on held-out samples instead,
for every calibrator, on the models of `benchmarks/cases.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod
from onnxruntime.quantization.calibrate import create_calibrator
from structures import resnet50

from onnxq.data import Dataset, read
from onnxq.ir import infer_types
from onnxq.observe import CALIBRATORS, calibrate
from onnxq.passes.static.placement import place
from onnxq.rewriting import rewrite
from onnxq.runtime import Session
from onnxq.targets import load_target

ROOT = Path(__file__).resolve().parent.parent
BATCH = 8
METHODS = {
    **{f"onnxq {name}": "all" for name in CALIBRATORS},
    "onnxruntime MinMax": "all",
    "onnxruntime Percentile": "kept",
    "onnxruntime Entropy": "kept",
}


def main() -> None:
    """Measure, or be one of the processes that are measured."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="resnet50, digits_vit")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--kept-samples", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", action="append", choices=METHODS, help="repeatable")
    parser.add_argument("--quality", action="store_true", help="print SQNR, not time and memory")
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.child:
        method, model, data, threads = parsed.child
        print(json.dumps(_measured(method, Path(model), Path(data), int(threads))))
    elif parsed.quality:
        _print_quality(parsed.models)
    else:
        for name in parsed.models or ("resnet50", "digits_vit"):
            _print_costs(name, parsed)


def _print_costs(name: str, parsed: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.onnx"
        if name == "resnet50":
            onnx.save(resnet50(image_size=parsed.image_size, batch="N"), model)
        else:
            model.write_bytes((ROOT / "models" / f"{name}.onnx").read_bytes())
        print(f"\n{name}, threads {parsed.threads}\n")
        print("| calibrator | samples | time | CPU | memory |\n|---|---|---|---|---|")
        for method in parsed.only or METHODS:
            kind = METHODS[method]
            samples = parsed.samples if kind == "all" else min(parsed.kept_samples, parsed.samples)
            data = Path(folder) / "data.npz"
            np.savez(data, **_samples(name, samples, parsed.image_size))
            plain, found = (_child(m, model, data, parsed.threads) for m in ("plain", method))
            print(
                f"| {method} | {samples} | {found['seconds'] / plain['seconds']:.2f}x "
                f"({found['seconds']:.2f} s) | {found['cpu'] / plain['cpu']:.2f}x "
                f"({found['cpu']:.2f} s) "
                f"| {(found['peak'] - plain['peak']) / 1e6:,.0f} MB |",
                flush=True,
            )


def _samples(name: str, count: int, image_size: int) -> dict[str, np.ndarray]:
    if name == "resnet50":
        shape = (count, 3, image_size, image_size)
        return {"image": np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    with np.load(ROOT / "models" / "digits.npz") as file:
        return {"image": np.resize(file["image"], (count, *file["image"].shape[1:]))}


def _child(method: str, model: Path, data: Path, threads: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", method, str(model), str(data), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{method}: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measured(method: str, model: Path, data: Path, threads: int) -> dict[str, float]:
    dataset = read(str(data), Session(model).inputs, batch_size=BATCH)
    run = _method(method, model, dataset, threads)
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return {
        "seconds": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _method(method: str, model: Path, data: Dataset, threads: int) -> Callable[[], object]:
    tool, _, name = method.partition(" ")
    if tool == "plain":
        return lambda: _infer(model, data, threads)
    if tool == "onnxq":
        target = load_target("auto")
        graph = rewrite(model).graph
        infer_types(graph)
        names = place(graph, target).observed()
        return lambda: calibrate(
            graph, data, names, calibrator=name, histograms=True, threads=threads
        )
    return lambda: _onnxruntime(name, model, data)


def _infer(model: Path, data: Dataset, threads: int) -> None:
    session = Session(model, threads=threads)
    for batch in data.batches():
        session.run(batch.feeds)


def _onnxruntime(name: str, model: Path, data: Dataset) -> None:
    with tempfile.TemporaryDirectory() as folder:
        calibrator = create_calibrator(
            str(model),
            ["Conv", "Relu", "Add", "MatMul", "Gemm", "MaxPool", "GlobalAveragePool", "Flatten"],
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod[name],
        )
        calibrator.collect_data(_Reader(data))
        calibrator.compute_data()


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, data: Dataset) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = (b.feeds for b in data.batches())

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _print_quality(names: list[str]) -> None:
    from cases import trained_cases

    import onnxq

    print(f"| model | {' | '.join(CALIBRATORS)} |\n|{'---|' * (len(CALIBRATORS) + 1)}")
    for case in trained_cases():
        if names and case.name not in names:
            continue
        data: object = case.data if isinstance(case.data, dict) else str(case.data)
        found = []
        for name in CALIBRATORS:
            result = onnxq.optimize(
                case.model,
                data,
                eval_data=case.eval_data,
                recipe="int8",
                calibrator=name,
                min_speedup=0,
            )
            metric = result.report.metric
            assert metric is not None
            found.append(f"{result.report.sqnr_db:.1f} dB, {metric.candidate:.4f}")
        print(f"| {case.name} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()

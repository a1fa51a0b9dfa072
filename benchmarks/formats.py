"""Print what every number format, calibrator and mode gains and costs on trained models.

Usage: python benchmarks/formats.py [--threads N] [--seconds S] [MODEL...]

The models are those in models/ and, where ONNXQ_CORPUS names a folder that has it, a CIFAR-10
model; names after the options choose among them. Each method quantizes all it can of a model,
whatever that costs; nothing is searched for. Metric and SQNR are of the held-out samples, at most
1,000. All variants of a model are timed in turn with the float model, in one process, on single
samples.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cases import Case, trained_cases
from heading import heading

from onnxq.data import Batch, Dataset
from onnxq.errors import InputError
from onnxq.ir import save
from onnxq.job import open_job
from onnxq.options import Options
from onnxq.prepare import observed, prepare
from onnxq.recipe import Recipe
from onnxq.runtime import Session, integer_operators, interleaved
from onnxq.study import apply_to, uniform_plan
from onnxq.verify import CompareOptions, Report, compare_files
from onnxq.verify.workload import Workload, single_feed

HELD_OUT = 1000
ABSMAX = ", scheme=absmax"


@dataclass(frozen=True)
class Method:
    """One way to quantize: a precision in text form, and calibrator, target and tuner with it."""

    name: str
    precision: str
    calibrator: str = "minmax"
    target: str = "cpu-x64"
    tuner: str = "none"


def _static(name: str, precision: str = "int8", **options: str) -> Method:
    return Method(f"static {name}", precision, **options)


def _weights(name: str, precision: str, block: int, more: str = "", **options: str) -> Method:
    size = f"block {block}" if block else "channel"
    return Method(f"{name}, {size}", f"{precision}{{block_size={block}{more}}}", **options)


METHODS = (
    _static("zero-point, minmax"),
    _static("zero-point, moving-average", calibrator="moving-average"),
    _static("zero-point, percentile 99.99", calibrator="percentile"),
    _static("zero-point, percentile 99.9", calibrator="percentile{percentile=99.9}"),
    _static("zero-point, entropy", calibrator="entropy"),
    _static("zero-point, mse", calibrator="mse"),
    _static("zero-point, auto", calibrator="auto"),
    _static("absmax (target generic)", target="generic"),
    _static("7-bit weights (target cpu-x64-avx2)", target="cpu-x64-avx2"),
    _static("16-bit activations (target qnn-a16)", "int16-act", target="qnn-a16"),
    Method("dynamic", "int8-dynamic"),
    _weights("int8 weights", "int8-weight", 0),
    *(_weights("int8 weights", "int8-weight", block) for block in (32, 64, 128)),
    *(_weights("int4 weights", "int4-weight", block, ABSMAX) for block in (32, 64, 128)),
    _weights("int4 weights, mse", "int4-weight", 32, ABSMAX, tuner="mse"),
    _weights("int4 weights, zero-point", "int4-weight", 32),
    _weights("int3 weights", "int3-weight", 32),
    *(_weights("int2 weights", "int2-weight", block) for block in (32, 64, 128)),
    _weights("int2 weights, mse", "int2-weight", 32, tuner="mse"),
    _weights("Q8_0", "q8_0", 32),
    _weights("Q4_0", "q4_0", 32),
    _weights("ternary", "ternary", 32),
    _weights("ternary", "ternary", 128),
    _weights("binary", "binary", 32),
    _weights("binary", "binary", 128),
    Method("float16", "float16"),
    Method("bfloat16", "bfloat16"),
)


@dataclass
class Row:
    """What came of a method."""

    method: str
    report: Report | None
    integers: int = 0
    speedup: float | None = None
    problem: str = ""


class _Bench:
    """All methods on one model."""

    def __init__(self, case: Case, folder: Path) -> None:
        self._case = case
        self._folder = folder
        held_out = case.parts()[1]
        self._held_out: Dataset = held_out.take(HELD_OUT)
        self._one: Batch = single_feed(held_out, Session(case.model).inputs)

    def rows(self, threads: int, seconds: float) -> list[Row]:
        """Make and verify every variant, then time them all in turn."""
        found, sessions = [], [Session(self._case.model, threads=threads)]
        timed = []
        for number, method in enumerate(METHODS):
            path = self._folder / f"{self._case.name}-{number}.onnx"
            try:
                self._make(method, path)
                row = Row(method.name, self._verify(path, threads))
                row.integers = sum(integer_operators(path).values())
                sessions.append(Session(path, threads=threads))
                timed.append(row)
            except InputError as error:
                problem = str(error).replace(str(path), "it")
                row = Row(method.name, None, problem=problem)
                print(f"{self._case.name}, {method.name}: {problem}", file=sys.stderr)
            found.append(row)
        timings = interleaved(sessions, self._one.feeds, seconds=seconds)
        for row, timing in zip(timed, timings[1:], strict=True):
            row.speedup = timing.speedup
        return found

    def _make(self, method: Method, path: Path) -> None:
        options = Options(
            recipe=Recipe(precision=method.precision),
            target=method.target,
            calibrator=method.calibrator,
            methods=(method.tuner,),
        )
        case = self._case
        with open_job(case.model, case.data, options, eval_data=case.eval_data) as job:
            prepared = observed(prepare(job))
            plan = uniform_plan(prepared, method.precision)
            save(apply_to(prepared, plan, job.context)[0], path)

    def _verify(self, path: Path, threads: int) -> Report:
        options = CompareOptions(threads=threads, layers=False, latency=False)
        return compare_files(self._case.model, path, self._held_out, Workload(self._one), options)


def _table(case: Case, rows: list[Row]) -> Iterator[str]:
    known = next(row.report for row in rows if row.report is not None)
    metric = known.metric
    assert metric is not None
    yield f"## {case.name}"
    yield ""
    yield f"{metric.name} of the float model: {metric.float:.4f} ({metric.samples} samples)"
    yield ""
    yield "| method | metric | drop | SQNR | size | speed | integer operators |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        report = row.report
        if report is None or report.metric is None:
            yield f"| {row.method} | {row.problem} | | | | | |"
            continue
        speed = "none" if row.speedup is None else f"{row.speedup:.2f}x"
        yield (
            f"| {row.method} | {report.metric.candidate:.4f} | {report.metric.drop:+.4f} "
            f"| {report.sqnr_db:.1f} dB | 1/{report.size.ratio:.2f} | {speed} "
            f"| {row.integers} |"
        )
    yield ""


def main() -> None:
    """Measure every model and print tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="names (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="threads inside one operator")
    parser.add_argument("--seconds", type=float, default=20, help="to time the variants of a model")
    given = parser.parse_args()
    started = time.perf_counter()
    title = "Number formats, calibrators and modes, method by method"
    print(heading(title, " ".join(["formats.py", *sys.argv[1:]]), given.threads))
    print("Speed and size are relative to the float model; speed is of single samples.")
    print()
    with tempfile.TemporaryDirectory() as name:
        for case in trained_cases():
            if given.models and case.name not in given.models:
                continue
            rows = _Bench(case, Path(name)).rows(given.threads, given.seconds)
            print("\n".join(_table(case, rows)), flush=True)
    print(f"{time.perf_counter() - started:.0f} seconds in all.")


if __name__ == "__main__":
    main()

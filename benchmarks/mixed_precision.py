"""Print how fast onnxq's choice of precisions is beside uniform integers and onnxruntime's own.

Usage: python benchmarks/mixed_precision.py [MODEL ...] [--threads N] [--seconds S]

MODEL is the beginning of a case's name; without one all are measured: the trained models, and
well-known structures with random weights. All models of a case are measured in turn in one process;
speeds are relative to the float model, SQNR is that of the outputs on held-out samples. onnxruntime
quantizes after its pre-processing, weights per channel, on the same calibration samples. The last
column is onnxq's speed over the best of onnxruntime's two and float.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

from cases import Case, onnxruntime_dynamic, onnxruntime_static, structure_cases, trained_cases

import onnxq
from onnxq.runtime import ErrorAccumulator, Session, interleaved
from onnxq.verify.workload import single_feed

COLUMNS = ("onnxq", "onnxq int8", "onnxruntime static", "onnxruntime dynamic")


def main() -> None:
    """Measure every case and print a table in Markdown, with the geometric mean at the end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help="beginning of a case's name")
    parser.add_argument("--threads", type=int, default=1, help="threads inside one operator")
    parser.add_argument("--seconds", type=float, default=10.0, help="time to measure each case")
    parsed = parser.parse_args()
    print(f"| model | float ms | {' | '.join(COLUMNS)} | advantage |")
    print("|---|---|---|---|---|---|---|")
    advantages = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for case in [*trained_cases(), *structure_cases(folder)]:
            if case.name.startswith(tuple(parsed.models) or ""):
                row, advantage = _row(case, folder, parsed.threads, parsed.seconds)
                advantages.append(advantage)
                print(row, flush=True)
    mean = math.exp(sum(map(math.log, advantages)) / len(advantages))
    print(f"\nGeometric mean of the advantage: {mean:.2f}")


def _row(case: Case, folder: Path, threads: int, seconds: float) -> tuple[str, float]:
    paths = [folder / f"{case.name}.{number}.onnx" for number in range(len(COLUMNS))]
    for path, recipe in zip(paths, ("mixed", "int8"), strict=False):
        onnxq.optimize(
            case.model,
            case.data,
            output=path,
            recipe=recipe,
            eval_data=case.eval_data,
            threads=threads,
            keep_failed=True,
        )
    onnxruntime_static(case, paths[2])
    onnxruntime_dynamic(case, paths[3])
    sessions = [Session(path, threads=threads) for path in (case.model, *paths)]
    held_out = case.parts()[1]
    one = single_feed(held_out, sessions[0].inputs)
    timings = interleaved(sessions, one.feeds, seconds=seconds)
    errors = [ErrorAccumulator() for _ in paths]
    for batch in held_out.take(min(256, len(held_out))).batches():
        outputs = [batch.trim(session.run(batch.feeds)) for session in sessions]
        for accumulator, candidate in zip(errors, outputs[1:], strict=True):
            accumulator.add(outputs[0], candidate)
    cells = [
        f"{timing.speedup:.2f}x, {min(e.sqnr_db for e in error.result()):.1f} dB"
        for timing, error in zip(timings[1:], errors, strict=True)
    ]
    advantage = timings[1].speedup / max(1.0, timings[3].speedup, timings[4].speedup)
    row = f"| {case.name} | {timings[0].p10_ms:.2f} | {' | '.join(cells)} | {advantage:.2f} |"
    return row, advantage


if __name__ == "__main__":
    main()

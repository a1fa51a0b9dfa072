"""``onnxq bench``."""

from __future__ import annotations

import argparse
import dataclasses

from onnxq.benchmark import BenchRow, bench
from onnxq.cli.terminal import Outcome, table
from onnxq.progress import Progress
from onnxq.report import words

HELP = "measure the latency of several models in turn, as ratios to the first"

EXAMPLES = """examples:
  onnxq bench model.onnx model.int8.onnx
  onnxq bench model.onnx model.int8.onnx --data samples.npz --batch-size 8 --threads 2
"""

NEEDS = "models"
TAKES = "--data --seconds --provider --threads --batch-size"
CHANGES = {"--data": {"help": "samples to feed (default: random inputs)"}}

_UNSTEADY = (
    "The machine was busy: trust the speedups, which are of runs in turn, more than the times."
)


def run(parsed: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    batch_size = parsed.batch_size or 1
    rows = bench(
        parsed.models,
        data=parsed.data,
        providers=parsed.provider or ("cpu",),
        threads=parsed.threads,
        seconds=parsed.seconds,
        batch_size=batch_size,
        progress=progress,
    )
    body = {
        "schema": "onnxq/bench/1",
        "threads": parsed.threads,
        "batch_size": batch_size,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    cells = (
        (
            row.model,
            row.provider,
            words.milliseconds(row.median_ms),
            f"{words.significant(row.p10_ms)} to {words.milliseconds(row.p90_ms)}",
            f"{words.ratio(row.speedup)}x",
            words.size(row.bytes),
        )
        for row in rows
    )
    headings = ("model", "provider", "median", "10 % to 90 %", "speedup", "size")
    shown = table(cells, headings, align="<>>>>", fold=True)
    return Outcome(body, shown, _UNSTEADY if _is_unsteady(rows) else "")


def _is_unsteady(rows: list[BenchRow]) -> bool:
    first = {row.provider: row for row in reversed(rows)}
    return any(
        words.is_unsteady(first[row.provider].median_ms, row.median_ms, row.speedup) for row in rows
    )

"""``onnxq bench``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from onnxq.benchmark import NATIVE, BenchRow, bench
from onnxq.cli.parsed import providers
from onnxq.cli.terminal import EXIT_GATE, OneLine, Outcome, table
from onnxq.errors import InputError
from onnxq.progress import Progress
from onnxq.report import words
from onnxq.report.words import printable

HELP = "measure the latency of several models in turn, as ratios to the first"

EXAMPLES = """examples:
  onnxq bench model.onnx model.int8.onnx
  onnxq bench model.onnx model.int8.onnx --data samples.npz --batch-size 8 --threads 2
  onnxq bench model.onnx model.int8.onnx --web
"""

NEEDS = "models"
TAKES = "--data --web --seconds --provider --provider-option --threads --batch-size"
CHANGES = {"--data": {"help": "samples to feed (default: random inputs)"}}

SAME_DB = 30.0
"""SQNR from which outputs in a browser count as those of the CPU provider."""

_UNSTEADY = (
    "The machine was busy: trust the speedups, which are of runs in turn, more than the times."
)


def run(parsed: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    if parsed.web and (parsed.provider or parsed.provider_options):
        raise InputError(
            "--web is on the provider wasm, which takes no options; leave --provider and "
            "--provider-option out"
        )
    rows = bench(
        parsed.models,
        data=parsed.data,
        providers=("wasm",) if parsed.web else providers(parsed),
        backend="onnxruntime-web" if parsed.web else NATIVE,
        threads=parsed.threads,
        seconds=parsed.seconds,
        batch_size=parsed.batch_size or 1,
        progress=progress,
    )
    body = {
        "schema": "onnxq/bench/1",
        "threads": parsed.threads,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    first = {row.provider: row for row in reversed(rows)}
    names = frozenset(printable(Path(row.model).name) for row in rows)
    are_told_apart = len(names) == len({row.model for row in rows})
    headings = ["model", "median", "10 % to 90 %", "speedup", "95 % interval", "size"]
    if parsed.web:
        headings.append("SQNR to cpu")
    else:
        headings.insert(1, "provider")
    cells = [
        (
            OneLine(printable(Path(row.model).name), names) if are_told_apart else row.model,
            *(() if parsed.web else (row.provider,)),
            words.milliseconds(row.median_ms),
            f"{words.significant(row.p10_ms)} to {words.milliseconds(row.p90_ms)}",
            f"{words.ratio(row.speedup)}x",
            ""
            if row is first[row.provider]
            else f"{words.ratio(row.low)} to {words.ratio(row.high)}",
            words.size(row.bytes),
            *(() if row.sqnr_db is None else (words.decibels(row.sqnr_db),)),
        )
        for row in rows
    ]
    align = ">" * (len(headings) - 1) if parsed.web else "<>>>>>"
    shown = table(cells, headings, align=align, fold=True)
    if differing := [row.model for row in rows if not _agrees(row)]:
        ending = (
            f"In the browser '{differing[0]}' computes something else than on the CPU: less than "
            f"{SAME_DB:.0f} dB."
        )
        return Outcome(body, shown, ending, EXIT_GATE)
    return Outcome(body, shown, _UNSTEADY if _is_unsteady(rows) else "")


def _agrees(row: BenchRow) -> bool:
    return row.sqnr_db is None or row.sqnr_db >= SAME_DB


def _is_unsteady(rows: list[BenchRow]) -> bool:
    first = {row.provider: row for row in reversed(rows)}
    return any(
        words.is_unsteady(first[row.provider].median_ms, row.median_ms, row.speedup) for row in rows
    )

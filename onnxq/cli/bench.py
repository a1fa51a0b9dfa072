"""``onnxq bench``."""

from __future__ import annotations

import argparse
import dataclasses

from rich.table import Table
from rich.text import Text

from onnxq.bench import BenchRow, bench
from onnxq.cli import options
from onnxq.cli.terminal import progress, show, write_json
from onnxq.report import words
from onnxq.report.text import grid

HELP = "measure the latency of several models in turn, as ratios to the first"

EXAMPLES = """examples:
  onnxq bench model.onnx model.int8.onnx
  onnxq bench model.onnx model.int8.onnx --data samples.npz --batch-size 8 --threads 2
"""


_UNSTEADY = (
    "The machine was busy: trust the speedups, which are of runs in turn, more than the times."
)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "models", type=options.named, metavar="MODEL", nargs="+", help="models; the first is 1.00"
    )
    parser.add_argument(
        "--data",
        type=options.named,
        metavar="DATA",
        help="samples to feed (default: random inputs)",
    )
    parser.add_argument(
        "--seconds",
        type=options.seconds,
        default=3.0,
        metavar="S",
        help="time to spend on each provider (default 3)",
    )
    options.add_providers(parser)
    options.add_measuring(parser)
    options.add_common(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command; gives the exit code."""
    options.check_files(parsed)
    with progress(parsed) as stages:
        rows = bench(
            parsed.models,
            data=parsed.data,
            providers=parsed.provider or ("cpu",),
            threads=parsed.threads,
            seconds=parsed.seconds,
            batch_size=parsed.batch_size or 1,
            progress=stages,
        )
    write_json(
        parsed,
        {
            "schema": "onnxq/bench/1",
            "threads": parsed.threads,
            "batch_size": parsed.batch_size or 1,
            "rows": [dataclasses.asdict(row) for row in rows],
        },
    )
    show(parsed, _table(rows), _UNSTEADY if _is_unsteady(rows) else "")
    return options.EXIT_OK


def _is_unsteady(rows: list[BenchRow]) -> bool:
    first = {row.provider: row for row in reversed(rows)}
    return any(
        words.is_unsteady(first[row.provider].median_ms, row.median_ms, row.speedup) for row in rows
    )


def _table(rows: list[BenchRow]) -> Table:
    table = grid(fold=True)
    headings = ("provider", "median", "10 % to 90 %", "speedup", "size")
    table.add_column(no_wrap=True)
    for _ in headings[1:]:
        table.add_column(justify="right", no_wrap=True)
    table.add_row("model", *(Text(h, "bold") for h in headings))
    for row in rows:
        table.add_row(
            Text(words.printable(row.model)),
            row.provider,
            words.milliseconds(row.median_ms),
            f"{words.significant(row.p10_ms)} to {words.milliseconds(row.p90_ms)}",
            f"{words.ratio(row.speedup)}x",
            words.size(row.bytes),
        )
    return table

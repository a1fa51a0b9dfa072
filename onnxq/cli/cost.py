"""``onnxq cost``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table
from rich.text import Text

from onnxq.cli import options, settings
from onnxq.cli.terminal import progress, show, write_json
from onnxq.cost import Costs
from onnxq.ir.save import check_writable
from onnxq.planning import find_costs
from onnxq.report import words
from onnxq.report.text import grid

HELP = "find what every node costs in every precision, and every border, for `onnxq plan`"

EXAMPLES = """examples:
  onnxq cost model.onnx --data samples.npz -o costs.json
  onnxq cost model.onnx --cost size -o sizes.json
"""

_SHOWN = 30


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    settings.add_model(parser)
    settings.add_data(parser, required=False, otherwise="default: made up")
    parser.add_argument(
        "-o", "--output", type=options.named, required=True, metavar="OUT", help="file to write"
    )
    parser.add_argument(
        "--cost",
        choices=("latency", "size", "flops"),
        default="latency",
        help="latency is measured here, the others are computed (default latency)",
    )
    settings.add_settings(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command; gives the exit code."""
    options.check_files(parsed)
    check_writable(Path(parsed.output))
    with progress(parsed) as stages:
        found = find_costs(
            parsed.model,
            parsed.data,
            settings.given(parsed),
            progress=stages,
        )
    found.save(parsed.output)
    write_json(parsed, {**found.to_dict(), "model": parsed.model, "output": parsed.output})
    show(parsed, _table(found), f"Wrote {parsed.output}.")
    return options.EXIT_OK


def _table(found: Costs) -> Table:
    precisions = list(dict.fromkeys(p for costs in found.nodes.values() for p in costs))
    table = grid(fold=True)
    for _ in precisions:
        table.add_column(justify="right", no_wrap=True)
    table.add_row(Text("node"), *(Text(p, "bold") for p in precisions))
    ordered = sorted(found.nodes.items(), key=lambda item: -max(item[1].values(), default=0.0))
    for name, costs in ordered[:_SHOWN]:
        cells = (words.cost(found.kind, costs[p]) if p in costs else "" for p in precisions)
        table.add_row(Text(words.printable(name)), *(Text(cell) for cell in cells))
    hidden = ordered[_SHOWN:]
    if hidden:
        rest = (sum(costs.get(p, 0.0) for _, costs in hidden) for p in precisions)
        table.add_row(
            Text(f"{len(hidden)} more"), *(Text(words.cost(found.kind, cost)) for cost in rest)
        )
    totals = (sum(costs.get(p, 0.0) for costs in found.nodes.values()) for p in precisions)
    table.add_row(Text("all"), *(Text(words.cost(found.kind, cost)) for cost in totals))
    return table

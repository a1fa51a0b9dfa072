"""``onnxq apply``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.table import Table
from rich.text import Text

from onnxq.cli import options, settings
from onnxq.cli.terminal import progress, show, write_json
from onnxq.ir.save import check_writable
from onnxq.plan import Plan
from onnxq.planning import apply_plan
from onnxq.report import words
from onnxq.report.text import grid
from onnxq.verify.precision import counts, describe

HELP = "make the model that a plan describes; the same plan gives the same bytes"

EXAMPLES = """examples:
  onnxq optimize model.onnx --data samples.npz -o model.int8.onnx --plan-out plan.toml
  onnxq apply model.onnx plan.toml -o model.int8.onnx

The precision of a node may be edited in the plan, or set by patterns:

  [[pin]]
  nodes = "head*"
  precision = "float32"
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    settings.add_model(parser)
    parser.add_argument("plan", type=options.named, metavar="PLAN", help="the plan, a .toml file")
    parser.add_argument(
        "-o", "--output", type=options.named, required=True, metavar="OUT", help="file to write"
    )
    options.add_common(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command; gives the exit code."""
    options.check_files(parsed)
    check_writable(Path(parsed.output))
    plan = Plan.load(parsed.plan)
    with progress(parsed) as stages:
        graph = apply_plan(
            parsed.model,
            plan,
            output=parsed.output,
            progress=stages,
            debug=options.debug_level(),
        )
    found = dict(counts(describe(graph)))
    by_hand = plan.by_hand()
    write_json(
        parsed,
        {
            "schema": "onnxq/apply/1",
            "model": parsed.model,
            "plan": parsed.plan,
            "output": parsed.output,
            "precisions": found,
            "pinned_by_hand": by_hand,
        },
    )
    show(parsed, _table(found, by_hand), f"Wrote {parsed.output}.")
    return options.EXIT_OK


def _table(found: dict[str, int], by_hand: list[str]) -> Table:
    table = grid()
    table.add_column(overflow="fold")
    table.add_row(Text("precision"), Text(words.listed(found)))
    if by_hand:
        names = ", ".join(words.printable(name) for name in by_hand)
        table.add_row(Text("pinned by hand"), Text(names))
    return table

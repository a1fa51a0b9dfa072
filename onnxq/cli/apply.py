"""``onnxq apply``."""

from __future__ import annotations

import argparse

from onnxq.cli.parsed import debug_level
from onnxq.cli.terminal import Outcome, table
from onnxq.plan import Plan
from onnxq.planning import apply_plan
from onnxq.progress import Progress
from onnxq.report import words
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

NEEDS = "model plan --output"
TAKES = ""
MAKES_MODEL = True


def run(parsed: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    plan = Plan.load(parsed.plan)
    graph = apply_plan(
        parsed.model, plan, output=parsed.output, progress=progress, debug=debug_level()
    )
    found, by_hand = dict(counts(describe(graph))), plan.by_hand()
    rows = [("precision", words.listed(found)), ("pinned by hand", ", ".join(by_hand))]
    body = {
        "schema": "onnxq/apply/1",
        "model": parsed.model,
        "plan": parsed.plan,
        "output": parsed.output,
        "precisions": found,
        "pinned_by_hand": by_hand,
    }
    return Outcome(body, table(rows[: 1 + bool(by_hand)]), f"Wrote '{parsed.output}'.")

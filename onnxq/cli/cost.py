"""``onnxq cost``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping

from rich.table import Table

from onnxq.cli.options import STUDY
from onnxq.cli.parsed import given
from onnxq.cli.terminal import Outcome, table
from onnxq.cost import Costs
from onnxq.planning import find_costs
from onnxq.progress import Progress
from onnxq.report import words

HELP = "find what every node costs in every precision, and every border, for `onnxq plan`"

EXAMPLES = """examples:
  onnxq cost model.onnx --data samples.npz -o costs.json
  onnxq cost model.onnx --cost size -o sizes.json
"""

NEEDS = "model --output"
TAKES = f"--data --cost {STUDY}"
CHANGES = {"--data": {"help": "representative samples, see `onnxq optimize -h` (default: made up)"}}

_SHOWN = 30


def run(parsed: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    found = find_costs(parsed.model, parsed.data, given(parsed), progress=progress)
    found.save(parsed.output)
    body = {**found.to_dict(), "model": parsed.model, "output": parsed.output}
    return Outcome(body, _shown(found), f"Wrote '{parsed.output}'.")


def _shown(found: Costs) -> Table:
    precisions = list(dict.fromkeys(p for costs in found.nodes.values() for p in costs))
    ordered = sorted(found.nodes.items(), key=lambda item: -max(item[1].values(), default=0.0))
    sums = [(f"{len(ordered) - _SHOWN} more", ordered[_SHOWN:]), ("all", ordered)]
    summed = [
        (label, {p: sum(costs.get(p, 0.0) for _, costs in nodes) for p in precisions})
        for label, nodes in sums
        if nodes
    ]

    def cells(costs: Mapping[str, float]) -> list[str]:
        return [words.cost(found.kind, costs[p]) if p in costs else "" for p in precisions]

    rows = ([name, *cells(costs)] for name, costs in [*ordered[:_SHOWN], *summed])
    return table(rows, ["node", *precisions], align=">" * len(precisions), fold=True)

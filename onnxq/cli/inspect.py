"""``onnxq inspect``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from onnxq.cli.terminal import Outcome, table
from onnxq.inspection import Inspection, inspect
from onnxq.progress import Progress
from onnxq.report import words
from onnxq.report.grouping import left_in_float

HELP = "show what a model holds: operators, parameters, precisions, what is in float and why"

EXAMPLES = """examples:
  onnxq inspect model.int8.onnx
  onnxq inspect model.int8.onnx --nodes
"""

NEEDS = "model"
TAKES = "--nodes"
CHANGES = {"model": {"help": "model to look at"}}


def run(parsed: argparse.Namespace, _: Progress) -> Outcome:
    """Run the command."""
    found = inspect(Path(parsed.model))
    parts: list[RenderableType] = [table(_rows(found))]
    if parsed.nodes:
        nodes = ((n.node, n.op_type, n.precision, n.reason) for n in found.nodes)
        parts += [Text(), table(nodes, ("node", "operator", "precision", "why"), fold=True)]
    return Outcome({"schema": "onnxq/inspect/1", **dataclasses.asdict(found)}, Group(*parts))


def _rows(found: Inspection) -> Iterator[tuple[str, ...]]:
    """What stands in the table; a label is written once."""
    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    yield "file", words.size(found.bytes), f"IR version {found.ir_version}, opset {opsets}"
    if found.producer:
        yield "made by", found.producer
    yield from _labelled("inputs", found.inputs.items())
    yield from _labelled("outputs", found.outputs.items())
    yield "operators", f"{sum(found.operators.values()):,}", words.listed(found.operators)
    if found.functions:
        yield "functions", f"{found.functions:,}"
    amounts = (
        (
            f"{f.elements:,} {f.dtype}",
            f"{words.size(f.bytes)} in {words.count(f.tensors, 'tensor')}",
        )
        for f in found.parameters
    )
    yield from _labelled("parameters", amounts)
    precisions = found.precisions.items()
    yield from _labelled("precision", ((p, words.count(n, "operator")) for p, n in precisions))
    groups = left_in_float(found.nodes)
    yield from _labelled(
        "left in float", ((words.listed(g.operators, 4), g.reason) for g in groups)
    )


def _labelled(label: str, cells: Iterable[tuple[str, str]]) -> Iterator[tuple[str, ...]]:
    for place, row in enumerate(cells):
        yield (label if place == 0 else ""), *row

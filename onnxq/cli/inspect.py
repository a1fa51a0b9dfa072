"""``onnxq inspect``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from onnxq.cli import options
from onnxq.cli.terminal import show, write_json
from onnxq.inspection import Inspection, inspect
from onnxq.report import words
from onnxq.report.grouping import left_in_float
from onnxq.report.text import grid

HELP = "show what a model holds: operators, parameters, precisions, what is in float and why"

EXAMPLES = """examples:
  onnxq inspect model.int8.onnx
  onnxq inspect model.int8.onnx --nodes
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("model", type=options.named, metavar="MODEL", help="model to look at")
    parser.add_argument("--nodes", action="store_true", help="list every node")
    options.add_common(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command; gives the exit code."""
    options.check_files(parsed)
    found = inspect(Path(parsed.model))
    write_json(parsed, {"schema": "onnxq/inspect/1", **dataclasses.asdict(found)})
    parts: list[Table | Text] = [_facts(found)]
    if parsed.nodes:
        parts += [Text(), _nodes(found)]
    show(parsed, Group(*parts))
    return options.EXIT_OK


def _facts(found: Inspection) -> Table:
    table = grid()
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for label, *cells in _rows(found):
        table.add_row(Text(label), *(Text(words.printable(cell)) for cell in cells))
    return table


def _rows(found: Inspection) -> Iterator[tuple[str, ...]]:
    opsets = ", ".join(f"{domain} {version}" for domain, version in found.opsets.items())
    yield "file", words.size(found.bytes), f"IR version {found.ir_version}, opset {opsets}"
    if found.producer:
        yield "made by", found.producer
    for label, values in (("inputs", found.inputs), ("outputs", found.outputs)):
        for name, kind in values.items():
            yield label, name, kind
            label = ""
    yield "operators", f"{sum(found.operators.values()):,}", words.listed(found.operators)
    if found.functions:
        yield "functions", f"{found.functions:,}"
    label = "parameters"
    for fact in found.parameters:
        what = f"{words.size(fact.bytes)} in {words.count(fact.tensors, 'tensor')}"
        yield label, f"{fact.elements:,} {fact.dtype}", what
        label = ""
    label = "precision"
    for precision, amount in found.precisions.items():
        yield label, precision, words.count(amount, "operator")
        label = ""
    label = "left in float"
    for group in left_in_float(found.nodes):
        yield label, words.listed(group.operators, 4), group.reason
        label = ""


def _nodes(found: Inspection) -> Table:
    table = grid(fold=True)
    for _ in range(3):
        table.add_column(overflow="fold")
    headings = ("operator", "precision", "why")
    table.add_row("node", *(Text(h, "bold") for h in headings))
    for layer in found.nodes:
        cells = (layer.node, layer.op_type, layer.precision, layer.reason)
        table.add_row(*(Text(words.printable(cell)) for cell in cells))
    return table

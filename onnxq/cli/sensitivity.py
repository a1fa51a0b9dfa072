"""``onnxq sensitivity``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxq.cli.options import STUDY
from onnxq.cli.parsed import given
from onnxq.cli.terminal import Outcome, table
from onnxq.planning import find_sensitivity
from onnxq.progress import Progress
from onnxq.report import words
from onnxq.report.folder import check_folder, write_texts
from onnxq.report.sensitivity import HTML_NAME, to_html
from onnxq.sensitivity import Sensitivity

HELP = "rank the nodes by what quantizing each costs in accuracy"

EXAMPLES = """examples:
  onnxq sensitivity model.onnx --data samples.npz
  onnxq sensitivity model.onnx --data samples.npz --precision int8 --proxy kl -o sensitivity.json
"""

NEEDS = "model --data"
TAKES = f"--output --method --proxy --report {STUDY}"
CHANGES = {
    "--output": {"help": "file to keep the result in"},
    "--report": {"help": f"draw the ranking in {HTML_NAME}"},
}


def run(parsed: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    folder = Path(parsed.report) if parsed.report else None
    if folder:
        check_folder(folder, (HTML_NAME,))
    found = find_sensitivity(parsed.model, parsed.data, given(parsed), progress=progress)
    endings = []
    if parsed.output:
        found.save(parsed.output)
        endings.append(f"Wrote '{parsed.output}'.")
    if folder:
        write_texts(folder, {HTML_NAME: to_html(found, parsed.model)})
        endings.append(f"The report is in '{folder / HTML_NAME}'.")
    body = {**found.to_dict(), "model": parsed.model, "output": parsed.output}
    return Outcome(body, _tables(found), " ".join(endings))


def _tables(found: Sensitivity) -> Group:
    how = f"{found.method}, {words.count(found.samples, 'sample')}"
    if found.method == "suffix":
        how += f", reliability of the ranking {found.reliability:.2f}"
    parts: list[RenderableType] = []
    for precision in found.precisions():
        if ranking := found.ranking(precision):
            parts += [_table(found, precision, ranking), Text()]
    return Group(*parts, Text(how))


def _table(found: Sensitivity, precision: str, ranking: list[tuple[str, float]]) -> Table:
    nodes = {node.node: node for node in found.nodes}
    rows = []
    for name, loss in ranking:
        node = nodes[name]
        parts = (node.part(precision, "weights"), node.part(precision, "activations"), loss)
        rows.append([name, node.op_type, *(words.loss(found.proxy, part) for part in parts)])
    headings = ("node", "operator", "weights only", "activations only", precision)
    return table(rows, headings, align="<>>>", fold=True)

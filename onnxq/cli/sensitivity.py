"""``onnxq sensitivity``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxq.cli import options, settings
from onnxq.cli.terminal import progress, show, write_json
from onnxq.ir.save import check_writable
from onnxq.planning import find_sensitivity
from onnxq.report import words
from onnxq.report.folder import check_folder, write_texts
from onnxq.report.sensitivity import HTML_NAME, to_html
from onnxq.report.text import grid
from onnxq.sensitivity import Sensitivity
from onnxq.sensitivity.loss import PROXIES

HELP = "rank the nodes by what quantizing each costs in accuracy"

EXAMPLES = """examples:
  onnxq sensitivity model.onnx --data samples.npz
  onnxq sensitivity model.onnx --data samples.npz --precision int8 --proxy kl -o sensitivity.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    settings.add_model(parser)
    settings.add_data(parser)
    parser.add_argument(
        "-o", "--output", type=options.named, metavar="OUT", help="file to keep the result in"
    )
    parser.add_argument(
        "--method",
        dest="sensitivity",
        choices=("suffix", "exhaustive"),
        default="suffix",
        help="exhaustive runs the whole model for each node on all samples (default suffix)",
    )
    parser.add_argument(
        "--proxy",
        choices=tuple(PROXIES),
        default="noise",
        help="; ".join(f"{name}: {what}" for name, what in PROXIES.items()) + " (default noise)",
    )
    parser.add_argument(
        "--report",
        type=options.named,
        metavar="FOLDER",
        help=f"draw the ranking in {HTML_NAME}",
    )
    settings.add_settings(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command; gives the exit code."""
    options.check_files(parsed)
    if parsed.output:
        check_writable(Path(parsed.output))
    if parsed.report:
        check_folder(Path(parsed.report), (HTML_NAME,))
    with progress(parsed) as stages:
        found = find_sensitivity(
            parsed.model,
            parsed.data,
            settings.given(parsed),
            progress=stages,
        )
    endings = []
    if parsed.output:
        found.save(parsed.output)
        endings.append(f"Wrote {parsed.output}.")
    if parsed.report:
        write_texts(Path(parsed.report), {HTML_NAME: to_html(found, parsed.model)})
        endings.append(f"The report is in {Path(parsed.report) / HTML_NAME}.")
    write_json(parsed, {**found.to_dict(), "model": parsed.model, "output": parsed.output})
    show(parsed, _tables(found), " ".join(endings))
    return options.EXIT_OK


def _tables(found: Sensitivity) -> RenderableType:
    how = f"{found.method}, {words.count(found.samples, 'sample')}"
    if found.method == "suffix":
        how += f", reliability of the ranking {found.reliability:.2f}"
    parts: list[RenderableType] = []
    for precision in found.precisions():
        ranking = found.ranking(precision)
        if not ranking:
            continue
        parts += [_table(found, precision, ranking), Text()]
    return Group(*parts, Text(how))


def _table(found: Sensitivity, precision: str, ranking: list[tuple[str, float]]) -> Table:
    table = grid(fold=True)
    table.add_column(overflow="fold")
    for _ in range(3):
        table.add_column(justify="right", no_wrap=True)
    headings = ("operator", "weights only", "activations only", precision)
    table.add_row(Text("node"), *(Text(heading, "bold") for heading in headings))
    nodes = {node.node: node for node in found.nodes}
    for name, loss in ranking:
        node = nodes[name]
        parts = (node.part(precision, "weights"), node.part(precision, "activations"))
        table.add_row(
            Text(words.printable(name)),
            Text(words.printable(node.op_type)),
            *(Text(words.loss(found.proxy, part)) for part in (*parts, loss)),
        )
    return table

"""``onnxq rewrite``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from rich.table import Table
from rich.text import Text

from onnxq.cli import options
from onnxq.cli.terminal import show, write_json
from onnxq.errors import InputError
from onnxq.ir import PassRecord, available_passes, parse_passes, save
from onnxq.ir.save import check_writable
from onnxq.report import words
from onnxq.report.text import grid
from onnxq.rewriting import BisectResult, bisect_passes, rewrite

HELP = "rewrite a model with float passes, without quantizing it"

EXAMPLES = """ONNXQ_DEBUG=1 prints each pass, =2 each rewrite, =3 the graph after each pass.

examples:
  onnxq rewrite model.onnx -o model.opt.onnx
  onnxq rewrite model.onnx -p "fold-constants{limit=1024},fuse-batch-norm" -o model.opt.onnx
  onnxq rewrite --list
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "model", type=options.named, metavar="MODEL", nargs="?", help="model to rewrite"
    )
    parser.add_argument("-o", "--output", type=options.named, metavar="OUT", help="file to write")
    parser.add_argument(
        "-p",
        "--passes",
        metavar="PASSES",
        help='passes with options, as "fold-constants{limit=1024},fuse-batch-norm"',
    )
    parser.add_argument("--list", action="store_true", help="list the passes there are")
    parser.add_argument(
        "--bisect-passes",
        action="store_true",
        help="find the first pass that changes the outputs on random inputs; writes nothing",
    )
    parser.add_argument(
        "--external-data", action="store_true", help="keep large tensors in OUT.data"
    )
    options.add_common(parser)


def run(parsed: argparse.Namespace) -> int:
    """Run the command; gives the exit code."""
    options.check_files(parsed)
    if parsed.list:
        return _list(parsed)
    if parsed.model is None:
        raise InputError("name the MODEL to rewrite, or --list the passes")
    if parsed.bisect_passes:
        return _bisect(parsed)
    if parsed.output is None:
        raise InputError("name the file to write with -o OUT")
    output = Path(parsed.output)
    check_writable(output)
    passes = None if parsed.passes is None else parse_passes(parsed.passes)
    for step in passes or ():
        if step.numerics == "approximates":
            raise InputError(
                f"the pass '{step.name}' approximates, so it runs only under the promise of "
                "`onnxq optimize`"
            )
    result = rewrite(parsed.model, passes, debug=options.debug_level())
    save(result.graph, output, external_data=parsed.external_data)
    write_json(
        parsed,
        {
            "schema": "onnxq/rewrite/1",
            "model": str(parsed.model),
            "output": str(output),
            "passes": [dataclasses.asdict(record) for record in result.records],
        },
    )
    show(parsed, _table(result.records), f"Wrote {output}.")
    return options.EXIT_OK


def _table(records: tuple[PassRecord, ...]) -> Table:
    table = grid()
    for _ in range(3):
        table.add_column(justify="right")
    table.add_row("pass", Text("rewrites", "bold"), Text("time", "bold"), Text("nodes", "bold"))
    for r in records:
        nodes = f"{r.nodes_before:,} -> {r.nodes_after:,}"
        table.add_row(Text(r.name), f"{r.rewrites:,}", words.duration(r.seconds), nodes)
    return table


def _list(parsed: argparse.Namespace) -> int:
    table = grid()
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_row("pass", Text("default", "bold"), Text("what it does", "bold"))
    body = []
    for name, kind in available_passes().items():
        what = (kind.__doc__ or "").strip().split("\n", 1)[0].replace("`", "")
        table.add_row(Text(name), "yes" if kind.default else "", Text(what))
        body.append(
            {
                "name": name,
                "default": kind.default,
                "numerics": kind.numerics,
                "what": what,
                "options": [f.name for f in dataclasses.fields(kind)],  # type: ignore[arg-type]
            }
        )
    write_json(parsed, {"schema": "onnxq/passes/1", "passes": body})
    show(parsed, table)
    return options.EXIT_OK


def _bisect(parsed: argparse.Namespace) -> int:
    result = bisect_passes(parsed.model, parsed.passes)
    write_json(parsed, {"schema": "onnxq/bisect/1", **dataclasses.asdict(result)})
    ending = (
        "No pass changes the outputs."
        if result.first_bad is None
        else f"The first pass that changes the outputs is {result.first_bad}."
    )
    show(parsed, _bisect_table(result), ending)
    return options.EXIT_OK if result.first_bad is None else options.EXIT_GATE


def _bisect_table(result: BisectResult) -> Table:
    table = grid()
    table.add_column()
    table.add_row("after pass", Text("largest relative difference", "bold"))
    for checked in result.checked:
        found = words.printable(checked.error) or f"{checked.difference:.2g}"
        table.add_row(Text(checked.name), Text(found))
    return table

"""``onnxq gguf``."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from rich.table import Table
from rich.text import Text

from onnxq.cli import options
from onnxq.cli.terminal import show, write_json
from onnxq.errors import InputError
from onnxq.gguf import TYPES, export_gguf, import_gguf
from onnxq.ir import save
from onnxq.ir.save import check_writable
from onnxq.report.text import grid

HELP = "write a model's weights as a GGUF file, or put a GGUF file's tensors into a model"

EXAMPLES = """both actions take -o OUT, --json PATH and -q or --quiet, export takes --type TYPE and
import --external-data, and `onnxq gguf ACTION -h` explains them

examples:
  onnxq gguf export model.onnx -o weights.gguf --type q4_0
  onnxq gguf import model.onnx weights.gguf -o model.q4_0.onnx
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
    export = actions.add_parser("export", help="write the float weights as a GGUF file")
    export.add_argument("model", type=options.named, metavar="MODEL", help="model to read")
    export.add_argument(
        "--type", choices=TYPES, default="q8_0", help="type of the weights (default q8_0)"
    )
    bring = actions.add_parser("import", help="put the tensors of a GGUF file into a model")
    bring.add_argument("model", type=options.named, metavar="MODEL", help="model to fill")
    bring.add_argument("weights", type=options.named, metavar="GGUF", help="file with the tensors")
    for action, what in ((export, "GGUF file"), (bring, "model")):
        action.add_argument(
            "-o",
            "--output",
            type=options.named,
            metavar="OUT",
            required=True,
            help=f"{what} to write",
        )
        options.add_common(action)
    bring.add_argument(
        "--external-data", action="store_true", help="keep large tensors in OUT.data"
    )


def run(parsed: argparse.Namespace) -> int:
    """Run the command; gives the exit code."""
    options.check_files(parsed)
    output = Path(parsed.output)
    read = [parsed.model] if parsed.action == "export" else [parsed.weights]
    if output.resolve() in {Path(name).resolve() for name in read}:
        raise InputError(f"-o would replace '{output}', which is read; name another file")
    check_writable(output)
    return _export(parsed, output) if parsed.action == "export" else _import(parsed, output)


def _export(parsed: argparse.Namespace, output: Path) -> int:
    tensors = export_gguf(parsed.model, output, parsed.type)
    write_json(
        parsed,
        {
            "schema": "onnxq/gguf-export/1",
            "model": str(parsed.model),
            "output": str(output),
            "tensors": [dataclasses.asdict(tensor) for tensor in tensors],
        },
    )
    table = _table("weight", "type", "why not another")
    for tensor in tensors:
        table.add_row(Text(tensor.name), tensor.type or "left out", Text(tensor.reason))
    show(parsed, table, f"Wrote {output}.")
    return options.EXIT_OK


def _import(parsed: argparse.Namespace, output: Path) -> int:
    graph, tensors = import_gguf(parsed.model, parsed.weights)
    save(graph, output, external_data=parsed.external_data)
    write_json(
        parsed,
        {
            "schema": "onnxq/gguf-import/1",
            "model": str(parsed.model),
            "weights": str(parsed.weights),
            "output": str(output),
            "tensors": [dataclasses.asdict(tensor) for tensor in tensors],
        },
    )
    table = _table("tensor", "in the file", "in the model")
    for tensor in tensors:
        table.add_row(Text(tensor.name), tensor.type, tensor.form)
    show(parsed, table, f"Wrote {output}.")
    return options.EXIT_OK


def _table(*titles: str) -> Table:
    table = grid()
    for _ in titles[1:]:
        table.add_column()
    table.add_row(titles[0], *(Text(title, "bold") for title in titles[1:]))
    return table

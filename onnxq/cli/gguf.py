"""``onnxq gguf``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from onnxq.cli.terminal import Outcome, table
from onnxq.errors import InputError
from onnxq.gguf import ExportedTensor, ImportedTensor, export_gguf, import_gguf
from onnxq.ir import save
from onnxq.progress import Progress

HELP = "write a model's weights as a GGUF file, or put a GGUF file's tensors into a model"

EXAMPLES = """export takes --type; import takes the GGUF file and --external-data

examples:
  onnxq gguf export model.onnx -o weights.gguf --type q4_0
  onnxq gguf import model.onnx weights.gguf -o model.q4_0.onnx
"""

NEEDS = "action model --output"
TAKES = "weights --type --external-data"
CHANGES = {
    "model": {"help": "model to read, or to fill"},
    "--output": {"help": "GGUF file or model to write"},
}
MAKES_MODEL = True


def run(parsed: argparse.Namespace, _: Progress) -> Outcome:
    """Run the command."""
    is_export = parsed.action == "export"
    if is_export and (parsed.weights or parsed.external_data):
        raise InputError("export takes no GGUF file to read and no --external-data; leave them out")
    if not is_export and not parsed.weights:
        raise InputError("import needs the GGUF file whose tensors it takes; name it after MODEL")
    if not is_export and parsed.type:
        raise InputError("import keeps the types of the GGUF file; leave --type out")
    tensors: Sequence[ExportedTensor | ImportedTensor]
    headings: tuple[str, ...]
    rows: list[tuple[str, ...]]
    if is_export:
        if Path(parsed.output).resolve() == Path(parsed.model).resolve():
            raise InputError(f"-o would replace '{parsed.model}', which is read; name another file")
        headings = ("weight", "type", "why not another")
        tensors = exported = export_gguf(parsed.model, parsed.output, parsed.type or "q8_0")
        rows = [(t.name, t.type or "left out", t.reason) for t in exported]
    else:
        headings = ("tensor", "in the file", "in the model", "why in float")
        graph, imported = import_gguf(parsed.model, parsed.weights)
        tensors, rows = imported, [(t.name, t.type, t.form, t.reason) for t in imported]
        save(graph, parsed.output, external_data=parsed.external_data)
    body = {
        "schema": f"onnxq/gguf-{parsed.action}/1",
        "model": parsed.model,
        **({} if is_export else {"weights": parsed.weights}),
        "output": parsed.output,
        "tensors": [dataclasses.asdict(tensor) for tensor in tensors],
    }
    return Outcome(body, table(rows, headings), f"Wrote '{parsed.output}'.")

"""``onnxq rewrite``."""

from __future__ import annotations

import argparse
import dataclasses

from onnxq.cli.parsed import debug_level
from onnxq.cli.terminal import EXIT_GATE, EXIT_OK, Outcome, table
from onnxq.errors import InputError
from onnxq.ir import available_passes, save
from onnxq.plan.apply import float_passes
from onnxq.progress import Progress
from onnxq.report import words
from onnxq.rewriting import bisect_passes, rewrite

HELP = "rewrite a model with float passes, without quantizing it"

EXAMPLES = """ONNXQ_DEBUG=1 prints each pass, =2 each rewrite, =3 the graph after each pass.

examples:
  onnxq rewrite model.onnx -o model.opt.onnx
  onnxq rewrite model.onnx -p "fold-constants{limit=1024},fuse-batch-norm" -o model.opt.onnx
  onnxq rewrite model.onnx -p default,fuse-attention --opset 23 -o model.opt.onnx
  onnxq rewrite --list
"""

NEEDS = ""
TAKES = "model --output --passes --opset --list --bisect-passes --external-data --keep-overridable"
CHANGES = {
    "model": {"help": "model to rewrite"},
    "--opset": {
        "help": "raise the model to at least this opset (default: the lowest at which it is "
        "measured to be the fastest here)"
    },
}
MAKES_MODEL = True


def run(parsed: argparse.Namespace, _: Progress) -> Outcome:
    """Run the command."""
    if parsed.list:
        if parsed.model is not None or parsed.output is not None:
            raise InputError("--list lists the passes and writes nothing; leave MODEL and -o out")
        return _list()
    if parsed.model is None:
        raise InputError("name the MODEL to rewrite, or --list the passes")
    if parsed.bisect_passes:
        return _bisect(parsed)
    if parsed.output is None:
        raise InputError("name the file to write with -o OUT")
    passes = "default" if parsed.passes is None else parsed.passes
    for step in float_passes(passes):
        if step.numerics == "approximates":
            raise InputError(
                f"the pass '{step.name}' approximates, so it runs only under the promise of "
                "`onnxq optimize`"
            )
    result = rewrite(
        parsed.model,
        passes,
        opset=parsed.opset or "fastest",
        keep_overridable=parsed.keep_overridable,
        debug=debug_level(),
    )
    save(result.graph, parsed.output, external_data=parsed.external_data)
    body = {
        "schema": "onnxq/rewrite/1",
        "model": parsed.model,
        "output": parsed.output,
        "opset": result.graph.opset,
        "passes": [dataclasses.asdict(record) for record in result.records],
        "notes": list(result.notes),
    }
    rows = [
        (
            r.name,
            f"{r.rewrites:,}",
            words.duration(r.seconds),
            f"{r.nodes_before:,} -> {r.nodes_after:,}",
        )
        for r in result.records
    ]
    shown = table(rows, ("pass", "rewrites", "time", "nodes"), align=">>>")
    return Outcome(body, shown, " ".join((*result.notes, f"Wrote '{parsed.output}'.")))


def _list() -> Outcome:
    passes = [
        {
            "name": name,
            "default": kind.default,
            "numerics": kind.numerics,
            "what": (kind.__doc__ or "").strip().split("\n", 1)[0].replace("`", ""),
            "options": [f.name for f in dataclasses.fields(kind)],  # type: ignore[arg-type]
        }
        for name, kind in available_passes().items()
    ]
    rows = [(p["name"], "yes" if p["default"] else "", p["what"]) for p in passes]
    shown = table(rows, ("pass", "default", "what it does"))
    return Outcome({"schema": "onnxq/passes/1", "passes": passes}, shown)


def _bisect(parsed: argparse.Namespace) -> Outcome:
    result = bisect_passes(parsed.model, parsed.passes, keep_overridable=parsed.keep_overridable)
    ending, code = "No pass changes the outputs.", EXIT_OK
    if result.first_bad is not None:
        ending = f"The first pass that changes the outputs is {result.first_bad}."
        code = EXIT_GATE
    rows = [(found.name, found.error or f"{found.difference:.2g}") for found in result.checked]
    shown = table(rows, ("after pass", "largest relative difference"))
    body = {"schema": "onnxq/bisect/1", **dataclasses.asdict(result)}
    return Outcome(body, shown, ending, code)

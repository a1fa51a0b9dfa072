"""``onnxq batch``."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import RenderableType

from onnxq.batching import HANGS_AFTER, Batched, Done, batch, rows
from onnxq.cli.parsed import given
from onnxq.cli.terminal import EXIT_DEFECT, EXIT_GATE, EXIT_INPUT, EXIT_OK, Outcome, table
from onnxq.progress import Progress
from onnxq.report import check_folder
from onnxq.report.summary import NAMES, write_summary
from onnxq.report.words import duration, ratio

HELP = "optimize the models of a manifest, each by itself, and go on where that was broken off"

EXAMPLES = """examples:
  onnxq batch models.toml -o optimized/ --workers 4
  onnxq batch models.csv -o optimized/ --scheduler tls://cluster:8786 --per-machine 2

models.toml:
  [defaults]
  recipe = "int8"
  max_drop = 0.01

  [[model]]
  model = "resnet.onnx"
  data = "images.npz"
"""

NEEDS = "manifest --output"
TAKES = (
    "--recipe --target --methods --max-drop --min-agreement --min-speedup --min-sqnr "
    "--max-size-ratio --seed --memory-limit --workers --scheduler --per-machine --hangs-after"
)
CHANGES = {
    "--output": {
        "help": "folder to write each model's folder and a summary to",
        "metavar": "DIR",
        "dest": "folder",
    },
    "--hangs-after": {
        "help": "seconds in which a worker is done with no model, after which it counts as hung "
        f"(default {HANGS_AFTER:g})",
        "default": HANGS_AFTER,
        "dest": "patience",
    },
}


def run(parsed: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    folder = Path(parsed.folder)
    check_folder(folder, NAMES)
    found = batch(
        parsed.manifest,
        folder,
        given(parsed),
        per_machine=parsed.per_machine,
        hangs_after=parsed.patience,
        progress=progress,
    )
    write_summary(rows(found), folder)
    counts = ", ".join(f"{count} {state}" for state, count in found.counts.items() if count)
    ending = f"{counts}. The summary is in '{folder / NAMES[0]}'."
    body = {"schema": "onnxq/batch/1", "models": rows(found), "counts": found.counts}
    return Outcome(body, _shown(found), ending, _code(found))


def _shown(found: Batched) -> RenderableType:
    heads = ("model", "promise", "speedup", "smaller", "time", "why")
    return table([_row(done) for done in found.results], heads, align="<>>><")


def _row(done: Done) -> list[str]:
    ratios = ["" if r is None else f"{ratio(r)}x" for r in (done.speedup, done.size_ratio)]
    why = done.sentence or "; ".join(done.gates)
    return [done.name, done.state, *ratios, duration(done.seconds), why]


def _code(found: Batched) -> int:
    counts = found.counts
    for state, code in (("defect", EXIT_DEFECT), ("failed", EXIT_INPUT), ("broken", EXIT_GATE)):
        if counts[state]:  # type: ignore[index]
            return code
    return EXIT_OK

"""``onnxq watch``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from onnxq.adaptive.replay import Happening, Replay, Rules, Stretch
from onnxq.cli.options import IMAGES
from onnxq.cli.parsed import image_options
from onnxq.cli.terminal import EXIT_GATE, EXIT_OK, Outcome, show_live, table
from onnxq.progress import Progress
from onnxq.report import words
from onnxq.report.folder import check_folder, write_texts
from onnxq.report.watch import HTML_NAME, summary, to_html
from onnxq.watching import watch

HELP = "replay samples to an adaptive session, and tell what it would see and do"

EXAMPLES = """exits with 1 where there is drift, so that a scheduled job tells; examples:
  onnxq watch bundle/ --data today.npz
  onnxq watch bundle/ --data today.npz --requests-per-second 20 --state watch.sqlite --json -
"""

NEEDS = "bundle --data"
TAKES = (
    "--sampling --false-alarms-per-day --requests-per-second --state --metric --seed --report "
    f"{IMAGES}"
)
CHANGES = {
    "--data": {
        "help": "samples in the order of requests; of data with a split of its own the held-out "
        "part is used"
    },
    "--seed": {"help": "chooses which requests are looked at (default 0)"},
    "--report": {"help": f"draw what was seen and done in {HTML_NAME}"},
}


def run(parsed: argparse.Namespace, progress: Progress) -> Outcome:
    """Run the command."""
    folder = Path(parsed.report) if parsed.report else None
    if folder:
        check_folder(folder, (HTML_NAME,))
    asked = vars(parsed)
    given = {f.name: asked[f.name] for f in fields(Rules) if asked[f.name] is not None}
    so_far: list[Stretch] = []

    def tell(stretch: Stretch) -> None:
        so_far.append(stretch)
        show_live(progress, _stretches(so_far, parsed.metric))

    found = watch(
        parsed.bundle,
        parsed.data,
        Rules(**given),
        metric=parsed.metric,
        images=image_options(parsed),
        progress=progress,
        tell=tell,
    )
    ending = ""
    if folder:
        write_texts(folder, {HTML_NAME: to_html(found.adaptive, found.bundle, found.data)})
        ending = f"The report is in '{folder / HTML_NAME}'."
    code = EXIT_GATE if found.adaptive.alarms else EXIT_OK
    return Outcome(found.to_dict(), _shown(found.adaptive), ending, code)


def _shown(found: Replay) -> Group:
    parts: list[RenderableType] = [_stretches(found.stretches, found.metric), Text()]
    if found.happenings:
        rows = [(f"{own.request:,}", own.kind, _reason(own)) for own in found.happenings]
        parts += [table(rows, ("request", "event", "reason")), Text()]
    return Group(*parts, Text(summary(found)))


def _stretches(stretches: Sequence[Stretch], metric: str | None = None) -> Table:
    rows = []
    for own in stretches:
        near = own.nearness
        row = [f"{own.first:,} - {own.last:,}", near.sampled, words.nearness(near)]
        row += [words.measured(metric, own.value)] if metric else []
        rows.append([*row, words.evidence(own.evidence), own.variant])
    value = [metric] if metric else []
    headings = ("requests", "looked at", "to float", *value, "drift", "answered by")
    return table(rows, headings, align=">" * (len(headings) - 2))


def _reason(own: Happening) -> str:
    if own.before is None or own.after is None:
        return own.reason
    before, after = words.nearness(own.before), words.nearness(own.after)
    return f"{own.reason}; before: {before}, after: {after}"

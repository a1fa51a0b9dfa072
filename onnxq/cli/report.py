"""``onnxq report``."""

from __future__ import annotations

import argparse

from rich.text import Text

from onnxq.cli.terminal import Outcome
from onnxq.progress import Progress
from onnxq.reporting import page_of
from onnxq.saved import write_text

HELP = "make a page from the JSON of earlier runs, which it compares side by side"

EXAMPLES = """examples:
  onnxq report report/report.json -o report.html
  onnxq report int8/report.json mixed/report.json -o both.html
  onnxq report report/report.json watch.json -o with-drift.html

The JSON is what --report or --json of `onnxq optimize`, `train` and `compare` writes, and what
`onnxq watch --json` does.
"""

NEEDS = "reports --output"
TAKES = ""
CHANGES = {"--output": {"help": "page to write"}}


def run(parsed: argparse.Namespace, _: Progress) -> Outcome:
    """Run the command."""
    write_text(parsed.output, page_of(parsed.reports))
    body = {"schema": "onnxq/page/1", "reports": parsed.reports, "output": parsed.output}
    return Outcome(body, Text(f"Wrote '{parsed.output}'."))

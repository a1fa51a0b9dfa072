"""The report as a JSON file."""

from __future__ import annotations

from pathlib import Path

from onnxq.saved import write_text
from onnxq.verify.result import Report


def write_json(report: Report, path: Path) -> None:
    """Write `Report.to_json`, complete or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    write_text(path, report.to_json())

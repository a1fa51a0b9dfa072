"""What became of many models: a page, and tables for other programs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onnxq.ir.saving import replacing
from onnxq.report.folder import write_texts
from onnxq.report.pages import render
from onnxq.report.words import printable

NAMES = ("index.html", "summary.csv", "summary.parquet")

Rows = Sequence[Mapping[str, Any]]


def write_summary(rows: Rows, folder: Path) -> None:
    """Write ``index.html`` and ``summary.csv``, and ``summary.parquet`` where pyarrow is installed.

    Args:
        rows: A row for each model, whose folder in this one has its name.
        folder: Where to.

    Raises:
        InputError: a file cannot be written.
    """
    texts = {NAMES[0]: render("summary.html.jinja", rows=rows), NAMES[1]: to_csv(rows)}
    write_texts(folder, texts)
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        return
    with replacing(folder / NAMES[2]) as file:
        pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), file)


def to_csv(rows: Rows) -> str:
    """The rows as a table with a heading, in which no text is a formula or holds a control."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*rows[0]], lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    """Spreadsheets compute what begins so, unless an apostrophe stands before it."""
    if not isinstance(value, str):
        return value
    shown = printable(value)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown

"""Pages from what earlier runs found out."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from onnxq.errors import InputError
from onnxq.report import sides, to_html
from onnxq.report.watch import to_html as watch_page
from onnxq.saved import read_text
from onnxq.verify import Report
from onnxq.watching import Watch


def page_of(files: Sequence[str | os.PathLike[str]]) -> str:
    """One HTML page from the JSON of runs.

    The page of one report is that report's; several are compared side by side. What adaptive
    sessions saw stands below, or alone where there is no report.

    Args:
        files: Files that `onnxq optimize`, `train`, `compare` or `watch` wrote.

    Raises:
        InputError: there is none, or one cannot be read or is something else.
    """
    seen = set[Path]()
    reports: dict[str, Report] = {}
    watches: list[Watch] = []
    for file in files:
        path = os.fspath(file)
        text, where = read_text(path, "the report"), f"the report '{path}'"
        if Path(path).resolve() in seen:
            raise InputError(f"{where} is named twice; name each file once")
        seen.add(Path(path).resolve())
        if _schema(text) == Watch.schema:
            watches.append(Watch.from_json(text, where))
        else:
            reports[path] = Report.from_json(text, where)
    replays = [watch.adaptive for watch in watches]
    if len(reports) > 1:
        return sides.to_html(list(reports), list(reports.values()), replays)
    if reports:
        return to_html(next(iter(reports.values())), replays)
    if len(watches) != 1:
        raise InputError(
            "a page is of one or several reports, or of one watch; name report.json files"
        )
    (watch,) = watches
    return watch_page(watch.adaptive, watch.bundle, watch.data)


def _schema(text: str) -> object:
    """The schema that a file says it has; what is no JSON has none."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return body.get("schema") if isinstance(body, dict) else None

"""Reports as JSON, JUnit XML, HTML and terminal text."""

from __future__ import annotations

from onnxq.report.folder import check_folder, write_report
from onnxq.report.html import to_html, write_html
from onnxq.report.junit import to_junit, write_junit
from onnxq.report.text import to_text

__all__ = [
    "check_folder",
    "to_html",
    "to_junit",
    "to_text",
    "write_html",
    "write_junit",
    "write_report",
]

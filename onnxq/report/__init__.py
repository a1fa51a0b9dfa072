"""Reports as JSON, JUnit XML, HTML, Markdown and terminal text."""

from __future__ import annotations

from onnxq.report.folder import check_folder, write_report
from onnxq.report.markdown import to_markdown
from onnxq.report.pages import to_html, to_junit
from onnxq.report.text import to_text

__all__ = ["check_folder", "to_html", "to_junit", "to_markdown", "to_text", "write_report"]

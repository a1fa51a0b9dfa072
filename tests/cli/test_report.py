"""``onnxq report``."""

from __future__ import annotations

from pathlib import Path

from onnxq.report import to_html
from tests.cli.conftest import Command
from tests.verify.reports import a_report


def test_a_page_of_one_report(onnxq: Command, tmp_path: Path) -> None:
    file, page = tmp_path / "report.json", tmp_path / "page.html"
    a_report().save(file)
    found = onnxq("report", file, "-o", page)
    assert (found.code, found.out) == (0, f"Wrote '{page}'.\n")
    assert page.read_text("utf-8") == to_html(a_report())


def test_a_report_is_not_replaced_by_its_page(onnxq: Command, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    a_report().save(file)
    onnxq("report", file, "-o", file).refused("would replace", "report.json")
    assert "schema" in file.read_text("utf-8")


def test_a_report_is_not_held_against_itself(onnxq: Command, tmp_path: Path) -> None:
    file, page = tmp_path / "report.json", tmp_path / "page.html"
    a_report().save(file)
    onnxq("report", file, file, "-o", page).refused("report.json", "named twice")
    other = tmp_path / "." / ".." / tmp_path.name / "report.json"
    onnxq("report", file, other, "-o", page).refused("report.json", "named twice")
    assert not page.exists()

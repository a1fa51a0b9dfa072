"""All forms of a report in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnxq.errors import InputError
from onnxq.ir.save import check_writable
from onnxq.report.html import write_html
from onnxq.report.junit import write_junit
from onnxq.verify.result import Report

JSON_NAME, HTML_NAME, JUNIT_NAME = "report.json", "report.html", "junit.xml"


def write_report(report: Report, folder: Path) -> None:
    """Write ``report.json``, ``report.html`` and ``junit.xml``; the folder is made if need be.

    Raises:
        InputError: the folder cannot be made, or a file cannot be written.
    """
    make_folder(folder)
    report.save(folder / JSON_NAME)
    write_html(report, folder / HTML_NAME)
    write_junit(report, folder / JUNIT_NAME)


def check_folder(folder: Path) -> None:
    """Find out before long work whether `write_report` could write; makes nothing.

    Raises:
        InputError: a file is in the way, or writing is not allowed.
    """
    check_writable_in(folder, (JSON_NAME, HTML_NAME, JUNIT_NAME))


def make_folder(folder: Path) -> None:
    """Make a folder for a report, if it is not there.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error


def check_writable_in(folder: Path, names: Sequence[str]) -> None:
    """Find out whether files could be written in a folder that may have to be made.

    Raises:
        InputError: a file or folder is in the way, or writing is not allowed.
    """
    for name in names:
        if (folder / name).is_dir():
            raise _unusable(folder, f"'{name}' in it is a folder")
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise _unusable(folder, f"'{existing}' is a file")
    check_writable(existing / names[0])


def _unusable(folder: Path, reason: str) -> InputError:
    return InputError(f"cannot write the report to '{folder}': {reason}; choose another place")

"""Forms of a report in one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxq.errors import InputError
from onnxq.ir.saving import check_writable
from onnxq.report.markdown import to_markdown
from onnxq.report.pages import to_html, to_junit
from onnxq.saved import write_text
from onnxq.verify.result import Report

NAMES = ("report.json", "report.html", "report.md", "junit.xml")


def write_report(report: Report, folder: Path) -> None:
    """Write all forms of a report by their `NAMES`; the folder is made if need be.

    Raises:
        InputError: the folder cannot be made, or a file cannot be written.
    """
    texts = (report.to_json(), to_html(report), to_markdown(report), to_junit(report))
    write_texts(folder, dict(zip(NAMES, texts, strict=True)))


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files by their names, each complete or not at all; the folder is made if need be.

    Raises:
        InputError: the folder cannot be made, or a file cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error.strerror or str(error)) from error
    for name, text in texts.items():
        write_text(folder / name, text)


def check_folder(folder: Path, names: Sequence[str] = NAMES) -> None:
    """Find out before long work whether files could be written; makes nothing.

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

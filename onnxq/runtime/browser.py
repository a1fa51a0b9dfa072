"""Chromium without a window, driven by Playwright: where it is, and what is missing for it."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from onnxq.errors import InputError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VARIABLE = "ONNXQ_CHROMIUM"
"""Environment variable that names the browser's executable."""

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

_ARGUMENTS = (
    # Root, as in containers, may not use the sandbox; only what is served here is opened.
    "--no-sandbox",
    "--disable-gpu",
    # Nothing is fetched that nobody asked for.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)


def find_browser() -> Path | None:
    """The executable that ``ONNXQ_CHROMIUM`` names, else Chromium or Chrome on the path."""
    names = [own] if (own := os.environ.get(VARIABLE)) else _NAMES
    found = next(filter(None, map(shutil.which, names)), None)
    return Path(found) if found else None


def missing_browser() -> str:
    """Say what is missing to drive a browser, and how to get it; empty if nothing is."""
    if importlib.util.find_spec("playwright") is None:
        return "the Python package playwright is not installed; pip install 'onnxq[web]' brings it"
    if find_browser() is not None:
        return ""
    if own := os.environ.get(VARIABLE):
        return f"{VARIABLE} names '{own}', which is no executable; name that of Chromium or Chrome"
    return (
        "no Chromium was found; install the package chromium or Google Chrome, or name its "
        f"executable in {VARIABLE}"
    )


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser without a window, for a while.

    Raises:
        InputError: something is missing, or the browser does not start.
    """
    if lacking := missing_browser():
        raise InputError(lacking)
    from playwright.sync_api import Error, sync_playwright

    with contextlib.ExitStack() as stack:
        try:
            driver = stack.enter_context(sync_playwright())
            browser = driver.chromium.launch(executable_path=find_browser(), args=_ARGUMENTS)
        except Error as error:
            raise InputError(
                f"the browser '{find_browser()}' does not start: {str(error).splitlines()[0]}"
            ) from error
        stack.callback(browser.close)
        yield browser

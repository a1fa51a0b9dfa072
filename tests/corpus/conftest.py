"""What the tests on collections of models have to say is printed at the end of the run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

_LINES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def real() -> Path:
    """Folder of fetched models, named by ONNXQ_REAL; the test is skipped without one."""
    folder = os.environ.get("ONNXQ_REAL")
    if not folder:
        pytest.skip("ONNXQ_REAL is not set; benchmarks/real/fetch.py fills the folder to name")
    return Path(folder)


@pytest.fixture
def say(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Add a line to the summary that pytest prints."""
    return request.config.stash.setdefault(_LINES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in terminalreporter.config.stash.get(_LINES, []):
        terminalreporter.write_line(line)

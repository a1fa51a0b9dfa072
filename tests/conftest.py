"""Settings and fixtures that all tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples in every run: a failure is the change's, never the draw's. No deadline,
# because the tests share their cores with other work.
settings.register_profile("onnxq", deadline=None, derandomize=True)
settings.load_profile("onnxq")


@pytest.fixture(scope="session", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Measurements of the tests are not kept in the user's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNXQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def corpus() -> Path:
    """Folder of further models, named by ONNXQ_CORPUS; the test is skipped without one."""
    folder = os.environ.get("ONNXQ_CORPUS")
    if not folder:
        pytest.skip("ONNXQ_CORPUS is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def real() -> Path:
    """Folder of fetched models, named by ONNXQ_REAL; the test is skipped without one."""
    folder = os.environ.get("ONNXQ_REAL")
    if not folder:
        pytest.skip("ONNXQ_REAL is not set; benchmarks/real/fetch.py fills the folder to name")
    return Path(folder)

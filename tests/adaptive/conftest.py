"""The tiny bundle and sessions on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.session import AdaptiveSession
from tests.adaptive import fakes
from tests.adaptive.fakes import FEW, OFTEN, Open, parts


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return fakes.bundle(tmp_path / "bundle")


@pytest.fixture
def opened(bundle: Bundle) -> Iterator[Open]:
    """Opens sessions, all of whose requests are sampled, and closes them."""
    made: list[AdaptiveSession] = []

    def make(**options: Any) -> AdaptiveSession:
        defaults = {"sampling": 1.0, "time_share": 1.0, "parts": parts(), "amounts": FEW}
        defaults["intervals"] = OFTEN
        made.append(AdaptiveSession(options.pop("of", bundle), **{**defaults, **options}))
        return made[-1]

    yield make
    for session in made:
        session.close()

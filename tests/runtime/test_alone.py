"""Processes on one machine: none computes while one of them times something."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onnxq.errors import InputError
from onnxq.runtime.alone import alone, sharing

OTHER = """
import sys, time
from pathlib import Path
from onnxq.runtime.alone import alone, sharing
folder = Path(sys.argv[1])
with sharing(folder):
    (folder / "ready").touch()
    with alone():
        (folder / "alone").touch()
        time.sleep(0.3)
        (folder / "over").touch()
"""


def test_who_computes_stands_aside_for_who_times(tmp_path: Path) -> None:
    with sharing(tmp_path) as progress:
        other = subprocess.Popen([sys.executable, "-c", OTHER, str(tmp_path)])
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        time.sleep(0.2)
        assert not (tmp_path / "alone").exists(), "this process computes"
        while not (tmp_path / "over").exists():
            progress.advance(1)
            # Either nothing has begun or all is over.
            assert (tmp_path / "alone").exists() == (tmp_path / "over").exists()
        with alone(), alone():
            pass
        assert other.wait(timeout=20) == 0


def test_without_others_nobody_waits() -> None:
    with alone():
        pass


def test_locks_lie_where_nobody_else_can_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    with sharing():
        pass
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o777 == 0o700 and folder.is_dir()
    folder.chmod(0o777)
    with pytest.raises(InputError, match="may be written to by others"), sharing():
        pass


def test_a_file_in_the_place_of_their_folder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    (tmp_path / f"onnxq-{os.getuid()}").touch()
    with pytest.raises(InputError, match="may be written to by others"), sharing():
        pass
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "missing"))
    with pytest.raises(InputError, match=r"missing.*TMPDIR"), sharing():
        pass

"""Folders for temporary files, and what becomes of those of processes that were killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from onnxq import scratch
from onnxq.scratch import scratch_folder

MAKER = """
import os, signal, sys
from pathlib import Path
from onnxq.scratch import scratch_folder

with scratch_folder(Path(sys.argv[1])) as folder:
    (folder / "weights").write_bytes(b"large")
    print(folder, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""

pytestmark = pytest.mark.skipif(os.name != "posix", reason="locks are POSIX's")


def test_a_folder_goes_with_its_use(tmp_path: Path) -> None:
    with pytest.raises(KeyError), scratch_folder(tmp_path) as folder:
        (folder / "weights").write_bytes(b"large")
        assert folder.parent == tmp_path
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_folders_of_killed_processes_go_and_those_of_others_stay(tmp_path: Path) -> None:
    elsewhere = tmp_path / "onnxq-another.machine-abcdefgh"
    elsewhere.mkdir()
    command = [sys.executable, "-c", MAKER, str(tmp_path)]
    pipe = subprocess.PIPE
    makers = [subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe) for _ in range(2)]
    with makers[0] as killed, makers[1] as working:
        assert all(maker.stdin and maker.stdout for maker in makers)
        left, used = (Path(maker.stdout.readline().strip()) for maker in makers)
        killed.communicate()
        assert {left, used, elsewhere} == {*tmp_path.iterdir()}
        with scratch_folder(tmp_path) as own:
            assert {own, used, elsewhere} == {*tmp_path.iterdir()}
            assert (used / "weights").is_file()
        working.communicate()


def test_a_folder_that_is_taken_for_abandoned_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    lock = scratch._lock

    def late(folder: Path, *, waits: bool) -> object:
        if waits and not seen:
            folder.rmdir()
        seen.append(folder)
        return lock(folder, waits=waits)

    monkeypatch.setattr(scratch, "_lock", late)
    with scratch_folder(tmp_path) as folder:
        assert folder.is_dir() and seen[1:] == [folder] != seen[:1]

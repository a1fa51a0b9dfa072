"""Folders for temporary files, and what becomes of those of processes that were killed."""

from __future__ import annotations

import os
import shutil
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


@pytest.mark.parametrize("ending", ["results-2026", "abcdefgh"])
def test_folders_that_others_made_stay_whatever_their_name(tmp_path: Path, ending: str) -> None:
    with scratch_folder(tmp_path) as own:
        theirs = tmp_path / f"{own.name[:-8]}{ending}"
    theirs.mkdir()
    (theirs / "figures.csv").touch()
    scratch._remove_abandoned.cache_clear()
    with scratch_folder(tmp_path):
        assert (theirs / "figures.csv").is_file()


def test_a_copy_of_a_scratch_folder_under_another_name_stays(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as own:
        copy = shutil.copytree(own, tmp_path / f"{own.name}-copy")
    scratch._remove_abandoned.cache_clear()
    with scratch_folder(tmp_path):
        assert copy.is_dir()

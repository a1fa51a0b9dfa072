"""Text files: written whole or not at all, and refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxq.errors import InputError
from onnxq.saved import read_text, write_text


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    write_text(path, "größer\n")
    assert path.read_bytes() == "größer\n".encode()
    assert read_text(path, "the plan") == "größer\n"


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read the plan '.*no.toml': No such file"):
        read_text(tmp_path / "no.toml", "the plan")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cannot read the ranges '.*bytes': it is no text"):
        read_text(tmp_path / "bytes", "the ranges")


def test_an_unwritable_place_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        write_text(tmp_path / "missing" / "plan.toml", "x")
    assert list(tmp_path.iterdir()) == []

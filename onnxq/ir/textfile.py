"""Text files: written complete or not at all, read with one sentence for what goes wrong."""

from __future__ import annotations

import os
from pathlib import Path

from onnxq.errors import InputError
from onnxq.ir.save import replacing


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a file in UTF-8, complete or not at all.

    Raises:
        InputError: it cannot be written.
    """
    with replacing(Path(path)) as file:
        file.write(text.encode())


def read_text(path: str | os.PathLike[str], what: str) -> str:
    """Read a file in UTF-8; ``what`` says in messages what it is to hold, as ``the plan``.

    Raises:
        InputError: it is missing, cannot be read or holds no text.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InputError(f"cannot read {what} '{path}': {reason}") from error

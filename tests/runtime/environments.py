"""Interpreters whose environments differ from this one's in how onnxruntime behaves."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path


def environment(folder: Path, change: str = "", *, options: str = "") -> Path:
    """A script that runs this interpreter.

    Args:
        folder: Where the script and its environment lie.
        change: Runs in it first, with os, time and onnxruntime there; a function ``broken`` takes
            the place of what makes sessions.
        options: Of the interpreter; with some there are none of this environment's packages.
    """
    lines = [
        "import os, time, onnxruntime",
        change,
        "if 'broken' in globals(): onnxruntime.InferenceSession = broken",
    ]
    (folder / "sitecustomize.py").write_text("\n".join(lines), encoding="utf-8")
    packages = os.pathsep.join([str(folder), *filter(None, sys.path)])
    python = folder / "python"
    known = "" if options else f"PYTHONPATH={shlex.quote(packages)} "
    python.write_text(f'#!/bin/sh\n{known}exec {shlex.quote(sys.executable)} {options} "$@"\n')
    python.chmod(0o755)
    return python

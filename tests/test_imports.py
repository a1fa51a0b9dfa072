"""What ``import onnxq`` gives without importing it."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
import onnxq

assert not [name for name in sys.modules if name.startswith("onnxq.")]
for name in "adaptive data errors ir observe options plan recipe targets verify".split():
    assert getattr(onnxq, name) is sys.modules[f"onnxq.{name}"], name
assert onnxq.adaptive.AdaptiveSession
for name in ("nothing", "__main__"):
    assert not hasattr(onnxq, name), name
"""


def test_modules_are_imported_when_they_are_asked_for() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True)

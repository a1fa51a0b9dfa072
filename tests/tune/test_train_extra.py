"""What needs torch says so where there is none, and is no burden elsewhere."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from onnxq.tune import available_methods
from onnxq.errors import InputError

assert "torch" not in sys.modules
sys.modules["torch"] = None
print(*available_methods())
try:
    import onnxq.tune.train.executor
except InputError as error:
    print(error)
"""


def test_without_torch_it_says_what_to_install() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    methods, said = done.stdout.splitlines()
    assert "mse" in methods.split()
    assert said == (
        'training and other gradients need torch; install it with: pip install "onnxq[train]"'
    )

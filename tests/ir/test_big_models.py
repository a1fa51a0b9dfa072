"""A model far larger than the memory it may take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from big_model import build

from onnxq.runtime import Session
from tests.helpers import assert_same_outputs

resource = pytest.importorskip("resource", reason="this system cannot limit memory")

ROOT = Path(__file__).parents[2]
GIGABYTE = 10**9
WIDTH = 2048

DATA_LIMIT = 600 * 10**6
"""Bytes of memory of its own that the process may ask for, with what its imports take.

The weights are a gigabyte, and the float passes make new ones for nearly half of it.
"""

RESIDENT_LIMIT = 0.45
"""Gigabytes that may be in memory at once, with the pages of mapped files that are there."""

REWRITE = """
import json, resource, sys
from pathlib import Path
limit = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
sys.path.insert(0, "benchmarks")
from big_model import rewrite
print(json.dumps(rewrite(Path(sys.argv[1]), Path(sys.argv[2]))))
"""


def rewrite(source: Path, target: Path, limit: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", REWRITE, str(source), str(target), str(limit)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells and limits it like this")
def test_a_model_larger_than_its_memory(tmp_path: Path) -> None:
    source, target = tmp_path / "big.onnx", tmp_path / "out.onnx"
    build(source, GIGABYTE, WIDTH)
    assert (tmp_path / "big.onnx.data").stat().st_size >= GIGABYTE
    done = rewrite(source, target, DATA_LIMIT)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = json.loads(done.stdout)
    assert measured["resident"] < RESIDENT_LIMIT
    for name in ("fuse-batch-norm", "eliminate-common-subexpressions", "fold-constants"):
        assert measured["rewrites"][name] > 0
    feeds = {
        "token": np.array([1, 7]),
        "image": np.random.default_rng(0).standard_normal((2, WIDTH, 2, 2)).astype(np.float32),
    }
    wanted = Session(source).run(feeds)
    assert_same_outputs(wanted, Session(target).run(feeds), exact=False)
    # Copies are stored once.
    assert (tmp_path / "out.onnx.data").stat().st_size < 0.9 * GIGABYTE


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits it like this")
def test_the_limit_is_one(tmp_path: Path) -> None:
    source = tmp_path / "big.onnx"
    build(source, GIGABYTE // 100, 256)
    assert rewrite(source, tmp_path / "out.onnx", DATA_LIMIT // 10).returncode != 0

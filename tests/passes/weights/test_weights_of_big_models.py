"""Storing the weights of a model that is larger than the memory it may take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from weight_only_big import build

from onnxq.ir import load
from onnxq.quant import ABSMAX, INT4, per_block, quantize, weight_qparams

ROOT = Path(__file__).parents[3]
GIGABYTE = 10**9

RESIDENT_LIMIT = 0.5
"""Gigabytes that may be in memory at once, with the pages of mapped files that are there."""

QUANTIZE = """
import json, sys
from pathlib import Path
sys.path.insert(0, "benchmarks")
from weight_only_big import quantize
print(json.dumps(quantize(Path(sys.argv[1]), Path(sys.argv[2]), "int4")))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts memory like this")
def test_a_model_larger_than_its_memory(tmp_path: Path) -> None:
    source, target = tmp_path / "big.onnx", tmp_path / "out.onnx"
    build(source, GIGABYTE)
    command = [sys.executable, "-c", QUANTIZE, str(source), str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    measured = json.loads(done.stdout)
    assert measured["peak"] < RESIDENT_LIMIT
    before, after = load(source), load(target)
    assert measured["rewrites"] == sum(n.op_type != "Relu" for n in before.nodes())
    stored = {v.name: v for v in after.initializers()}
    for name, turned in (("weight_1", False), ("weight_2", True)):
        weight = before.values[name].numpy()[:256]
        axis = int(turned)
        wanted = quantize(weight, weight_qparams(weight, INT4, ABSMAX, per_block(axis, 32)))
        found = stored[f"{name}_q"].numpy()
        assert np.array_equal(found[:, :256].T if turned else found[:256], wanted)
    rows = before.values["weight_0"].numpy()[:64]
    wanted = quantize(rows, weight_qparams(rows, INT4, ABSMAX, per_block(1, 32)))
    assert np.array_equal(stored["weight_0_q"].numpy()[:64], wanted)

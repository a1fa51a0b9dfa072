"""The example service: it answers, takes feedback, and tells its numbers."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from onnxq.adaptive.baseline import Baseline
from onnxq.adaptive.scores import DISAGREEMENT
from onnxq.runtime import as_stored
from tests.adaptive.bundles import plain_bundle

for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason='the example service needs `pip install ".[serve]"`')

LOAD = Path(__file__).parents[2] / "examples" / "serve" / "load.py"


def test_a_load_test_gets_all_its_answers(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    usual = Baseline(0, {}, {DISAGREEMENT: (0.0, 0.5, 1.0, 1.5, 2.0)})
    made = replace(plain_bundle(tmp_path / "made"), baseline=usual)
    bundle = made.save(tmp_path / "bundle")
    (spec,) = as_stored(bundle.model(0)).inputs
    assert spec.shape is not None
    shape = [10, *(int(size or 1) for size in spec.shape[1:])]
    arrays = {spec.name: np.zeros(shape, np.float32), "labels": np.zeros(10, np.int64)}
    np.savez(tmp_path / "data.npz", **arrays)
    command = [
        sys.executable,
        str(LOAD),
        str(tmp_path / "data.npz"),
        "--bundle",
        str(bundle.folder),
    ]
    done = subprocess.run(
        [*command, "--requests", "60", "--threads", "3"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("60 answers, 0 failures")
    values = dict(re.findall(r"^(\w+?(?:\{.*\})?) ([\d.]+)$", done.stdout, re.MULTILINE))
    assert float(values["onnxq_requests_total"]) == float(values["predict_seconds_count"]) == 60
    assert float(values["onnxq_feedback_total"]) <= 6
    assert values['onnxq_events_total{kind="fault"}'] == "0.0" and values["onnxq_variant"] == "0.0"

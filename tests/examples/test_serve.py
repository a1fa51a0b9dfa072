"""The example service: it answers, takes feedback, and tells its numbers."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.adaptive.baseline import Baseline
from onnxq.adaptive.bundle import Bundle
from onnxq.adaptive.scores import DISAGREEMENT
from onnxq.adaptive.session import AdaptiveSession
from onnxq.runtime import as_stored
from tests.adaptive.bundles import plain_bundle

for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason='the example service needs `pip install ".[serve]"`')

SERVE = Path(__file__).parents[2] / "examples" / "serve"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "made").mkdir()
    usual = Baseline(0, {}, {DISAGREEMENT: (0.0, 0.5, 1.0, 1.5, 2.0)})
    made = replace(plain_bundle(tmp_path / "made"), baseline=usual)
    return made.save(tmp_path / "bundle")


def service() -> Any:
    spec = importlib.util.spec_from_file_location("serve_app", SERVE / "app.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where annotations are looked up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_feedback_is_refused_where_another_worker_answered(bundle: Bundle) -> None:
    module = service()
    with AdaptiveSession(bundle) as one, AdaptiveSession(bundle) as other:
        (spec,) = one.get_inputs()
        state = module.app.state
        state.session, state.dtypes = one, {spec.name: np.float32}
        zeros = np.zeros([1, *spec.shape[1:]]).tolist()
        answer = module.predict(module.Question(inputs={spec.name: zeros}))
        said = module.Feedback(request=answer["request"], correct=True)
        module.feedback(said)
        one.flush()
        assert one.statistics()["feedback"] == 1
        state.session = other
        for request in (answer["request"], "1", f"{other.worker}-", f"{other.worker}-first"):
            with pytest.raises(module.HTTPException, match="was not answered by this") as refusal:
                module.feedback(module.Feedback(request=request, correct=True))
            assert refusal.value.status_code == 421
        other.flush()
        assert other.statistics()["feedback"] == 0


def test_a_load_test_gets_all_its_answers(bundle: Bundle, tmp_path: Path) -> None:
    (spec,) = as_stored(bundle.model(0)).inputs
    assert spec.shape is not None
    shape = [10, *(int(size or 1) for size in spec.shape[1:])]
    arrays = {spec.name: np.zeros(shape, np.float32), "labels": np.zeros(10, np.int64)}
    np.savez(tmp_path / "data.npz", **arrays)
    command = [
        sys.executable,
        str(SERVE / "load.py"),
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

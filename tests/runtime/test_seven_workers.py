"""The same bytes for any number of workers, from observing to verifying."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest

from onnxq import job
from onnxq.ir import save
from onnxq.optimization import optimize
from onnxq.planning import find_ranges, find_sensitivity
from onnxq.runtime.executor import open_executor
from tests.networks import chain, computed, inputs

__all__ = ["computed"]

pytest.importorskip("distributed")


@pytest.mark.slow
@pytest.mark.usefixtures("computed")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_any_number_of_workers_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = chain()
    model, data = tmp_path / "m.onnx", tmp_path / "d.npz"
    save(graph, model)
    np.savez(data, **inputs(graph, 300))
    found = []
    for count in (1, 2, 7):
        own = tmp_path / str(count)
        own.mkdir()
        with open_executor(count, None, own / "spread") as executor:
            monkeypatch.setattr(job, "_executor", lambda *_, now=executor: nullcontext(now))
            find_ranges(model, data, recipe="int8").save(own / "ranges.json")
            find_sensitivity(model, data, precisions=("int8",)).save(own / "sensitivity.json")
            made = optimize(
                *(model, data),
                recipe="int4-weight",
                methods="learned-rounding",
                min_sqnr=0.0,
                output=own / "out.onnx",
                plan_output=own / "plan.toml",
            )
        told = made.report
        files = {f.name: f.read_bytes() for f in sorted(own.iterdir()) if f.is_file()}
        found.append((told.metric, told.agreement, told.outputs, files))
    assert {"out.onnx", "plan.toml", "ranges.json", "sensitivity.json"} <= {*found[0][3]}
    assert found[0] == found[1] == found[2]

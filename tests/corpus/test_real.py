"""Models that people ship, see `benchmarks/real/fetch.py`: the promise holds where it is kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import onnxq
from onnxq.runtime import Session

pytestmark = pytest.mark.slow

PROMISED_DB = 15.0
LUCK_DB = 1.0
"""What samples that the promise was not held against may be worse by."""
SMALL = 1_000_000
"""Bytes of a model that integers may not pay for."""

Arrays = dict[str, np.ndarray]


def _halves(path: Path) -> tuple[Arrays, Arrays]:
    """Every other sample for `optimize`, and those that it never sees."""
    if not path.is_file():
        pytest.skip(f"{path} was not made")
    with np.load(path) as file:
        arrays = {name: file[name] for name in file}
    return tuple({n: a[start::2] for n, a in arrays.items()} for start in (0, 1))  # type: ignore[return-value]


def _sqnr_db(reference: Path, candidate: Path, samples: Arrays) -> float:
    """The least of all outputs, by plain sums, one sample a time."""
    sessions = Session(reference), Session(candidate)
    names = [spec.name for spec in sessions[0].inputs]
    signal, noise = 0.0, 0.0
    for row in range(len(samples[names[0]])):
        feed = {name: samples[name][row : row + 1] for name in names}
        wanted, found = (list(session.run(feed).values()) for session in sessions)
        signal += np.array([(w.astype(np.float64) ** 2).sum() for w in wanted])
        noise += np.array(
            [((w.astype(np.float64) - f) ** 2).sum() for w, f in zip(wanted, found, strict=True)]
        )
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(signal / noise).min())


def _check(model: Path, data: Path, folder: Path) -> None:
    seen, unseen = _halves(data)
    output = folder / "out.onnx"
    # What is promised of time would make the test one of the machine.
    result = onnxq.optimize(model, seen, output=output, min_sqnr=PROMISED_DB, min_speedup=0)
    assert result.passed
    # The search may leave all of a small one in float.
    assert result.report.output.integer_operators or model.stat().st_size < SMALL
    assert _sqnr_db(model, output, unseen) > PROMISED_DB - LUCK_DB


@pytest.mark.parametrize("name", ["ocr_det", "ocr_cls", "minilm"])
def test_promise_of_a_fetched_model(name: str, real: Path, tmp_path: Path) -> None:
    _check(real / "models" / f"{name}.onnx", real / "data" / f"{name}.npz", tmp_path)


def test_promise_of_a_model_that_lists_its_weights_as_inputs(
    real: Path, corpus: Path, tmp_path: Path
) -> None:
    model = corpus / "zoo" / "ultraface_slim_320.onnx"
    _check(model, real / "data" / "ultraface.npz", tmp_path)

"""What the comparison of accuracy methods tries, keeps and says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import accuracy_methods
import numpy as np
import onnx
import onnx.parser
import pytest
from accuracy_methods import Bench, Row, summary, table, verdict
from attempts import attempt, methods
from candidates import Limits, Made
from cases import Case
from outliers import CHANNELS, FACTOR, plant_outliers
from trials import FORMATS, W4, Format, Trial, trials

from onnxq.runtime import Session
from onnxq.verify.result import AGREEMENT, MetricFacts

LIMITS = Limits(threads=1, gigabytes=8.0, minutes=1.0)


def _row(method: str, drop: float, metric: str = "bits-per-token", db: float = 20.0) -> Row:
    facts = MetricFacts(metric, 2.0, 2.0 + drop, drop, 8, (drop - 0.1, drop + 0.1))
    return Row(method, Made(3.0, 1_000_000_000), facts, sqnr_db=db, smaller=4.0)


@pytest.fixture
def trial(tmp_path: Path) -> Trial:
    """Two products that tell four classes apart, and other samples to judge with."""
    rng = np.random.default_rng(0)
    values = [rng.normal(0, 0.3, shape).astype(np.float32) for shape in ((64, 64), (64, 4))]
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        model (float[batch, 64] x) => (float[batch, 4] y)
        { a = MatMul(x, v) b = Relu(a) y = MatMul(b, w) }
    """
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in zip("vw", values, strict=True)
    )
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    parts = []
    # Of white noise it takes more rows than inputs to learn what is no chance.
    for count in (256, 16):
        x = rng.normal(size=(count, 64)).astype(np.float32)
        parts.append({"x": x, "labels": Session(path).run({"x": x})["y"].argmax(axis=1)})
    format = Format("w2", "weights in 2 bits", "int2-weight{block_size=32}")
    return Trial(Case("tiny", path, *parts), format, ())


def test_attempts_are_made_once_and_leave_no_models(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def in_this_process(command: Sequence[str], output: Path, limits: Limits) -> Made:
        made.append(command[4])
        if command[4] == "no-such":
            return Made(problem="there is no method 'no-such'")
        attempt(trial, command[4], output)
        return Made(1.0, 2)

    monkeypatch.setattr(accuracy_methods, "run_limited", in_this_process)
    folder = tmp_path / "kept"
    folder.mkdir()
    bench = Bench(trial, folder, 8, LIMITS)
    bench.attempt(["auto", "none", "no-such"], set(), 0.0)
    bench.attempt(["auto", "none"], {"none"}, 0.0)
    assert made == ["auto", "none", "no-such", "none"]
    assert sorted(path.suffix for path in folder.iterdir()) == [".json"] * 3
    plain, automatic, failed = bench.rows()
    assert [plain.method, automatic.method, failed.method] == ["none", "auto", "no-such"]
    assert plain.metric is not None and plain.metric.samples == 16
    assert plain.sqnr_db < automatic.sqnr_db < 40
    assert plain.smaller > 2
    assert "no method" in failed.made.problem


def test_the_verdict_names_what_is_ahead() -> None:
    rows = [_row("none", 0.4), _row("gptq", 0.3), _row("onnxruntime-hqq", 0.1)]
    rows.append(_row("onnxruntime-gptq-corrected", 0.0))
    failed = Row("mse", Made(problem="it is for other weights"))
    assert verdict([*rows, failed]) == (
        "onnxq gptq (+0.3000 bits) loses to onnxruntime hqq (+0.1000 bits)."
    )
    assert verdict([_row("mse", 0.05), *rows]) == (
        "onnxq mse (+0.0500 bits) is no worse than onnxruntime hqq (+0.1000 bits), "
        "within the noise."
    )
    assert not verdict(rows[:2])


def test_without_labels_the_noise_decides() -> None:
    rows = [_row("none", 0.1, AGREEMENT, 10.0), _row("nncf", 0.2, AGREEMENT, 20.0)]
    assert rows[0].loss == pytest.approx(10 * rows[1].loss)
    assert verdict(rows) == "onnxq none (10.0 dB) loses to nncf (20.0 dB)."


def test_tables_hold_every_row_and_every_reason(trial: Trial) -> None:
    unfit = Made(problem="InputError: none of the methods mse is for a node")
    rows = [_row("none", 0.4), _row("auto", 0.2), Row("mse", unfit)]
    rows.append(Row("nncf", Made(problem="took more than 1 minutes")))
    lines = list(table(trial, rows, 2.0))
    assert lines[0] == "## tiny: weights in 2 bits"
    assert "| onnxq auto | 2.2000 | +0.2000 | +0.1000 to +0.3000 | 0.50 | 20.0 dB |" in lines[-6]
    assert lines[-6].endswith("1/4.00 | 1.5 | 0.5 |")
    assert "Not for any of its nodes: onnxq mse." in lines
    assert "nncf fails: took more than 1 minutes" in lines
    assert summary(trial, rows) == (
        "| tiny | weights in 2 bits | +0.4000 bits | +0.2000 bits | +0.2000 bits (onnxq auto) |  |"
    )


def test_rows_round_trip(tmp_path: Path) -> None:
    row = Row("none", Made(problem="it failed"), sqnr_db=-math.inf)
    row.save(tmp_path / "row.json")
    assert Row.load(tmp_path / "row.json") == row


def test_trials_without_anything_but_this_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONNXQ_CORPUS", raising=False)
    monkeypatch.delenv("ONNXQ_REAL", raising=False)
    found = list(trials(tmp_path))
    names = [trial.name for trial in found]
    assert len(set(names)) == len(names)
    assert names == [
        *("text_lm.w4", "text_lm.w3", "text_lm.w2", "text_lm.w2-zero"),
        *("text_lm.w4-all", "text_lm.w8a8"),
        *("digits_vit_outliers.w8a8", "text_lm_outliers.w8a8"),
    ]
    assert methods(found[0])[0] == "none"
    assert set(W4.rivals) < set(methods(found[0]))
    assert all(FORMATS[trial.format.name] is trial.format for trial in found)


LAYER_NORM = """
    <ir_version: 10, opset_import: ["" : 21]>
    model (float[2, 8] x) => (float[2, 3] y)
    <float[8] scale = {1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7},
     float[8] bias = {0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7}, float[8, 3] w>
    { a = LayerNormalization(x, scale, bias) y = MatMul(a, w) }
"""


def test_planted_outliers_change_no_output() -> None:
    model = onnx.parser.parse_model(LAYER_NORM)
    weight = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    other = onnx.ModelProto()
    other.CopyFrom(model)
    assert plant_outliers(other) == 1
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 8)).astype(np.float32)}
    for changed in (model, other):
        changed.graph.output.append(onnx.helper.make_tensor_value_info("a", 1, [2, 8]))
    before, after = Session(model).run(feeds), Session(other).run(feeds)
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-6)
    ratio = (after["a"] / before["a"]).max(axis=0)
    assert np.sort(ratio).tolist() == [1.0] * (8 - CHANNELS) + [FACTOR] * CHANNELS


def test_outliers_are_planted_only_before_products_alone() -> None:
    text = LAYER_NORM.replace("y = MatMul(a, w)", "b = MatMul(a, w) c = Relu(a) y = MatMul(c, w)")
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((8, 3), np.float32), "w"))
    assert plant_outliers(model) == 0

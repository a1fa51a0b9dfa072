"""``onnxq watch``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from disturbances import MODELS, NONE, Photographs, gain

from onnxq.adaptive.bundle import Bundle
from onnxq.runtime import Session
from onnxq.watching import Watch, watch
from tests.adaptive import fakes
from tests.cli.conftest import Command


@pytest.fixture
def bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One that steps up its ladder where a value is above 10."""
    monkeypatch.setattr("onnxq.watching.default_parts", lambda seed, rate: fakes.parts())
    return fakes.bundle(tmp_path / "made").save(tmp_path / "bundle").folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return saved(tmp_path, [1.0] * 10 + [20.0] * 150)


def saved(folder: Path, values: list[float]) -> Path:
    x = np.repeat(np.array(values, np.float32)[:, None], 3, axis=1)
    np.savez(folder / "data.npz", x=x, labels=np.zeros(len(x), np.int64))
    return folder / "data.npz"


def test_drift_is_told_and_is_exit_code_1(
    onnxq: Command, bundle: Path, data: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in bundle.iterdir()}
    arguments = ("watch", bundle, "--data", data, "--sampling", "1")
    found = onnxq(*arguments, "--report", tmp_path / "report")
    assert (found.code, found.err) == (1, "")
    lines = [" ".join(line.split()) for line in found.out.splitlines()]
    assert lines[0] == "requests looked at to float accuracy drift answered by"
    assert lines[1] == "1 - 8 8 6.0 dB 100.00 % 0.10 factor1"
    assert any(line.startswith("11 drift the values are above 10") for line in lines)
    assert "a step up the ladder; before: 6.0 dB, after: exact" in " ".join(lines)
    assert any(line.startswith("160 requests, 160 looked at: 1 alarm, 1 change") for line in lines)
    assert lines[-1] == f"The report is in '{tmp_path}/report/watch.html'."
    assert "the values are above 10" in (tmp_path / "report" / "watch.html").read_text()
    assert {path: path.read_bytes() for path in bundle.iterdir()} == before


def test_json_is_the_same_each_time_and_read_again(
    onnxq: Command, bundle: Path, data: Path
) -> None:
    arguments = ("watch", bundle, "--data", data, "--sampling", "0.5", "--seed", "3")
    found = onnxq(*arguments, "--requests-per-second", "2", "--json", "-")
    assert found.out == onnxq(*arguments, "--requests-per-second", "2", "--json", "-").out
    body = json.loads(found.out)
    assert body["schema"] == "onnxq/watch/1" and body["adaptive"]["requests"] == 160
    assert body["adaptive"]["happenings"][0]["kind"] == "drift"
    assert body["rules"]["sampling"] == 0.5 and body["rules"]["requests_per_second"] == 2.0
    assert Watch.from_json(found.out).to_json() == found.out


def test_nothing_unusual_is_exit_code_0(onnxq: Command, bundle: Path, tmp_path: Path) -> None:
    found = onnxq("watch", bundle, "--data", saved(tmp_path, [1.0] * 30))
    assert (found.code, found.err) == (0, "")
    assert "0 alarms, 0 changes" in found.out


def test_a_state_is_kept_where_it_is_asked_for(
    onnxq: Command, bundle: Path, data: Path, tmp_path: Path
) -> None:
    state = tmp_path / "kept" / "state.sqlite"
    state.parent.mkdir()
    arguments = ("watch", bundle, "--data", data, "--sampling", "1", "--state", state)
    assert onnxq(*arguments).code == 1
    assert state.exists() and not (bundle / "state.sqlite").exists()
    second = onnxq("watch", bundle, "--data", saved(tmp_path, [1.0] * 9), "--state", state)
    assert second.code == 0 and "factor2" in second.out


def test_it_is_a_function_too(bundle: Path, data: Path) -> None:
    found = watch(Bundle.load(bundle), data)
    assert found.bundle == str(bundle) and found.data == str(data)
    assert found.adaptive.metric == "accuracy" and found.adaptive.value == 1.0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--sampling", "0"], "'0' is not a share above 0"),
        (["--sampling", "1.5"], "'1.5' is not a share"),
        (["--false-alarms-per-day", "-1"], "'-1' is not a number above 0"),
        (["--requests-per-second", "0"], "'0' is not a number above 0"),
        (["--metric", "much"], "there is no metric 'much'"),
        (["--report", "{bundle}/bundle.json"], "bundle.json' is a file"),
    ],
)
def test_options_that_mean_nothing(
    onnxq: Command, bundle: Path, data: Path, arguments: list[str], part: str
) -> None:
    named = [argument.format(bundle=bundle) for argument in arguments]
    onnxq("watch", bundle, "--data", data, *named).refused(part)


def test_what_is_no_bundle_and_data_that_does_not_fit(
    onnxq: Command, bundle: Path, data: Path, tmp_path: Path
) -> None:
    onnxq("watch", tmp_path / "none", "--data", data).refused("none' is no folder", "--adaptive")
    onnxq("watch", data.parent, "--data", data).refused("bundle.json")
    np.savez(tmp_path / "other.npz", y=np.zeros((3, 3), np.float32))
    onnxq("watch", bundle, "--data", tmp_path / "other.npz").refused("other.npz", "'x'")
    (bundle / "factor1.onnx").write_bytes(b"")
    onnxq("watch", bundle, "--data", data).refused("factor1.onnx", "not what the bundle was made")


@pytest.mark.slow
def test_a_brighter_camera_is_noticed_and_adapted_to(onnxq: Command, tmp_path: Path) -> None:
    dark, digits = gain(0.7), Photographs.of("digits_vit")
    np.savez(tmp_path / "calibration.npz", **digits.usual(dark))
    np.savez(tmp_path / "today.npz", **digits.stream([(200, dark, dark), (1000, NONE, NONE)]))
    bundle = tmp_path / "bundle"
    made = onnxq(
        *("optimize", MODELS / "digits_vit.onnx", "--data", tmp_path / "calibration.npz"),
        *("-o", tmp_path / "int8.onnx", "--recipe", "int8", "--adaptive", bundle),
    )
    assert made.code == 0
    static = accuracy(tmp_path / "int8.onnx", digits.stream([(450, NONE, NONE)]))
    found = onnxq("watch", bundle, "--data", tmp_path / "today.npz", "--json", "-")
    assert found.code == 1
    adaptive = Watch.from_json(found.out).adaptive
    assert [own.kind for own in adaptive.happenings[:2]] == ["drift", "adapted"]
    assert 200 < adaptive.happenings[0].request < adaptive.happenings[1].request < 700
    last = [own.value for own in adaptive.stretches if own.first > 700]
    assert static < 0.94 and np.mean([value for value in last if value is not None]) > 0.97


def accuracy(model: Path, data: dict[str, np.ndarray]) -> float:
    scores = Session(model).run({"image": data["image"]})["logits"]
    return float((scores.argmax(1) == data["labels"]).mean())

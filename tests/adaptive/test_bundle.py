from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxq.adaptive.baseline import Baseline, TensorBaseline, Usual
from onnxq.adaptive.bundle import BASELINE, FACTS, Bundle, check_folder
from onnxq.adaptive.deployment import Deployment
from onnxq.errors import InputError
from onnxq.observe import Histogram
from onnxq.scratch import scratch_folder
from tests.adaptive.bundles import plain_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "made").mkdir()
    return plain_bundle(tmp_path / "made").save(tmp_path / "bundle")


def test_a_bundle_that_was_written_is_read_as_it_was(bundle: Bundle, tmp_path: Path) -> None:
    read = Bundle.load(tmp_path / "bundle")
    assert read == bundle
    assert read.deployment == Deployment(0)
    assert [read.model(place).name for place in range(2)] == ["fast.onnx", "float.onnx"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "made"]


def test_a_bundle_takes_the_place_of_another_one(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.folder / "left over").touch()
    again = plain_bundle(tmp_path / "made").save(bundle.folder)
    assert again == bundle
    assert not (bundle.folder / "left over").exists()


EXCHANGE = """
import os, signal, sys
from pathlib import Path
from onnxq.adaptive.bundle import Bundle

replace = Path.replace

def killed(path, target):
    if path.name == "new":
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)

Path.replace = killed
Bundle.load(sys.argv[1]).save(sys.argv[2])
"""


@pytest.mark.skipif(os.name != "posix", reason="SIGKILL is POSIX's")
def test_bundles_that_a_killed_process_was_exchanging_can_be_found(
    bundle: Bundle, tmp_path: Path
) -> None:
    other = bundle.save(tmp_path / "other")
    subprocess.run([sys.executable, "-c", EXCHANGE, other.folder, bundle.folder], check=False)
    other.save(bundle.folder)
    with scratch_folder(tmp_path):
        (left,) = tmp_path.glob(".bundle-*")
        for name in ("old", "new"):
            assert Bundle.load(left / name).facts == bundle.facts


def test_a_bundle_is_back_when_the_new_one_cannot_take_its_place(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def interrupted(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bundle.save(bundle.folder)
    assert Bundle.load(bundle.folder) == bundle
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bundle", "made"]


def test_what_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    with pytest.raises(InputError, match="photos': something else lies there; name a new folder"):
        check_folder(tmp_path / "photos")
    with pytest.raises(InputError, match="the folder around it is missing"):
        check_folder(tmp_path / "none" / "bundle")
    (tmp_path / "empty").mkdir()
    check_folder(tmp_path / "empty")


def test_a_model_that_was_replaced_is_not_given_out(bundle: Bundle) -> None:
    (bundle.folder / "fast.onnx").write_bytes((bundle.folder / "float.onnx").read_bytes())
    with pytest.raises(InputError, match=r"fast.onnx' is not what the bundle was made with; make"):
        bundle.model(0)
    assert bundle.model(1).name == "float.onnx"


@pytest.mark.parametrize("name", [FACTS, BASELINE, "fast.onnx"])
def test_a_missing_file_is_named(bundle: Bundle, name: str) -> None:
    (bundle.folder / name).unlink()
    with pytest.raises(InputError, match=rf"{name}': No such file") as found:
        Bundle.load(bundle.folder).model(0)
    assert "\n" not in str(found.value)


def test_a_baseline_that_was_altered_is_not_read(bundle: Bundle) -> None:
    path = bundle.folder / BASELINE
    path.write_text(path.read_text().replace('"samples": 0', '"samples": 1'))
    with pytest.raises(InputError, match=r"baseline.json' is not what the bundle was made with"):
        Bundle.load(bundle.folder)


@pytest.mark.parametrize(("entry", "value"), [("chosen", 2), ("chosen", -1)])
def test_facts_that_name_no_variant_are_refused(bundle: Bundle, entry: str, value: int) -> None:
    path = bundle.folder / FACTS
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: value}))
    with pytest.raises(InputError, match="damaged"):
        Bundle.load(bundle.folder)


def test_no_file_outside_of_the_folder_is_read(bundle: Bundle) -> None:
    path = bundle.folder / FACTS
    path.write_text(path.read_text().replace('"fast.onnx"', '"../fast.onnx"'))
    with pytest.raises(InputError, match="damaged"):
        Bundle.load(bundle.folder)


def test_the_baseline_round_trips() -> None:
    histogram = Histogram(np.array([-3, 0, 7], np.int32), np.array([1, 5, 2]))
    tensor = TensorBaseline(-1.0, float("inf"), histogram, {"above": Usual(0.5, 0.25)})
    baseline = Baseline(8, {"x": tensor}, {"above": (0.0, 1.5)})
    assert Baseline.from_json(baseline.to_json()) == baseline

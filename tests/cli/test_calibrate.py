"""``onnxq calibrate``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from onnxq.data import read
from onnxq.ir import Graph, save
from onnxq.observe import CALIBRATORS, Ranges
from onnxq.runtime import Session
from tests.cli.conftest import Command
from tests.cli.models import SAMPLES, Case
from tests.cli.test_optimize import strict_json


@pytest.fixture(scope="module")
def found(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from onnxq.planning import find_ranges

    path = tmp_path_factory.mktemp("ranges") / "ranges.json"
    find_ranges(case.model, case.data).save(path)
    return path


@pytest.mark.parametrize("name", CALIBRATORS)
def test_every_calibrator(onnxq: Command, case: Case, tmp_path: Path, name: str) -> None:
    out = tmp_path / "ranges.json"
    done = onnxq("calibrate", case.model, "--data", case.data, "--calibrator", name, "-o", out)
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[-1] == f"Wrote '{out}'."
    ranges = Ranges.load(out)
    # The samples that `optimize` keeps for verifying are not seen.
    assert (ranges.calibrator, ranges.samples) == (name, SAMPLES // 2)
    assert ranges.ranges.keys() == ranges.statistics.keys()
    assert all(s.histogram is not None for s in ranges.statistics.values())
    specs = Session(case.model).inputs
    seen = [b.feeds["x"] for b in read(str(case.data), specs).split(0)[0].batches()]
    if name == "minmax":
        ends = min(x.min() for x in seen), max(x.max() for x in seen)
        assert (ranges.ranges["x"].min, ranges.ranges["x"].max) == ends
    assert list(tmp_path.iterdir()) == [out]


def test_json_and_quiet(onnxq: Command, case: Case, tmp_path: Path) -> None:
    out = tmp_path / "ranges.json"
    arguments = ("calibrate", case.model, "--data", case.data, "-o", out, "--samples", "10")
    body = strict_json(onnxq(*arguments, "--json", "-").out)
    assert body["schema"] == "onnxq/calibrate/1"
    assert body["samples"] == 10 and body["calibrator"] == "minmax"
    assert body["tensors"] == len(Ranges.load(out).ranges) and body["not_finite"] == []
    quiet = onnxq(*arguments, "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_a_memory_limit_and_batches_change_no_range(
    onnxq: Command, case: Case, found: Path, tmp_path: Path
) -> None:
    out = tmp_path / "ranges.json"
    arguments = ("--memory-limit", "3MB", "--batch-size", "7")
    done = onnxq("calibrate", case.model, "--data", case.data, "-o", out, *arguments)
    assert (done.code, done.err) == (0, "")
    ours, whole = Ranges.load(out), Ranges.load(found)
    for name, wanted in whole.ranges.items():
        assert ours.ranges[name].max == pytest.approx(wanted.max, rel=1e-5)


def test_choosing_again_runs_no_model(
    onnxq: Command, case: Case, found: Path, tmp_path: Path
) -> None:
    again, direct = tmp_path / "again.json", tmp_path / "direct.json"
    text = "percentile{percentile=99}"
    first = onnxq("calibrate", "--from", found, "--calibrator", text, "-o", again)
    assert (first.code, first.err) == (0, "")
    second = onnxq("calibrate", case.model, "--data", case.data, "--calibrator", text, "-o", direct)
    assert second.code == 0
    assert again.read_bytes() == direct.read_bytes()


def test_shards_are_merged(onnxq: Command, found: Path, tmp_path: Path) -> None:
    out = tmp_path / "both.json"
    done = onnxq("calibrate", "--from", found, "--from", found, "-o", out)
    assert (done.code, done.err) == (0, "")
    one, both = Ranges.load(found), Ranges.load(out)
    assert both.ranges == one.ranges and both.samples == SAMPLES
    name = next(iter(one.statistics))
    assert both.statistics[name].count == 2 * one.statistics[name].count


def test_optimize_takes_a_calibrator(onnxq: Command, case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    arguments = ("--data", case.data, "-o", out, "--recipe", "int8", "--min-speedup", "0", "-q")
    assert onnxq("optimize", case.model, *arguments).code == 0
    plain = out.read_bytes()
    text = "percentile{percentile=90}"
    assert onnxq("optimize", case.model, *arguments, "--calibrator", text).code in (0, 1)
    onnxq("optimize", case.model, *arguments, "--calibrator", text, "--keep-failed")
    assert out.read_bytes() != plain
    done = onnxq("optimize", case.model, *arguments, "--calibrator", "median")
    done.refused("no calibrator 'median'", "minmax")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--calibrator", "median"), ("no calibrator 'median'",)),
        (("--calibrator", "mse{clipping=-1}"), ("option 'clipping'", "above 0")),
        (("--memory-limit", "lots"), ("'lots' is not a size such as 500MB or 2GB",)),
        (("--memory-limit", "0"), ("'0' is not a size",)),
        (("--memory-limit", "10B"), ("observing '", "limit is 10; raise")),
        (("--target", "moon"), ("no target 'moon'",)),
        (("--from", "nowhere.json"), ("takes the place of MODEL and --data",)),
    ],
)
def test_what_cannot_be_used(
    onnxq: Command, case: Case, tmp_path: Path, arguments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    out = tmp_path / "ranges.json"
    done = onnxq("calibrate", case.model, "--data", case.data, "-o", out, *arguments)
    done.refused(*parts)
    assert not out.exists()


def test_what_is_missing(onnxq: Command, case: Case, found: Path, tmp_path: Path) -> None:
    out = tmp_path / "ranges.json"
    onnxq("calibrate", case.model, "-o", out).refused("name a MODEL and its --data")
    onnxq("calibrate", "--from", found, "-o", out).refused("needs a --calibrator")
    onnxq("calibrate", "--from", tmp_path / "no.json", "-o", out, "--calibrator", "mse").refused(
        "no.json", "No such file"
    )
    copied = tmp_path / "model.onnx"
    copied.write_bytes(case.model.read_bytes())
    onnxq("calibrate", copied, "--data", case.data, "-o", copied).refused("-o would replace")
    assert copied.read_bytes() == case.model.read_bytes()
    assert json.loads(found.read_text())["schema"] == "onnxq/ranges/1"


def test_infinite_values_are_refused_with_the_tensor_s_name(onnxq: Command, tmp_path: Path) -> None:
    graph = Graph.from_text("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 2] x) => (float[N, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}>
        { logarithm = Log(x) y = MatMul(logarithm, w) }""")
    model, data, out = tmp_path / "m.onnx", tmp_path / "d.npz", tmp_path / "r.json"
    save(graph, model)
    np.savez(data, x=np.array([[0.0, 1.0], [0.0, 3.0]], np.float32))
    done = onnxq("calibrate", model, "--data", data, "-o", out, "--calibrator", "auto")
    assert (done.code, done.err) == (0, "")
    assert "refused" in done.out and "'logarithm' has infinite or NaN values" in done.out
    found = Ranges.load(out)
    assert not found.ranges["logarithm"].is_finite
    assert found.statistics["logarithm"].not_finite == 1
    body = strict_json(
        onnxq("calibrate", "--from", out, "--calibrator", "mse", "-o", out, "--json", "-").out
    )
    assert body["not_finite"] == ["logarithm"]

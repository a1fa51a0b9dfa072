"""``onnxq optimize``: what it writes, prints and promises."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from onnxq.cli import main
from onnxq.ir import available_passes
from onnxq.runtime import Session
from onnxq.verify import Report
from tests.cli.conftest import Command, Outcome
from tests.cli.models import SAMPLES, Case, images
from tests.cli.test_terminal import pretend
from tests.networks import computed

__all__ = ["computed"]

pytestmark = pytest.mark.usefixtures("computed")

REPORT_KEYS = {
    "schema": None,
    "model": {"path", "sha256", "nodes", "opset"},
    "output": {"path", "sha256", "nodes", "opset", "integer_operators"},
    "metric": {"name", "float", "candidate", "drop", "samples", "confidence"},
    "latency": {"provider", "threads", "float_ms", "candidate_ms", "speedup"},
    "size": {"float_bytes", "candidate_bytes", "ratio"},
    "outputs": {"name", "sqnr_db", "cosine", "max_abs"},
    "layers": {"node", "op_type", "precision", "sqnr_db", "sensitivity", "reason"},
    "gates": {"expr", "value", "passed"},
    "passes": {"name", "rewrites", "seconds"},
    "versions": {"onnxq", "onnx", "onnxruntime", "numpy", "networkx", "python"},
    "seconds": None,
    "peak_rss_bytes": None,
    "peak_stage": None,
    "passed": None,
}


def check_report(body: dict[str, object]) -> None:
    """The keys that the design promises are there, in every element of a list."""
    assert body["schema"] == "onnxq/report/1"
    assert set(body) >= set(REPORT_KEYS)
    for key, wanted in REPORT_KEYS.items():
        value = body[key]
        if wanted is None:
            continue
        elements = value if isinstance(value, list) else [value]
        assert elements, key
        for element in elements:
            assert set(element) >= wanted, key


def strict_json(text: str) -> dict[str, object]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    body = json.loads(text, parse_constant=refuse)
    assert isinstance(body, dict)
    return body


@pytest.fixture
def run(onnxq: Command, case: Case):  # type: ignore[no-untyped-def]
    """`optimize` on the small classifier; it may be slower in integers."""

    def run(*arguments: str | Path, data: Path = case.data) -> Outcome:
        given = ("--data", data, "--recipe", "int8", "--min-speedup", "0")
        return onnxq("optimize", case.model, *given, *arguments)

    return run


def test_the_model_is_written_and_the_summary_printed(run, case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    found = run("-o", out)
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    assert lines[0].startswith("accuracy")
    assert "100.00 % -> 100.00 %" in lines[0] and "(20 samples)" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["agreement", "latency", "size"]
    assert "drop<=0.01" in found.out and "speedup>=0" in found.out
    assert "FAILED" not in found.out
    assert lines[-1] == f"Wrote '{out}'."
    assert list(tmp_path.iterdir()) == [out]
    onnx.checker.check_model(out, full_check=True)
    assert out.read_bytes() == case.candidate.read_bytes(), "the same model every time"
    x = images(8)
    wanted = Session(case.model).run({"x": x})["y"]
    found_y = Session(out).run({"x": x})["y"]
    assert not np.array_equal(wanted, found_y)
    np.testing.assert_allclose(found_y, wanted, atol=0.05 * np.abs(wanted).max())


def test_json_file(run, case: Case, tmp_path: Path) -> None:
    out, path = tmp_path / "out.onnx", tmp_path / "r.json"
    assert run("-o", out, "--json", path).code == 0
    body = strict_json(path.read_text())
    check_report(body)
    report = Report.from_json(path.read_text())
    assert (report.model.path, report.output.path) == (str(case.model), str(out))
    assert report.size.candidate_bytes == out.stat().st_size
    assert report.size.float_bytes == case.model.stat().st_size
    assert report.metric is not None and report.metric.samples == SAMPLES // 2
    assert [g.expr for g in report.gates] == ["drop<=0.01", "speedup>=0"]
    assert "insert-qdq" in {p.name for p in report.passes}


def test_json_on_standard_output_is_nothing_but_json(run, tmp_path: Path) -> None:
    found = run("-o", tmp_path / "out.onnx", "--json", "-")
    assert (found.code, found.err) == (0, "")
    check_report(strict_json(found.out))


def test_quiet_prints_nothing(run, tmp_path: Path) -> None:
    found = run("-o", tmp_path / "out.onnx", "-q")
    assert (found.code, found.out, found.err) == (0, "", "")
    assert (tmp_path / "out.onnx").exists()


def test_a_broken_promise_leaves_no_model(run, tmp_path: Path) -> None:
    found = run("-o", tmp_path / "out.onnx", "--min-sqnr", "200", "--json", tmp_path / "r.json")
    assert (found.code, found.err) == (1, "")
    assert "FAILED" in found.out
    assert "nothing was written; --keep-failed writes it" in found.out.splitlines()[-1]
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    body = strict_json((tmp_path / "r.json").read_text())
    check_report(body)
    assert body["passed"] is False
    verdicts = {g["expr"]: g["passed"] for g in body["gates"]}  # type: ignore[attr-defined]
    assert verdicts == {"drop<=0.01": True, "sqnr>=200": False, "speedup>=0": True}


def test_a_broken_promise_leaves_an_older_model_alone(run, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("an older one")
    assert run("-o", out, "--min-sqnr", "200", "-q").code == 1
    assert out.read_text() == "an older one"


def test_a_broken_promise_with_keep_failed(run, case: Case, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    found = run("-o", out, "--min-sqnr", "200", "--keep-failed")
    assert (found.code, found.err) == (1, "")
    assert found.out.splitlines()[-1] == f"A promise broke; wrote '{out}' all the same."
    assert out.read_bytes() == case.candidate.read_bytes()


@pytest.mark.parametrize("promise", [("--max-drop", "-0.5"), ("--min-speedup", "1e6")])
def test_every_promise_can_break(run, tmp_path: Path, promise: tuple[str, str]) -> None:
    found = run("-o", tmp_path / "out.onnx", *promise)
    assert found.code == 1
    assert "FAILED" in found.out
    assert not list(tmp_path.iterdir())


def test_report_folder(run, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    found = run("-o", tmp_path / "out.onnx", "--report", folder)
    assert found.code == 0
    assert found.out.splitlines()[-1] == (
        f"Wrote '{tmp_path}/out.onnx'. The report is in '{folder}/report.html'."
    )
    assert sorted(p.name for p in folder.iterdir()) == [
        "junit.xml",
        "report.html",
        "report.json",
        "report.md",
    ]
    check_report(strict_json((folder / "report.json").read_text()))
    assert ElementTree.parse(folder / "junit.xml").getroot().get("tests") == "2"
    assert "out.onnx" in (folder / "report.html").read_text()


def test_a_report_of_a_broken_promise(run, tmp_path: Path) -> None:
    found = run("-o", tmp_path / "out.onnx", "--report", tmp_path / "r", "--min-sqnr", "200")
    assert found.code == 1
    assert not (tmp_path / "out.onnx").exists()
    assert ElementTree.parse(tmp_path / "r" / "junit.xml").getroot().get("failures") == "1"


def test_a_report_folder_that_is_a_file_is_refused_before_the_work(run, tmp_path: Path) -> None:
    (tmp_path / "report").write_text("in the way")
    found = run("-o", tmp_path / "out.onnx", "--report", tmp_path / "report")
    found.refused("report", "is a file")
    assert not (tmp_path / "out.onnx").exists()


def test_the_output_may_replace_the_input(onnxq: Command, case: Case, tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(case.model.read_bytes())
    arguments = ("--data", case.data, "--recipe", "int8", "--min-speedup", "0", "-q")
    found = onnxq("optimize", model, *arguments, "-o", model)
    assert found.code == 0
    assert model.read_bytes() == case.candidate.read_bytes()


def test_eval_names_the_held_out_samples(run, case: Case, tmp_path: Path) -> None:
    arrays = np.load(case.data)
    held_out = tmp_path / "held_out.npz"
    np.savez(held_out, x=arrays["x"][:7], labels=arrays["labels"][:7])
    arguments = ("--eval", held_out, "--json", "-", "-o", tmp_path / "out.onnx")
    body = strict_json(run(*arguments).out)
    assert body["metric"]["samples"] == 7  # type: ignore[index]


def test_seed_and_samples_choose_the_calibration(run, case: Case, tmp_path: Path) -> None:
    for name, more in (("a", ()), ("b", ("--seed", "1")), ("c", ("--calibration-samples", "3"))):
        assert run("-o", tmp_path / name, "-q", *more).code == 0
    models = [(tmp_path / name).read_bytes() for name in "abc"]
    assert len(set(models)) == 3
    assert run("-o", tmp_path / "d", "-q", "--seed", "1").code == 0
    assert (tmp_path / "d").read_bytes() == models[1]


def test_opset_is_raised_on_request(run, tmp_path: Path) -> None:
    assert run("-o", tmp_path / "out.onnx", "-q", "--opset", "19").code == 0
    opsets = {o.domain: o.version for o in onnx.load(tmp_path / "out.onnx").opset_import}
    assert opsets[""] == 19
    run("-o", tmp_path / "no.onnx", "-q", "--opset", "9999").refused("9999")


@pytest.mark.parametrize(
    ("arguments", "metric", "gate"),
    [
        ((), "agreement", "agreement>=0.95"),
        (("--min-agreement", "0.9"), "agreement", "agreement>=0.9"),
        (("--metric", "sqnr"), None, "sqnr>=15"),
    ],
)
def test_without_labels_the_promise_is_agreement(
    run, tmp_path: Path, arguments: tuple[str, ...], metric: str | None, gate: str
) -> None:
    data = tmp_path / "x.npz"
    np.savez(data, x=images())
    found = run("-o", tmp_path / "out.onnx", "--json", "-", *arguments, data=data)
    body = strict_json(found.out)
    assert (body["metric"] and body["metric"]["name"]) == metric  # type: ignore[index]
    assert [g["expr"] for g in body["gates"]] == [gate, "speedup>=0"]  # type: ignore[attr-defined]
    said = "Expect the same decision" if metric else "Expect outputs that are off by"
    assert any(note.startswith(said) for note in body["notes"])  # type: ignore[attr-defined]


def test_a_drop_needs_something_to_measure_it_by(run, tmp_path: Path) -> None:
    data = tmp_path / "x.npz"
    np.savez(data, x=images())
    drop = ("--max-drop", "0.01", "--metric", "sqnr")
    run("-o", tmp_path / "no.onnx", *drop, data=data).refused("labels", "--min-sqnr")
    assert not (tmp_path / "no.onnx").exists()


def test_debug_prints_each_pass(
    run, case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ONNXQ_DEBUG", "1")
    found = run("-o", tmp_path / "out.onnx", "-q")
    assert (found.code, found.out) == (0, "")
    names = {line.split(":")[0].split("{")[0].strip() for line in found.err.splitlines()}
    assert names <= set(available_passes())
    assert {"fold-constants", "fuse-batch-norm", "insert-qdq"} <= names


def test_progress_on_a_terminal(
    case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terminal = pretend(monkeypatch, "stderr")
    arguments = ["optimize", str(case.model), "--data", str(case.data), "--recipe", "int8"]
    arguments += ["--min-speedup", "0"]
    assert main([*arguments, "-o", str(tmp_path / "out.onnx")]) == 0
    for stage in ("rewriting", "calibrating", "verifying", "measuring latency on cpu"):
        assert stage in terminal.getvalue()
    terminal.truncate(0)
    assert main([*arguments, "-o", str(tmp_path / "out.onnx"), "-q"]) == 0
    assert not terminal.getvalue().strip("\0")


@pytest.mark.parametrize(
    "place", ["onnxq.prepare.calibrate", "onnxq.proof.compare_files", "pathlib.Path.replace"]
)
def test_an_interrupt_leaves_nothing(
    run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupted)
    found = run("-o", tmp_path / "out.onnx", "--json", tmp_path / "r.json")
    assert (found.code, found.out, found.err) == (130, "", "onnxq: error: interrupted\n")
    assert not list(tmp_path.iterdir())

"""JSON, JUnit XML and the folder that holds all forms."""

from __future__ import annotations

import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from onnxq.errors import InputError
from onnxq.report import check_folder, to_html, to_junit, to_markdown, write_report
from onnxq.verify import Report
from onnxq.verify.result import GateFacts, MetricFacts
from tests.report.hostile import SCRIPT, hostile_report, is_clean
from tests.verify.reports import CANDIDATE, DEPLOYMENTS, TRAINING, a_report

_FILE = "path sha256 nodes opset bytes integer_operators compiled provider"
_LATENCY = "provider threads float_ms candidate_ms speedup batch of confidence"
KEYS: dict[str, str | None] = {
    "schema": None,
    "model": _FILE,
    "output": _FILE,
    "metric": "name float candidate drop samples confidence",
    "latency": _LATENCY,
    "latencies": _LATENCY,
    "throughput": "provider threads batch float_per_second candidate_per_second speedup",
    "size": "float_bytes candidate_bytes ratio",
    "outputs": "name sqnr_db cosine max_abs",
    "layers": "node op_type precision sqnr_db sensitivity reason cosine local_db local_cosine "
    "expected_db worst_channel worst_channel_db saturation",
    "gates": "expr value passed",
    "passes": "name rewrites seconds",
    "versions": None,
    "seconds": None,
    "peak_rss_bytes": None,
    "passed": None,
    "candidates": "label speedup predicted_loss sqnr_db drop chosen",
    "methods": "node method gain_db seconds",
    "notes": None,
    "peak_stage": None,
    "agreement": "value samples positions confidence decisions kl left_out",
    "training": None,
    "untried": "what reason",
    "graph": None,
    "tensors": "tensor node low high first last shares sqnr_db outside",
    "command": None,
    "jump": None,
    "providers": "name version nodes_taken nodes_left left float_ms candidate_ms sqnr_db metric "
    "difference_db agrees parts_at float_agrees float_parts_at",
    "deployments": "python runtime target provider model ms speedup confidence sqnr_db drop bytes "
    "nodes_taken nodes_left chosen reason",
    "deploy": None,
}


def properties(suite: ElementTree.Element) -> dict[str | None, str | None]:
    return {p.get("name"): p.get("value") for p in suite.iter("property")}


@pytest.mark.parametrize(
    "report",
    [
        a_report(deployments=DEPLOYMENTS),
        a_report(metric=None, latency=None),
        hostile_report(),
    ],
)
def test_the_files_hold_the_report(tmp_path: Path, report: Report) -> None:
    write_report(report, tmp_path)
    assert Report.from_json((tmp_path / "report.json").read_text("ascii")) == report
    assert (tmp_path / "report.html").read_bytes().decode("utf-8") == to_html(report)
    assert (tmp_path / "report.md").read_bytes().decode("utf-8") == to_markdown(report)
    assert (tmp_path / "junit.xml").read_bytes().decode("utf-8") == to_junit(report)


def test_json_has_exactly_the_keys_of_the_contract() -> None:
    body = json.loads(a_report().to_json())
    assert next(iter(body)) == "schema" and set(body) == set(KEYS)
    assert body["schema"] == "onnxq/report/1"
    for key, wanted in KEYS.items():
        value = body[key]
        for element in value if isinstance(value, list) else [value]:
            assert wanted is None or set(element) == set(wanted.split()), key
    (output, exact) = body["outputs"]
    assert (output["sqnr_db"], exact["sqnr_db"]) == (35.5, "inf"), "JSON has no infinity"


def test_training_has_the_keys_of_the_contract(tmp_path: Path) -> None:
    report = a_report(training=TRAINING)
    (training,) = [json.loads(report.to_json())["training"]]
    assert set(training) >= {"epochs", "steps", "seconds", "device", "history"}
    epochs = training["history"]
    assert [e["held_out_loss"] for e in epochs] == [0.5, 0.25, "inf"]
    assert epochs[0]["loss"] is None
    assert Report.from_json(report.to_json()) == report


def test_junit_has_a_case_for_every_gate() -> None:
    root = ElementTree.fromstring(to_junit(a_report()))
    assert root.tag == "testsuites"
    (suite,) = root
    for element in (root, suite):
        counts = [element.get(key) for key in ("tests", "failures", "errors")]
        assert counts == ["2", "1", "0"]
    assert suite.get("name") == "onnxq q.onnx"
    assert suite.get("time") == "1.500"
    held, failed = suite.iter("testcase")
    assert [held.get("name"), failed.get("name")] == ["drop<=0.01", "speedup>=2"]
    assert held.get("classname") == failed.get("classname") == "onnxq.q"
    assert held.find("failure") is None
    failure = failed.find("failure")
    assert failure is not None
    assert failure.get("message") == failure.text
    assert failure.text == "the gate speedup>=2 did not hold: it was not measured"


def test_junit_says_what_was_measured() -> None:
    report = a_report(gates=(GateFacts("sqnr>=99", 35.5, False), GateFacts("sqnr>=9", 35.5, True)))
    failures = [f.get("message") for f in ElementTree.fromstring(to_junit(report)).iter("failure")]
    assert failures == ["the gate sqnr>=99 did not hold: measured 35.5"]


def test_junit_properties() -> None:
    found = properties(ElementTree.fromstring(to_junit(a_report())))
    assert {key: float(str(found[key])) for key in ("drop", "size_ratio", "sqnr_db")} == {
        "drop": 0.005,
        "size_ratio": 4.0,
        "sqnr_db": 35.5,
    }
    assert (found["model"], found["output_sha256"], found["samples"]) == ("m.onnx", "bb", "450")
    assert (found["speedup_cpu"], found["speedup_cuda"]) == ("1.5", "1.2")
    assert found["version_onnx"] == "1"
    without = properties(ElementTree.fromstring(to_junit(a_report(metric=None, latencies=()))))
    assert "drop" not in without and "speedup_cpu" not in without


def test_junit_without_gates_or_output() -> None:
    report = a_report(gates=(), output=CANDIDATE.__class__("", "bb", 19, 17, 1000))
    root = ElementTree.fromstring(to_junit(report))
    assert root.get("tests") == "0"
    assert root[0].get("name") == "onnxq m.onnx"


def test_junit_with_hostile_names() -> None:
    text = to_junit(hostile_report())
    assert is_clean(text) and "<script" not in text
    assert text.startswith("<?xml version='1.0' encoding='utf-8'?>")
    root = ElementTree.fromstring(text.encode())
    found = properties(root)
    assert str(found["metric"]).startswith(SCRIPT)
    assert str(found["metric"]).endswith("a\\nb\\t\\x00\\x1b[31m\\x9b\\u202e\\ufffe\\ud800")
    assert sum(SCRIPT in str(key) for key in found) >= 4, "names of providers and versions, too"


def test_junit_with_numbers_that_are_not_finite() -> None:
    metric = MetricFacts("mine", 1.0, math.nan, math.nan, 3, None)
    found = properties(ElementTree.fromstring(to_junit(a_report(metric=metric, outputs=()))))
    assert (found["drop"], found["sqnr_db"]) == ("nan", "inf")


def test_the_folder_has_all_forms(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    check_folder(folder)
    assert not list(tmp_path.iterdir()), "checking makes nothing"
    for _ in range(2):
        write_report(a_report(), folder)
        assert sorted(p.name for p in folder.iterdir()) == [
            "junit.xml",
            "report.html",
            "report.json",
            "report.md",
        ]
    assert Report.from_json((folder / "report.json").read_text()) == a_report()


@pytest.mark.parametrize("place", ["file", "file/below", "file/far/below"])
def test_a_file_in_the_place_of_the_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    for action in (check_folder, lambda folder: write_report(a_report(), folder)):
        with pytest.raises(InputError, match=f"cannot write the report to '.*{place}'"):
            action(tmp_path / place)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("name", ["report.json", "report.html", "report.md", "junit.xml"])
def test_a_folder_in_the_place_of_a_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=f"'{name}' in it is a folder"):
        check_folder(tmp_path)
    with pytest.raises(InputError, match=f"{name}.*is a folder"):
        write_report(a_report(), tmp_path)


def test_only_files_that_are_to_be_written_can_be_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "report.json").mkdir()
    check_folder(tmp_path, ("sensitivity.html",))


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", locked)
    with pytest.raises(InputError, match="Permission denied"):
        check_folder(tmp_path)

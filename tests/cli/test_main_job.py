"""The main job through the command line, on the model that comes with the project."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest

from onnxq.cli import main
from onnxq.verify import Report

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "models" / "digits_resnet.onnx")
DATA = str(ROOT / "models" / "digits.npz")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `optimize` wrote."""
    folder = tmp_path_factory.mktemp("job")
    code = main(
        f"optimize {MODEL} --data {DATA} -o {folder}/int8.onnx -q --max-drop 0.005 "
        f"--recipe int8 --report {folder}/report --json {folder}/result.json".split()
    )
    assert code == 0
    return folder


def test_optimize_keeps_its_promise(made: Path) -> None:
    onnx.checker.check_model(made / "int8.onnx", full_check=True)
    report = Report.from_json((made / "result.json").read_text())
    assert report.passed
    assert report.metric is not None
    assert report.metric.drop <= 0.005
    assert report.size.ratio >= 3.4
    assert report.size.candidate_bytes == (made / "int8.onnx").stat().st_size
    assert report.output.integer_operators["com.microsoft:QLinearConv"] == 15
    assert {step.name for step in report.passes} >= {"fuse-batch-norm", "insert-qdq"}


def test_report_folder(made: Path) -> None:
    names = sorted(p.name for p in (made / "report").iterdir())
    assert names == ["junit.xml", "report.html", "report.json", "report.md"]
    assert "digits_resnet.onnx" in (made / "report" / "report.html").read_text()
    suite = ElementTree.parse(made / "report" / "junit.xml").getroot()
    assert suite.get("failures") == "0"


def test_compare_reports_a_broken_gate(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gates = ["--gate", "sqnr>=200", "--gate", "size_ratio>=3", "--junit", str(tmp_path / "j.xml")]
    code = main(["compare", MODEL, str(made / "int8.onnx"), "--data", DATA, *gates])
    assert code == 1
    printed = capsys.readouterr().out
    assert "FAILED" in printed
    assert "held" in printed
    assert "weakest layers" in printed
    assert ElementTree.parse(tmp_path / "j.xml").getroot().get("failures") == "1"


def test_inspect(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(made / "int8.onnx"), "--nodes"]) == 0
    printed = capsys.readouterr().out
    assert "left in float" in printed
    assert "node_conv2d" in printed
    assert main(["inspect", str(made / "int8.onnx"), "--json", "-"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["schema"] == "onnxq/inspect/1"
    assert body["precisions"]["int8"] == 34
    assert body["parameters"][0]["dtype"] == "int8"


def test_bench(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [MODEL, str(made / "int8.onnx")]
    assert main(["bench", *models, "--seconds", "0.2", "--json", "-"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["model"] for row in rows] == models
    assert rows[0]["speedup"] == 1.0
    assert main(["bench", *models, "--seconds", "0.2", "--data", DATA]) == 0
    assert "1.00x" in capsys.readouterr().out


def test_rewrite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "rewritten.onnx"
    assert main(["rewrite", MODEL, "-o", str(output)]) == 0
    assert "fuse-batch-norm" in capsys.readouterr().out
    assert all(n.op_type != "BatchNormalization" for n in onnx.load(output).graph.node)
    assert main(["rewrite", MODEL, "--bisect-passes", "-p", "fuse-batch-norm"]) == 0
    assert "No pass changes" in capsys.readouterr().out
    assert main(["rewrite", "--list"]) == 0
    assert "fuse-batch-norm" in capsys.readouterr().out


def test_bad_input_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.onnx"
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(Path(MODEL).read_bytes()[:100_000])
    for model, data in ((tmp_path / "none.onnx", DATA), (cut, DATA), (MODEL, "none.npz")):
        assert main(["optimize", str(model), "--data", str(data), "-o", str(output)]) == 2
        found = capsys.readouterr()
        assert found.out == ""
        assert found.err.startswith("onnxq: error: ")
        assert found.err.count("\n") == 1
        assert not output.exists()

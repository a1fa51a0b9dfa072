"""``onnxq train``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='needs torch: pip install "onnxq[train]"')

from onnxq import save
from onnxq.cli import main
from onnxq.verify import Report
from tests.networks import CLASSES, chain, computed, inputs

__all__ = ["computed"]

pytestmark = pytest.mark.usefixtures("computed")

PROMISES = ("--min-speedup", "0", "--max-drop", "1", "--target", "cpu-x64")


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model, data and where to write."""
    graph = chain()
    save(graph, tmp_path / "m.onnx")
    labels = np.arange(64) % CLASSES
    np.savez(tmp_path / "d.npz", **inputs(graph, 64), labels=labels)
    return tmp_path / "m.onnx", tmp_path / "d.npz", tmp_path / "o.onnx"


def command(files: tuple[Path, Path, Path], *more: str) -> int:
    model, data, output = map(str, files)
    return main(["train", model, "--data", data, "-o", output, *PROMISES, *more])


def test_it_writes_model_plan_report_and_checkpoints(
    files: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--epochs", "2", "--batch-size", "16", "--resume", str(tmp_path / "run"))
    more = (*more, "--plan-out", str(tmp_path / "p.toml"), "--report", str(tmp_path / "r"))
    assert command(files, *more, "--json", str(tmp_path / "r.json")) == 0
    assert f"Wrote '{files[2]}'." in capsys.readouterr().out
    body = json.loads((tmp_path / "r.json").read_text())
    training = body["training"]
    assert (training["epochs"], training["device"]) == (2, "cpu")
    assert training["steps"] == 2 * -(-training["samples"] // 16)
    assert Report.load(tmp_path / "r" / "report.json").training is not None
    assert "Training</h2>" in (tmp_path / "r" / "report.html").read_text()
    log = (tmp_path / "run" / "training.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["epoch", "0", "1", "2"]
    assert files[2].exists() and (tmp_path / "p.toml").exists()


def test_a_broken_promise_writes_nothing(files: tuple[Path, Path, Path]) -> None:
    assert command(files, "--epochs", "1", "--min-speedup", "1e9") == 1
    assert not files[2].exists()


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (("--bits", "w9a9"), ("w9a9", "w8a8")),
        (("--lr", "-1"), ("lr", "above 0")),
        (("--augment", "flip"), ("--augment",)),
        (("--epochs", "x"), ("--epochs",)),
        (("--device", "nowhere"), ("nowhere", "--device")),
    ],
)
def test_refusals(
    files: tuple[Path, Path, Path],
    more: tuple[str, ...],
    parts: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(files, *more) == 2
    sentence = capsys.readouterr().err
    assert sentence.count("\n") == 1
    for part in parts:
        assert part in sentence
    assert not files[2].exists()

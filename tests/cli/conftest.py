"""Files and helpers of the tests of the commands."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.cli import main
from onnxq.optimization import optimize
from onnxq.runtime import Backend, interleaved
from tests.cli.models import Case, classifier, samples


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def refused(self, *parts: str) -> str:
        """The one sentence of a command that could not use its input; it holds each part."""
        assert self.code == 2, self
        assert not self.out
        assert self.err.startswith("onnxq: error: ") and self.err.endswith("\n")
        sentence = self.err.removeprefix("onnxq: error: ")
        assert sentence.count("\n") == 1, f"more than one line: {self.err}"
        assert "Traceback" not in sentence
        for part in parts:
            assert part in sentence
        return sentence


class Command:
    """Runs a command in this process."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured = captured

    def __call__(self, *arguments: str | Path) -> Outcome:
        self._captured.readouterr()
        code = main([str(argument) for argument in arguments])
        return Outcome(code, *self._captured.readouterr())


@pytest.fixture
def onnxq(capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(capsys)


@pytest.fixture(scope="session")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("case")
    found = Case(folder / "model.onnx", folder / "data.npz", folder / "candidate.onnx")
    model = classifier()
    onnx.save(model, found.model)
    np.savez(found.data, **samples(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backend, "time", staticmethod(_hurried))
        options = {"output": found.candidate, "recipe": "int8", "min_speedup": 0.0}
        result = optimize(found.model, found.data, **options)  # type: ignore[arg-type]
    assert result.passed
    return found


def _hurried(sessions, feeds, *, seconds):  # type: ignore[no-untyped-def]
    """Five rounds, whatever time there would be."""
    return interleaved(sessions, feeds, rounds=5)


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Quick measuring, an environment of its own, and no temporary file left at the end."""
    monkeypatch.setattr(Backend, "time", staticmethod(_hurried))
    for name in ("ONNXQ_DEBUG", "COLUMNS", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    temporary = tmp_path.with_name(f"{tmp_path.name}-temporary")
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield
    left = [*temporary.iterdir(), *tmp_path.glob(".*")]
    assert not left, f"left behind: {left}"

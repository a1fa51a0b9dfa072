"""The examples of docs/pipelines.md, and the hook for pre-commit."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from onnxq.cli.command import parser
from onnxq.verify import Gate

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
EXAMPLES = [yaml.safe_load(found) for found in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))


def scripts(part: Any) -> Iterator[str]:
    """What the steps of a pipeline run."""
    if isinstance(part, dict):
        for key, value in part.items():
            if key in ("run", "script"):
                yield from [value] if isinstance(value, str) else value
            else:
                yield from scripts(value)
    elif isinstance(part, list):
        for value in part:
            yield from scripts(value)


def commands(script: str) -> Iterator[list[str]]:
    """The words of each call of onnxq."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["onnxq"]:
            yield words[1:]


def check(words: list[str]) -> None:
    parsed, unknown = parser().parse_known_args(words)
    assert not unknown
    for gate in getattr(parsed, "gate", None) or ():
        Gate.parse(gate)


@pytest.mark.parametrize("number", range(3))
def test_commands_of_pipelines_are_those_that_there_are(number: int) -> None:
    found = [words for script in scripts(EXAMPLES[number]) for words in commands(script)]
    assert found
    for words in found:
        check(words)


def test_gates_in_the_text_can_be_read() -> None:
    gates = re.findall(r'--gate "([^"]*)"', PAGE)
    assert len(gates) > 5
    for gate in gates:
        Gate.parse(gate)


def test_files_that_pipelines_keep_are_those_that_are_written() -> None:
    from onnxq.report.folder import NAMES

    assert set(re.findall(r"report/([\w.]+)", PAGE)) <= set(NAMES)
    gitlab = EXAMPLES[2]["quantize"]
    assert gitlab["artifacts"]["when"] == "always"
    assert gitlab["artifacts"]["reports"]["junit"] == f"report/{NAMES[-1]}"


def test_the_hook_for_pre_commit() -> None:
    (hook,) = HOOKS
    assert {"id", "name", "entry", "language"} <= set(hook)
    assert re.search(hook["files"], "models/model.onnx") and not hook["pass_filenames"]
    (used,) = EXAMPLES[3]["repos"][0]["hooks"]
    assert used["id"] == hook["id"]
    check([*shlex.split(hook["entry"])[1:], *used["args"]])


@pytest.mark.slow
def test_the_pipeline_of_gitlab_runs(tmp_path: Path) -> None:
    models = ROOT / "models"
    shutil.copy(models / "digits_resnet.onnx", tmp_path / "model.onnx")
    shutil.copy(models / "digits.npz", tmp_path / "samples.npz")
    plan = "plan model.onnx --data samples.npz --recipe int8 --cost size --samples 32 -o plan.toml"
    steps = [step for step in scripts(EXAMPLES[2]) if not step.startswith("pip ")]
    run = f'set -e\nonnxq() {{ "{sys.executable}" -m onnxq "$@"; }}\nonnxq {plan}\n'
    done = subprocess.run(
        ["bash", "-c", run + "\n".join(steps)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "every gate held" in (tmp_path / "report" / "report.md").read_text("utf-8")

from __future__ import annotations

from dataclasses import replace

import pytest

from onnxq.doctor import Missing, ProviderCheck, examine
from tests.cli.conftest import Command
from tests.cli.test_optimize import strict_json


def test_what_works_and_the_json_of_it(onnxq: Command) -> None:
    shown = onnxq("doctor")
    assert (shown.code, shown.err) == (0, "")
    lines = [" ".join(line.split()) for line in shown.out.splitlines()]
    assert "cpu float and int8 are right" in lines
    assert lines[-1] == "onnxq works here."
    body = strict_json(onnxq("doctor", "--json", "-").out)
    assert body["schema"] == "onnxq/doctor/1" and body["works"] is True
    assert {"name": "cpu", "float_error": 0.0, "int8_error": 0.0, "reason": ""} in body["providers"]


def test_a_core_that_does_not_work_ends_with_1(
    onnxq: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = replace(
        examine(),
        providers=(ProviderCheck("cpu", 0.0, 0.5, "int8 is wrong by 0.5"),),
        missing=(Missing("torch", "training", 'pip install "onnxq[train]"'),),
    )
    monkeypatch.setattr("onnxq.cli.doctor.examine", lambda: broken)
    found = onnxq("doctor")
    assert found.code == 1
    assert "int8 is wrong by 0.5" in found.out and 'pip install "onnxq[train]"' in found.out
    assert found.out.rstrip().endswith("onnxq does not work here.")

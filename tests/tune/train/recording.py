"""Keeping the modules that a training makes, for a look at them afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from onnxq.tune.train import learner
from onnxq.tune.train.quantized import QuantizedModule


def record(monkeypatch: pytest.MonkeyPatch) -> list[QuantizedModule]:
    """The modules that are trained from here on."""
    modules: list[QuantizedModule] = []

    def kept(*arguments: Any, **named: Any) -> QuantizedModule:
        modules.append(QuantizedModule(*arguments, **named))
        return modules[-1]

    monkeypatch.setattr(learner, "QuantizedModule", kept)
    return modules

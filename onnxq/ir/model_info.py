"""What a model file holds beside its graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import onnx


@dataclass
class ModelInfo:
    """What a model file holds beside its main graph."""

    ir_version: int
    opset_imports: dict[str, int]
    producer_name: str = ""
    producer_version: str = ""
    domain: str = ""
    model_version: int = 0
    doc_string: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    functions: list[onnx.FunctionProto] = field(default_factory=list)
    training_info: list[onnx.TrainingInfoProto] = field(default_factory=list)
    configuration: list[onnx.DeviceConfigurationProto] = field(default_factory=list)
    path: Path | None = None

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return self.opset_imports.get("", 1)

"""Models with random weights that are written piece by piece, so that none is ever in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

PIECE = 1 << 20
"""Numbers that are written at a time."""


class Writer:
    """Writes weights to ``<name>.data`` beside a model, and collects the model that reads them."""

    def __init__(self, path: Path, seed: int = 0) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.written = 0
        self._path = path
        self._data = path.with_name(path.name + ".data")
        self._file = self._data.open("wb")
        self._random = np.random.default_rng(seed)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def weight(self, *shape: int, spread: float, seed: int | None = None) -> str:
        """Append float32 weights, evenly between ``-spread`` and ``spread``.

        One seed gives the same numbers again.
        """
        name = f"weight_{len(self.weights)}"
        random = self._random if seed is None else np.random.default_rng(seed)
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        size = int(np.prod(shape))
        entries = {"location": self._data.name, "offset": self.written, "length": size * 4}
        for key, value in entries.items():
            tensor.external_data.add(key=key, value=str(value))
        for at in range(0, size, PIECE):
            part = random.random(min(PIECE, size - at), dtype=np.float32)
            part -= np.float32(0.5)
            part *= np.float32(2 * spread)
            self._file.write(part.data)
        self.written += size * 4
        self.weights.append(tensor)
        return name

    def constant(self, value: Any, dtype: type = np.float32) -> str:
        """A small constant in the model itself."""
        name = f"constant_{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; gives its output's name."""
        output = f"{op_type.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [output], output, **attributes))
        return output

    def save(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        opset: int,
        ir_version: int,
    ) -> None:
        """Write the model itself."""
        graph = helper.make_graph(self.nodes, self._path.stem, inputs, outputs, self.weights)
        imports = [helper.make_opsetid("", opset)]
        model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
        self._path.write_bytes(model.SerializeToString())

"""Large constants that stay out of the messages a model passes through on its way."""

from __future__ import annotations

import onnx

from onnxq.ir.tensor import Tensor

_KEY = "withheld"


def elsewhere(tensor: Tensor, name: str, **where: object) -> onnx.TensorProto:
    """The message of a tensor whose numbers it does not hold, with entries that say where."""
    proto = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape)
    proto.data_location = onnx.TensorProto.EXTERNAL
    for key, value in where.items():
        proto.external_data.add(key=key, value=str(value))
    return proto


class Withheld:
    """Keeps large constants while a model is converted as a message, which only names them.

    A `TensorStore`: `to_proto` puts the constants in, and `from_proto` takes them out again.
    """

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def __len__(self) -> int:
        """Number of constants."""
        return len(self._tensors)

    def put(self, tensor: Tensor, name: str) -> onnx.TensorProto:
        """See `TensorStore.put`."""
        mark = str(len(self._tensors))
        self._tensors[mark] = tensor
        return elsewhere(tensor, name, **{_KEY: mark})

    def find(self, proto: onnx.TensorProto) -> Tensor | None:
        """The constant a message stands for, None if it holds its own data."""
        marks = [entry.value for entry in proto.external_data if entry.key == _KEY]
        return self._tensors.get(marks[0]) if marks else None

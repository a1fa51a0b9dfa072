"""Computing operators that read only constants, with the numbers the model would get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx.reference import ReferenceEvaluator
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NoKernel

from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, Node, Tensor, TensorType, Value, to_proto
from onnxq.ir.copying import extract_nodes
from onnxq.runtime.session import Session

_STANDS_FOR = {
    DataType.INT4: DataType.INT8,
    DataType.INT2: DataType.INT8,
    DataType.UINT4: DataType.UINT8,
    DataType.UINT2: DataType.UINT8,
}
"""What packed integers come back as: onnxruntime's Python interface has no packed arrays."""

_LARGE = 1 << 20
"""Bytes from which a constant is fed."""


def evaluate(
    nodes: Sequence[Node], outputs: Sequence[Value], *, reference: bool = False
) -> dict[Value, Tensor]:
    """Compute values that some nodes make from constants, in one session.

    onnxruntime runs the operators on the CPU as they are, without rewriting them. ``reference``
    lets `onnx.reference` step in when onnxruntime has no kernel for one of them.

    Args:
        nodes: operators of one graph in topological order, which read only constants and each
            other.
        outputs: values they make.
        reference: whether `onnx.reference` may compute them.

    Raises:
        InputError: neither can compute them, or a result is no tensor of the type the value
            states.
    """
    feeds = _large_constants(nodes)
    graph = extract_nodes(list(nodes), list(outputs), feeds)
    _unpack_outputs(graph)
    proto = to_proto(graph)
    fed = {value.name: value.numpy() for value in feeds}
    try:
        session = Session(proto, optimization="none")
        if any(s.dtype is None or DataType.of(s.dtype).bits in (2, 4) for s in session.outputs):
            raise InputError("a value to be computed is no tensor, or is one of packed numbers")
        results = list(session.run(fed).values())
    except InputError as error:
        if not reference or not isinstance(error.__cause__, NoKernel):
            raise
        results = _run_reference(proto, fed)
    return {value: _tensor(value, result) for value, result in zip(outputs, results, strict=True)}


def _large_constants(nodes: Sequence[Node]) -> list[Value]:
    """Constants to be fed: as part of the model they would be in memory several times."""
    found = dict.fromkeys(v for n in nodes for v in n.inputs if v is not None and v.is_constant)
    return [
        v
        for v in found
        if v.data is not None and v.data.nbytes >= _LARGE and v.data.dtype.bits >= 8
    ]


def _unpack_outputs(graph: Graph) -> None:
    outputs = []
    for value in graph.outputs:
        wide = _STANDS_FOR.get(value.dtype) if value.dtype is not None else None
        if wide is not None:
            value = graph.add("Cast", [value], {"to": int(wide)}, types=[TensorType(wide)]).output
        outputs.append(value)
    graph.set_outputs(outputs)


def _run_reference(proto: Any, fed: dict[str, np.ndarray]) -> list[Any]:
    try:
        with np.errstate(all="ignore"):
            return list(ReferenceEvaluator(proto).run(None, fed))
    except Exception as error:
        # Its operators are numpy code that may raise anything on inputs they do not expect.
        raise InputError(f"onnx.reference cannot compute a constant: {error}") from error


def _tensor(value: Value, result: Any) -> Tensor:
    if isinstance(result, list | dict) or result is None:
        raise InputError(f"value '{value.name}' is no tensor")
    array = np.asarray(result)
    if value.dtype is not None and value.dtype in _STANDS_FOR:
        array = array.astype(value.dtype.numpy)
    tensor = Tensor(array)
    if value.dtype not in (None, DataType.UNDEFINED, tensor.dtype):
        raise InputError(f"value '{value.name}' is stated as {value.type}, but is {tensor}")
    return tensor

"""GGUF files: a model's weights written as one, and a file's tensors put into a model.

The files are read and written with the package `gguf`, which is an extra of onnxq.
"""

from __future__ import annotations

import importlib
import mmap
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, Tensor, TensorType, Value, load, raise_opset
from onnxq.ir.saving import replacing
from onnxq.ir.types import OpaqueType
from onnxq.passes.notes import OVERRIDABLE, Reason
from onnxq.passes.weights.offset_products import offset_products, split_products
from onnxq.quant.grouped import (
    GROUP,
    GROUPED_TYPES,
    GroupedTensor,
    grouped_quantize,
    grouped_to_onnx,
    is_exact_in_onnx,
    without_minimum,
)

TYPES = (*(name.lower() for name in GROUPED_TYPES), "f16", "f32")
"""Types in which weights can be written."""

_LARGEST = 65504.0
"""Largest float16: a scale or a minimum is one."""

_MAX_RANK = 4
_FIRST_BLOCKED_OPSET = 21
_FLOATS = (DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16, DataType.DOUBLE)


@dataclass(frozen=True)
class ExportedTensor:
    """One weight and the type in which the file holds it.

    ``type`` is empty for a weight that the file does not hold. ``reason`` says why the type is not
    the one that was asked for.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    reason: str = ""


@dataclass(frozen=True)
class ImportedTensor:
    """One tensor of a file and the form it has in the model.

    ``form`` is ``uint4``, ``int8``, the same and ``+ offsets``, or a float type. ``reason`` says
    why a quantized tensor became floats, and whether they had to be rounded.
    """

    name: str
    type: str
    form: str
    reason: str = ""


@dataclass(frozen=True, eq=False)
class _Offset:
    """Blocks and what the values of each are to be raised by."""

    blocks: GroupedTensor
    offset: npt.NDArray[np.float32]


_Decoded = GroupedTensor | _Offset | npt.NDArray[Any]


def export_gguf(
    model: str | os.PathLike[str] | Graph, path: str | os.PathLike[str], type: str = "q8_0"
) -> tuple[ExportedTensor, ...]:
    """Write a model's float weights as a GGUF file, each under its name in the model.

    Weights of two and more axes are written in the type if the last axis is a multiple of 32, all
    others in float16 if that is the type they have, else float32. A tensor of the file has the
    shape of the weight; GGUF lists the axes the other way round.

    Args:
        model: Path or graph.
        path: The file to write.
        type: One of `TYPES`.

    Raises:
        InputError: the package `gguf` is missing, the model cannot be read or has no float weights,
            there is no such type, or the file cannot be written.
    """
    gguf = _package()
    if type not in TYPES:
        raise InputError(f"GGUF type '{type}' is not known; available: {', '.join(TYPES)}")
    graph = model if isinstance(model, Graph) else load(model)
    weights = [v for v in graph.initializers() if v.dtype in _FLOATS]
    planned = tuple(_plan(value, type) for value in weights)
    if not any(tensor.type for tensor in planned):
        raise InputError(
            f"the model '{graph.model.path or graph.name}' has no float weights to write; name the "
            "model that was trained"
        )
    writer = gguf.GGUFWriter(None, "onnx")
    _describe(writer, graph)
    for tensor in planned:
        if tensor.type:
            kind = gguf.GGMLQuantizationType[tensor.type]
            block, size = gguf.GGML_QUANT_SIZES[kind]
            nbytes = int(np.prod(tensor.shape, dtype=object)) // block * size
            dtype = np.dtype(np.float32)
            writer.add_tensor_info(tensor.name, tensor.shape, dtype, nbytes, raw_dtype=kind)
    with replacing(Path(path)) as file:
        writer.fout, writer.state = [file], gguf.gguf_writer.WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        # One after the other, so that only one is in memory.
        for value, tensor in zip(weights, planned, strict=True):
            if tensor.type:
                writer.write_tensor_data(_encoded(value, tensor.type))
    return planned


def import_gguf(
    model: str | os.PathLike[str] | Graph, path: str | os.PathLike[str]
) -> tuple[Graph, tuple[ImportedTensor, ...]]:
    """Put the tensors of a GGUF file into the weights of the same names.

    Tensors stay quantized, as DequantizeLinear in blocks of 32 on their last axis, where that gives
    the same values: always in Q4_0, Q5_0 and Q8_0. In Q4_1 and Q5_1 the minimum of a block is
    seldom a multiple of its scale; if only products read the weight and its last axis is their
    inputs (``MatMul(x, Transpose(w))``, ``Gemm`` with ``transB``), they become a product with the
    codes, counted from the middle, plus one of the sums of ``x`` over the blocks and float offsets.
    That is exact up to the rounding of float32, and in standard ONNX. onnxruntime (from 1.24 on for
    Q4_1, from 1.25 on for Q5_1) fuses the first product to MatMulNBits, which rounds activations to
    8 bits unless the session option ``session.qdq_matmulnbits_accuracy_level`` is 0. MatMulNBits
    with float zero-points would hold Q4_1 as well, but is slower than float (1.24.1 and 1.32: 0.1
    times as fast for one row, 0.6 for 128), and 1.32 refuses them in 8 bits.

    All others become floats, as do weights that are no float32 or that callers may override.
    Weights without a tensor stay as they are.

    Args:
        model: Path or graph, which is left as it is.
        path: The GGUF file.

    Returns:
        The new graph, of opset 21 at least if something is quantized, and what became of each
        tensor.

    Raises:
        InputError: the package `gguf` is missing, a file cannot be read, or the tensors do not fit
            the weights.
    """
    gguf = _package()
    source = model if isinstance(model, Graph) else load(model)
    tensors = _read(gguf, Path(path))
    _check_fit(source, tensors, path)
    decoded = {t.name: _decoded(gguf, t, source.values[t.name]) for t in tensors}
    blocked = any(not isinstance(new, np.ndarray) for new, _ in decoded.values())
    graph = raise_opset(source, _FIRST_BLOCKED_OPSET) if blocked else source.copy()
    if graph is source:
        graph = source.copy()
    sums: dict[Value, Value] = {}
    forms = {}
    # Splitting a product folds its factors into its bias, which has to be the file's by then.
    for name in sorted(decoded, key=lambda name: isinstance(decoded[name][0], _Offset)):
        new, reason = decoded.pop(name)
        forms[name] = _put(graph, graph.values[name], new, sums), reason
    done = (ImportedTensor(t.name, t.tensor_type.name, *forms[t.name]) for t in tensors)
    return graph, tuple(done)


def _package() -> ModuleType:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise InputError(
            'GGUF files need the package gguf; install it with: pip install "onnxq[gguf]"'
        ) from error


def _describe(writer: Any, graph: Graph) -> None:
    writer.add_name(graph.name)
    info = graph.model
    for key in ("producer_name", "producer_version", "domain"):
        writer.add_string(f"onnx.{key}", getattr(info, key))
    writer.add_uint32("onnx.opset", graph.opset)
    writer.add_uint32("onnx.ir_version", info.ir_version)


def _plan(value: Value, type: str) -> ExportedTensor:
    assert value.data is not None and value.dtype is not None
    shape = value.data.shape
    plain = "F16" if value.dtype is DataType.FLOAT16 else "F32"
    if not 1 <= len(shape) <= _MAX_RANK:
        return ExportedTensor(value.name, shape, "", f"GGUF has no tensors of {len(shape)} axes")
    if 0 in shape:
        return ExportedTensor(value.name, shape, "", "it is empty")
    wanted = type.upper()
    reason = ""
    if len(shape) < 2:
        reason = "it has one axis only"
    elif wanted in GROUPED_TYPES and shape[-1] % GROUP:
        reason = f"its last axis of {shape[-1]} is no multiple of {GROUP}"
    elif wanted != "F32" and not np.abs(value.data.numpy()).max() <= _LARGEST:
        reason = f"it holds numbers beyond {_LARGEST:.0f} or NaN, and float16 scales cannot"
    if wanted == plain:
        reason = ""
    return ExportedTensor(value.name, shape, plain if reason else wanted, reason)


def _encoded(value: Value, type: str) -> npt.NDArray[Any]:
    assert value.data is not None
    numbers = np.ascontiguousarray(value.data.numpy())
    if type in GROUPED_TYPES:
        return grouped_quantize(numbers, GROUPED_TYPES[type], name=value.name).to_bytes()
    with np.errstate(over="ignore"):
        return numbers.astype(np.float16 if type == "F16" else np.float32)


def _read(gguf: ModuleType, path: Path) -> list[Any]:
    """The tensors of a file, whose data are memory-mapped."""
    try:
        with path.open("rb") as file:
            if not path.stat().st_size:
                raise InputError(f"'{path}' is empty; name a GGUF file")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                _Layout(data, path).check()
    except OSError as error:
        raise InputError(f"cannot read '{path}': {error.strerror or error}") from error
    try:
        return list(gguf.GGUFReader(path).tensors)
    except (ValueError, KeyError, IndexError, OverflowError, TypeError, MemoryError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, what: str) -> InputError:
    return InputError(f"the GGUF file '{path}' is damaged ({what}); write or download it again")


def _check_fit(graph: Graph, tensors: Iterable[Any], path: str | os.PathLike[str]) -> None:
    unknown, unfit = [], []
    for tensor in tensors:
        value = graph.values.get(tensor.name)
        shape = _shape(tensor)
        if value is None or value.data is None or isinstance(value.type, OpaqueType):
            unknown.append(f"'{tensor.name}'")
        elif value.data.shape != shape or value.dtype not in _FLOATS:
            held = f"{value.dtype.label if value.dtype else ''}{list(value.data.shape)}"
            unfit.append(f"'{tensor.name}' is {list(shape)} and the model's is {held}")
    wrong = (("the model has no weight called", unknown), ("shapes or types differ:", unfit))
    parts = [f"{what} {_listed(names)}" for what, names in wrong if names]
    if parts:
        raise InputError(f"the GGUF file '{path}' does not fit the model: {'; '.join(parts)}")


def _listed(items: list[str], most: int = 10) -> str:
    more = len(items) - most
    return ", ".join(items[:most]) + (f" and {more} more" if more > 0 else "")


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(d) for d in reversed(tensor.shape))


def _decoded(gguf: ModuleType, tensor: Any, value: Value) -> tuple[_Decoded, str]:
    """What a weight is to be, and why it is to be floats if the tensor is quantized."""
    quantized = _quantized(gguf, tensor, value)
    if isinstance(quantized, GroupedTensor | _Offset):
        return quantized, ""
    try:
        numbers = np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type))
    except (NotImplementedError, ValueError) as error:
        raise InputError(
            f"tensor '{tensor.name}' is of type {tensor.tensor_type.name}, which the package gguf "
            "cannot dequantize; convert it to another type"
        ) from error
    assert value.dtype is not None
    with np.errstate(over="ignore"):
        result: npt.NDArray[Any] = numbers.astype(value.dtype.numpy)
        if not np.array_equal(result.astype(numbers.dtype), numbers, equal_nan=True):
            quantized = f"not exact: rounded to {value.dtype.label}, which the weight is"
    return result.reshape(_shape(tensor)), quantized


def _quantized(gguf: ModuleType, tensor: Any, value: Value) -> GroupedTensor | _Offset | str:
    """A tensor in blocks if the model can have it so, or why it cannot; no reason for floats."""
    kind = tensor.tensor_type
    if gguf.GGML_QUANT_SIZES[kind][0] == 1:
        return ""
    if kind.name not in GROUPED_TYPES:
        return "ONNX has no such blocks"
    if value.dtype is not DataType.FLOAT:
        return f"the weight is {value.dtype.label if value.dtype else 'of no known type'}"
    if value.is_input:
        return OVERRIDABLE.text
    grouped = GroupedTensor.from_bytes(tensor.data, GROUPED_TYPES[kind.name], name=tensor.name)
    if is_exact_in_onnx(grouped):
        return grouped
    products = offset_products(value)
    if isinstance(products, Reason):
        return f"its blocks have offsets, and {products.text}"
    return _Offset(*without_minimum(grouped))


def _put(graph: Graph, value: Value, new: _Decoded, sums: dict[Value, Value]) -> str:
    """Give a weight its new numbers; names the form they are stored in."""
    if isinstance(new, np.ndarray):
        value.data = Tensor(new)
        return value.data.dtype.label
    if isinstance(new, _Offset):
        stored = grouped_to_onnx(new.blocks, name=value.name)
        split_products(value, stored, new.offset, sums)
        return f"{stored.qparams.format.name} + offsets"
    stored = grouped_to_onnx(new, name=value.name)
    params = stored.qparams
    name = value.name
    graph.rename(value, graph.fresh_name(f"{name}_float"))
    inputs = [
        graph.constant(stored.values, f"{name}_q"),
        graph.constant(params.scale, f"{name}_scale"),
        graph.constant(params.zero_point, f"{name}_zero_point"),
    ]
    restored = graph.add(
        "DequantizeLinear",
        inputs,
        {"axis": len(new.codes.shape) - 1, "block_size": GROUP},
        outputs=[name],
        types=[TensorType(DataType.FLOAT, new.codes.shape)],
    ).output
    for use in value.uses:
        use.node.set_input(use.slot, restored)
    graph.set_outputs([restored if v is value else v for v in graph.outputs])
    graph.discard(value)
    return params.format.name


class _Layout:
    """Walks through a file's header and stops at what leads outside of the file.

    The package `gguf` believes the counts it reads, and would go on for ever on some.
    """

    _SIZES = (1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8)
    _STRING, _ARRAY = 8, 9
    _DEEPEST = 4

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 4

    def check(self) -> None:
        """See the class.

        Raises:
            InputError: the file is no GGUF file or its header does not fit it.
        """
        if self._data[:4] != b"GGUF":
            raise InputError(f"'{self._path}' is no GGUF file; name one that ends in .gguf")
        version = self._number("I")
        if version not in (2, 3):
            raise _damaged(self._path, f"version {version}, where 2 and 3 are known")
        tensors, pairs = self._number("Q"), self._number("Q")
        for _ in range(pairs):
            self._string()
            self._value(self._number("I"), 0)
        for _ in range(tensors):
            self._string()
            self._skip(self._number("I") * 8 + 12)

    def _value(self, kind: int, depth: int) -> None:
        if kind == self._STRING:
            self._string()
        elif kind == self._ARRAY and depth < self._DEEPEST:
            inner, count = self._number("I"), self._number("Q")
            if inner < len(self._SIZES) and self._SIZES[inner]:
                self._skip(count * self._SIZES[inner])
                return
            for _ in range(count):
                self._value(inner, depth + 1)
        elif kind < len(self._SIZES) and self._SIZES[kind]:
            self._skip(self._SIZES[kind])
        else:
            raise _damaged(self._path, f"metadata of unknown type {kind}")

    def _string(self) -> None:
        self._skip(self._number("Q"))

    def _number(self, form: str) -> int:
        start = self._at
        self._skip(struct.calcsize(f"<{form}"))
        return int(struct.unpack_from(f"<{form}", self._data, start)[0])

    def _skip(self, count: int) -> None:
        self._at += count
        if self._at > len(self._data):
            raise _damaged(self._path, "it ends within its header")

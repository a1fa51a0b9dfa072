"""Constant weights of operators, stored in few bits."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from onnxq.errors import InputError
from onnxq.ir import DataType, Graph, Tensor, Value
from onnxq.ir.packing import PACKED_BITS, pack, pack_transposed
from onnxq.passes.nodes import added
from onnxq.passes.notes import NOT_FINITE, Reason
from onnxq.passes.tuned import TunedWeight
from onnxq.quant import ABSMAX, Format, Granularity, Scheme, value_range
from onnxq.quant.qparams import QParams, QuantizedTensor, quantize_weight
from onnxq.quant.search import PLAIN, ScaleSearch

SLICE = 1 << 20
"""Elements quantized at a time, by one thread."""

_MOST_THREADS = 4

_SCALE_BITS = 32

_ROW_UNITS = (32, 4)
"""Rows are cut after a multiple of so many values: better of words, at least of whole bytes."""


class Quantizer(Protocol):
    """A way to quantize weights; frozen, so that equal ones give the same."""

    @property
    def format(self) -> Format:
        """Format of the quantized values."""
        ...

    @property
    def bounds(self) -> tuple[float, float]:
        """Smallest and largest quantized value."""
        ...

    def __call__(self, weight: np.ndarray, granularity: Granularity, name: str) -> QuantizedTensor:
        """Quantize a part of a weight that holds whole groups."""
        ...


@dataclass(frozen=True)
class Rounding:
    """To the nearest values of a format, with the scales that a search finds."""

    format: Format
    scheme: Scheme = ABSMAX
    search: ScaleSearch = PLAIN

    @property
    def bounds(self) -> tuple[float, float]:
        """See `Quantizer`."""
        return value_range(self.format, self.scheme)

    def __call__(self, weight: np.ndarray, granularity: Granularity, name: str) -> QuantizedTensor:
        """See `Quantizer`."""
        return quantize_weight(
            weight, self.format, self.scheme, granularity, search=self.search, name=name
        )


Arrays = tuple[np.ndarray | Tensor, np.ndarray, np.ndarray | None]
"""Quantized values, scale and zero-point; without a zero-point it is the format's own zero."""

Arrange = Callable[[np.ndarray, QParams], Arrays]


def plain_arrays(values: np.ndarray, qparams: QParams) -> Arrays:
    """What DequantizeLinear and MatMulInteger read."""
    return values, qparams.scale, _needed_zero_point(qparams)


def _needed_zero_point(qparams: QParams) -> np.ndarray | None:
    # By their bytes: numpy compares types that it does not know itself one by one.
    codes = np.ascontiguousarray(qparams.zero_point).reshape(-1).view(np.uint8)
    return qparams.zero_point if codes.any() else None


@dataclass(frozen=True)
class Layout:
    """How a weight is stored.

    Attributes:
        quantizer: Makes the stored values.
        granularity: Which stored values share a scale.
        transposed: Whether the two axes of the constant are exchanged first.
        factor: Number that the constant is multiplied with first.
        arrange: What is made of the quantized weight before it is stored.
        zero_point: Whether what reads the stored values can read a zero-point with them.
        tuned: What is stored, if it was computed elsewhere.
    """

    quantizer: Quantizer
    granularity: Granularity
    transposed: bool = False
    factor: float = 1.0
    arrange: Arrange = plain_arrays
    zero_point: bool = True
    tuned: TunedWeight | None = None

    @property
    def own_granularity(self) -> Granularity:
        """The granularity on the axes of the constant as it lies in the model."""
        axis = self.granularity.axis
        if axis is None or not self.transposed:
            return self.granularity
        return replace(self.granularity, axis=1 - axis % 2)

    def qparams_bytes(self, shape: tuple[int, ...]) -> float:
        """Bytes of scales and zero-points that a constant of a shape is stored with."""
        format = self.quantizer.format
        scheme = self.quantizer.scheme if isinstance(self.quantizer, Rounding) else ABSMAX
        has_zeros = self.zero_point and not (scheme.symmetric and format.signed)
        bits = _SCALE_BITS + has_zeros * format.bits
        return math.prod(self.own_granularity.scale_shape(shape)) * bits / 8

    def shape(self, weight: Tensor) -> tuple[int, ...]:
        """Shape of the stored values."""
        return weight.shape[::-1] if self.transposed else weight.shape


@dataclass(frozen=True)
class Stored:
    """A weight as constants of a graph."""

    values: Value
    scale: Value
    zero_point: Value | None
    qparams: QParams


@dataclass(frozen=True)
class Rows:
    """A stored table as values that a Gather can read row by row.

    Attributes:
        values: [rows, columns], or [rows, blocks, columns of a block] if there are several blocks.
        scale: [rows, 1], or [rows, blocks, 1].
        zero_point: The same, None where it is 0.
        columns: Of the table.
        blocks: Scales of each row.
    """

    values: Value
    scale: Value
    zero_point: Value | None
    columns: int
    blocks: int


class CannotStoreError(Exception):
    """A weight cannot be stored in few bits."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.text)
        self.reason = reason


class WeightStore:
    """Quantized constants, each stored once for all the operators that want it in one layout."""

    def __init__(self) -> None:
        self._stored: dict[tuple[Value, Layout, Graph, object], Stored] = {}
        self._present: dict[Graph, list[Value]] = {}
        self._dequantized: dict[Stored, Value] = {}
        self._rows: dict[tuple[Stored, bool], Rows] = {}

    def get(self, weight: Value, layout: Layout, graph: Graph, owner: object = None) -> Stored:
        """The weight as constants of a graph.

        With an ``owner`` they are not shared with others.

        Raises:
            CannotStoreError: the weight has infinite or NaN values, or does not suit the format.
        """
        # Without the values, which would be kept until all weights are stored.
        tuned = layout.tuned and replace(layout.tuned, values=None)
        key = (weight, replace(layout, tuned=tuned), graph, owner)
        if key not in self._stored:
            assert weight.data is not None
            values, scale, zero_point, qparams = _arranged(weight.data, layout, weight.name)
            integers = self._equal(graph, values) or graph.constant(values, f"{weight.name}_q")
            factors, zeros = graph.constant(scale, f"{weight.name}_scale"), None
            if zero_point is not None:
                zeros = graph.constant(zero_point, f"{weight.name}_zero_point")
            self._stored[key] = Stored(integers, factors, zeros, qparams)
        return self._stored[key]

    def _equal(self, graph: Graph, values: np.ndarray | Tensor) -> Value | None:
        """Bytes that a graph held before, as of a product that reads the same table."""
        if graph not in self._present:
            kinds, constants = (DataType.INT8, DataType.UINT8), list(graph.initializers())
            self._present[graph] = [v for v in constants if v.is_constant and v.dtype in kinds]
        if not isinstance(values, np.ndarray):
            return None
        for value in self._present[graph]:
            known = value.numpy() if value.shape == values.shape else None
            if known is not None and known.dtype == values.dtype and np.array_equal(known, values):
                return value
        return None

    def drop_unused(self) -> None:
        """Take away what was stored for nodes that then stayed in float."""
        for stored in self._stored.values():
            for value in (stored.values, stored.scale, stored.zero_point):
                if value is not None and not value.is_used:
                    value.graph.discard(value)

    def dequantized(self, stored: Stored) -> Value:
        """The float weight, from one DequantizeLinear for all who want it."""
        if stored not in self._dequantized:
            values, granularity = stored.values, stored.qparams.granularity
            attributes = {"axis": granularity.axis, "block_size": granularity.block_size}
            self._dequantized[stored] = added(
                values.graph,
                "DequantizeLinear",
                [values, stored.scale, stored.zero_point],
                values.name.removesuffix("_q") + "_dq",
                DataType.FLOAT,
                values.shape,
                **{name: given for name, given in attributes.items() if given is not None},
            )
        return self._dequantized[stored]

    def rows(self, stored: Stored, transposed: bool) -> Rows:
        """A table as a Gather reads it; ``transposed`` if stored as [columns, rows].

        What is stored stays as it is, since others may read it: operators on constants, which
        runtimes fold when they load a model, make bytes of values of fewer bits, because runtimes
        gather no such, and bring axes into order.
        """
        if (stored, transposed) not in self._rows:
            self._rows[stored, transposed] = _rows_of(stored, transposed)
        return self._rows[stored, transposed]


def _rows_of(stored: Stored, transposed: bool) -> Rows:
    assert stored.values.shape is not None
    size = [int(d or 0) for d in stored.values.shape]
    length, columns = size[::-1] if transposed else size
    blocks = 1 if stored.scale.rank == 1 else stored.qparams.scale.size // length

    def made(value: Value, op_type: str, end: str, shape: tuple[int, ...], **how: Any) -> Value:
        given, dtype = [value], how.pop("dtype", value.dtype)
        if op_type == "Reshape":
            given.append(value.graph.constant(np.array(shape, np.int64), f"{value.name}_shape"))
        return added(value.graph, op_type, given, f"{value.name}_{end}", dtype, shape, **how)

    def table(value: Value, inner: int) -> Value:
        """A value of as many columns, or of one for each block, as [rows, blocks, inner]."""
        dtype, shape = value.dtype, tuple(int(d or 0) for d in value.shape or ())
        if dtype is not None and dtype.bits < 8:
            signed = dtype in (DataType.INT2, DataType.INT4)
            dtype = DataType.INT8 if signed else DataType.UINT8
            value = made(value, "Cast", "bytes", shape, dtype=dtype, to=int(dtype))
        if transposed and len(shape) == 2:
            value = made(value, "Transpose", "rows", shape[::-1], perm=[1, 0])
        wanted = (length, blocks, inner) if blocks > 1 else (length, inner)
        return value if value.shape == wanted else made(value, "Reshape", "blocks", wanted)

    zero_point = None if stored.zero_point is None else table(stored.zero_point, 1)
    values = table(stored.values, columns // blocks)
    return Rows(values, table(stored.scale, 1), zero_point, columns, blocks)


def tuned_tensors(weight: Tensor, layout: Layout, name: str) -> dict[str, np.ndarray]:
    """What a layout's quantizer finds for a weight, as `onnxq.passes.tuned.Tensors`.

    With values unless these are those of the weight rounded with the qparams.

    Raises:
        CannotStoreError: the weight has infinite or NaN values, or does not suit the format.
    """
    codes = _Codes(layout.shape(weight), layout.quantizer.format)
    qparams = _quantize(weight, layout, codes, name)
    values = codes.values
    if layout.transposed:
        qparams, values = _transposed(qparams, layout.own_granularity), values.T
    found = {"scale": qparams.scale, "zero_point": qparams.zero_point}
    if not isinstance(layout.quantizer, Rounding):
        found["values"] = values
    return found


def _arranged(
    weight: Tensor, layout: Layout, name: str
) -> tuple[np.ndarray | Tensor, np.ndarray, np.ndarray | None, QParams]:
    format, shape = layout.quantizer.format, layout.shape(weight)
    if layout.arrange is plain_arrays and _Packed.suits(shape, format):
        packed = _Packed(shape, format)
        qparams = _quantize(weight, layout, packed, name)
        return packed.tensor(), qparams.scale, _needed_zero_point(qparams), qparams
    codes = _Codes(shape, format)
    qparams = _quantize(weight, layout, codes, name)
    return *layout.arrange(codes.values, qparams), qparams


class _Codes:
    """Quantized values of a weight, put together from those of its slices."""

    def __init__(self, shape: tuple[int, ...], format: Format) -> None:
        self.values = np.empty(shape, format.storage)
        # As plain integers: numpy copies types that it does not know itself one by one.
        self._codes = self.values.view(f"u{self.values.itemsize}")

    def put(self, where: tuple[slice, ...], values: np.ndarray, transposed: bool) -> None:
        """Take over the values of a slice, or those of its transpose."""
        codes, into = values.view(self._codes.dtype), self._codes[where]
        if transposed and codes.itemsize == 1:
            pack_transposed(codes, 8, into)
        else:
            into[...] = codes.T if transposed else codes


class _Packed:
    """The same with several values in each byte, as a model file holds them."""

    def __init__(self, shape: tuple[int, ...], format: Format) -> None:
        self._shape, self._format = shape, format
        self._each = 8 // format.bits
        self._bytes = np.empty((*shape[:-1], shape[-1] // self._each), np.uint8)

    @staticmethod
    def suits(shape: tuple[int, ...], format: Format) -> bool:
        """Whether each row fills its bytes."""
        return format.bits in PACKED_BITS and bool(shape) and shape[-1] % (8 // format.bits) == 0

    def put(self, where: tuple[slice, ...], values: np.ndarray, transposed: bool) -> None:
        """See `_Codes.put`; the slice starts and ends between bytes."""
        *others, last = where
        if last.start is not None:
            last = slice(last.start // self._each, -(-last.stop // self._each))
        into = self._bytes[(*others, last)]
        codes = values.view(np.uint8)
        if transposed:
            pack_transposed(codes, self._format.bits, into)
        elif into.flags.c_contiguous:
            pack(codes, self._format.bits, into.reshape(-1))
        else:
            into[...] = pack(codes, self._format.bits).reshape(into.shape)

    def tensor(self) -> Tensor:
        """The whole."""
        return Tensor.from_packed(self._bytes, DataType(self._format.onnx_dtype), self._shape)


def _quantize(weight: Tensor, layout: Layout, values: _Codes | _Packed, name: str) -> QParams:
    """Find the quantized values and their qparams slice by slice in a few threads.

    The constant is read anew for each slice, so that a mapped one never takes memory as a whole.
    A group of only zeros has the smallest scale of its slice.

    Raises:
        CannotStoreError: the weight has infinite or NaN values, or does not suit the format.
    """
    shape = layout.shape(weight)

    def store(where: tuple[slice, ...]) -> QParams:
        late = layout.transposed and (layout.tuned is not None or _is_plain(layout.quantizer))
        part = _part(weight, layout, where, not late)
        granularity = layout.own_granularity if late else layout.granularity
        try:
            if layout.tuned is not None:
                made = layout.tuned.part(where[::-1] if late else where, part, name)
            else:
                made = layout.quantizer(part, granularity, name)
        except InputError as error:
            if np.isfinite(part).all():
                raise CannotStoreError(Reason("overflow", str(error))) from error
            raise CannotStoreError(NOT_FINITE) from error
        values.put(where, made.values, late)
        return _transposed(made.qparams, layout.granularity) if late else made.qparams

    axis, slices = _slices(shape, layout)
    if len(slices) == 1:
        return store(slices[0])
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        parts = list(threads.map(store, slices))
    at = axis if layout.granularity.block_size is not None else 0
    scale = np.concatenate([p.scale for p in parts], axis=at)
    zero_point = np.concatenate([p.zero_point for p in parts], axis=at)
    return replace(parts[0], scale=scale, zero_point=zero_point)


def _is_plain(quantizer: Quantizer) -> bool:
    """Whether a weight's transpose gives, to the last bit, the transpose of what it gives."""
    return isinstance(quantizer, Rounding) and quantizer.search == PLAIN


def _part(weight: Tensor, layout: Layout, where: tuple[slice, ...], transpose: bool) -> np.ndarray:
    """The numbers to be stored at a place, as they lie in the constant or transposed."""
    numbers = weight.numpy()
    part = numbers[where[::-1]] if layout.transposed else numbers[where]
    if layout.transposed and transpose:
        part = _turned(part)
    with np.errstate(over="ignore", invalid="ignore"):
        return part if layout.factor == 1.0 else part * np.float32(layout.factor)


def _transposed(qparams: QParams, granularity: Granularity) -> QParams:
    """Qparams of a matrix with its axes exchanged."""
    if qparams.scale.ndim < 2:
        return replace(qparams, axis=granularity.axis)
    codes = qparams.zero_point.view(f"u{qparams.zero_point.itemsize}")
    return replace(
        qparams,
        scale=np.ascontiguousarray(qparams.scale.T),
        zero_point=np.ascontiguousarray(codes.T).view(qparams.format.storage),
        axis=granularity.axis,
    )


def _turned(rows: np.ndarray) -> np.ndarray:
    """A matrix with its axes exchanged, in one piece."""
    # Rows a power of two apart would drive each other out of the cache.
    padded = np.empty((rows.shape[0], rows.shape[1] + 17), rows.dtype)
    padded[:, : rows.shape[1]] = rows
    return np.ascontiguousarray(padded[:, : rows.shape[1]].T)


def _slices(shape: tuple[int, ...], layout: Layout) -> tuple[int, list[tuple[slice, ...]]]:
    """The axis along which a weight is cut, and slices that hold whole groups."""
    axis, block = layout.granularity.axis, layout.granularity.block_size
    size, every = math.prod(shape), (slice(None),) * len(shape)
    if axis is None or size <= SLICE:
        return 0, [every]
    # Along the constant's own first axis it is read in one piece.
    cut = axis if block is None else int(layout.transposed)
    unit = block if block is not None and cut == axis % len(shape) else 1
    if cut == len(shape) - 1:
        fitting = (n for n in _ROW_UNITS if n * (size // shape[cut]) <= SLICE)
        unit = math.lcm(unit, next(fitting, _ROW_UNITS[-1]))
    count = max(1, SLICE // (size // shape[cut]) // unit) * unit
    return cut, [
        (*every[:cut], slice(at, at + count), *every[cut + 1 :])
        for at in range(0, shape[cut], count)
    ]

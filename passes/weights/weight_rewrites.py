"""Nodes that read constant weights: finding them, and making them read stored ones instead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnxq.ir import DataType, Graph, Node, TensorType, Value, remove_unused
from onnxq.ir.attribute import AttributeLike
from onnxq.passes.nodes import added, made_by
from onnxq.passes.notes import OVERRIDABLE, Reason
from onnxq.passes.weights.stored_weights import Rows

_CONTRIB_DOMAIN = "com.microsoft"

_WEIGHT_SLOTS = {"Gather": (0,), "LSTM": (1, 2), "GRU": (1, 2), "RNN": (1, 2)}
_FEW_ROWS = 2
_LAYOUT_OPERATORS = ("Transpose", "Reshape", "Identity", "Cast", "Squeeze", "Unsqueeze", "Flatten")


@dataclass(frozen=True)
class ConstantWeight:
    """A constant that an operator multiplies with, `transposed` if behind a Transpose."""

    value: Value
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that the operator sees."""
        assert self.value.data is not None
        shape = self.value.data.shape
        return shape[::-1] if self.transposed else shape


def find_weight(node: Node, slot: int) -> ConstantWeight | Reason:
    """The constant weight that a node reads, or why it cannot be quantized."""
    value = node.input(slot)
    if value is None:
        return Reason("computed", "it has no weight")
    found = ConstantWeight(value)
    if maker := made_by(value, "Transpose"):
        read = maker.input(0)
        if read is not None and read.rank == 2 and maker.get("perm", (1, 0)) == (1, 0):
            found = ConstantWeight(read, transposed=True)
    if found.value.data is not None and found.value.is_input:
        return OVERRIDABLE
    if not found.value.is_constant:
        return _computed(value)
    dtype = found.value.dtype
    if dtype is not DataType.FLOAT:
        label = dtype.label if dtype else "unknown"
        return Reason("type", f"its weight is {label}, not float32")
    return found if math.prod(found.shape) else Reason("shape", "its weight is empty")


def products(weight: Value) -> list[Node]:
    """The MatMuls and Gemms that read a constant as their second input, directly or transposed."""
    found: list[Node] = []
    for use in weight.uses:
        if use.node.is_op("MatMul", "Gemm") and use.slot == 1:
            found.append(use.node)
        elif use.node.is_op("Transpose"):
            found += products(use.node.output)
    return found


def _computed(value: Value) -> Reason:
    source: Value | None = value
    names: list[str] = []
    while maker := made_by(source, *_LAYOUT_OPERATORS):
        names.append(maker.op_type)
        source = maker.input(0)
        if source is not None and source.is_constant:
            return Reason(
                "foldable",
                f"its weight is the constant '{source.name}' behind {' and '.join(names)}; "
                "fold-constants with a larger limit would fold it",
            )
    return Reason("computed", "its weight is not constant")


def has_float_weight(node: Node) -> bool:
    """Whether a node has a weight that may be worth storing in few bits.

    Not one that is restored from integers already, and for a Gather no integers, no activations,
    no single column (the scales of rows are one), and no table of one or two rows, as encoders have
    for kinds of segments: that would save a few kilobytes for three operators more.
    """
    weights = [node.input(slot) for slot in _WEIGHT_SLOTS.get(node.op_type, (1,))]
    if any(made_by(v, "DequantizeLinear") for v in weights):
        return False
    table = weights[0]
    if not node.is_op("Gather") or table is None:
        return True
    is_float = table.dtype is not None and table.dtype.is_float
    if not is_float or table.data is None:
        return False
    return table.data.shape[1:] != (1,) and table.data.shape[:1] > (_FEW_ROWS,)


def contrib(
    node: Node,
    op_type: str,
    inputs: Sequence[Value | None],
    attributes: Mapping[str, AttributeLike],
) -> Node:
    """Add an operator of onnxruntime's own that makes what a node makes."""
    graph = node.graph
    graph.model.opset_imports.setdefault(_CONTRIB_DOMAIN, 1)
    return graph.add(
        op_type,
        inputs,
        attributes,
        domain=_CONTRIB_DOMAIN,
        outputs=[None if v is None else "" for v in node.outputs],
        types=[None if v is None else v.type for v in node.outputs],
    )


def replace_node(node: Node, made: Sequence[Value | None], computing: Node) -> None:
    """Let others take a node's place: ``made`` are its outputs, ``computing`` gets its name."""
    graph, read, name = node.graph, node.inputs, node.name
    names = [None if v is None else v.name for v in node.outputs]
    for old, new in zip(node.outputs, made, strict=True):
        if old is not None and new is not None:
            new.type = old.type
            graph.replace_uses(old, new)
    graph.remove(node)
    for wanted, new in zip(names, made, strict=True):
        if new is not None and wanted is not None and graph.find(wanted) is None:
            graph.rename(new, wanted)
    if name:
        graph.rename_node(computing, name)
    drop_unused(read)


def drop_unused(values: Sequence[Value | None]) -> None:
    """Take away those constants that nobody reads, and Transposes of constants."""
    for value in dict.fromkeys(values):
        if value is None or value.is_used or value.graph.values.get(value.name) is not value:
            continue
        if transpose := made_by(value, "Transpose"):
            remove_unused(value.graph, [transpose])
        elif value.is_constant:
            value.graph.discard(value)


def plain_gemm(node: Node) -> None:
    """Give a Gemm the form that runtimes fuse, all but its weight: no factors, a vector as bias.

    Its first input is transposed by an operator of its own. ``transB`` and ``alpha`` are taken away
    too: the caller sets a weight that has both in it.
    """
    graph = node.graph
    x, bias = node.input(0), node.input(2)
    if node.get("transA", 0) and x is not None:
        types = [TensorType(x.dtype or DataType.FLOAT, None if x.shape is None else x.shape[::-1])]
        node.set_input(0, graph.add("Transpose", [x], {"perm": [1, 0]}, types=types).output)
    if bias is not None:
        node.set_input(2, _plain_bias(node, bias))
        drop_unused([bias])
    for name in ("transA", "transB", "alpha", "beta"):
        if name in node.attributes:
            graph.set_attribute(node, name, None)


def _plain_bias(node: Node, bias: Value) -> Value:
    graph, beta = node.graph, float(node.get("beta", 1.0))
    columns = node.output.shape[-1] if node.output.shape else None
    if not bias.is_constant:
        if beta == 1.0:
            return bias
        factor = graph.constant(np.array(beta, np.float32), f"{bias.name}_beta")
        return graph.add("Mul", [bias, factor], types=[bias.type]).output
    numbers = bias.numpy()
    if numbers.size == 1 and isinstance(columns, int):
        plain = np.repeat(numbers.reshape(-1), columns)
    elif numbers.ndim and numbers.size == numbers.shape[-1]:
        plain = numbers.reshape(-1)
    else:
        plain = numbers
    if plain.shape == numbers.shape and beta == 1.0:
        return bias
    return graph.constant(plain * np.float32(beta), bias.name)


def rows_reason(node: Node, table: ConstantWeight) -> Reason | None:
    """Why a Gather cannot read stored rows; None if it can."""
    if len(table.shape) != 2 or table.transposed:
        return Reason("shape", "it does not gather from a constant matrix")
    if node.get("axis", 0) not in (0, -2):
        return Reason("attribute", "it does not gather rows")
    return None


def gather_rows(node: Node, rows: Rows) -> None:
    """Let a Gather along the first axis read stored rows, and restore only those."""
    graph, output, indices = node.graph, node.output, node.input(1)
    shape, name = output.shape, output.name
    before = None if indices is None or indices.shape is None else indices.shape

    def gathered(table: Value, end: str) -> Value:
        dtype, inner = table.dtype or DataType.FLOAT, (table.shape or ())[1:]
        whole = None if before is None else (*before, *inner)
        return added(graph, "Gather", [table, indices], f"{name}_{end}", dtype, whole)

    def real(value: Value) -> Value:
        stem, to = f"{value.name}_f", DataType.FLOAT
        return added(graph, "Cast", [value], stem, to, value.shape, to=int(to))

    integers, factors = gathered(rows.values, "q"), gathered(rows.scale, "scale")
    numbers = real(integers)
    if rows.zero_point is not None:
        zeros = real(gathered(rows.zero_point, "zero_point"))
        numbers = graph.add("Sub", [numbers, zeros], types=[numbers.type]).output
    made = graph.add("Mul", [numbers, factors], types=[numbers.type])
    if rows.blocks > 1:
        made = graph.add("Reshape", [made.output, _merged(graph, rows, indices, name)])
    made.output.type = TensorType(DataType.FLOAT, shape)
    assert integers.producer is not None
    replace_node(node, made.outputs, integers.producer)


def _merged(graph: Graph, rows: Rows, indices: Value | None, name: str) -> Value:
    """The shape in which the blocks of a row are one axis."""
    columns, stem = np.array([rows.columns], np.int64), f"{name}_shape"
    if indices is not None and indices.rank is None:
        length = graph.add("Shape", [indices], types=[TensorType(DataType.INT64, (None,))]).output
        last = graph.constant(columns, stem)
        return graph.add("Concat", [length, last], {"axis": 0}).output
    kept = np.zeros(indices.rank or 0 if indices is not None else 0, np.int64)
    return graph.constant(np.concatenate([kept, columns]), stem)

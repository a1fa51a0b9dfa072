"""The precision each operator of a model computes in, read off the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache

from onnxq.ir import DataType, Graph, Node, Value
from onnxq.passes import notes
from onnxq.targets import available_targets, load_target
from onnxq.verify.result import LayerFacts

BORDERS = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
"""What makes integers of floats and the other way round: no operators of their own."""

_MATRIX = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_RECURRENT = ("LSTM", "GRU", "RNN")
_DYNAMIC = (
    "ConvInteger",
    "MatMulInteger",
    "DynamicQuantizeLSTM",
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
)
MAY_HOLD_WEIGHTS = (*_MATRIX, *_RECURRENT, *_DYNAMIC)
"""Operators that may compute with weights in few bits."""

_CLIPPING = ("Relu", "Clip")


def describe(graph: Graph) -> tuple[LayerFacts, ...]:
    """Every operator but the QDQ pairs, those of bodies too, with its precision and the reason.

    An operator computes on integers if what it reads comes out of DequantizeLinear and what it
    gives goes into QuantizeLinear, which runtimes fuse to an integer kernel where they have one;
    matrix products and convolutions may also give floats.
    """
    reasons, chosen = notes.left_in_float(graph), notes.reasons(graph)
    layers = []
    for node, name in operators(graph):
        own = _own_type(node)
        found = own if name in reasons else precision(node)
        reason = chosen.get(name) or reasons.get(name, "")
        if chosen and not reason and found != own and node.is_op(*_CLIPPING):
            # A plan has no entry for it: it belongs to the node whose result it clips.
            reason = "has the precision of what it clips"
        layers.append(LayerFacts(name, node.op_type, found, None, None, reason))
    return tuple(layers)


def operators(graph: Graph) -> list[tuple[Node, str]]:
    """The nodes that are no part of a QDQ pair, those of bodies too, with their names."""
    return [(n, notes.node_name(n)) for n in graph.all_nodes() if not n.is_op(*BORDERS)]


def precision(node: Node) -> str:
    """Precision of one operator: ``int8``, ``int16-act``, ``int8-weight``, ``float32``, ..."""
    if node.op_type.startswith("QLinear") or node.op_type == "QGemm":
        return "int8"
    if node.op_type in _DYNAMIC:
        return "int8-dynamic"
    if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
        return f"int{node.get('bits', 4)}-weight"
    if _gathers_stored_rows(node):
        return f"{_bits(_laid_out(node.input(0)).dtype)}-weight"
    own = _own_type(node)
    read = [v for v in node.inputs if v is not None]
    stored = [_dequantized_from(v) for v in read]
    if not any(stored) and node.op_type not in _CLIPPING:
        return own
    if node.is_op(*_CLIPPING):
        maker = read[0].producer if read else None
        while maker is not None and maker.is_op(*_CLIPPING):
            maker = maker.inputs[0].producer if maker.inputs[0] is not None else None
        return own if maker is None or not _ends_in_pair(node) else _integer(maker, own)
    return _integer(node, own)


def _integer(node: Node, own: str) -> str:
    activations = [
        v for slot, v in enumerate(node.inputs) if v is not None and _is_activation(node, slot, v)
    ]
    types = {_dequantized_from(v) for v in activations if v.dtype in (None, DataType.FLOAT)}
    if not types or None in types:
        weight = next((_dequantized_from(v) for v in node.inputs if v and _is_stored(v)), None)
        stores = node.is_op(*_MATRIX, *_RECURRENT, "Gather")
        return f"{_bits(weight)}-weight" if weight and stores else own
    able = _integer_operators(notes.target(node.graph))
    if node.is_op(*_MATRIX) or (node.is_op(*able) and _ends_in_pair(node)):
        bits = {_bits(dtype) for dtype in types}
        # Wider activations are named as such; their weights have 8 bits as ever.
        return "int16-act" if "int16" in bits else min(bits)
    return own


def _is_activation(node: Node, slot: int, value: Value) -> bool:
    if node.is_op("Resize"):
        # Its scales are floats, but no activations.
        return slot == 0
    if slot == 2 and node.is_op(*_MATRIX):
        # Some targets take biases in float.
        return False
    weight_follows = slot and node.is_op(*_MATRIX, *_RECURRENT)
    return not (_is_stored(value) and (node.is_op("Gather") or weight_follows))


def _gathers_stored_rows(node: Node) -> bool:
    """Whether a Gather reads a table kept as integers, which are restored afterwards."""
    table = node.input(0)
    if not node.is_op("Gather") or table is None or not _laid_out(table).is_constant:
        return False
    readers = [use.node for use in node.output.uses]
    stored = table.dtype in (DataType.INT8, DataType.UINT8, DataType.INT16, DataType.UINT16)
    return stored and bool(readers) and all(n.is_op("Cast") for n in readers)


def _laid_out(table: Value | None) -> Value:
    """The constant behind operators that bring it into the form in which it is read."""
    assert table is not None
    while table.producer is not None and table.producer.is_op("Cast", "Transpose", "Reshape"):
        (table, *_) = (v for v in table.producer.inputs if v is not None)
    return table


@cache
def _integer_operators(target: str) -> frozenset[str]:
    """Operators of the default domain that a target computes on integers.

    Where it is not known, those that some target does which computes the others in float.
    """
    known = available_targets()
    tables = [load_target(name) for name in ((target,) if target in known else known)]
    return frozenset(o for t in tables if t.name == target or not t.everything for o in t.operators)


def _is_quantized(node: Node) -> bool:
    """Whether everything that reads the node's outputs reads them as integers."""
    uses = [use for v in node.outputs if v is not None for use in v.uses]
    return bool(uses) and all(use.node.is_op("QuantizeLinear") for use in uses)


def _ends_in_pair(node: Node) -> bool:
    """Whether a node's result is read as integers only, if need be behind Relu and Clip."""
    uses = [use for v in node.outputs if v is not None for use in v.uses]
    while len(uses) == 1 and uses[0].node.is_op(*_CLIPPING):
        node = uses[0].node
        uses = list(node.output.uses)
    return _is_quantized(node)


def _dequantized_from(value: Value) -> DataType | None:
    """Format of the integers behind a DequantizeLinear, None for any other value."""
    maker = value.producer
    if maker is None or not maker.is_op("DequantizeLinear"):
        return None
    source = maker.inputs[0]
    if source is None:
        return None
    if source.dtype is not None:
        return source.dtype
    zero_point = maker.input(2)
    return zero_point.dtype if zero_point is not None else DataType.UINT8


def _is_stored(value: Value) -> bool:
    """Whether the value is a constant kept as integers."""
    maker = value.producer
    return (
        maker is not None
        and maker.is_op("DequantizeLinear")
        and maker.inputs[0] is not None
        and _laid_out(maker.inputs[0]).is_constant
    )


def _bits(dtype: DataType | None) -> str:
    """``int8`` for int8 and uint8 alike: a precision names the width."""
    return "float32" if dtype is None else dtype.label.removeprefix("u")


def _own_type(node: Node) -> str:
    for value in (*node.outputs, *node.inputs):
        if value is not None and value.dtype is not None:
            return value.dtype.label
    return "unknown"


def counts(layers: tuple[LayerFacts, ...]) -> Mapping[str, int]:
    """Number of operators by precision, the most frequent first."""
    found = Counter(layer.precision for layer in layers)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

"""Where the layers of a candidate are held against the float model: places between cuts of it.

What is cut, and what is compared at a place, is told in `onnxq.verify.local`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

import numpy as np

from onnxq.ir import DataType, Graph, Node, TensorType, Value
from onnxq.ir.copying import reads
from onnxq.passes.notes import node_name
from onnxq.verify.pairs import Grid, behind, goes_into_pair, grid_of, read_back
from onnxq.verify.precision import MAY_HOLD_WEIGHTS, operators

_AT_RUN_TIME = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM")
"""Operators that quantize what they read first, in 8 bits over the range that it has in a run."""

_MOST_BITS = 11.0
"""What is computed in float counts as."""

_FLOAT_BITS = {"float16": 11, "bfloat16": 8}
_FEW_BITS = {"ternary": 2, "binary": 1}


@dataclass(frozen=True)
class Place:
    """Two values that should be equal, and the layer that is to blame where they are not.

    ``wanted`` is the float model's value, or of a pair what goes into it, in the candidate.
    ``at_run_time`` are values that are quantized over the range that they have in a run; ``depth``
    counts the layers of bodies, which nothing is fed to.
    """

    layer: str
    op_type: str
    what: str
    given: str
    wanted: str
    is_pair: bool
    bits: float
    axis: int
    grid: Grid | None = None
    pairs: tuple[str, ...] = ()
    products: tuple[str, ...] = ()
    at_run_time: tuple[str, ...] = ()
    depth: int = 1

    @property
    def step(self) -> float | None:
        """What a pair rounds to multiples of, where that is known."""
        return None if self.grid is None else self.grid.scale

    @property
    def shown(self) -> tuple[str, ...]:
        """Values of the candidate that are looked at."""
        return (self.given, *([self.wanted] if self.is_pair else ()), *self.at_run_time)


def cut_apart(candidate: Graph, shared: Collection[str]) -> tuple[Graph, dict[str, str]]:
    """A copy whose shared values are fed to their readers; whose value each fed one is."""
    split, fed = candidate.copy(), dict[str, str]()
    for name in shared:
        value = split.values.get(name)
        if value is None or value.producer is None:
            continue
        read = [value, *chain.from_iterable(read_back(q) for q in _quantizers(value))]
        if not any(not goes_into_pair(use.node) for v in read for use in v.uses):
            continue
        given = split.add_input(split.fresh_name(f"{name}_fed"), TensorType(DataType.FLOAT, None))
        fed[given.name] = name
        for one in read:
            split.replace_uses(one, given, lambda use: not goes_into_pair(use.node))
    return split, fed


def _quantizers(value: Value) -> list[Node]:
    return [use.node for use in value.uses if use.slot == 0 and goes_into_pair(use.node)]


def places_of(split: Graph, shared: Collection[str], precisions: Mapping[str, str]) -> list[Place]:
    """Where the candidate is measured, in the order in which it computes."""
    names = {n: name for n, name in operators(split) if n.graph is split and name in precisions}
    order = {node: at for at, node in enumerate(split.nodes())}
    found: list[Place] = []
    for node in order:
        if goes_into_pair(node):
            found += _pairs(node, names, shared, precisions, order)
        else:
            found += (
                _computed(node, value, names, precisions, order)
                for value in node.outputs
                if value is not None and value.name in shared
            )
    return found


def _pairs(
    quantizer: Node,
    names: Mapping[Node, str],
    shared: Collection[str],
    precisions: Mapping[str, str],
    order: Mapping[Node, int],
) -> Iterator[Place]:
    source = quantizer.input(0)
    if source is None or (source.producer is None and source.data is not None):
        return
    for value in read_back(quantizer):
        assert value.producer is not None
        maker = _maker(source, names)
        # What quantizes an input of the model belongs to the layer that reads it.
        blamed = maker or next((use.node for use in value.uses if use.node in names), None)
        if blamed is None or blamed not in names:
            continue
        grid, dtype = grid_of(quantizer, value.producer), quantizer.output.dtype
        bits = 8.0 if dtype is None else float(dtype.bits)
        products: list[Node] = []
        if maker is not None and source.name not in shared:
            # Values may lie beyond the range because something in front is wrong.
            products = _products(sorted(_region(maker), key=order.__getitem__), names, precisions)
        yield Place(
            names[blamed],
            blamed.op_type,
            f"the quantization of '{source.name}'",
            value.name,
            source.name,
            True,
            bits if grid is None else math.log2(grid.high - grid.low + 1),
            _channel_axis(source, blamed),
            grid,
            products=tuple(names.get(n, node_name(n)) for n in products),
        )


def _maker(value: Value, names: Mapping[Node, str]) -> Node | None:
    """The layer that computes a value, in front of pairs and of what they clip."""
    node = value.producer
    while node is not None and node not in names:
        source = node.input(0)
        node = None if source is None else source.producer
    return node


def _computed(
    node: Node,
    value: Value,
    names: Mapping[Node, str],
    precisions: Mapping[str, str],
    order: Mapping[Node, int],
) -> Place:
    region = sorted(_region(node), key=order.__getitem__)
    products = _products(region, names, precisions)
    end = _maker(value, names) or node
    blamed = products[-1] if products else end
    within = [v for n in region if goes_into_pair(n) for v in behind(n)]
    inner = [n for outer in region for graph in outer.subgraphs() for n in graph.all_nodes()]
    bits = [_bits_of(precisions.get(node_name(n), "")) for n in (*region, *inner)]
    depth = sum(found < _MOST_BITS for found in bits[len(region) :])
    bits += [_stored_bits(n) for n in (*region, *inner) if n.is_op("DequantizeLinear")]
    at_run_time = [v.name for n in region if n.is_op(*_AT_RUN_TIME) if (v := n.input(0))]
    return Place(
        names.get(blamed, node_name(blamed)),
        blamed.op_type,
        f"'{value.name}'",
        value.name,
        value.name,
        False,
        min(bits, default=_MOST_BITS),
        _channel_axis(value, end),
        pairs=tuple(v.name for v in within),
        products=tuple(names.get(n, node_name(n)) for n in products),
        at_run_time=tuple(at_run_time),
        depth=max(1, depth),
    )


def _products(
    region: Iterable[Node], names: Mapping[Node, str], precisions: Mapping[str, str]
) -> list[Node]:
    """Those of some nodes that may hold weights in few bits."""
    return [
        node
        for node in region
        if (node.is_op(*MAY_HOLD_WEIGHTS) or node.domain)
        and not precisions.get(names.get(node, ""), "float").startswith("float")
    ]


def _region(end: Node) -> set[Node]:
    """What a node is computed from and itself, as far as nothing is fed."""
    seen, left = {end}, [end]
    while left:
        for value in reads(left.pop()):
            maker = value.producer
            if maker is not None and maker not in seen and maker.graph is end.graph:
                seen.add(maker)
                left.append(maker)
    return seen


def _bits_of(precision: str) -> float:
    """How many bits weights have in a precision, as reports call it; 11 at most."""
    if precision in _FEW_BITS:
        return float(_FEW_BITS[precision])
    if precision == "int16-act":
        return 8.0
    integers = re.match(r"int(\d+)", precision)
    return float(integers[1]) if integers else float(_FLOAT_BITS.get(precision, _MOST_BITS))


def _stored_bits(reader: Node) -> float:
    """Bits that the codes of a constant take, which may be fewer than their type has."""
    codes = reader.input(0)
    if codes is not None and codes.producer is not None and codes.producer.is_op("Cast"):
        codes = codes.producer.input(0)
    if codes is None or not codes.is_constant or not codes.numpy().size:
        return _MOST_BITS
    numbers = codes.numpy().astype(np.int64)
    return max(1.0, float(np.ceil(np.log2(numbers.max() - numbers.min() + 1))))


def _channel_axis(value: Value, maker: Node) -> int:
    """The axis of channels: the second of what looks like an image, else the last."""
    is_image = (value.rank or 0) > 3 or "Conv" in maker.op_type or "Pool" in maker.op_type
    return 1 if is_image else -1

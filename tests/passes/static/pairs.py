"""Graphs in ONNX text syntax, float and with QDQ pairs, and the constants that these read.

Every activation has the range that uint8 represents with scale 0.25 and zero-point 8, and every
channel of a weight has 63.5 for its largest value, which makes its scale 0.5.
"""

from __future__ import annotations

import numpy as np

from onnxq.ir import Graph

HEAD = '<ir_version: 8, opset_import: ["": 17]>'
SCALES = "float s = {0.25}, uint8 z = {8}"
IMAGE = "(float[1, 1, 4, 4] x) => (float[1, 1, 4, 4] y)"


def text(interface: str, constants: str, *nodes: str) -> Graph:
    return Graph.from_text(f"{HEAD} g {interface} <{constants}> {{ {' '.join(nodes)} }}")


def newest(interface: str, constants: str, *nodes: str) -> Graph:
    """A graph of opset 21, whose nodes are named after what they give."""
    made = Graph.from_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g {interface} <{constants}> {{ {" ".join(nodes)} }}"""
    )
    for node in made.nodes():
        made.rename_node(node, node.output.name)
    return made


def pair(source: str, result: str) -> str:
    return (
        f"{source}_int = QuantizeLinear({source}, s, z) "
        f"{result} = DequantizeLinear({source}_int, s, z)"
    )


def scales(prefix: str, dtype: str, count: int, scale: float) -> str:
    """Constants ``<prefix>s`` and ``<prefix>z``: one scale and a zero-point of 0 per channel."""
    repeated = ", ".join([str(scale)] * count)
    zeros = ", ".join(["0"] * count)
    return f"float[{count}] {prefix}s = {{{repeated}}}, {dtype}[{count}] {prefix}z = {{{zeros}}}"


def numbers(array: np.ndarray) -> str:
    return ", ".join(repr(float(n)) for n in array.reshape(-1))


# Between two convolutions, whose own quantization is always the same.
AROUND = (
    "float[1, 1, 1, 1] w = {63.5}",
    f"{SCALES}, int8[1, 1, 1, 1] wq = {{127}}, {scales('w', 'int8', 1, 0.5)}",
)


def between(operator: str, constants: str = "") -> Graph:
    return text(
        "(float[1, 1, 4, 4] x) => (float[N, C, H, W] y)",
        f"{AROUND[0]}, {constants}".rstrip(", "),
        "c = Conv(x, w)",
        operator,
        "y = Conv(p, w)",
    )

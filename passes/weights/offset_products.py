"""Products with a weight whose blocks have an offset beside the scale.

With blocks along the inputs, whose values are ``d (c - z) + o``, a product is that with
``d (c - z)``, for which DequantizeLinear and kernels exist, plus that of the other factor's sums
over the blocks and ``o``: with blocks of 32 one 32nd of the multiplications.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxq.ir import DataType, Node, Use, Value
from onnxq.passes.nodes import added
from onnxq.passes.notes import Reason
from onnxq.passes.weights.weight_rewrites import plain_gemm, replace_node
from onnxq.quant.qparams import QuantizedTensor


def offset_products(weight: Value) -> tuple[Node, ...] | Reason:
    """The products that read a constant matrix whose blocks lie on its last axis.

    Or why `split_products` cannot do without the matrix.
    """
    if weight.rank != 2:
        return Reason("shape", "it is no matrix")
    if weight.is_output:
        return Reason("operator", "it is an output of the model")
    found = []
    for (node, slot), transposed in _reads(weight):
        if not node.is_op("MatMul", "Gemm") or slot != 1:
            return Reason("operator", f"{node.label} reads it, and not as a product's weight")
        x = node.input(0)
        if node.graph is not weight.graph:
            return Reason("operator", f"{node.label} reads it in a subgraph")
        if transposed is bool(node.get("transB", 0)):
            return Reason("shape", f"its blocks lie along the outputs of {node.label}")
        if node.get("alpha", 1.0) != 1.0:
            return Reason("attribute", f"{node.label} has an alpha")
        if x is None or x.rank is None:
            return Reason("shape", f"the rank of what {node.label} multiplies is not known")
        found.append(node)
    return tuple(found) or Reason("operator", "nothing reads it")


def split_products(
    weight: Value, blocks: QuantizedTensor, offsets: np.ndarray, sums: dict[Value, Value]
) -> None:
    """Make the products that read a matrix read its blocks and, on their own, their offsets.

    Stored as [inputs, outputs], the form that onnxruntime fuses to MatMulNBits. The matrix goes
    away.

    Args:
        weight: The matrix, [outputs, inputs]; `offset_products` has no objection.
        blocks: Its values without the offsets, with blocks on the last axis.
        offsets: [outputs, inputs / block size].
        sums: The sums over blocks that there are by what is summed; more are put there.
    """
    nodes = offset_products(weight)
    assert not isinstance(nodes, Reason)
    graph, name, params = weight.graph, weight.name, blocks.qparams
    size = params.block_size
    assert size is not None
    restored = added(
        graph,
        "DequantizeLinear",
        [
            graph.constant(_turned(blocks.values), f"{name}_q"),
            graph.constant(_turned(params.scale), f"{name}_scale"),
            graph.constant(_turned(params.zero_point), f"{name}_zero_point"),
        ],
        f"{name}_dq",
        DataType.FLOAT,
        blocks.values.shape[::-1],
        axis=0,
        block_size=size,
    )
    raised = graph.constant(_turned(offsets), f"{name}_offset")
    for node in nodes:
        if node.op_type == "Gemm":
            plain_gemm(node)
        x, output = node.input(0), node.output
        assert x is not None
        if x not in sums:
            sums[x] = _block_sums(x, len(raised.numpy()), size)
        inputs = [x, restored, *node.inputs[2:]]
        product = graph.add(node.op_type, inputs, types=[output.type])
        lift = graph.add("MatMul", [sums[x], raised], types=[output.type])
        # onnxruntime would make a Gemm of MatMul and Add, and that it does not fuse.
        whole = graph.add("Sum", [product.output, lift.output], types=[output.type])
        replace_node(node, whole.outputs, product)


def _reads(value: Value, transposed: bool = False) -> Iterator[tuple[Use, bool]]:
    for use in value.uses:
        node = use.node
        turns = node.is_op("Transpose") and node.get("perm", (1, 0)) == (1, 0)
        if turns and not node.output.is_output:
            yield from _reads(node.output, not transposed)
        else:
            yield use, transposed


def _block_sums(x: Value, blocks: int, size: int) -> Value:
    graph, shape = x.graph, x.shape
    assert shape is not None
    form = np.array([*[0] * (len(shape) - 1), blocks, size], np.int64)
    cut = added(
        graph,
        "Reshape",
        [x, graph.constant(form, f"{x.name}_blocks_shape")],
        f"{x.name}_blocks",
        DataType.FLOAT,
        (*shape[:-1], blocks, size),
    )
    last = graph.constant(np.array([-1], np.int64), f"{x.name}_blocks_axis")
    return added(
        graph,
        "ReduceSum",
        [cut, last],
        f"{x.name}_sums",
        DataType.FLOAT,
        (*shape[:-1], blocks),
        keepdims=0,
    )


def _turned(array: np.ndarray) -> np.ndarray:
    # As plain integers: numpy copies types that it does not know itself one by one.
    plain = array.view(f"u{array.itemsize}")
    return np.ascontiguousarray(plain.T).view(array.dtype)

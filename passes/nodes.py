"""What many passes do with single operators: find them, look back, add them, take them out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
import numpy.typing as npt

from onnxq.ir import Context, DataType, Graph, Node, Shape, TensorType, Value, remove_unused
from onnxq.ir.attribute import AttributeLike
from onnxq.ir.operators import schema_of
from onnxq.ir.shape_values import constant_ints


def listed(op_types: str) -> frozenset[str]:
    """The operator types that stand in a text."""
    return frozenset(op_types.split())


def visit(
    graph: Graph,
    ctx: Context,
    op_types: Collection[str],
    rewrite: Callable[[Node], str | None],
    *,
    last_first: bool = False,
) -> int:
    """Offer operators of these types to a function that says what it did with one, if anything.

    Subgraphs come after the graph that holds them. Gives the number of rewrites; ``ctx`` is told.
    """
    made = 0
    for nested in list(graph.all_graphs()):
        for node in reversed(nested.nodes()) if last_first else nested.nodes():
            # What an earlier rewrite removed is no longer there.
            if node.op_type in op_types and not node.domain and node.in_graph:
                label, done = node.label, rewrite(node)
                if done is not None:
                    ctx.rewrote(f"{label}: {done}")
                    made += 1
    return made


def added(
    graph: Graph,
    op_type: str,
    inputs: Sequence[Value | None],
    name: str,
    dtype: DataType,
    shape: Shape | None,
    **attributes: AttributeLike,
) -> Value:
    """Add an operator that makes one value of this type, under a name made unique."""
    names, types = [graph.fresh_name(name)], [TensorType(dtype, shape)]
    return graph.add(op_type, inputs, attributes, outputs=names, types=types).output


def made_by(value: Value | None, *op_types: str) -> Node | None:
    """The node that makes a value, None if there is none or it is no such operator of ONNX's."""
    node = None if value is None else value.producer
    return node if node is not None and node.is_op(*op_types) else None


def broadcasts(shape: Shape | None, target: Shape | None) -> bool:
    """Whether a tensor of this shape certainly broadcasts to the target without enlarging it."""
    target = target or ()
    return (
        shape is not None
        and len(shape) <= len(target)
        and all(
            have == 1 or (have is not None and have == wanted)
            for have, wanted in zip(shape[::-1], target[::-1], strict=False)
        )
    )


def bypass(node: Node, source: Value) -> bool:
    """Take out a node that gives back a value; False where a graph output needs the node for it."""
    takes_name = source.graph is node.graph and source.producer and not source.is_output
    if node.output.is_output and not takes_name:
        return False
    node.graph.replace_uses(node.output, source)
    remove_unused(node.graph, [node])
    return True


def stated(
    node: Node, attribute: str, slot: int, default: list[int] | None = None
) -> list[int] | None:
    """Integers that an operator has as an attribute in old opsets and as an input in newer ones.

    The default if it has neither; None if the input is not constant.
    """
    if attribute in node.attributes:
        return list(node.get(attribute))
    given = node.input(slot)
    return default if given is None else constant_ints(given)


def state(
    node: Node, attribute: str, slot: int, numbers: list[int], dtype: npt.DTypeLike = np.int64
) -> None:
    """Give an operator such integers, in the form of the model's opset."""
    schema = schema_of(node)
    if schema is not None and attribute in schema.attributes:
        node.graph.set_attribute(node, attribute, numbers)
    else:
        name = f"{node.output.name}_{attribute}"
        node.graph.set_constant(node, slot, np.array(numbers, dtype), name)

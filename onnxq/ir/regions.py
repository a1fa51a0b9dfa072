"""Regions of a graph that can be written in several forms, each known by the value it computes."""

from __future__ import annotations

from collections.abc import Collection, Hashable

from onnxq.ir.node import Node, Value


def kind_of(value: Value) -> Hashable:
    """What regions have in common that take equal time: operators and shapes, neighbours included.

    Args:
        value: What the region computes, in the form that a pass gave it.
    """
    node = value.producer
    assert node is not None
    read = [v for v in node.inputs if v is not None]
    return (
        node.op_type,
        tuple((v.producer.op_type if v.producer else "", str(v.shape)) for v in read),
        str(value.shape),
        tuple(sorted(use.node.op_type for use in value.uses)),
    )


def around(value: Value, shared: Collection[str]) -> dict[Node, None]:
    """The operators of a region, those it reads from, and its readers.

    Its neighbours belong to it because runtimes fuse across the region's border.

    Args:
        value: What the region computes.
        shared: Names of the values of the graph with the region in another form: what both have
            lies outside.
    """
    found: dict[Node, None] = {}
    pending = [] if value.producer is None else [value.producer]
    while pending:
        node = pending.pop()
        found[node] = None
        for read in node.inputs:
            maker = None if read is None else read.producer
            if maker is None or maker in found:
                continue
            assert read is not None
            if read.name in shared:
                found[maker] = None
            else:
                pending.append(maker)
    return found | dict.fromkeys(use.node for use in value.uses)

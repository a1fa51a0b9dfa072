"""What the model's metadata says about quantization: for which target, what is in float and why."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from onnxq.ir import Graph, Node

LEFT_IN_FLOAT_KEY = "onnxq.left_in_float"
"""Model metadata entry: a JSON object from each reason to the nodes left in float for it."""

REASONS_KEY = "onnxq.reasons"
"""Model metadata entry: a JSON object from each reason to the nodes whose precision a plan chose
for it."""

TARGET_KEY = "onnxq.target"
"""Model metadata entry: the name of the target whose table static integers were placed by."""


@dataclass(frozen=True)
class Reason:
    """Why a node is not quantized, or not converted.

    Attributes:
        kind: One word for programs: ``request`` and ``chosen`` (the caller said so), ``operator``
            (no rule for it), ``quantized`` (already), ``computed``, ``foldable`` and
            ``overridable`` (a weight that is not constant, could be made so, or may be given by
            callers), ``type``, ``shape``, ``attribute``, ``opset``, ``range`` (of activations),
            ``finite``, ``overflow`` and ``vanish`` (of constants), ``neighbours`` (what stands
            around it), ``runtime`` (a defect of runtimes), ``slow``; `UNRELATED`.
        text: One clause for readers, and for the model's metadata.
    """

    kind: str
    text: str


UNRELATED = "unrelated"
"""Kind of the reason of nodes that nobody would expect to be quantized so."""

OVERRIDABLE = Reason("overridable", "its weight is also an input, which callers may override")
"""Reason that the pass constant-initializers does away with."""

BY_REQUEST = Reason("request", "kept in float by request")

NOT_FINITE = Reason("finite", "its weight has infinite or NaN values")


def node_name(node: Node) -> str:
    """How notes and reports call a node: its name, or its first output's."""
    return node.name or next((v.name for v in node.outputs if v is not None), "")


def left_in_float(graph: Graph) -> dict[str, str]:
    """Reason for each node that quantization left in float, by the node's name."""
    return _by_name(graph, LEFT_IN_FLOAT_KEY)


def reasons(graph: Graph) -> dict[str, str]:
    """Reason of a plan for each node's precision, by the node's name."""
    return _by_name(graph, REASONS_KEY)


def note_left_in_float(
    graph: Graph, reasons: Mapping[Node, Reason], quantized: Iterable[str] = ()
) -> None:
    """Add to what was noted before: a newer reason replaces an older one.

    Args:
        graph: The main graph.
        reasons: Why each node stays in float.
        quantized: Names of nodes that no longer are in float.
    """
    noted = left_in_float(graph)
    for name in quantized:
        noted.pop(name, None)
    noted.update({node_name(node): reason.text for node, reason in reasons.items()})
    _write(graph, LEFT_IN_FLOAT_KEY, noted)


def forget_notes(graph: Graph, known: Collection[str]) -> None:
    """Take away what was noted of nodes that quantization itself added: only some are known."""
    noted = left_in_float(graph)
    _write(graph, LEFT_IN_FLOAT_KEY, {n: reason for n, reason in noted.items() if n in known})


def note_reasons(graph: Graph, by_name: Mapping[str, str]) -> None:
    """Write a plan's reason for each node's precision; without any, nothing is written."""
    _write(graph, REASONS_KEY, by_name)


def target(graph: Graph) -> str:
    """Name of the target whose table static integers were placed by, empty if there are none."""
    return graph.model.metadata.get(TARGET_KEY, "")


def note_target(graph: Graph, name: str) -> None:
    """Write the name of the target whose table static integers were placed by."""
    graph.model.metadata[TARGET_KEY] = name


def _by_name(graph: Graph, key: str) -> dict[str, str]:
    try:
        by_reason = json.loads(graph.model.metadata.get(key, "{}"))
        return {name: reason for reason, names in by_reason.items() for name in names}
    except (ValueError, AttributeError, TypeError):
        # Somebody else's metadata under this name is no reason to fail.
        return {}


def _write(graph: Graph, key: str, by_name: Mapping[str, str]) -> None:
    by_reason: dict[str, list[str]] = {}
    for name, reason in by_name.items():
        by_reason.setdefault(reason, []).append(name)
    if by_reason:
        graph.model.metadata[key] = json.dumps(by_reason, separators=(",", ":"))
    else:
        graph.model.metadata.pop(key, None)

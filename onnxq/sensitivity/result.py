"""What sensitivity analysis found, as a file a user can read, edit and use again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from onnxq.plain import Amount, entry
from onnxq.saved import SavedAsJson
from onnxq.time_budget import Untried


@dataclass(frozen=True)
class NodeSensitivity:
    """Predicted loss of one node.

    Attributes:
        node: Its name.
        op_type: Its operator.
        losses: Loss of each part: ``weights:int8``, ``activations:int8``, ... What ``exhaustive``
            found, all parts at a time, stands under the precision.
        precisions: Parts of each precision that the node can have.
    """

    node: str
    op_type: str
    losses: Mapping[str, Amount]
    precisions: Mapping[str, tuple[str, ...]]

    def loss(self, precision: str) -> float | None:
        """Predicted loss in a precision; None where the node cannot have it."""
        if precision == "float32":
            return 0.0
        parts = self.precisions.get(precision)
        return None if parts is None else sum(self.losses[part] for part in parts)

    def with_gains(self, gains: Mapping[str, float]) -> NodeSensitivity:
        """The same with weights, or all where that is not told apart, that lose less by some dB."""
        losses, precisions = dict(self.losses), dict(self.precisions)
        for precision, gain in gains.items():
            parts = []
            for part in self.precisions.get(precision, ()):
                if gain and (part.startswith("weights:") or part == precision):
                    # Precisions share parts, and methods gain in one what they do not in another.
                    tuned = f"{part} tuned for {precision}"
                    losses[tuned] = self.losses[part] * 10 ** (-gain / 10)
                    parts.append(tuned)
                else:
                    parts.append(part)
            if parts:
                precisions[precision] = tuple(parts)
        return replace(self, losses=losses, precisions=precisions)

    def part(self, precision: str, kind: str) -> float | None:
        """Loss of the ``weights`` or the ``activations`` alone; None if it is not known."""
        names = (p for p in self.precisions.get(precision, ()) if p.startswith(f"{kind}:"))
        return next((self.losses[p] for p in names), None)


@dataclass(frozen=True)
class Sensitivity(SavedAsJson):
    """Predicted loss of every quantizable node.

    Attributes:
        model_sha256: Hash of the model analysed.
        proxy: What a loss is, see `onnxq.sensitivity.loss.PROXIES`.
        method: ``suffix`` or ``exhaustive``.
        samples: Samples it took.
        reliability: Agreement of the rankings from two halves of the samples, 1 for equal ones.
        nodes: The nodes, in the order of the graph.
        scales: By precision, loss of all nodes in it together over the sum of their losses.
        untried: That no time was left for more samples, where that is so.
    """

    schema = "onnxq/sensitivity/2"
    what = "sensitivity analysis"
    remedy = "analyse again"

    model_sha256: str
    proxy: str
    method: str
    samples: int
    reliability: float
    nodes: tuple[NodeSensitivity, ...]
    scales: Mapping[str, Amount] = field(default_factory=dict)
    untried: tuple[Untried, ...] = entry(sparse=True, default=())

    def losses(self) -> dict[str, dict[str, float]]:
        """Loss of every node in every precision, scaled to add up to that of all of them."""
        return {
            node.node: {p: (node.loss(p) or 0.0) * self.scales.get(p, 1.0) for p in node.precisions}
            for node in self.nodes
        }

    def with_gains(self, gains: Mapping[str, Mapping[str, float]]) -> Sensitivity:
        """The same where methods compute weights rather than rounding.

        What losses share grows with them, see `predicted`: so does the difference of scales from 1.

        Args:
            gains: By precision and node, dB by which methods lower the error of what it gives.
        """
        nodes = tuple(
            node.with_gains({p: own.get(node.node, 0.0) for p, own in gains.items()})
            for node in self.nodes
        )
        scales = {}
        for precision, scale in self.scales.items():
            before, after = (
                sum(n.loss(precision) or 0.0 for n in own) for own in (self.nodes, nodes)
            )
            scales[precision] = 1.0 + (scale - 1.0) * (after / before if before else 1.0)
        return replace(self, nodes=nodes, scales=scales)

    def predicted(self, precisions: Mapping[str, str]) -> float:
        """Predicted loss of a model whose nodes have some precisions, by name.

        Losses of a few nodes simply add up, and those of all nodes in a precision to `scales` times
        as much: what they share, as roundings or the room below saturation, grows with their share
        of all losses, and so does the difference from the sum.
        """
        total = 0.0
        for precision in self.precisions():
            losses = {n.node: n.loss(precision) or 0.0 for n in self.nodes}
            own = sum(loss for name, loss in losses.items() if precisions.get(name) == precision)
            share = own / (sum(losses.values()) or 1.0)
            total += own * (1.0 + (self.scales.get(precision, 1.0) - 1.0) * share)
        return total

    def ranking(self, precision: str) -> list[tuple[str, float]]:
        """Nodes that may have a precision and their losses, the most sensitive first."""
        found = [(n.node, n.loss(precision)) for n in self.nodes]
        known = [(name, loss) for name, loss in found if loss is not None]
        return sorted(known, key=lambda pair: (-pair[1], pair[0]))

    def precisions(self) -> list[str]:
        """Precisions that some node was analysed in."""
        return list(dict.fromkeys(p for node in self.nodes for p in node.precisions))

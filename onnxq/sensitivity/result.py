"""What sensitivity analysis found, as a file a user can read, edit and use again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from onnxq.errors import InputError
from onnxq.ir.textfile import read_text, write_text

SCHEMA = "onnxq/sensitivity/2"


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
    losses: Mapping[str, float]
    precisions: Mapping[str, tuple[str, ...]]

    def loss(self, precision: str) -> float | None:
        """Predicted loss in a precision; None where the node cannot have it."""
        if precision == "float32":
            return 0.0
        parts = self.precisions.get(precision)
        return None if parts is None else sum(self.losses[part] for part in parts)

    def part(self, precision: str, kind: str) -> float | None:
        """Loss of the ``weights`` or the ``activations`` alone; None if it is not known."""
        names = (p for p in self.precisions.get(precision, ()) if p.startswith(f"{kind}:"))
        return next((self.losses[p] for p in names), None)


@dataclass(frozen=True)
class Sensitivity:
    """Predicted loss of every quantizable node.

    Attributes:
        model_sha256: Hash of the model analysed.
        proxy: What a loss is, see `onnxq.sensitivity.loss.PROXIES`.
        method: ``suffix`` or ``exhaustive``.
        samples: Samples it took.
        reliability: Agreement of the rankings from two halves of the samples, 1 for equal ones.
        nodes: The nodes, in the order of the graph.
    """

    model_sha256: str
    proxy: str
    method: str
    samples: int
    reliability: float
    nodes: tuple[NodeSensitivity, ...]

    def ranking(self, precision: str) -> list[tuple[str, float]]:
        """Nodes that may have a precision and their losses, the most sensitive first."""
        found = [(n.node, n.loss(precision)) for n in self.nodes]
        known = [(name, loss) for name, loss in found if loss is not None]
        return sorted(known, key=lambda pair: (-pair[1], pair[0]))

    def precisions(self) -> list[str]:
        """Precisions that some node was analysed in."""
        return list(dict.fromkeys(p for node in self.nodes for p in node.precisions))

    def to_dict(self) -> dict[str, Any]:
        """The file's entries."""
        return {"schema": SCHEMA, **asdict(self)}

    def to_json(self) -> str:
        """The file's text; the same analysis gives the same text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, complete or not at all.

        Raises:
            InputError: it cannot be written.
        """
        write_text(path, self.to_json())

    @classmethod
    def from_json(cls, text: str, where: str = "the sensitivity") -> Sensitivity:
        """Read the file's text; ``where`` names it in messages.

        Raises:
            InputError: it is no file of a sensitivity analysis.
        """
        try:
            body = json.loads(text)
            if body.pop("schema") != SCHEMA:
                raise InputError(f"{where} is not of schema '{SCHEMA}'; analyse again")
            nodes = tuple(
                NodeSensitivity(
                    str(n["node"]),
                    str(n["op_type"]),
                    {str(part): _loss(loss) for part, loss in n["losses"].items()},
                    {str(p): tuple(map(str, parts)) for p, parts in n["precisions"].items()},
                )
                for n in body.pop("nodes")
            )
            return cls(nodes=nodes, **body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{where} is no sensitivity analysis that onnxq wrote ({error!r}); analyse again"
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sensitivity:
        """Read a file.

        Raises:
            InputError: it is missing or no file of a sensitivity analysis.
        """
        return cls.from_json(read_text(path, "the sensitivity"), f"'{path}'")


def _loss(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"a loss of {number}")
    return number

"""What every node costs in every precision, and every border between integers and floats."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxq.errors import InputError
from onnxq.ir.textfile import read_text, write_text

SCHEMA = "onnxq/costs/1"


@dataclass(frozen=True)
class Costs:
    """A cost table.

    Attributes:
        kind: ``latency`` in milliseconds, ``size`` in bytes, or ``flops`` in weighted operations.
        model_sha256: Hash of the model it is for.
        measured_on: Where it was measured: processor, provider, threads, versions; empty if it
            was computed.
        nodes: Cost by node name and precision.
        borders: By value name, cost of turning it into integers and of turning it into floats.
    """

    kind: str
    model_sha256: str
    measured_on: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    borders: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def of(self, node: str, precision: str) -> float:
        """Cost of a node in a precision; 0 for one that the table does not know."""
        return self.nodes.get(node, {}).get(precision, 0.0)

    def border(self, value: str) -> tuple[float, float]:
        """Cost of quantizing and of dequantizing a value."""
        return self.borders.get(value, (0.0, 0.0))

    def to_dict(self) -> dict[str, Any]:
        """The file's entries."""
        return {"schema": SCHEMA, **asdict(self)}

    def to_json(self) -> str:
        """The file's text; the same table gives the same text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, complete or not at all.

        Raises:
            InputError: it cannot be written.
        """
        write_text(path, self.to_json())

    @classmethod
    def from_json(cls, text: str, where: str = "the cost table") -> Costs:
        """Read the file's text; ``where`` names it in messages.

        Raises:
            InputError: it is no cost table.
        """
        try:
            body = json.loads(text)
            if body["schema"] != SCHEMA:
                raise InputError(f"{where} is not of schema '{SCHEMA}'; measure again")
            return cls(
                str(body["kind"]),
                str(body["model_sha256"]),
                {str(k): str(v) for k, v in body["measured_on"].items()},
                {
                    str(node): {str(p): _cost(c) for p, c in costs.items()}
                    for node, costs in body["nodes"].items()
                },
                {str(v): (_cost(q), _cost(d)) for v, (q, d) in body["borders"].items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{where} is no cost table that onnxq wrote ({error!r}); measure again"
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Costs:
        """Read a file.

        Raises:
            InputError: it is missing or no cost table.
        """
        return cls.from_json(read_text(path, "the cost table"), f"'{path}'")


def _cost(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"a cost of {number}")
    return number

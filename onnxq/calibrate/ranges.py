"""What calibration found out, as a file a user can read, edit and use again."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from onnxq.errors import InputError
from onnxq.ir.save import replacing

SCHEMA = "onnxq/ranges/1"


@dataclass(frozen=True)
class Range:
    """Smallest and largest value a tensor is to represent."""

    min: float
    max: float

    @property
    def is_finite(self) -> bool:
        """Whether both ends are finite numbers."""
        return math.isfinite(self.min) and math.isfinite(self.max)


@dataclass(frozen=True)
class Ranges:
    """Ranges of a model's tensors by name, and how they were found.

    Attributes:
        model_sha256: Hash of the model whose tensors these are.
        calibrator: How the ends were chosen.
        samples: Number of samples seen.
        ranges: Range of each tensor.
    """

    model_sha256: str
    calibrator: str
    samples: int
    ranges: Mapping[str, Range]

    def to_json(self) -> str:
        """The file's text; the same ranges give the same text."""
        body = {
            "schema": SCHEMA,
            "model_sha256": self.model_sha256,
            "calibrator": self.calibrator,
            "samples": self.samples,
            "ranges": {name: asdict(self.ranges[name]) for name in sorted(self.ranges)},
        }
        return json.dumps(body, indent=1) + "\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file, complete or not at all.

        Raises:
            InputError: it cannot be written.
        """
        with replacing(Path(path)) as file:
            file.write(self.to_json().encode())

    @classmethod
    def from_json(cls, text: str, where: str = "the ranges") -> Ranges:
        """Read the file's text; ``where`` names it in messages.

        Raises:
            InputError: it is no file of ranges.
        """
        try:
            body = json.loads(text)
            if body["schema"] != SCHEMA:
                raise InputError(
                    f"{where} has schema '{body['schema']}', not '{SCHEMA}'; calibrate again"
                )
            ranges = {
                name: Range(float(r["min"]), float(r["max"])) for name, r in body["ranges"].items()
            }
            return cls(body["model_sha256"], body["calibrator"], int(body["samples"]), ranges)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{where} is no file of ranges that onnxq wrote ({error!r}); calibrate again"
            ) from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Ranges:
        """Read a file.

        Raises:
            InputError: it is missing or no file of ranges.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise InputError(f"cannot read the ranges '{path}': {reason}") from error
        return cls.from_json(text, f"'{path}'")

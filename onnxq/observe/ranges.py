"""What calibration found out, as a file a user can read, edit and use again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnxq.errors import InputError
from onnxq.observe.calibrators import Calibrator, parse_calibrator
from onnxq.observe.statistics import Statistics
from onnxq.plain import read
from onnxq.quant import UINT8, ZERO_POINT, Format, Scheme
from onnxq.saved import SavedAsJson


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
class Ranges(SavedAsJson):
    """Ranges of a model's tensors by name, and how they were found.

    Attributes:
        model_sha256: Hash of the model whose tensors these are.
        calibrator: How the ends were chosen, in text form.
        samples: Number of samples seen.
        ranges: Range of each tensor.
        statistics: What was seen of each tensor; empty where the ranges come from elsewhere.
        format: Number format that the ends were chosen for.
        scheme: Scheme that the ends were chosen for.
    """

    schema = "onnxq/ranges/1"
    what = "file of ranges"
    remedy = "calibrate again"

    model_sha256: str
    calibrator: str
    samples: int
    ranges: Mapping[str, Range]
    statistics: Mapping[str, Statistics] = field(default_factory=dict)
    format: Format = UINT8
    scheme: Scheme = ZERO_POINT

    @classmethod
    def choose(
        cls,
        statistics: Mapping[str, Statistics],
        calibrator: Calibrator,
        *,
        samples: int,
        model_sha256: str = "",
        format: Format = UINT8,
        scheme: Scheme = ZERO_POINT,
    ) -> Ranges:
        """Ranges that a calibrator chooses from statistics.

        Raises:
            InputError: the statistics lack what the calibrator needs.
        """
        ranges = {
            name: Range(*calibrator.range(seen, format, scheme))
            for name, seen in statistics.items()
        }
        return cls(model_sha256, str(calibrator), samples, ranges, statistics, format, scheme)

    def with_calibrator(
        self,
        calibrator: str | Calibrator,
        *,
        format: Format | None = None,
        scheme: Scheme | None = None,
    ) -> Ranges:
        """The ranges that another calibrator chooses, without running the model again.

        Args:
            calibrator: A calibrator, or its text form.
            format: Number format to choose for; the present one if None.
            scheme: Scheme to choose for; the present one if None.

        Raises:
            InputError: there is no such calibrator, or the statistics lack what it needs.
        """
        chosen = parse_calibrator(calibrator) if isinstance(calibrator, str) else calibrator
        for name in self.ranges:
            if name not in self.statistics:
                raise InputError(
                    f"the range of '{name}' comes without statistics, so no other can be chosen; "
                    "calibrate again"
                )
        return Ranges.choose(
            self.statistics,
            chosen,
            samples=self.samples,
            model_sha256=self.model_sha256,
            format=format or self.format,
            scheme=scheme or self.scheme,
        )

    def to_dict(self) -> dict[str, Any]:
        """The file's entries: what was seen of a tensor stands beside its range."""
        body = super().to_dict()
        seen = body.pop("statistics")
        body["samples"] = body.pop("samples")
        ends = sorted(body.pop("ranges").items())
        return {**body, "ranges": {name: own | seen.get(name, {}) for name, own in ends}}

    @classmethod
    def _read(cls, entries: dict[str, Any], where: str) -> Ranges:
        ranges, statistics = {}, {}
        tensors = read(Mapping[str, dict[str, Any]], entries.get("ranges"), where, "ranges")
        for name, own in tensors.items():
            ends = {end: own.pop(end) for end in ("min", "max") if end in own}
            ranges[name] = read(Range, ends, where, f"ranges.{name}")
            if own:
                statistics[name] = read(Statistics, own, where, f"ranges.{name}")
        whole: Ranges = read(cls, entries | {"ranges": {}}, where)
        return replace(whole, ranges=ranges, statistics=statistics)


def merge(shards: Sequence[Ranges]) -> Ranges:
    """The ranges of all shards' samples together.

    Equal bit for bit to those of one pass over all samples, whatever the order of the shards, for
    every calibrator but the moving average.

    Raises:
        InputError: there is no shard, or they are of different models, calibrators or formats, or
            lack statistics.
    """
    if not shards:
        raise InputError("there are no ranges to merge")
    first = shards[0]
    for shard in shards[1:]:
        for what in ("model_sha256", "calibrator", "format", "scheme"):
            ours, theirs = getattr(first, what), getattr(shard, what)
            if ours != theirs:
                raise InputError(
                    f"ranges with {what} {ours!r} and {theirs!r} cannot be merged; calibrate all "
                    "shards alike"
                )
    statistics: dict[str, Statistics] = {}
    try:
        for shard in shards:
            for name in shard.ranges:
                seen = shard.statistics[name]
                statistics[name] = statistics[name].merge(seen) if name in statistics else seen
    except KeyError as error:
        raise InputError(
            f"the range of {error} comes without statistics and cannot be merged; calibrate again"
        ) from error
    except ValueError as error:
        raise InputError(f"the ranges of '{name}' cannot be merged: {error}") from error
    merged = replace(first, statistics=dict(sorted(statistics.items())), samples=0)
    merged = replace(merged, ranges={name: Range(0.0, 0.0) for name in merged.statistics})
    return replace(merged.with_calibrator(first.calibrator), samples=sum(s.samples for s in shards))

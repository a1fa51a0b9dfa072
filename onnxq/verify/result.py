"""The report: what verification found out, as data that round-trips through JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from onnxq.errors import InputError

SCHEMA = "onnxq/report/1"

Number: TypeAlias = float


@dataclass(frozen=True)
class ModelFacts:
    """One model file: where it is, its hash, operators, opset and bytes.

    ``integer_operators`` counts, by operator, those that compute on integers in the graph the
    provider really runs. ``compiled`` counts those that the provider compiled: whether they
    compute on integers is not known.
    """

    path: str
    sha256: str
    nodes: int
    opset: int
    bytes: int
    integer_operators: dict[str, int] = field(default_factory=dict)
    compiled: int = 0


@dataclass(frozen=True)
class MetricFacts:
    """The metric of both models and what the candidate loses.

    ``drop`` is float minus candidate for metrics that are better when higher, candidate minus
    float for the others: positive always means worse. ``confidence`` is the 95 % interval of
    the drop.
    """

    name: str
    float: Number
    candidate: Number
    drop: Number
    samples: int
    confidence: tuple[Number, Number] | None


@dataclass(frozen=True)
class LatencyFacts:
    """Interleaved latency on one provider; ``speedup`` is float over candidate time.

    Times are those of the least disturbed tenth of the runs, see `onnxq.runtime.Timing`.
    """

    provider: str
    threads: int
    float_ms: float
    candidate_ms: float
    speedup: float


@dataclass(frozen=True)
class SizeFacts:
    """Bytes of both files with their external data; ``ratio`` is float over candidate."""

    float_bytes: int
    candidate_bytes: int
    ratio: float


@dataclass(frozen=True)
class OutputFacts:
    """Difference of one graph output over all samples."""

    name: str
    sqnr_db: float
    cosine: float
    max_abs: float


@dataclass(frozen=True)
class LayerFacts:
    """One operator of the candidate.

    ``sqnr_db`` compares its output with the float model's value of the same name, None where
    there is none; ``sensitivity`` is None until it was analysed; ``reason`` says why it is in
    the precision it is in, empty if there is nothing to say.
    """

    node: str
    op_type: str
    precision: str
    sqnr_db: float | None
    sensitivity: float | None
    reason: str


@dataclass(frozen=True)
class GateFacts:
    """One promise, the measured value, and whether it held."""

    expr: str
    value: float | None
    passed: bool


@dataclass(frozen=True)
class PassFacts:
    """What one pass of the pipeline did."""

    name: str
    rewrites: int
    seconds: float


@dataclass(frozen=True)
class CandidateFacts:
    """A candidate of a search: its measured speedup, predicted loss and, if verified, accuracy."""

    label: str
    speedup: float
    predicted_loss: float
    sqnr_db: float | None
    drop: float | None


@dataclass(frozen=True)
class Report:
    """Everything a run found out; see DESIGN for the contract of the JSON keys.

    ``latency`` is that of the first provider, ``latencies`` of each in the order asked for;
    ``candidates`` are those of a search, the fastest first; ``notes`` are sentences for people.
    """

    model: ModelFacts
    output: ModelFacts
    metric: MetricFacts | None
    latency: LatencyFacts | None
    size: SizeFacts
    outputs: tuple[OutputFacts, ...]
    layers: tuple[LayerFacts, ...]
    gates: tuple[GateFacts, ...]
    passes: tuple[PassFacts, ...]
    versions: dict[str, str]
    seconds: float
    peak_rss_bytes: int
    passed: bool
    latencies: tuple[LatencyFacts, ...] = ()
    candidates: tuple[CandidateFacts, ...] = ()
    notes: tuple[str, ...] = ()
    schema: str = SCHEMA

    @property
    def sqnr_db(self) -> float:
        """The worst output's SQNR in dB; infinite for equal outputs."""
        return min((o.sqnr_db for o in self.outputs), default=math.inf)

    def to_dict(self) -> dict[str, Any]:
        """See `plain`."""
        body: dict[str, Any] = plain(dataclasses.asdict(self))
        return {"schema": body.pop("schema"), **body}

    def to_json(self) -> str:
        """JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Read JSON text.

        Raises:
            InputError: it is no report.
        """
        try:
            body = json.loads(text)
            if body.get("schema") != SCHEMA:
                raise InputError(f"the report has schema '{body.get('schema')}', not '{SCHEMA}'")
            report: Report = _read(cls, body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"this is no report that onnxq wrote: {error!r}") from error
        return report


def plain(value: Any) -> Any:
    """Data that JSON can hold: infinite numbers and NaN become strings."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _read(kind: Any, value: Any) -> Any:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else _read(args[0], value)
    if origin is tuple:
        inner = args if args[-1] is not Ellipsis else (args[0],) * len(value)
        return tuple(_read(k, v) for k, v in zip(inner, value, strict=True))
    if origin is dict:
        return {k: _read(args[1], v) for k, v in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{k: _read(hints[k], v) for k, v in value.items()})
    return kind(value)

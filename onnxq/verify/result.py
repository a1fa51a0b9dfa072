"""The report: what verification found out, as data that round-trips through JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from typing import Any, Self, TypeAlias

from onnxq.errors import InputError
from onnxq.runtime import OutputError
from onnxq.saved import SavedAsJson
from onnxq.time_budget import Untried
from onnxq.tune.training import TrainingFacts

Number: TypeAlias = float

AGREEMENT = "agreement"
"""Name of the metric that needs no labels: decisions that equal the float model's."""

NEIGHBOUR = "neighbour"
"""Kind of the decision which other sample is the most similar one."""


@dataclass(frozen=True)
class ModelFacts:
    """One model file: where it is, its hash, operators, opset and bytes.

    ``integer_operators`` counts, by operator, those that compute on integers in the graph the
    provider really runs. ``compiled`` counts those that the provider compiled: whether they
    compute on integers is not known. ``provider`` is the one that was asked.
    """

    path: str
    sha256: str
    nodes: int
    opset: int
    bytes: int
    integer_operators: dict[str, int] = field(default_factory=dict)
    compiled: int = 0
    provider: str = ""


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
class DecisionFacts:
    """A decision that an output stands for.

    ``kind`` is ``classes`` (the largest score), ``threshold`` (at least 0.5 or not) or
    ``neighbour`` (the most similar other sample); ``why`` says by what it was recognised.
    ``marked`` tells that positions where both models choose the background were left out.
    """

    output: str
    kind: str
    why: str
    marked: bool


@dataclass(frozen=True)
class AgreementFacts:
    """How often the candidate decides as the float model does, with its 95 % interval.

    ``positions`` counts the decisions compared, of which a sample may hold many. ``kl`` is the
    Kullback-Leibler divergence of the candidate's distribution over the choices from the float
    model's at a position, in nats and in the mean, summed over outputs; None for neighbours.
    ``left_out`` names outputs that decide something, but not by samples as the others do.
    """

    value: Number
    samples: int
    positions: int
    confidence: tuple[Number, Number]
    decisions: tuple[DecisionFacts, ...]
    kl: Number | None = None
    left_out: tuple[str, ...] = ()

    def as_metric(self) -> MetricFacts:
        """The same as a metric, of which the float model has all."""
        low, high = self.confidence
        drop = 1.0 - self.value
        return MetricFacts(AGREEMENT, 1.0, self.value, drop, self.samples, (1.0 - high, 1.0 - low))


@dataclass(frozen=True)
class LatencyFacts:
    """Interleaved latency on one provider; ``speedup`` is float over candidate time.

    Times are those of the least disturbed tenth of the runs, see `onnxq.runtime.Timing`. ``batch``
    is the number of samples fed at a time; ``of`` is ``prompt`` or ``token`` for a decoder;
    ``confidence`` is the 95 % interval of the speedup, None where it is not known, as for models
    that run in segments.
    """

    provider: str
    threads: int
    float_ms: float
    candidate_ms: float
    speedup: float
    batch: int = 1
    of: str = ""
    confidence: tuple[Number, Number] | None = None


@dataclass(frozen=True)
class ThroughputFacts:
    """Samples per second of both models in batches of some size, on one provider."""

    provider: str
    threads: int
    batch: int
    float_per_second: float
    candidate_per_second: float
    speedup: float


@dataclass(frozen=True)
class SizeFacts:
    """Bytes of both files with their external data; ``ratio`` is float over candidate."""

    float_bytes: int
    candidate_bytes: int
    ratio: float


@dataclass(frozen=True)
class LayerFacts:
    """One operator of the candidate.

    ``sqnr_db`` and ``cosine`` compare its output with the float model's value of the same name,
    None where there is none: the accumulated error, on what the candidate computed before.
    ``local_db`` and ``local_cosine`` are the error that it adds by itself, on the float model's
    inputs: of what it computes, or of the pair that quantizes that if it is worse; None where its
    inputs have no counterpart, or in bodies. ``expected_db`` is the SQNR that its precision
    explains. ``worst_channel`` holds the most of the local error, ``worst_channel_db`` is its SQNR.
    ``saturation`` is the share of values that lie beyond the ends of the quantized range and are
    cut off to them, None where there is no pair.

    ``sensitivity`` is None until it was analysed; ``reason`` says why it is in the precision it is
    in, empty if there is nothing to say.
    """

    node: str
    op_type: str
    precision: str
    sqnr_db: float | None
    sensitivity: float | None
    reason: str
    cosine: float | None = None
    local_db: float | None = None
    local_cosine: float | None = None
    expected_db: float | None = None
    worst_channel: int | None = None
    worst_channel_db: float | None = None
    saturation: float | None = None


@dataclass(frozen=True)
class JumpFacts:
    """The first layer whose local error its precision does not explain.

    ``what`` is the value that it computes wrongly, or whose quantization is at fault. ``others``
    are layers that may as well be at fault, because no value between them and this one has a
    counterpart. The other fields are those of that place, see `LayerFacts`.
    """

    node: str
    op_type: str
    what: str
    local_db: float
    expected_db: float
    saturation: float | None
    others: tuple[str, ...] = ()


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
class MethodFacts:
    """What a method did for a node, and how long that took.

    ``gain_db`` is by how much it lowers the error that it is judged by, on samples that it was not
    fitted to; 0 where that was not looked at.
    """

    node: str
    method: str
    gain_db: float
    seconds: float


@dataclass(frozen=True)
class CandidateFacts:
    """A candidate of a search: its measured speedup, predicted loss and, if verified, accuracy.

    ``chosen`` is that of the report.
    """

    label: str
    speedup: float
    predicted_loss: float
    sqnr_db: float | None
    drop: float | None
    chosen: bool = False


@dataclass(frozen=True)
class EndFacts:
    """An input or output of a model, and the places of the operators that read or make it."""

    name: str
    layers: tuple[int, ...]


@dataclass(frozen=True)
class RepeatFacts:
    """Sections of a graph that recur: ``count`` times ``length`` in a row, from ``first`` on."""

    first: int
    length: int
    count: int


@dataclass(frozen=True)
class GraphFacts:
    """How the operators of a candidate hang together, by their places in ``layers``.

    ``links`` are from whom to whom, past QDQ pairs; ``types`` what each gives first, as
    ``float[N, 3, ?]``. ``sections`` has each one's: all ways lead from a section to the next
    through one value, past what is in section 0.
    """

    links: tuple[tuple[int, int], ...]
    types: tuple[str, ...]
    sections: tuple[int, ...]
    repeats: tuple[RepeatFacts, ...]
    inputs: tuple[EndFacts, ...]
    outputs: tuple[EndFacts, ...]

    def is_of(self, count: int) -> bool:
        """Whether it can be that of so many operators, as what a file says need not be."""
        ends = chain.from_iterable(end.layers for end in (*self.inputs, *self.outputs))
        return (
            len(self.types) == len(self.sections) == count
            and all(0 <= place < count for place in chain(ends, *self.links))
            and all(-1 <= section <= count for section in self.sections)
            and all(
                r.first >= 0 < r.length
                and r.count > 0
                and r.first + r.length * r.count <= max(self.sections, default=0) + 1
                for r in self.repeats
            )
            and self._is_acyclic()
        )

    def _is_acyclic(self) -> bool:
        order = TopologicalSorter[int]()
        for maker, reader in self.links:
            order.add(reader, maker)
        try:
            order.prepare()
        except CycleError:
            return False
        return True


@dataclass(frozen=True)
class TensorFacts:
    """Where the values of a tensor lie that is quantized, and what its format holds of them.

    ``node`` makes it, empty for an input. ``low`` to ``high`` is its range; ``shares`` those of the
    values in bars of equal width from ``first`` to ``last``. ``sqnr_db`` is what quantizing this
    tensor alone leaves; ``outside`` the share of the values beyond its range.
    """

    tensor: str
    node: str
    low: Number
    high: Number
    first: Number
    last: Number
    shares: tuple[float, ...]
    sqnr_db: Number
    outside: float


@dataclass(frozen=True)
class ProviderFacts:
    """What the candidate is worth on one provider, against the float model on the CPU provider.

    ``nodes_taken`` of its operators are run by the provider, and ``nodes_left``, in ``left`` by
    type, by another one, without a word from the runtime. ``agrees`` says whether each part of the
    candidate between quantized tensors gives, from the same integers, the same integers as on the
    CPU provider but for one step; where not, ``parts_at`` is the first node that does not. None
    where outputs are more than a step apart and the model is too large to run by parts.
    ``difference_db`` is the SQNR of the candidate's outputs against its own on the CPU provider:
    single steps add up. ``float_agrees`` and ``float_parts_at`` say the same of the float model,
    whose step is a 255th of the range of a value.
    """

    name: str
    version: str
    nodes_taken: int
    nodes_left: int
    left: dict[str, int]
    float_ms: float | None
    candidate_ms: float | None
    sqnr_db: Number
    metric: MetricFacts | None
    difference_db: Number
    agrees: bool | None
    parts_at: str
    float_agrees: bool | None
    float_parts_at: str


@dataclass(frozen=True)
class DeploymentFacts:
    """A model on a provider of an environment, among those that the fastest was chosen from.

    ``python`` is the environment's interpreter, empty for the one that this was found in;
    ``runtime`` the version of its onnxruntime, with the packages unless it is onnxruntime alone.
    ``target`` is empty where the environment, or the provider, has none. ``speedup`` is the time of
    the float model on the CPU provider of this environment over this one's, all measured in turn,
    ``confidence`` its 95 % interval, and ``sqnr_db`` and ``drop`` are held against that model; they
    are None where it could not run. ``nodes_left`` of the operators the provider leaves to another
    one. ``reason`` says why it was not chosen.
    """

    python: str
    runtime: str
    target: str
    provider: str
    model: str
    ms: float | None = None
    speedup: float | None = None
    confidence: tuple[Number, Number] | None = None
    sqnr_db: Number | None = None
    drop: float | None = None
    bytes: int | None = None
    nodes_taken: int | None = None
    nodes_left: int | None = None
    chosen: bool = False
    reason: str = ""


@dataclass(frozen=True)
class Report(SavedAsJson):
    """Everything a run found out; keys of its JSON are only ever added to.

    ``latency`` is that of the first provider, ``latencies`` of each in the order asked for, of a
    decoder both of its latencies, first the one that promises mean;
    ``candidates`` are those of a search, the fastest first; ``notes`` are sentences for people;
    ``peak_stage`` is the stage that held the most memory, empty where the process had held more
    before; ``agreement`` is None where the outputs hold no decisions, ``training`` where nothing
    was trained; ``untried`` is what a time budget left out; ``graph`` is None where it was not
    looked at, or is too large to be drawn; ``tensors`` are those that quantization changes most;
    ``command`` is what was typed, empty where a program asked; ``jump`` is None where every layer
    errs no more than its precision explains, or none was looked at; ``providers`` has one entry for
    each that was compared, if there are several; ``deployments`` those that the fastest was chosen
    from, and ``deploy`` the line of Python that loads it, empty where a target was named or a
    promise broke and nothing is kept.
    """

    schema = "onnxq/report/1"
    what = "report"
    remedy = "make it again with `onnxq optimize` or `onnxq compare`"

    model: ModelFacts
    output: ModelFacts
    metric: MetricFacts | None
    latency: LatencyFacts | None
    size: SizeFacts
    outputs: tuple[OutputError, ...]
    layers: tuple[LayerFacts, ...]
    gates: tuple[GateFacts, ...]
    passes: tuple[PassFacts, ...]
    versions: dict[str, str]
    seconds: float
    peak_rss_bytes: int
    passed: bool
    latencies: tuple[LatencyFacts, ...] = ()
    throughput: tuple[ThroughputFacts, ...] = ()
    candidates: tuple[CandidateFacts, ...] = ()
    methods: tuple[MethodFacts, ...] = ()
    notes: tuple[str, ...] = ()
    peak_stage: str = ""
    agreement: AgreementFacts | None = None
    training: TrainingFacts | None = None
    untried: tuple[Untried, ...] = ()
    graph: GraphFacts | None = None
    tensors: tuple[TensorFacts, ...] = ()
    command: str = ""
    jump: JumpFacts | None = None
    providers: tuple[ProviderFacts, ...] = ()
    deployments: tuple[DeploymentFacts, ...] = ()
    deploy: str = ""

    @classmethod
    def _read(cls, entries: dict[str, Any], where: str) -> Self:
        found = super()._read(entries, where)
        if found.graph is not None and not found.graph.is_of(len(found.layers)):
            raise InputError(
                f"entry 'graph' of {where} is not that of its {len(found.layers)} layers"
            )
        return found

    @property
    def sqnr_db(self) -> float:
        """The worst output's SQNR in dB; infinite for equal outputs."""
        return min((o.sqnr_db for o in self.outputs), default=math.inf)

"""The float graph that is quantized, and which precisions each of its nodes can have."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.cost import Bench, Measurements
from onnxq.errors import InputError, NothingToQuantizeError
from onnxq.forms import FloatForm, Trial, fastest_form
from onnxq.ir import DataType, Graph, Node, PassRecord
from onnxq.ir.lifting import can_lift, is_conditional
from onnxq.job import Job
from onnxq.needs import Need, RangeOf
from onnxq.observe import Ranges, calibrate, parse_calibrator
from onnxq.passes.cleanup.constant_initializers import AS_CONSTANTS
from onnxq.passes.notes import BY_REQUEST, OVERRIDABLE, UNRELATED, Reason, node_name
from onnxq.passes.static.placement import Placement, known_range, place, place_within
from onnxq.passes.static.value_qparams import few_bits
from onnxq.plan import Pin
from onnxq.plan.apply import float_graph, needed_opset
from onnxq.precision import FLOAT, Scene, parse_precision
from onnxq.precision.static import Static
from onnxq.quant import Format
from onnxq.targets import Target
from onnxq.transforming import Transformed
from onnxq.transforming import transform as transform_graph
from onnxq.tune import Layer
from onnxq.work import WorkFolder

_NEVER_RUN = Reason("range", "no sample takes the branch that it is in")


@dataclass(frozen=True)
class Prepared:
    """A rewritten model and what can be quantized in it.

    Attributes:
        job: What it was made from.
        graph: The float graph after its passes. Plans are applied to copies of it.
        records: What the float passes did.
        placed: Where static integers can go, with all quantized that can be.
        choices: Precisions that each node can have beside float, by the node's name.
        refusals: Why a node that one might expect to can have none of them.
        pinned: Precisions set by hand, by the node's name.
        ranges: Ranges of the tensors that static integers need; None until they were observed.
        few_bits: Those that formats of fewer bits want otherwise, as
            `onnxq.passes.static.value_qparams.few_bits` names them.
        transformed: The equivalent transformations of the graph that were made; None before.
        tunings: What tuners computed and won so far, as `onnxq.tuning` keeps it.
        form: The form of the float model.
        notes: What was found in choosing it, in sentences.
    """

    job: Job
    graph: Graph
    records: tuple[PassRecord, ...]
    placed: Placement
    choices: Mapping[str, tuple[str, ...]]
    refusals: Mapping[str, Reason]
    pinned: Mapping[str, str]
    ranges: Ranges | None = None
    few_bits: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    transformed: Transformed | None = None
    tunings: dict[Hashable, Any] = field(default_factory=dict, compare=False)
    form: FloatForm = field(kw_only=True)
    notes: tuple[str, ...] = ()

    @property
    def target(self) -> Target:
        """Where the model is to run."""
        return self.job.target

    def nodes(self) -> dict[str, Node]:
        """The nodes that have a choice, by name, those of subgraphs included."""
        named = {node_name(node): node for node in self.graph.all_nodes()}
        return {name: named[name] for name in self.choices}

    def precisions(self) -> tuple[str, ...]:
        """The precisions that any node can have beside float."""
        return tuple(dict.fromkeys(p for own in self.choices.values() for p in own))

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest value of every tensor that may be read or given as integers.

        Behind an operator that only moves values about, a tensor has the range of what that
        operator reads. Where a plan leaves the operator in float, it needs the range under its own
        name.
        """
        seen = {} if self.ranges is None else self.ranges.ranges
        found = {name: (r.min, r.max) for name, r in seen.items()} | dict(self.few_bits)
        for value, root in self.placed.roots.items():
            if (line := self.placed.lines.get(root)) and line.source.name in found:
                low, high = (line.slope * end + line.offset for end in found[line.source.name])
                found.setdefault(root.name, (low, high))
            range_ = found.get(root.name) or known_range(root, self.placed)
            if range_ is not None:
                found.setdefault(value.name, range_)
        return found

    def finite_bounds(self) -> dict[str, tuple[float, float]]:
        """Those of `bounds` that a plan can hold."""
        return {name: ends for name, ends in self.bounds().items() if np.isfinite(ends).all()}

    def scene(self) -> Scene:
        """What the parts of noise are put in by."""
        return Scene(self.placed, self.target, self.bounds())

    def layer(self, node: Node, precision: str) -> Layer:
        """A node with a precision, as tuners see it."""
        limit = self.job.options.memory_limit
        return Layer(node, parse_precision(precision), self.target, limit)

    def needs(self) -> tuple[Need, ...]:
        """What has to be observed before a plan can be made."""
        nodes = self.nodes()
        found: dict[Need, None] = {}
        for text in self.precisions():
            having = [nodes[name] for name, choices in self.choices.items() if text in choices]
            found.update(dict.fromkeys(parse_precision(text).needs(having, self.placed)))
        return tuple(dict.fromkeys([*found, *self.witnesses(nodes.values())]))

    def witnesses(self, nodes: Iterable[Node]) -> list[Need]:
        """What shows a search that nodes in branches of an If run at all."""
        if not self.job.recipe.is_search:
            return []
        made = [n.output for n in nodes if n.graph.outer is not None and n.outputs[:1] != (None,)]
        return [
            RangeOf(value.name)
            for value in made
            if value.dtype is DataType.FLOAT and can_lift(value) and is_conditional(value)
        ]

    def work_folder(self) -> WorkFolder:
        """Where to keep what is found out about it."""
        job = self.job
        if job.options.work_folder is None:
            return WorkFolder()
        basis = (job.sha256, job.digest, self.form.passes, *job.recipe.keep_float)
        done = self.transformed.digest if self.transformed else ""
        more = (job.target.digest, self.graph.opset, job.options.keep_overridable, done)
        return WorkFolder(Path(job.options.work_folder), *basis, *map(str, more))


def prepare(job: Job) -> Prepared:
    """Rewrite a model, and find which precisions its nodes can have.

    Raises:
        InputError: a pass or node that the recipe names is not there, or a pin cannot be.
        NothingToQuantizeError: no node can have any of the precisions.
    """
    wanted = dict.fromkeys([*job.precisions, *(p.precision for p in job.pins)])
    for pin in job.pins:
        _check(pin)
    form, notes = float_form(job, needed_opset(wanted, job.target), tuple(wanted))
    graph, records = float_graph(
        job.source, form.passes, job.target, form.opset, job.context, job.progress
    )
    placed = place(graph, job.target, frozenset(job.recipe.keep_float))
    if (
        any(parse_precision(text).is_static for text in wanted)
        and not job.target.has_integer_kernels
    ):
        raise InputError(
            f"target {job.target.label} has no integer kernels, so static integers would only "
            "cost time there; use another recipe, as float16 or int4-weight"
        )
    return _with_choices(
        Prepared(job, graph, tuple(records), placed, {}, {}, {}, form=form, notes=notes)
    )


def float_form(
    job: Job, needed: int = 0, precisions: tuple[str, ...] = ()
) -> tuple[FloatForm, tuple[str, ...]]:
    """How the float model is written, and what was found in measuring that, in sentences.

    What a table of costs was measured with counts; otherwise, in a search for latency, what is
    measured to be the fastest here.

    Args:
        job: The job.
        needed: The opset that the precisions need.
        precisions: What nodes may be given.
    """
    options, table = job.options, job.options.cost_table
    form = FloatForm(job.recipe.passes, max(options.opset or 0, needed, job.source.opset))
    if table is not None and table.passes:
        return FloatForm(table.passes, max(table.opset, form.opset)), ()
    is_measured = job.recipe.is_search and options.cost == "latency" and table is None
    if not is_measured or job.missing_provider():
        return form, ()
    folder = None if options.work_folder is None else Path(options.work_folder)
    bench = Bench(job.target.backend, job.provider, options.threads, Measurements(folder))
    trial = Trial(
        job.target,
        lambda: job.one.feeds,
        bench,
        precisions,
        job.recipe.keep_float,
        options.opset is None,
        job.progress,
    )
    return fastest_form(job.source, form, trial)


def transformed(prepared: Prepared) -> Prepared:
    """The same with the float graph that the methods wanted turn it into.

    Raises:
        InputError: onnxruntime cannot run the model on the data.
    """
    if prepared.transformed is not None:
        return prepared
    job = prepared.job
    graph, found = transform_graph(prepared.graph, job, prepared.choices)
    prepared = replace(prepared, transformed=found)
    if graph is prepared.graph:
        return prepared
    placed = place(graph, job.target, frozenset(job.recipe.keep_float))
    records = (*prepared.records, *found.records)
    return _with_choices(replace(prepared, graph=graph, placed=placed, records=records))


def find_ranges(prepared: Prepared, *, histograms: bool = False) -> Ranges:
    """Ranges of the tensors that the precisions need, for the first format not below 8 bits.

    Where nothing has to be observed, no data is read. ``histograms`` keeps them even where the
    calibrator needs none.

    Raises:
        InputError: onnxruntime cannot run the model on the data.
    """
    job = prepared.job
    tensors = [need.tensor for need in prepared.needs() if isinstance(need, RangeOf)]
    if not tensors:
        return Ranges(job.sha256, str(job.calibrator), 0, {})
    static = _formats(job)
    format = next((f for f in static if not f.is_narrow), job.target.activation_format_of(8))
    # What is no integer must not overflow: nothing may be left out of its range.
    calibrator = job.calibrator if static else parse_calibrator("minmax")

    def find() -> Ranges:
        return calibrate(
            prepared.graph,
            job.samples,
            tensors,
            calibrator=calibrator,
            format=format,
            scheme=job.target.scheme_of(format),
            histograms=histograms,
            memory_limit=job.options.memory_limit,
            model_sha256=job.sha256,
            executor=job.executor,
            progress=job.progress,
        )

    return prepared.work_folder().get(
        "ranges",
        Ranges,
        find,
        calibrator=str(calibrator),
        format=format.name,
        tensors=tensors,
        histograms=histograms,
    )


def _formats(job: Job) -> list[Format]:
    """Formats of the activations of the static precisions that a job may use."""
    static = [p for p in map(parse_precision, job.precisions) if isinstance(p, Static)]
    return list(dict.fromkeys(p.activation_format(job.target) for p in static))


def _few_bits(job: Job, ranges: Ranges) -> dict[str, tuple[float, float]]:
    """Where formats of few bits end, which leave more out; nothing where it makes no difference."""
    found: dict[str, tuple[float, float]] = {}
    for format in _formats(job) if ranges.statistics else ():
        if format.is_narrow:
            scheme = job.target.scheme_of(format)
            own = ranges.with_calibrator(ranges.calibrator, format=format, scheme=scheme)
            found |= {
                few_bits(name, format): (ends.min, ends.max)
                for name, ends in own.ranges.items()
                if ends != ranges.ranges[name]
            }
    return found


def observed(prepared: Prepared) -> Prepared:
    """The same, transformed, with ranges, and without the nodes that have no usable ones.

    Raises:
        InputError: onnxruntime cannot run the model on the data.
        NothingToQuantizeError: no node has usable ranges.
    """
    prepared = transformed(prepared)
    ranges = find_ranges(prepared)
    found = replace(prepared, ranges=ranges, few_bits=_few_bits(prepared.job, ranges))
    if any(parse_precision(p).is_static for own in prepared.choices.values() for p in own):
        keep = frozenset(prepared.job.recipe.keep_float)
        placed = place_within(prepared.graph, prepared.target, found.bounds(), keep)
        found = replace(found, placed=placed)
    return _with_choices(found)


def _with_choices(prepared: Prepared) -> Prepared:
    """The same with the precisions that the nodes can have, as the placement is now."""
    job, graph, placed = prepared.job, prepared.graph, prepared.placed
    keep = set(job.recipe.keep_float)
    names = {node.name for node in graph.all_nodes()}
    for name in job.recipe.keep_float:
        if name not in names:
            raise InputError(
                f"the recipe keeps '{name}' in float, but after the float passes no node has that "
                "name; `onnxq rewrite` writes the model in which to look it up"
            )
    choices: dict[str, tuple[str, ...]] = {}
    refusals: dict[str, Reason] = {}
    computing: list[Reason] = []
    for node in graph.all_nodes():
        name = node_name(node)
        asked = [p.precision for p in job.pins if fnmatch.fnmatchcase(name, p.nodes)][-1:]
        if node in placed.nodes and placed.nodes[node].role != "compute":
            # What follows may go along with what was pinned.
            asked += [p.precision for p in job.pins if parse_precision(p.precision).is_static]
        refused = {
            text: parse_precision(text).refusal(node, placed) or _unbounded(prepared, text, node)
            for text in dict.fromkeys([*job.precisions, *asked])
        }
        found = tuple(text for text, reason in refused.items() if not reason and text != FLOAT)
        if node not in placed.nodes:
            # Static integers only store what it reads; others do so together with what ties it.
            found = tuple(t for t in found if not parse_precision(t).is_static) or found
        reasons = [reason for reason in refused.values() if reason is not None]
        reason = BY_REQUEST if name in keep else next(iter(reasons), None)
        if found and name not in keep:
            choices[name] = found
        elif reason is not None and reason.kind != UNRELATED:
            refusals[name] = reason
            computing += [reason] * _computes(node, job.target)
    if not choices:
        why = _why(computing, job.target)
        raise NothingToQuantizeError(f"nothing in the model can be quantized: {why}")
    pinned = _pinned(job.pins, choices)
    return replace(prepared, choices=choices, refusals=refusals, pinned=pinned)


def _unbounded(prepared: Prepared, text: str, node: Node) -> Reason | None:
    """Why what was observed speaks against a precision; placement has seen to static ones."""
    precision = parse_precision(text)
    if prepared.ranges is None or precision.is_static:
        return None
    seen = prepared.ranges.ranges
    tensors = [need.tensor for need in precision.needs([node], prepared.placed)]
    if any(need.tensor not in seen for need in prepared.witnesses([node])):
        return _NEVER_RUN
    wrong = next((name for name in tensors if name in seen and not seen[name].is_finite), "")
    return Reason("range", f"'{wrong}' has infinite or NaN values") if wrong else None


def _pinned(pins: Sequence[Pin], choices: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for pin in pins:
        matching = fnmatch.filter(choices, pin.nodes)
        if not matching:
            raise InputError(
                f"the pin '{pin.nodes}' matches no node that can be quantized; a plan made without "
                "it, by `onnxq plan`, names those that can"
            )
        found.update(dict.fromkeys(matching, pin.precision))
    for name, precision in found.items():
        if precision not in (FLOAT, *choices[name]):
            raise InputError(
                f"the node '{name}' cannot have the precision '{precision}' that a pin gives it; "
                "pin fewer nodes, or another precision"
            )
    return found


def _check(pin: Pin) -> None:
    try:
        parse_precision(pin.precision)
    except InputError as error:
        raise InputError(
            f"the pin '{pin.nodes}' asks for '{pin.precision}', but {error}"
        ) from error


def _computes(node: Node, target: Target) -> bool:
    rule = target.operators.get(node.op_type) if not node.domain else None
    return rule is not None and rule.role == "compute"


def _why(reasons: Sequence[Reason], target: Target) -> str:
    """Why nothing can be quantized, in the words of most of the operators that compute."""
    if not reasons:
        computing = sorted(n for n, r in target.operators.items() if r.role == "compute")
        return f"it has no {', '.join(computing)}"
    reason = Counter(reasons).most_common(1)[0][0]
    if reason != OVERRIDABLE:
        return reason.text
    return f"{reason.text}; if none does, make them constants: {AS_CONSTANTS}"

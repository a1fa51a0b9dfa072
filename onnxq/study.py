"""All that a plan rests on: the float graph, ranges, sensitivity and costs, found in that order."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from onnxq.cost import Costs, Measurements, flops_costs, measure_costs, size_costs
from onnxq.data import Batch, Dataset
from onnxq.errors import InputError
from onnxq.ir import Context, Graph, PassRecord
from onnxq.observe import Calibrator, Ranges, calibrate
from onnxq.passes.notes import node_name
from onnxq.passes.static.placement import Placement, known_range
from onnxq.plan import Assignment, Pin, Plan, Problem, build_problem, plan_nodes
from onnxq.plan.apply import PRECISIONS, STATIC, apply_precisions, needed_opset
from onnxq.precision import FLOAT
from onnxq.progress import SILENT, Progress
from onnxq.recipe import Recipe
from onnxq.runtime import missing_provider
from onnxq.sensitivity import PARTS, NodeSensitivity, Quantizable, Sensitivity, analyse
from onnxq.stages import float_graph, place_integers
from onnxq.targets import Target
from onnxq.work import WorkFolder, data_digest

CostKind = Literal["latency", "size", "flops"]


@dataclass(frozen=True)
class StudyOptions:
    """How to study a model.

    Attributes:
        precisions: What nodes may have; the recipe's or the target's if empty.
        cost: ``latency`` measured here, ``size`` in bytes, or ``flops`` computed.
        costs: A table measured elsewhere, instead.
        pins: Precisions set by hand.
        proxy: What losses are.
        method: How sensitivity is analysed.
        work_folder: Where to keep what is found, None to keep nothing.
        opset: Raise the model to at least this opset.
        constant_initializers: Whether weights that are inputs, too, were made constants.
        threads: Threads inside one operator, for latency.
        seed: Chose the samples.
        debug: Level of the passes' log.
    """

    precisions: tuple[str, ...] = ()
    cost: CostKind = "latency"
    costs: Costs | None = None
    pins: tuple[Pin, ...] = ()
    proxy: str = "noise"
    method: Literal["suffix", "exhaustive"] = "suffix"
    work_folder: Path | None = None
    opset: int = 0
    constant_initializers: bool = False
    threads: int = 1
    seed: int = 0
    debug: int = 0


@dataclass(frozen=True)
class Prepared:
    """A model that was rewritten and calibrated, ready to be analysed and measured.

    Attributes:
        model_sha256: Hash of the model's file.
        graph: The float graph after its passes. Plans are applied to copies of it.
        records: What the float passes did.
        placed: Placement with everything quantized that can be.
        ranges: Ranges of the tensors that static integers need.
        precisions: What nodes may have.
        steps: The recipe.
        table: The target.
        options: How it is studied.
    """

    model_sha256: str
    graph: Graph
    records: tuple[PassRecord, ...]
    placed: Placement
    ranges: Ranges
    precisions: tuple[str, ...]
    steps: Recipe
    table: Target
    options: StudyOptions

    def bounds(self) -> dict[str, tuple[float, float]]:
        """Smallest and largest value of every tensor that may be read or given as integers."""
        return spread({n: (r.min, r.max) for n, r in self.ranges.ranges.items()}, self.placed)


@dataclass(frozen=True)
class Study(Prepared):
    """What was found out about a model; `problem` and `plan` follow from it.

    Attributes:
        sensitivity: Predicted losses.
        costs: What nodes and borders cost.
    """

    sensitivity: Sensitivity
    costs: Costs

    def pinned(self) -> dict[str, str]:
        """Precision of the nodes that have one by hand.

        Raises:
            InputError: a pin matches no node with a choice, or asks for a precision it cannot have.
        """
        names = [node_name(n) for n, r in self.placed.nodes.items() if r.role != "absorb"]
        found: dict[str, str] = {}
        for pin in self.options.pins:
            matching = fnmatch.filter(names, pin.nodes)
            if not matching:
                raise InputError(f"the pin '{pin.nodes}' matches no node that can be quantized")
            if pin.precision not in PRECISIONS:
                raise InputError(
                    f"the pin '{pin.nodes}' asks for '{pin.precision}'; use one of "
                    f"{', '.join(PRECISIONS)}"
                )
            found.update(dict.fromkeys(matching, pin.precision))
        return found

    def problem(self, border_factor: float = 1.0) -> Problem:
        """The integer program, with borders that cost a multiple of what was measured.

        Raises:
            InputError: a pin asks for a precision that its node cannot have.
        """
        losses = {
            node.node: {p: loss for p in self.precisions if (loss := node.loss(p)) is not None}
            for node in self.sensitivity.nodes
        }
        borders = {
            name: (q * border_factor, d * border_factor)
            for name, (q, d) in self.costs.borders.items()
        }
        pins = self.pinned()
        nodes = {name: dict(costs) for name, costs in self.costs.nodes.items()}
        analysed = {node.node: node for node in self.sensitivity.nodes}
        for name, precision in pins.items():
            if precision != FLOAT and precision not in self.precisions and name in analysed:
                # Nobody asked what it costs: a pin is no choice.
                losses[name][precision] = _loss(analysed[name], precision)
                nodes.setdefault(name, {}).setdefault(precision, self.costs.of(name, FLOAT))
        costs = replace(self.costs, nodes=nodes, borders=borders)
        wanted = tuple(dict.fromkeys([*self.precisions, *pins.values()]))
        problem = build_problem(self.graph, self.placed, losses, costs, wanted, pins)
        for item in problem.items:
            given = {choice.precision for choice in item.choices}
            if item.name in pins and pins[item.name] not in given:
                raise InputError(
                    f"the node '{item.name}' cannot have the precision '{pins[item.name]}' that a "
                    "pin gives it; pin fewer nodes, or another precision"
                )
        return problem

    def plan(
        self, problem: Problem, chosen: Assignment, free: Assignment, promise: Sequence[str] = ()
    ) -> Plan:
        """The plan of an assignment, with reasons."""
        op_types = {node_name(node): node.op_type for node in self.graph.nodes()}
        floats = {item.name: FLOAT for item in problem.items}
        known = {item.name: {c.precision for c in item.choices} for item in problem.items}
        can_float = all(FLOAT in choices for choices in known.values())
        return Plan(
            model_sha256=self.model_sha256,
            target=self.table.name,
            passes=self.steps.passes,
            opset=self.graph.opset,
            constant_initializers=self.options.constant_initializers,
            calibrator=self.ranges.calibrator,
            seed=self.options.seed,
            promise=tuple(promise),
            proxy=self.sensitivity.proxy,
            cost_kind=self.costs.kind,
            cost=problem.cost(chosen.precisions),
            float_cost=problem.cost(floats) if can_float else 0.0,
            loss=chosen.loss,
            exact=chosen.exact,
            measured_on=self.costs.measured_on,
            nodes=plan_nodes(problem, op_types, chosen, free, self.pinned(), self.costs.kind),
            ranges=self.bounds(),
        )

    def apply(self, plan: Plan, debug: int = 0) -> tuple[Graph, list[PassRecord]]:
        """A copy of the graph with the plan's precisions, and what the passes did."""
        graph = self.graph.copy()
        records = apply_precisions(
            graph,
            plan.precisions(),
            self.table.name,
            self.bounds(),
            plan.reasons(),
            Context(debug),
        )
        return graph, records


def spread(
    ranges: Mapping[str, tuple[float, float]], placed: Placement
) -> dict[str, tuple[float, float]]:
    """Ranges of all tensors with pairs from those that were observed.

    Behind an operator that only moves values about, a tensor has the range of what that operator
    reads. Where a plan leaves the operator in float, it needs the range under its own name.
    """
    found = dict(ranges)
    for value, root in placed.roots.items():
        range_ = found.get(root.name) or known_range(root, placed)
        if range_ is not None:
            found.setdefault(value.name, range_)
    return found


def _loss(node: NodeSensitivity, precision: str) -> float:
    return (node.loss(precision) or 0.0) if precision in PARTS else 0.0


def uniform(problem: Problem, precision: str) -> Assignment:
    """Every node in one precision where it can have it, in static integers or float elsewhere.

    Nodes that only follow are left to what the placement makes of them.
    """
    precisions = {}
    for item in problem.items:
        choices = [c.precision for c in item.choices]
        precisions[item.name] = precision if precision in choices else choices[0]
    return Assignment(precisions, problem.cost(precisions), problem.loss(precisions))


def study(
    model_sha256: str,
    source: Graph,
    samples: Dataset,
    one: Batch,
    steps: Recipe,
    table: Target,
    calibrator: Calibrator,
    options: StudyOptions,
    progress: Progress = SILENT,
) -> Study:
    """Rewrite, calibrate, analyse and measure a model.

    Args:
        model_sha256: Hash of the model's file.
        source: The model as loaded.
        samples: Samples to calibrate on and to analyse sensitivity with.
        one: The feed that latency is measured with.
        steps: The recipe.
        table: The target.
        calibrator: How ranges are found.
        options: How to study.
        progress: Told of stages.

    Raises:
        InputError: the model, the data or an option cannot be used, or nothing in the model can
            be quantized.
    """
    if options.costs is None:
        _check_measurable(table, options)
    digest = data_digest(samples) if options.work_folder else ""
    prepared = prepare(
        model_sha256, source, samples, digest, steps, table, calibrator, options, progress
    )
    if options.costs is not None:
        _check_table(options.costs, prepared)
    sensitivity = find_losses(prepared, samples, digest, progress)
    costs = options.costs or find_costs(prepared, one, progress)
    return Study(**vars(prepared), sensitivity=sensitivity, costs=costs)


def prepare(
    model_sha256: str,
    source: Graph,
    samples: Dataset,
    digest: str,
    steps: Recipe,
    table: Target,
    calibrator: Calibrator,
    options: StudyOptions,
    progress: Progress = SILENT,
) -> Prepared:
    """Rewrite and calibrate a model: the first part of `study`.

    ``digest`` is that of the samples, for the work folder.

    Raises:
        InputError: the model, the data or an option cannot be used, or nothing in the model can
            be quantized.
    """
    precisions = options.precisions or steps.precisions or table.precisions
    for precision in precisions:
        if precision not in PARTS or precision not in PRECISIONS:
            able = ", ".join(p for p in PARTS if p in PRECISIONS)
            raise InputError(f"a search cannot choose '{precision}'; use some of {able}")
    pins = {pin.nodes: pin.precision for pin in options.pins if pin.precision in PRECISIONS}
    wanted = {p: p for p in precisions} | pins
    opset = max(table.opset, options.opset, needed_opset(wanted, table.name))
    graph, records = float_graph(source, steps, table, opset, options.debug, progress)
    placed = place_integers(graph, steps, table)

    def find_ranges() -> Ranges:
        progress.stage("calibrating", len(samples))
        return calibrate(
            graph,
            samples,
            placed.observed(),
            calibrator=calibrator,
            format=table.activation_format,
            scheme=table.activation_scheme,
            model_sha256=model_sha256,
            progress=lambda done, _: progress.advance(done),
        )

    work = _work_folder(options, model_sha256, digest, steps, table, graph)
    ranges = work.get("ranges", Ranges, find_ranges, calibrator=str(calibrator))
    return Prepared(
        model_sha256,
        graph,
        tuple(records),
        placed,
        ranges,
        precisions,
        steps,
        table,
        options,
    )


def find_losses(
    prepared: Prepared, samples: Dataset, digest: str, progress: Progress = SILENT
) -> Sensitivity:
    """Predicted loss of every node in every precision, from the work folder if it is there.

    Raises:
        InputError: the data cannot be used.
    """
    options, table = prepared.options, prepared.table
    quantizable = Quantizable(prepared.placed, table, prepared.bounds())
    work = _work_folder(
        options, prepared.model_sha256, digest, prepared.steps, table, prepared.graph
    )
    return work.get(
        "sensitivity",
        Sensitivity,
        lambda: analyse(
            prepared.graph,
            samples,
            quantizable,
            prepared.precisions,
            method=options.method,
            proxy=options.proxy,
            model_sha256=prepared.model_sha256,
            threads=options.threads,
            progress=progress,
        ),
        calibrator=prepared.ranges.calibrator,
        precisions=prepared.precisions,
        method=options.method,
        proxy=options.proxy,
    )


def find_costs(prepared: Prepared, one: Batch, progress: Progress = SILENT) -> Costs:
    """What nodes and borders cost, measured or computed as the options say.

    Raises:
        InputError: onnxruntime cannot run the model in one of the precisions.
    """
    graph, placed, options = prepared.graph, prepared.placed, prepared.options
    precisions, table = prepared.precisions, prepared.table
    _check_measurable(table, options)
    if options.cost != "latency":
        computed = size_costs if options.cost == "size" else flops_costs
        return replace(computed(graph, placed, precisions), model_sha256=prepared.model_sha256)
    progress.stage("measuring costs")
    variants = {}
    for precision in precisions:
        wanted = {
            node_name(node): precision
            for node, rule in placed.nodes.items()
            if rule.role != "absorb" and (rule.role == "compute" or precision in STATIC)
        }
        variant = graph.copy()
        apply_precisions(variant, wanted, table.name, prepared.bounds())
        variants[precision] = variant
    return measure_costs(
        graph,
        placed,
        variants,
        one.feeds,
        provider=table.provider,
        threads=options.threads,
        model_sha256=prepared.model_sha256,
        measurements=Measurements(options.work_folder),
    )


def _check_table(costs: Costs, prepared: Prepared) -> None:
    """Refuse a table of another model, or without what is asked for: missing costs count as 0."""
    if costs.model_sha256 not in ("", prepared.model_sha256):
        raise InputError("the cost table is for another model; measure this one with `onnxq cost`")
    for node, rule in prepared.placed.nodes.items():
        name = node_name(node)
        if rule.role != "compute":
            continue
        for precision in (FLOAT, *prepared.precisions):
            if precision not in costs.nodes.get(name, {}):
                raise InputError(
                    f"the cost table does not say what the node '{name}' costs in '{precision}'; "
                    "measure again with `onnxq cost` and the same --recipe, --target and "
                    "--precision"
                )


def _check_measurable(table: Target, options: StudyOptions) -> None:
    missing = missing_provider(table.provider) if options.cost == "latency" else ""
    if missing:
        raise InputError(
            f"the latency of target {table.name} cannot be measured here, because {missing}; take "
            "`--cost flops` or `--cost size`, or a table that `onnxq cost` measured there"
        )


def _work_folder(
    options: StudyOptions,
    model_sha256: str,
    digest: str,
    steps: Recipe,
    table: Target,
    graph: Graph,
) -> WorkFolder:
    conditions = (
        steps.passes,
        *steps.keep_float,
        table.name,
        str(graph.opset),
        str(options.constant_initializers),
    )
    return WorkFolder(options.work_folder, model_sha256, digest, *conditions)
